"""Primal-Attention on ImageNet, as published: Primal.+DeiT and the classifier whose layers are all primal."""

import re
from typing import Any

import torch
from torch import Tensor, nn

from subquad.compat.primal import (
    PublishedLayer,
    PublishedPrimalAttention,
    blocks,
    score_names,
    square_of_mean,
    take_objectives,
)
from subquad.compat.reference import UNWRAP, Conversion, Rules, register_family
from subquad.layers import PatchEmbedding
from subquad.layers.patches import Size, as_pair
from subquad.mixers import Mixer, SoftmaxAttention
from subquad.registry import unknown_name

NAMES: Rules = [
    (r"\boutput_proj\.", "proj."),
    (r"\be_weight$", "we"),
    (r"\br_weight$", "wr"),
    *score_names(),
]
MODEL_NAMES: Rules = [
    *NAMES,
    (r"\btoken_mixer\.", "attn."),
    (r"\btoken_norm\.", "norm1."),
    (r"\bchannel_norm\.", "norm2."),
    (r"\bchannel_mixer\.up_proj\.", "mlp.fc1."),
    (r"\bchannel_mixer\.down_proj\.", "mlp.fc2."),
    (r"^layers\.", "blocks."),
]


def _split(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Stacked maps of queries, keys and values, "qkv" or "qk", as one each."""
    split = {}
    for name, tensor in tensors.items():
        stacked = re.fullmatch(r"(|.*\.)(qkv?)\.(weight|bias)", name)
        if stacked and len(tensor) % len(stacked[2]) == 0:
            for kind, part in zip(stacked[2], tensor.chunk(len(stacked[2])), strict=True):
                split[f"{stacked[1]}{kind}_proj.{stacked[3]}"] = part
        elif name != "indices":
            split[name] = tensor
    return split


def _primal(dim: int, num_heads: int, low_rank: int, rank_multi: int, embed_len: int, bias: bool) -> Mixer:
    """The published layer; where `embed_len` positions are no more than the samples, all of them are taken."""
    samples = min(embed_len, low_rank * rank_multi)
    attention = PublishedPrimalAttention(dim, False, num_heads=num_heads, rank=low_rank, num_samples=samples)
    return _input_biases(attention, bias)


def _input_biases(attention: Any, bias: bool) -> Mixer:
    """The attention, without the biases of queries, keys and values where they have none; the output always has one."""
    for name in () if bias else ("q_proj", "k_proj", "v_proj"):
        if hasattr(attention, name):
            getattr(attention, name).bias = None
    return attention


class Patches(PatchEmbedding):
    """Patches by a convolution; what is left over at the right and at the bottom is not seen."""

    def __init__(self, dim: int, image_size: Size, num_channels: int, patch_size: Size):
        super().__init__(dim, image_size, num_channels)
        self.proj = nn.Conv2d(num_channels, dim, as_pair(patch_size), as_pair(patch_size))
        self.grid = _grid(image_size, patch_size)

    def embed(self, pixel_values: Tensor) -> Tensor:
        """Patches (batch, rows · columns, dim) of `pixel_values`."""
        return self.proj(pixel_values).flatten(2).mT


class ImageClassifier(nn.Module):
    """A vision transformer (DeiT, arXiv 2012.12877) around these mixers.

    Args:
        layers: The blocks.
        dim: Features.
        img_size: Height and width of the images, or one number for both.
        patch_size: Height and width of a patch, or one number for both.
        in_chans: Channels of the images.
        num_classes: Classes.
        norm_eps: Epsilon of all norms.
        dropout: Probability of dropping entries of the embeddings.
        average: Whether the patches are averaged, in place of the class token.
    """

    def __init__(
        self,
        layers: nn.ModuleList,
        dim: int,
        *,
        img_size: Size,
        patch_size: Size,
        in_chans: int,
        num_classes: int,
        norm_eps: float,
        dropout: float,
        average: bool,
    ):
        super().__init__()
        self.patch_embed = Patches(dim, img_size, in_chans, patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, _num_positions(img_size, patch_size), dim))
        self.dropout = nn.Dropout(dropout)
        self.layers = layers
        self.norm = nn.Identity() if average else nn.LayerNorm(dim)
        self.fc_norm = nn.LayerNorm(dim) if average else nn.Identity()
        self.head = nn.Linear(dim, num_classes)
        self.average = average
        for norm in self.modules():
            if isinstance(norm, nn.LayerNorm):
                norm.eps = norm_eps

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Logits `y` (batch, num_classes) of images (batch, channels, height, width), and `ksvd`."""
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), self.patch_embed(x)], dim=1) + self.pos_embed
        x = self.dropout(x)
        for block in self.layers:
            x = block(x)[0]
        x = self.norm(x)
        features = self.fc_norm(x[:, 1:].mean(1) if self.average else x[:, 0])
        return {"y": self.head(features), "ksvd": square_of_mean(take_objectives(self))}

    def class_logits(self, images: Tensor, mask: None) -> Tensor:
        """Logits (batch, num_classes) of `images` (batch, channels, height, width)."""
        return self(images)["y"]

    @property
    def facts(self) -> dict[str, Any]:
        """What it takes and returns, as fields of a configuration."""
        num_channels, *image_size = self.patch_embed.shape
        return {
            "image_size": image_size,
            "num_channels": num_channels,
            "num_labels": self.head.out_features,
        }


