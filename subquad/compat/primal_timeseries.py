"""Primal-Attention on the UEA time series, as published: PrimalFormer and Primal.+Trans.

A classifier of series: a linear map, positions, post-norm blocks over all positions, and one linear map of all
positions at once. Padding is hidden from nothing but that last map.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from subquad.compat.primal import (
    PROJECTION_NAMES,
    PublishedLayer,
    PublishedPrimalAttention,
    blocks,
    score_names,
    take_objectives,
)
from subquad.compat.reference import UNWRAP, Conversion, Rules, check_options, register_family
from subquad.layers import activation as get_activation
from subquad.mixers import Mixer, SoftmaxAttention
from subquad.registry import unknown_name

NAMES: Rules = [*PROJECTION_NAMES, *score_names("inner_attention.")]
MODEL_NAMES: Rules = [
    *NAMES,
    (r"\btoken_mixer\.", "attention."),
    (r"\bchannel_mixer\.up_proj\.", "conv1."),
    (r"\bchannel_mixer\.down_proj\.", "conv2."),
    (r"\btoken_norm\.", "norm1."),
    (r"\bchannel_norm\.", "norm2."),
    (r"^layers\.", "encoder.attn_layers."),
    (r"^norm\.", "encoder.norm."),
    (r"^positions$", "pos_enc.pe"),
]


def _attention(dim: int, n_heads: int, low_rank: int, rank_multi: int, max_seq_len: int) -> PublishedPrimalAttention:
    samples = min(max_seq_len, low_rank * rank_multi)
    return PublishedPrimalAttention(dim, causal=False, num_heads=n_heads, rank=low_rank, num_samples=samples)


class SeriesClassifier(nn.Module):
    """The published classifier of series of one length.

    Args:
        layers: The blocks.
        dim: Features.
        activation: Activation before the last map, by name.
        dropout: Probability of dropping entries of what goes into the blocks and into the last map.
        feat_dim: Numbers at each position.
        max_len: Positions.
        num_classes: Classes.
        learned_positions: Whether positions are trained.
    """

    def __init__(
        self,
        layers: nn.ModuleList,
        dim: int,
        *,
        activation: str,
        dropout: float,
        feat_dim: int,
        max_len: int,
        num_classes: int,
        learned_positions: bool,
    ):
        super().__init__()
        self.project_inp = nn.Linear(feat_dim, dim)
        self.positions = nn.Parameter(self.project_inp.weight.new_zeros(max_len, 1, dim), learned_positions)
        self.dropout = nn.Dropout(dropout)
        self.layers = layers
        self.norm = nn.LayerNorm(dim)
        self.activation = get_activation(activation)
        self.output_layer = nn.Linear(max_len * dim, num_classes)

    def forward(self, x: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Classify.

        Args:
            x: (batch, max_len, feat_dim), zero at padding.
            mask: (batch, max_len), 1 for real positions.

        Returns:
            `y` (batch, num_classes), the logits, and where layers are primal `ksvd` (batch,), the mean over them of J².

        Raises:
            ValueError: If the series have another length.
        """
        if x.shape[1] != self.only_length:
            raise ValueError(f"this classifier takes series of {self.only_length} positions, got {x.shape[1]}")
        x = self.project_inp(x) * math.sqrt(self.positions.shape[-1])
        x = self.dropout(x + self.positions.squeeze(1))
        for block in self.layers:
            x = block(x)[0]
        x = self.dropout(self.activation(self.norm(x))) * mask.unsqueeze(-1)
        outputs = {"y": self.output_layer(x.flatten(1))}
        objectives = take_objectives(self)
        return outputs | {"ksvd": torch.stack(objectives).square().mean(0)} if objectives else outputs

    def class_logits(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Logits (batch, num_classes) of `x`, see `forward`; without a mask all positions are real."""
        return self(x, x.new_ones(x.shape[:2]) if mask is None else mask)["y"]

    @property
    def only_length(self) -> int:
        """Positions of every series."""
        return len(self.positions)

    @property
    def facts(self) -> dict[str, Any]:
        """What it takes and returns, as fields of a configuration."""
        return {
            "input_features": self.project_inp.in_features,
            "classifier": "linear",
            "num_labels": self.output_layer.out_features,
        }


@register_family("primal.timeseries")
def timeseries(
    tensors: dict[str, Tensor],
    *,
    d_model: int,
    n_heads: int,
    low_rank: int,
    rank_multi: int,
    max_seq_len: int,
    attn_type: str = "primal_cos",
) -> Conversion:
    """The bidirectional layer over (batch, length, dim)."""
    if attn_type != "primal_cos":
        raise ValueError(unknown_name("attn_type", attn_type, ("primal_cos",)))
    attention = _attention(d_model, n_heads, low_rank, rank_multi, max_seq_len)
    tensors.pop("indices", None)
    return Conversion(PublishedLayer(attention), tensors, [*UNWRAP, *NAMES])


def _classifier(
    tensors: dict[str, Tensor],
    hybrid: bool,
    *,
    feat_dim: int,
    max_len: int,
    attn_type: str = "primal_cos",
    d_model: int = 512,
    n_heads: int = 8,
    num_layers: int = 3,
    d_ff: int = 512,
    num_classes: int = 100,
    dropout: float = 0.0,
    pos_encoding: str = "fixed",
    activation: str = "gelu",
    norm: str = "BatchNorm",
    freeze: bool = False,
    low_rank: int = 20,
    rank_multi: int = 10,
    nb_features: int = 64,
    factor: int = 5,
) -> Conversion:
    """Both models, and their baseline where `attn_type` is "softmax"; `hybrid` is two layers, softmax and `attn_type`.

    `norm` is never read, all norms are LayerNorms; `nb_features` and `factor` are those of other attentions.
    """
    for name, value, known in (
        ("attn_type", attn_type, ("primal_cos", "softmax")),
        ("pos_encoding", pos_encoding, ("learnable", "fixed")),
        ("activation", activation, ("gelu", "relu")),
    ):
        if value not in known:
            raise ValueError(unknown_name(name, value, known))
    mixers: list[Mixer] = []
    for kind in ["softmax", attn_type] if hybrid else [attn_type] * num_layers:
        if kind == "softmax":
            mixers.append(SoftmaxAttention(d_model, causal=False, num_heads=n_heads, dropout=dropout))
        else:
            mixers.append(_attention(d_model, n_heads, low_rank, rank_multi, max_len))
    classifier = SeriesClassifier(
        blocks(mixers, d_ff, dropout=dropout, activation=activation, norm_position="post"),
        d_model,
        activation=activation,
        dropout=dropout,
        feat_dim=feat_dim,
        max_len=max_len,
        num_classes=num_classes,
        learned_positions=pos_encoding == "learnable",
    )
    # Their maps of single positions are convolutions of width one.
    weights = {name: t.squeeze(-1) if "conv" in name and t.ndim == 3 else t for name, t in tensors.items()}
    return Conversion(classifier, weights, MODEL_NAMES)


@register_family("primal.ts_former")
def ts_former(tensors: dict[str, Tensor], **config: Any) -> Conversion:
    """PrimalFormer, or with `attn_type` "softmax" the published baseline."""
    check_options("primal.ts_former", _classifier, config)
    return _classifier(tensors, False, **config)


@register_family("primal.ts_trans")
def ts_trans(tensors: dict[str, Tensor], **config: Any) -> Conversion:
    """Primal.+Trans.: a softmax layer, then a primal one, whatever `num_layers` says."""
    check_options("primal.ts_trans", _classifier, config)
    return _classifier(tensors, True, **config)
