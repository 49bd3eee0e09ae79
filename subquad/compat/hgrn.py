"""HGRN as published (arXiv 2311.04823): the token mixers of hgru-pytorch and the fairseq language model.

Rows 2j and 2j + 1 of the published input map are the real and the imaginary part of channel j; ours has all real parts
before all imaginary ones, as the recurrence returns them.
"""

from typing import Any

import torch
from torch import Tensor, nn

from subquad.compat import fairseq
from subquad.compat.reference import Conversion, Rules, activation_name, register_family
from subquad.mixers import HGRU

NAMES: Rules = [
    (r"\btoken_mixer\.forget_proj\.", "self_attn.hgru.lambda_proj."),
    (r"\btoken_mixer\.gate_proj\.", "self_attn.hgru.gate."),
    (r"\btoken_mixer\.output_proj\.", "self_attn.hgru.out_proj."),
    (r"\btoken_mixer\.phase$", "self_attn.hgru.theta"),
    (r"\btoken_mixer\.", "self_attn.hgru."),
]


class TimeFirstHGRU(nn.Module):
    """An HGRU called as published: time first, with the lower bound as the second argument."""

    def __init__(self, unit: HGRU):
        super().__init__()
        self.token_mixer = unit

    def forward(self, x: Tensor, lower_bound: Tensor | float = 0.0) -> Tensor:
        """Mix `x` (length, batch, dim); `lower_bound` is (dim,) or one number."""
        bound = torch.as_tensor(lower_bound, dtype=x.dtype, device=x.device)
        return self.token_mixer(x.transpose(0, 1), lower_bound=bound)[0].transpose(0, 1)


def _our_layout(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Complex input maps with all real rows before all imaginary ones, phases without axes of length 1."""
    complex_units = {name.removesuffix("theta") for name in tensors if name.split(".")[-1] == "theta"}
    for prefix in complex_units:
        tensors[f"{prefix}theta"] = tensors[f"{prefix}theta"].flatten()
        for name in (f"{prefix}input_proj.weight", f"{prefix}input_proj.bias"):
            if name in tensors:
                tensors[name] = torch.cat([tensors[name][0::2], tensors[name][1::2]])
    return tensors


def _unit(tensors: dict[str, Tensor], unit: HGRU) -> Conversion:
    return Conversion(TimeFirstHGRU(unit), _our_layout(tensors), [*NAMES, (r"^self_attn\.hgru\.", "")])


@register_family("hgrn.Hgru1d")
def hgru1d(
    tensors: dict[str, Tensor],
    *,
    embed_dim: int,
    act_fun: str = "silu",
    causal: bool = True,
    use_triton: bool = False,
    bias: bool = True,
) -> Conversion:
    """Complex recurrence over (length, batch, dim), the first version: the one of all published models."""
    return _unit(tensors, HGRU(embed_dim, causal, activation=activation_name(act_fun), bias=bias))


@register_family("hgrn.HgruReal1d")
def hgru_real1d(
    tensors: dict[str, Tensor], *, embed_dim: int, act_fun: str = "silu", causal: bool = True
) -> Conversion:
    """Real recurrence over (length, batch, dim)."""
    return _unit(tensors, HGRU(embed_dim, causal, complex=False, activation=activation_name(act_fun)))


@register_family("hgrn.fairseq_lm")
def fairseq_lm(tensors: dict[str, Tensor], **args: Any) -> Conversion:
    """The language model of fairseq-evo; padding tokens are ordinary inputs."""
    fairseq.require(args, "decoder_embed_dim")
    if not args.get("use_glu", True):
        raise ValueError("`use_glu` = False: no published HGRN has another channel mixer than the GLU")
    if not args.get("no_token_positional_embeddings", True):
        raise ValueError("`no_token_positional_embeddings` = False: no published HGRN has positional embeddings")
    channel_mixer, parts = fairseq.glu(
        args.get("glu_act"),
        int(args["decoder_embed_dim"] * args.get("multiple", 2)),
        args.get("glu_dropout", 0.0),
        args.get("fina_act"),
        fairseq.channel_bias(args, tensors),
    )
    unit = {"activation": activation_name(args.get("act_fun", "silu")), "bias": args.get("bias", True)}
    return fairseq.language_model(
        _our_layout(tensors),
        {"decoder_normalize_before": True, **args},
        [*NAMES, *fairseq.GLU_NAMES, (r"^model\.shared\.hgru\.weight$", "model.lower_bounds")],
        parts=parts,
        mixers=[{"type": "hgru", **unit}],
        channel_mixer=channel_mixer,
        norm=_norm(args.get("attn_type")),
        final_norm=_norm(args.get("final_layernorm")),
        embedding_norm=_norm(args.get("embdding_layernorm")),
        causal=args.get("causal", True),
    )


def _norm(published: Any) -> str:
    return "simple_rmsnorm" if published == "simplermsnorm" else "layernorm"
