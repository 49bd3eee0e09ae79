"""HGRN as published (arXiv 2311.04823): the token mixers of hgru-pytorch, and the models around them.

Rows 2j and 2j + 1 of the published input map are the real and the imaginary part of channel j; ours has all real parts
before all imaginary ones, as the recurrence returns them. The image and Long Range Arena code sums the shares of the
layers below into a lower bound; ours, as the language model, those of all layers but the first up to the own one. A
rotation of the layers turns one into the other.
"""

import re
from typing import Any

import torch
from torch import Tensor, nn

from subquad.compat import fairseq, lra, vit
from subquad.compat.reference import Conversion, Rules, activation_name, check_options, register_family
from subquad.layers import LowerBounds
from subquad.mixers import HGRU, HGRU2D
from subquad.mixers.hgru import Scans
from subquad.registry import unknown_name

NAMES: Rules = [
    (r"\btoken_mixer\.forget_proj\.", "token_mixer.lambda_proj."),
    (r"\btoken_mixer\.gate_proj\.", "token_mixer.gate."),
    (r"\btoken_mixer\.output_proj\.", "token_mixer.out_proj."),
    (r"\btoken_mixer\.phase$", "token_mixer.theta"),
]
SEPARATE_PHASES: Rules = [
    (r"\btoken_mixer\.phase$", "token_mixer.theta_forward"),
    (r"\btoken_mixer\.reverse_phase$", "token_mixer.theta_reverse"),
]


class SigmoidGatedHGRU(HGRU):
    """The second published version: norm(h) ⊙ σ(W_g x)."""

    def readout(self, x: Tensor, h: Tensor) -> Tensor:
        """The output (batch, length, dim) from the input and the states."""
        return self.output_proj(self.norm(h.to(x.dtype)) * torch.sigmoid(self.gate_proj(x)))


class NormLastHGRU(HGRU):
    """The third published version, and the paper's order: norm(h ⊙ σ(W_g x))."""

    def readout(self, x: Tensor, h: Tensor) -> Tensor:
        """The output (batch, length, dim) from the input and the states."""
        return self.output_proj(self.norm(h.to(x.dtype) * torch.sigmoid(self.gate_proj(x))))


class ForwardHGRU2D(HGRU2D):
    """The published "causal" form over grids: the forward scan of each axis alone."""

    def scans(self) -> Scans:
        """The scans whose states are added up."""
        return super().scans()[:1]


class TimeFirstHGRU(nn.Module):
    """An HGRU called as published: positions first, with the lower bound as the second argument."""

    def __init__(self, unit: HGRU):
        super().__init__()
        self.token_mixer = unit

    def forward(self, x: Tensor, lower_bound: Tensor | float = 0.0) -> Tensor:
        """Mix `x`, (length, batch, dim) or (height, width, batch, dim); `lower_bound` is (dim,) or one number."""
        if isinstance(self.token_mixer, HGRU2D):
            self.token_mixer.grid = (x.shape[0], x.shape[1])
        bound = torch.as_tensor(lower_bound, dtype=x.dtype, device=x.device)
        y, _ = self.token_mixer(x.flatten(0, -3).transpose(0, 1), lower_bound=bound)
        return y.transpose(0, 1).reshape(x.shape)


