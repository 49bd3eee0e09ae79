"""Primal-Attention as published (arXiv 2305.19798): the layer, and the language model whose last layer it is.

What the published layers do that ours does not: padding counts as any other position, in the means, among the samples
and in the objective. Where they return the term of the kernel SVD's objective, in evaluation too, the output here is a
dictionary with `y` and `ksvd`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from subquad.compat import fairseq, transformer
from subquad.compat.reference import UNWRAP, Conversion, Rules, register_family
from subquad.mixers import Mixer, PrimalAttention
from subquad.mixers.base import State
from subquad.models import Block, SubquadConfig

ETA = 0.1
"""Weight of the objective's term in the published criterion, a constant there."""


class PublishedPrimalAttention(PrimalAttention):
    """Padding is a position as any other, and the objective of the last call is kept, outside training too."""

    _objective: Tensor | None = None

    def mix(self, x: Tensor, state: State | None, mask: Tensor | None) -> tuple[Tensor, State | None]:
        """Mix a batch of rows, whatever `mask` says."""
        e, r, state = self.scores(x, state, None)
        self._objective = self.objective(e, r, None)
        if self.training:
            self.add_auxiliary_loss("ksvd", self._objective.square().mean())
        return self.output_proj(self.combine(e, r)), state

    def take_objective(self) -> Tensor:
        """J of each row of the last call (batch,), once."""
        objective, self._objective = self._objective, None
        assert objective is not None
        return objective


def take_objectives(module: nn.Module) -> list[Tensor]:
    """J of each row of the last call, (batch,) from each Primal-Attention in `module`."""
    return [m.take_objective() for m in module.modules() if isinstance(m, PublishedPrimalAttention)]


def mean_square(objectives: list[Tensor]) -> Tensor:
    """J², the mean over layers and batch, from the objectives (batch,) of each layer."""
    return torch.stack(objectives).square().mean()


def square_of_mean(objectives: list[Tensor]) -> Tensor:
    """Square of the batch's mean J, the mean over layers, from the objectives (batch,) of each layer."""
    return torch.stack([objective.mean() for objective in objectives]).square().mean()


