"""The shell of the published image classifiers of TNN, TransNormer and HGRN.

    patches → [+ positions] → dropout → depth × block(token mixer, channel mixer) → mean → norm → classes

A family brings its token mixers and the names of what is inside them:

    patches = vit.patch_embedding(patch_type, dim, image_size, patch_size, channels)
    mixers = [OurMixer(dim, causal=False, ...) for _ in range(depth)]              # over patches.grid, row after row
    model = vit.ImageClassifier(patches, mixers, [vit.glu(dim, glu_dim, glu_act) for _ in range(depth)], ...)
    return vit.classifier(tensors, model, names)

`names` are rules, as in `Conversion`, for parameters that our mixer calls "layers.0.token_mixer.…". What layers share,
as lower bounds, is the model's `shared`, under its name in `names` ("shared.…").
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from subquad.compat.reference import Conversion, OnlyOutput, Rules, activation_name
from subquad.compat.residual import Residual
from subquad.layers import FFN, GLU, build_norm
from subquad.layers.norms import SimpleRMSNorm
from subquad.layers.patches import PatchEmbedding, Size, build_patch_embedding
from subquad.mixers import Mixer
from subquad.registry import unknown_name

PATCH_TYPES = {"mlp": "linear", "overlap": "overlap", "conv": "conv"}

NAMES: Rules = [
    (r"^to_patch_embedding\.proj\.", "to_patch_embedding.1."),
    (r"^to_patch_embedding\.stem\.(weight|bias)$", r"to_patch_embedding.proj.\1"),
    (r"^to_patch_embedding\.stem\.", "to_patch_embedding."),
    (r"^(layers\.\d+)\.0\.norm\.", r"\1.token_norm."),
    (r"^(layers\.\d+)\.1\.norm\.", r"\1.feature_norm."),
    (r"^(layers\.\d+)\.0\.layer\.module\.", r"\1.token_mixer."),
    (r"^(layers\.\d+)\.1\.layer\.", r"\1.feature_mixer."),
    (r"\bfeature_mixer\.gate_proj\.", "feature_mixer.l1."),
    (r"\bfeature_mixer\.up_proj\.", "feature_mixer.l2."),
    (r"\bfeature_mixer\.down_proj\.", "feature_mixer.l3."),
    (r"\bfeature_mixer\.0\.up_proj\.", "feature_mixer.net.0."),
    (r"\bfeature_mixer\.0\.down_proj\.", "feature_mixer.net.3."),
]


def patch_embedding(
    patch_type: str, dim: int, image_size: int | Sequence[int], patch_size: int | Sequence[int], channels: int
) -> PatchEmbedding:
    """The patch embedding "mlp", "overlap" or "conv".

    Raises:
        ValueError: If the type is unknown, or sizes do not fit.
    """
    if patch_type not in PATCH_TYPES:
        raise ValueError(unknown_name("patch embedding", patch_type, PATCH_TYPES))
    sizes = {} if patch_type == "conv" else {"patch_size": _size(patch_size)}
    return build_patch_embedding({"type": PATCH_TYPES[patch_type], **sizes}, dim, _size(image_size), channels)


def _size(published: int | Sequence[int]) -> Size:
    return published if isinstance(published, int) else (published[0], published[1])


def glu(dim: int, hidden_size: int, act: str) -> nn.Module:
    """A gated channel mixer; an activation that the published code does not know, as "swish", is the identity."""
    return GLU(dim, hidden_size, activation_name(act))


def ffn(dim: int, hidden_size: int, dropout: float) -> nn.Module:
    """A channel mixer without a gate, with dropout after both maps."""
    return nn.Sequential(FFN(dim, hidden_size, "gelu", dropout=dropout), nn.Dropout(dropout))


class ImageClassifier(nn.Module):
    """A whole model, called on images (batch, channels, height, width).

    Args:
        patches: The patch embedding.
        mixers: One token mixer for each block.
        channel_mixers: One channel mixer for each block.
        norm: Norm of the blocks, by our name.
        prenorm: x + f(norm(x)), else x + norm(f(x)).
        num_classes: Classes.
        position_shape: Shape of the learned positions, (1, rows, columns, dim) or (1, at least the patches, dim).
        dropout: Probability of dropping entries of the embedded patches.
        shared: Parameters that the mixers share; returns keyword arguments for each.
    """

    def __init__(
        self,
        patches: PatchEmbedding,
        mixers: Sequence[Mixer],
        channel_mixers: Sequence[nn.Module],
        *,
        norm: str,
        prenorm: bool,
        num_classes: int,
        position_shape: tuple[int, ...] | None = None,
        dropout: float = 0.0,
        shared: nn.Module | None = None,
    ):
        super().__init__()
        dim = mixers[0].dim
        position = "pre" if prenorm else "branch"
        self.to_patch_embedding = patches
        self.pos_embedding = nn.Parameter(torch.empty(position_shape)) if position_shape else None
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            nn.ModuleList(Residual(layer, build_norm(norm, dim), position) for layer in (OnlyOutput(mixer), channel))
            for mixer, channel in zip(mixers, channel_mixers, strict=True)
        )
        self.shared = shared
        self.head = nn.Sequential(SimpleRMSNorm(dim), nn.Linear(dim, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (batch, num_classes)."""
        x = self.to_patch_embedding(images)
        if self.pos_embedding is not None:
            x = x + self.pos_embedding.flatten(1, -2)[:, : x.shape[1]]
        x = self.dropout(x)
        shared = [{}] * len(self.layers) if self.shared is None else self.shared()
        for (token, channel), own in zip(self.layers, shared, strict=True):  # type: ignore[misc]
            x = channel(token(x, **own))
        return self.head(x.mean(1))


def classifier(tensors: dict[str, Tensor], model: ImageClassifier, names: Rules) -> Conversion:
    """Convert a whole model; `names` are those of what is inside its mixers."""
    return Conversion(model, tensors, [*NAMES, *names])