def _grid(image_size: Size, patch_size: Size) -> tuple[int, int]:
    """Rows and columns of patches."""
    (height, width), (patch_height, patch_width) = as_pair(image_size), as_pair(patch_size)
    return height // patch_height, width // patch_width


def _num_positions(image_size: Size, patch_size: Size) -> int:
    """All patches, and the class token."""
    rows, columns = _grid(image_size, patch_size)
    return rows * columns + 1


@register_family("primal.cv")
def cv(
    tensors: dict[str, Tensor],
    *,
    dim: int,
    embed_len: int = 197,
    low_rank: int = 20,
    num_heads: int = 8,
    rank_multi: int = 10,
    qk_bias: bool = False,
) -> Conversion:
    """The bidirectional layer over (batch, length, dim)."""
    attention = _primal(dim, num_heads, low_rank, rank_multi, embed_len, qk_bias)
    return Conversion(PublishedLayer(attention, reduction=square_of_mean), _split(tensors), [*UNWRAP, *NAMES])


def _classifier(
    tensors: dict[str, Tensor],
    mixers: list[Mixer],
    *,
    embed_dim: int,
    mlp_ratio: float,
    drop_rate: float,
    drop_path_rate: float,
    **options: Any,
) -> Conversion:
    layers = blocks(mixers, int(embed_dim * mlp_ratio), dropout=drop_rate, drop_path=drop_path_rate)
    classifier = ImageClassifier(layers, embed_dim, dropout=drop_rate, **options)
    return Conversion(classifier, _split(tensors), MODEL_NAMES)


@register_family("primal.cv_vit")
def cv_vit(
    tensors: dict[str, Tensor],
    *,
    low_rank: int,
    img_size: Size = 224,
    patch_size: Size = 16,
    in_chans: int = 3,
    num_classes: int = 1000,
    embed_dim: int = 768,
    depth: int = 12,
    num_heads: int = 12,
    mlp_ratio: float = 4.0,
    qkv_bias: bool = True,
    rank_multi: int = 10,
    num_ksvd_layer: int = 1,
    drop_rate: float = 0.0,
    attn_drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    norm_eps: float = 1e-6,
) -> Conversion:
    """Primal.+DeiT: the last `num_ksvd_layer` of `depth` layers are primal."""
    if not 0 < num_ksvd_layer <= depth:
        raise ValueError(f"`num_ksvd_layer` must be 1 … {depth}, the depth, got {num_ksvd_layer}")
    mixers = [
        _input_biases(SoftmaxAttention(embed_dim, False, num_heads=num_heads, dropout=attn_drop_rate), qkv_bias)
        for _ in range(depth - num_ksvd_layer)
    ]
    length = _num_positions(img_size, patch_size)
    mixers += [_primal(embed_dim, num_heads, low_rank, rank_multi, length, qkv_bias) for _ in range(num_ksvd_layer)]
    return _classifier(
        tensors,
        mixers,
        embed_dim=embed_dim,
        mlp_ratio=mlp_ratio,
        drop_rate=drop_rate,
        drop_path_rate=drop_path_rate,
        img_size=img_size,
        patch_size=patch_size,
        in_chans=in_chans,
        num_classes=num_classes,
        norm_eps=norm_eps,
        average=False,
    )


@register_family("primal.cv_former")
def cv_former(
    tensors: dict[str, Tensor],
    *,
    low_rank: list[int],
    img_size: Size = 224,
    patch_size: Size = 16,
    in_chans: int = 3,
    num_classes: int = 1000,
    global_pool: str = "token",
    embed_dim: int = 768,
    depth: int = 12,
    num_heads: int = 12,
    mlp_ratio: float = 4.0,
    qk_bias: bool = True,
    rank_multi: int = 10,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    norm_eps: float = 1e-6,
) -> Conversion:
    """All layers primal, `low_rank` holds the rank of each."""
    if len(low_rank) != depth:
        raise ValueError(f"`low_rank` must have one rank for each of the {depth} layers, got {low_rank}")
    if global_pool not in ("token", "avg"):
        raise ValueError(unknown_name("global_pool", global_pool, ("token", "avg")))
    length = _num_positions(img_size, patch_size)
    return _classifier(
        tensors,
        [_primal(embed_dim, num_heads, rank, rank_multi, length, qk_bias) for rank in low_rank],
        embed_dim=embed_dim,
        mlp_ratio=mlp_ratio,
        drop_rate=drop_rate,
        drop_path_rate=drop_path_rate,
        img_size=img_size,
        patch_size=patch_size,
        in_chans=in_chans,
        num_classes=num_classes,
        norm_eps=norm_eps,
        average=global_pool == "avg",
    )