class PublishedLayer(nn.Module):
    """A Primal-Attention, or a block around one, called as published: without a state, and with the objective's term.

    Args:
        module: The mixer or the block.
        time_first: Whether the layout is (length, batch, dim).
        reduction: From the objectives (batch,) of the layers to the term.
    """

    def __init__(
        self,
        module: nn.Module,
        time_first: bool = False,
        reduction: Callable[[list[Tensor]], Tensor] = mean_square,
    ):
        super().__init__()
        self.module = module
        self.time_first = time_first
        self.reduction = reduction

    def forward(self, x: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        """`y`, layout of `x`, and `ksvd`; `mask` (batch, length) is 1 for real tokens."""
        x = x.transpose(0, 1) if self.time_first else x
        y = self.module(x, mask=None if mask is None else mask.bool())[0]
        return {"y": y.transpose(0, 1) if self.time_first else y, "ksvd": self.reduction(take_objectives(self))}


def blocks(
    mixers: list[Mixer],
    hidden_size: int,
    *,
    dropout: float,
    activation: str = "gelu",
    norm_position: str = "pre",
    drop_path: float = 0.0,
) -> nn.ModuleList:
    """Blocks around these mixers, each with a feed-forward network of width `hidden_size`."""
    config = SubquadConfig(
        hidden_size=mixers[0].dim,
        num_hidden_layers=len(mixers),
        channel_mixer={"type": "ffn", "hidden_size": hidden_size, "activation": activation, "dropout": dropout},
        norm="layernorm",
        norm_position=norm_position,
        dropout=dropout,
        drop_path=drop_path,
        causal=False,
    )
    layers = nn.ModuleList(Block(config, index) for index in range(len(mixers)))
    for block, mixer in zip(layers, mixers, strict=True):
        block.token_mixer = mixer
    return layers


def score_names(inner: str = "") -> Rules:
    """Published names of what a Primal-Attention has and a softmax attention has not; `inner` is a module's name."""
    return [
        (r"\be_weight$", "We"),
        (r"\br_weight$", "Wr"),
        (r"\bspectrum$", f"{inner}Lambda"),
        (r"\bscore_proj\.", f"{inner}concate_weight."),
    ]


PROJECTION_NAMES: Rules = [
    (r"\bq_proj\.", "query_projection."),
    (r"\bk_proj\.", "key_projection."),
    (r"\bv_proj\.", "value_projection."),
    (r"\boutput_proj\.", "out_projection."),
]
"""Names of the maps in the decision transformer and in the classifiers of time series."""


@register_family("primal.PrimalAttention")
def primal_attention(
    tensors: dict[str, Tensor],
    *,
    embed_dim: int,
    num_heads: int,
    dropout: float = 0.0,
    bias: bool = True,
    add_bias_kv: bool = False,
    add_zero_attn: bool = False,
    self_attention: bool = False,
    low_rank: int = 30,
    rank_multi: int = 10,
    seq_len: int = 512,
) -> Conversion:
    """The causal layer of the language model over (length, batch, dim); dropout is never applied in it."""
    if add_bias_kv or add_zero_attn:
        raise ValueError("`add_bias_kv` and `add_zero_attn` cannot be true: the published code fails in such a layer")
    attention = PublishedPrimalAttention(embed_dim, num_heads=num_heads, rank=low_rank, bias=bias)
    return Conversion(
        PublishedLayer(attention, time_first=True), tensors, [*UNWRAP, *score_names(), (r"^output_proj\.", "out_proj.")]
    )


@register_family("primal.rl")
def rl(
    tensors: dict[str, Tensor], *, d_model: int, n_heads: int, low_rank: int, seq_len: int | None = None
) -> Conversion:
    """The causal layer of the decision transformer over (batch, length, dim)."""
    attention = PublishedPrimalAttention(d_model, num_heads=n_heads, rank=low_rank)
    return Conversion(PublishedLayer(attention), tensors, [*UNWRAP, *PROJECTION_NAMES, *score_names()])


def _attention(tensors: dict[str, Tensor], prefix: str, args: dict[str, Any]) -> PublishedPrimalAttention:
    """The mixer whose tensors begin with `prefix`; its rank is no published argument, the weights say it."""
    spectrum = tensors.get(f"{prefix}.Lambda")
    rank = args.get("low_rank", 30) if spectrum is None else spectrum.shape[-1]
    fairseq.require(args, "decoder_embed_dim", "decoder_attention_heads")
    return PublishedPrimalAttention(args["decoder_embed_dim"], num_heads=args["decoder_attention_heads"], rank=rank)


@register_family("primal.decoder_layer")
def decoder_layer(tensors: dict[str, Tensor], *, primal: bool = True, **args: Any) -> Conversion:
    """One causal layer over (length, batch, dim)."""
    if not primal:
        return transformer.decoder_layer(tensors, **args)
    attention = _attention(tensors, "self_attn", args)
    conversion = transformer.block_conversion(tensors, args, attention)
    conversion.module = PublishedLayer(conversion.module, time_first=True)
    conversion.names = [*score_names(), *conversion.names]
    return conversion


@register_family("primal.fairseq_lm")
def fairseq_lm(tensors: dict[str, Tensor], **args: Any) -> Conversion:
    """Fairseq's `transformer_lm` with a Primal-Attention in its last layer, whatever the options say."""
    fairseq.require(args, "decoder_layers")
    last = args["decoder_layers"] - 1
    attention = _attention(tensors, f"decoder.layers.{last}.self_attn", args)
    softmax = transformer.block_options(args)["mixers"]
    primal = {"type": "primal", "num_heads": attention.num_heads, "rank": attention.spectrum.shape[-1]}
    conversion = transformer.language_model(
        tensors, args, mixers=[*softmax * last, primal], auxiliary_loss_weights={"ksvd": ETA}
    )
    model: Any = conversion.module
    model.model.layers[last] = transformer.build_block(model.config, last, args, attention)
    model.register_forward_hook(report_objective)
    conversion.names = [*score_names(), *conversion.names]
    return conversion


def report_objective(model: Any, inputs: Any, outputs: Any) -> Any:
    """Forward hook: the output has `ksvd`, the mean over the batch of J²."""
    outputs["ksvd"] = mean_square(take_objectives(model))
    return outputs
