"""What the published image classifiers of TNN, TransNormer and HGRN share: their arguments, patches, head and names.

The order is patches → [+ positions] → dropout → blocks → mean → root-mean-square norm → classes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from subquad.compat.fairseq import Parts, Published
from subquad.compat.reference import Conversion, Rules
from subquad.layers import build_patch_embedding
from subquad.models import SubquadConfig, SubquadForImageClassification
from subquad.registry import unknown_name

Size = int | Sequence[int]

NAMES: Rules = [
    (r"^model\.embed_inputs\.proj\.", "to_patch_embedding.1."),
    (r"^model\.embed_inputs\.stem\.(weight|bias)$", r"to_patch_embedding.proj.\1"),
    (r"^model\.embed_inputs\.stem\.", "to_patch_embedding."),
    (r"^model\.positions\.weight$", "pos_embedding"),
    (r"\.channel_norm\.", ".feature_norm."),
    (r"\.channel_mixer\.", ".feature_mixer."),
    (r"^norm\.", "head.0."),
    (r"^classifier\.output_proj\.", "head.1."),
    (r"^model\.", ""),
]
CHANNEL_NAMES: dict[str, Rules] = {
    "glu": [
        (r"\bfeature_mixer\.gate_proj\.", "feature_mixer.l1."),
        (r"\bfeature_mixer\.up_proj\.", "feature_mixer.l2."),
        (r"\bfeature_mixer\.down_proj\.", "feature_mixer.l3."),
    ],
    "ffn": [
        (r"\bfeature_mixer\.up_proj\.", "feature_mixer.net.0."),
        (r"\bfeature_mixer\.down_proj\.", "feature_mixer.net.3."),
    ],
}


class PublishedForImageClassification(Published, SubquadForImageClassification):
    """A published image classifier with parts of its own."""

    def class_logits(self, images: Tensor, mask: None) -> Tensor:
        """Logits (batch, num_labels) of `images` (batch, channels, height, width)."""
        return self(images).logits


def patches(patch_type: str, patch_size: Size, stride: Size = 14) -> dict[str, Any]:
    """Our patch embedding for the published "mlp", "overlap" (which alone has a stride of its own) or "conv".

    Raises:
        ValueError: If the type is unknown.
    """
    embeddings = {
        "mlp": {"type": "linear", "patch_size": _size(patch_size)},
        "overlap": {"type": "overlap", "patch_size": _size(patch_size), "stride": _size(stride)},
        "conv": {"type": "conv"},
    }
    if patch_type not in embeddings:
        raise ValueError(unknown_name("patch embedding", patch_type, embeddings))
    return embeddings[patch_type]


def grid(patch_embedding: dict[str, Any], image_size: Size) -> tuple[int, int]:
    """Rows and columns of patches."""
    with torch.device("meta"):
        return build_patch_embedding(patch_embedding, 8, _size(image_size), 3).grid


def _size(published: Size) -> Any:
    return published if isinstance(published, int) else list(published)


def image_classifier(
    tensors: dict[str, Tensor],
    names: Rules,
    *,
    image_size: Size,
    channel_mixer: dict[str, Any],
    prenorm: bool,
    num_classes: int,
    use_pos: bool = False,
    pooling_norm: str = "simple_rmsnorm",
    parts: Parts | None = None,
    **options: Any,
) -> Conversion:
    """Convert a published image classifier.

    Args:
        tensors: Its state dict.
        names: What the parameters inside a token mixer are called, as in `Conversion`, where ours are
            "layers.0.token_mixer.…"; and what layers share, which is "shared.…".
        image_size: Height and width of the images, or one number for both.
        channel_mixer: Our channel mixer.
        prenorm: x + f(norm(x)), else x + norm(f(x)).
        num_classes: Number of classes.
        use_pos: Whether learned positions are added.
        pooling_norm: Norm of the mean over patches.
        parts: What no configuration of ours describes; the model cannot be saved then.
        **options: `SubquadConfig`'s other options of the patches, the blocks and the positions.
    """
    config = SubquadConfig(
        image_size=_size(image_size),
        channel_mixer=channel_mixer,
        norm_position="pre" if prenorm else "branch",
        final_norm=None,
        position_embedding="learned" if use_pos else None,
        causal=False,
        pooling_norm=pooling_norm,
        num_labels=num_classes,  # type: ignore[call-arg]
        **options,
    )
    model: Any = (PublishedForImageClassification if parts else SubquadForImageClassification)(config)
    for change in (parts or {}).values():
        change(model)
    if parts:
        model.parts = tuple(parts)
    if "pos_embedding" in tensors:
        tensors = {**tensors, "pos_embedding": tensors["pos_embedding"].flatten(0, -2)}
    return Conversion(model, tensors, [*NAMES, *CHANNEL_NAMES[channel_mixer["type"]], *names])