def _our_layout(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Complex input maps with all real rows before all imaginary ones, phases without axes of length 1."""
    tensors = dict(tensors)
    phases = [match for name in tensors if (match := re.fullmatch(r"(|.*\.)theta(_forward|_reverse)?", name))]
    for match in phases:
        tensors[match[0]] = tensors[match[0]].flatten()
    for prefix in {match[1] for match in phases}:
        for name in (f"{prefix}input_proj.weight", f"{prefix}input_proj.bias"):
            if name in tensors:
                tensors[name] = torch.cat([tensors[name][0::2], tensors[name][1::2]])
    return tensors


def _names(unit: HGRU) -> Rules:
    """What the parameters of `unit` are called in the published code."""
    return [*(SEPARATE_PHASES if unit.reverse_phase is not None else []), *NAMES]


def _unit(tensors: dict[str, Tensor], unit: HGRU) -> Conversion:
    return Conversion(TimeFirstHGRU(unit), _our_layout(tensors), [*_names(unit), (r"^token_mixer\.", "")])


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
    activation = activation_name(act_fun)
    return _unit(tensors, HGRU(embed_dim, causal, separate_phases=False, activation=activation, bias=bias))


def _low_rank(
    tensors: dict[str, Tensor],
    unit: type[HGRU],
    *,
    embed_dim: int,
    gate_dim: int = 128,
    act_fun: str = "silu",
    causal: bool = True,
    use_triton: bool = False,
    bias: bool = True,
) -> Conversion:
    options = {"separate_phases": False, "gate_rank": gate_dim, "bias": bias}
    return _unit(tensors, unit(embed_dim, causal, activation=activation_name(act_fun), **options))


@register_family("hgrn.Hgru1dV2")
def hgru1d_v2(tensors: dict[str, Tensor], **config: Any) -> Conversion:
    """Complex recurrence over (length, batch, dim), the second version."""
    check_options("hgrn.Hgru1dV2", _low_rank, config)
    return _low_rank(tensors, SigmoidGatedHGRU, **config)


@register_family("hgrn.Hgru1dV3")
def hgru1d_v3(tensors: dict[str, Tensor], **config: Any) -> Conversion:
    """Complex recurrence over (length, batch, dim), the third version."""
    check_options("hgrn.Hgru1dV3", _low_rank, config)
    return _low_rank(tensors, NormLastHGRU, **config)


@register_family("hgrn.BiHgru1d")
def bihgru1d(tensors: dict[str, Tensor], *, embed_dim: int, act_fun: str = "silu") -> Conversion:
    """Complex recurrence both ways over (length, batch, dim), each way with phases of its own."""
    return _unit(tensors, HGRU(embed_dim, causal=False, activation=activation_name(act_fun)))


@register_family("hgrn.HgruReal1d")
def hgru_real1d(
    tensors: dict[str, Tensor], *, embed_dim: int, act_fun: str = "silu", causal: bool = True
) -> Conversion:
    """Real recurrence over (length, batch, dim)."""
    return _unit(tensors, HGRU(embed_dim, causal, complex=False, activation=activation_name(act_fun)))


def _grid_unit(kind: type[HGRU2D], dim: int, act_fun: str, **options: Any) -> HGRU2D:
    """A unit for grids of any size: it is set before each call."""
    return kind(dim, height=1, width=1, activation=activation_name(act_fun), **options)


@register_family("hgrn.Hgru2d")
def hgru2d(tensors: dict[str, Tensor], *, embed_dim: int, act_fun: str = "silu", causal: bool = True) -> Conversion:
    """Complex recurrence over (height, width, batch, dim), one phase for all scans."""
    kind = ForwardHGRU2D if causal else HGRU2D
    return _unit(tensors, _grid_unit(kind, embed_dim, act_fun, separate_phases=False))


@register_family("hgrn.BiHgru2d")
def bihgru2d(tensors: dict[str, Tensor], *, embed_dim: int, act_fun: str = "silu", causal: bool = True) -> Conversion:
    """Complex recurrence over (height, width, batch, dim), both ways whatever `causal` says."""
    return _unit(tensors, _grid_unit(HGRU2D, embed_dim, act_fun))


@register_family("hgrn.HgruReal2d")
def hgru_real2d(
    tensors: dict[str, Tensor], *, embed_dim: int, act_fun: str = "silu", causal: bool = True
) -> Conversion:
    """Real recurrence over (height, width, batch, dim), both ways whatever `causal` says."""
    return _unit(tensors, _grid_unit(HGRU2D, embed_dim, act_fun, complex=False))


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
    unit = {"bias": args.get("bias", True)}
    return fairseq.language_model(
        _our_layout(tensors),
        {"decoder_normalize_before": True, **args},
        [
            *NAMES,
            (r"\btoken_mixer\.", "self_attn.hgru."),
            *fairseq.GLU_NAMES,
            (r"^model\.shared\.hgru\.weight$", "model.lower_bounds"),
        ],
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


@register_family("hgrn.im_vit")
def im_vit(
    tensors: dict[str, Tensor],
    *,
    embed_dim: int = 384,
    depth: int = 12,
    glu_dim: int = 576,
    img_size: int | list[int] = 224,
    patch_size: int | list[int] = 16,
    channels: int = 3,
    num_classes: int = 1000,
    glu_act: str = "silu",
    emb_dropout: float = 0.0,
    prenorm: bool = True,
    param_share: bool = True,
    in_chans: int = 3,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
) -> Conversion:
    """An image classifier over the patches row by row; the published code ignores the last three arguments."""
    names = [*([] if param_share else SEPARATE_PHASES), *NAMES, (r"^shared\.hgru\.weight$", "lower_bounds")]
    return vit.image_classifier(
        _our_bounds(_our_layout(tensors)),
        names,
        image_size=img_size,
        patch_embedding=vit.patches("mlp", patch_size),
        num_channels=channels,
        hidden_size=embed_dim,
        num_hidden_layers=depth,
        mixers=[{"type": "hgru", "separate_phases": not param_share}],
        channel_mixer={"type": "glu", "hidden_size": glu_dim, "activation": activation_name(glu_act)},
        norm="layernorm",
        prenorm=prenorm,
        embedding_dropout=float(emb_dropout),
        num_classes=num_classes,
    )


def _our_bounds(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Lower bounds of the image and Long Range Arena code, rotated by one layer."""
    return {name: t.roll(1, 0) if name.split(".")[-1] == "lower_bounds" else t for name, t in tensors.items()}


def _long_range_unit(
    d_model: int,
    kind: str,
    *,
    act_fun: str = "silu",
    param_share: bool = True,
    use_lower_bound: bool = True,
    causal: bool = False,
    use_real: bool = False,
    dropout: float = 0.0,
) -> HGRU:
    """A unit as the Long Range Arena code builds it: only units over grids can be real, and then never causal."""
    options: dict[str, Any] = {"lower_bounds": use_lower_bound}
    if kind == "hgru1d":
        activation = activation_name(act_fun)
        return HGRU(d_model, causal and param_share, separate_phases=not param_share, activation=activation, **options)
    if use_real:
        return _grid_unit(HGRU2D, d_model, act_fun, complex=False, **options)
    return _grid_unit(
        ForwardHGRU2D if causal and param_share else HGRU2D,
        d_model,
        act_fun,
        separate_phases=not param_share,
        **options,
    )


@register_family("hgrn.lra")
def long_range_model(tensors: dict[str, Tensor], **config: Any) -> Conversion:
    """A model of the Long Range Arena, or with the arguments of its `model` alone the backbone.

    A whole model is called with tokens or features, and lengths where it pools by them; a backbone with
    (batch, length, dim).
    """
    if "model" in config:
        check_options("hgrn.lra", _classifier, config)
        return _classifier(tensors, **config)
    return lra.backbone(*_backbone(tensors, config))


def _classifier(
    tensors: dict[str, Tensor], *, dataset: dict[str, Any], encoder: Any, model: dict[str, Any], decoder: Any
) -> Conversion:
    return lra.classifier(*_backbone(tensors, model), dataset=dataset, encoder=encoder, decoder=decoder)


def _backbone(tensors: dict[str, Tensor], model: dict[str, Any]) -> tuple[dict[str, Tensor], lra.Backbone, Rules]:
    check_options("hgrn.lra", lra.Backbone, model)
    kind, options = lra.layer_options(model["layer"][0], model)
    if kind not in ("hgru1d", "hgru2d"):
        raise ValueError(unknown_name("layer of an HGRN", kind, ("hgru1d", "hgru2d")))
    check_options(f"layer {kind!r}", _long_range_unit, options)
    units = [_long_range_unit(model["d_model"], kind, **options) for _ in range(model["n_layers"])]
    shared = None
    if options.get("use_lower_bound", True):
        shared = LowerBounds(model["n_layers"], model["d_model"])
        tensors = _our_bounds(tensors)
    else:
        # They are in the file, and nothing reads them.
        tensors = {name: t for name, t in tensors.items() if name.split(".")[-1] != "lower_bounds"}
    names = [
        (r"\bshared\.weight$", "lower_bounds"),
        (r"\blayer\.mixer\.", "token_mixer."),
        *_names(units[0]),
        (r"\btoken_mixer\.", "layer.hgru."),
    ]
    backbone = lra.Backbone([lra.SequenceMixer(unit) for unit in units], **model, shared=shared)
    return _our_layout(tensors), backbone, names
