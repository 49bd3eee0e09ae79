"""TNN as published (arXiv 2305.04749): the layers of tnn-pytorch and the fairseq language models, causal and masked.

What the published code has beyond our Toeplitz operator stands here: positions relative to the length (`par_type` 2
and 3), division by the operator of ones (`normalize`), the unit with a shortcut of its own (fairseq's first version)
and the one that gates itself (GtuV3).
"""

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from subquad.compat import fairseq
from subquad.compat.reference import (
    UNWRAP,
    Conversion,
    OnlyOutput,
    Rules,
    activation_name,
    check_options,
    norm_name,
    register_family,
)
from subquad.layers import GLU, RelativePositionEncoder, build_norm
from subquad.layers import activation as get_activation
from subquad.layers.norms import RMSNorm
from subquad.mixers import GTU, TNO
from subquad.mixers.base import State
from subquad.mixers.gated_toeplitz import GatedToeplitzUnit
from subquad.models import Block, SubquadConfig
from subquad.ops import toeplitz
from subquad.registry import unknown_name


class PartialRMSNorm(RMSNorm):
    """RMSNorm whose root mean square is that of the first `num_measured` entries."""

    def __init__(self, dim: int, num_measured: int, bias: bool = False):
        super().__init__(dim, bias)
        self.num_measured = num_measured

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` (..., dim)."""
        wide = x if x.dtype == torch.float64 else x.float()
        root = torch.linalg.vector_norm(wide[..., : self.num_measured], dim=-1, keepdim=True)
        y = self.weight * (wide / (root * self.num_measured**-0.5 + 1e-8)).to(x.dtype)
        return y if self.bias is None else y + self.bias


class PublishedTNO(TNO):
    """Toeplitz operator with the published options that ours leaves out.

    Args:
        dim: Channels.
        causal: As in `TNO`.
        par_type: Positions that the encoder sees, for lag k and length n: 1 is k, 2 is k/(n−1), 3 is exp(k/(n−1));
            a window shorter than n takes its place. With 2 and 3 the kernel depends on the length, and a state of
            another length says nothing.
        normalize: Whether the output is divided by the operator of a sequence of ones.
        **options: As in `TNO`.
    """

    def __init__(self, dim: int, causal: bool, *, par_type: int = 1, normalize: bool = False, **options: Any):
        super().__init__(dim, causal, **options)
        self.par_type = par_type
        self.normalize = normalize

    def positions(self, length: int) -> Tensor:
        """What the encoder sees for each lag (num_lags,)."""
        lags = super().positions(length)
        if self.par_type == 1:
            return lags
        longest = min(length, self.window or length)
        share = lags.double() / max(longest - 1, 1)
        return share if self.par_type == 2 else share.exp()

    def kernel(self, length: int) -> Tensor:
        """The kernel of exactly this length: that of a longer one may differ."""
        return super().kernel(length) if self.par_type == 1 else self.coefficients(length)

    def forward(self, x: Tensor, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Apply the operator, as in `TNO`."""
        y, inputs = super().forward(x, past)
        if self.normalize:
            length = inputs.shape[1]
            center = 0 if self.causal else length - 1
            y = y / toeplitz(torch.ones_like(inputs[:1]), self.kernel(length), center=center, num_outputs=x.shape[1])
        return y, inputs


class ShortcutGTU(GTU):
    """Fairseq's first version: GTU(norm(x)) + x, inside a block that adds its own norm and shortcut.

    Args:
        dim: As in `GTU`.
        causal: As in `GTU`.
        pre_norm: Norm before the unit, by name.
        **options: As in `GTU`.
    """

    def __init__(self, dim: int, causal: bool, *, pre_norm: str, **options: Any):
        super().__init__(dim, causal, **options)
        self.pre_norm = build_norm(pre_norm, dim)

    def mix(self, x: Tensor, state: State | None, mask: Tensor | None) -> tuple[Tensor, State | None]:
        """Mix a batch of rows, as in `GTU`."""
        y, state = super().mix(self.pre_norm(x), state, mask)
        return y + x, state


class SelfGatedGTU(GTU):
    """Fairseq's GtuV3: one map without activation is gate and operator's input, W_o norm(z ⊙ TNO(z)) with z = W_i x."""

    def __init__(self, dim: int, causal: bool, **options: Any):
        super().__init__(dim, causal, **options)
        del self.gate_proj
        self.activation = nn.Identity()

    def branches(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The same z (batch, length, width) twice."""
        z = self.input_proj(x)
        return z, z


class HeadFirstTNO(nn.Module):
    """A Toeplitz operator called as published: (batch, heads, ..., dim), along any axis between."""

    def __init__(self, tno: PublishedTNO):
        super().__init__()
        self.tno = tno

    def forward(self, x: Tensor, dim: int = -2, normalize: bool = False) -> Tensor:
        """Apply the operator to `x` (batch, heads, ..., dim) along axis `dim`, a negative number."""
        if x.shape[dim] == 0:
            raise ValueError(f"`x` has length 0 along axis {dim}: the operator needs at least one position")
        self.tno.normalize = normalize
        moved = x.movedim((dim, 1), (-3, -2))
        rows = moved.flatten(-2)
        y, _ = self.tno(rows.flatten(0, -3))
        return y.reshape(moved.shape).movedim((-3, -2), (dim, 1))


class PublishedRPE(nn.Module):
    """A relative position encoder called as published: positions (num_positions, 1)."""

    def __init__(self, rpe: RelativePositionEncoder):
        super().__init__()
        self.rpe = rpe

    def forward(self, biases: Tensor) -> Tensor:
        """Coefficients (num_positions, dim)."""
        return self.rpe(biases.squeeze(-1))


def _norm_names(published: str) -> Rules:
    """Names of parameters of norms, wherever a norm of this type stands; `LayerNorm`'s are ours."""
    where = r"(^|\.)((?:token_|channel_|pre_)?norm|norms\.\d+)"
    weight = {"rmsnorm": "scale", "gatedrmsnorm": "scale", "scalenorm": "scala"}.get(published)
    return [(where + r"\.weight$", rf"\1\2.{weight}"), (where + r"\.bias$", r"\1\2.offset")] if weight else []


def operator_names(norm_type: str, layers: int) -> Rules:
    """Names inside an operator and its encoder."""
    return [
        *_norm_names(norm_type),
        (r"\brpe\.input_proj\.", "rpe.pos_proj."),
        (r"\brpe\.layers\.(\d+)\.", r"rpe.layers.\1.2."),
        (rf"\brpe\.norms\.{layers}\.", "rpe.out.0."),
        (r"\brpe\.norms\.(\d+)\.", r"rpe.layers.\1.0."),
        (r"\brpe\.output_proj\.", "rpe.out.2."),
        (r"\b(tno|operator)\.decay(_logit)?$", "tno.gamma"),
    ]


def _unit_names(norm_type: str, layers: int) -> Rules:
    """Names inside a unit, once those of a channel mixer beside it are gone."""
    return [
        *operator_names(norm_type, layers),
        (r"\b(tno|operator)\.", "toep."),
        (r"\bgate_proj\.", "u_proj."),
        (r"\binput_proj\.", "v_proj."),
        (r"\boutput_proj\.", "o."),
    ]


PLAIN = {"par_type": 1, "normalize": False}
FUNCTION_OPTIONS = ("act_fun", "rpe_act", "act_type")
SELF_GATED_NAMES: Rules = [(r"\bv_proj\.", "in_proj."), (r"\bo\.", "out_proj.")]
GLU_NAMES: Rules = [(r"\bgate_proj\.", "l1."), (r"\bup_proj\.", "l2."), (r"\bdown_proj\.", "l3.")]


def check_operator(causal: bool, use_decay: bool, use_multi_decay: bool, par_type: int) -> None:
    """Hold the published arguments of an operator against each other.

    Raises:
        ValueError: If they exclude each other, or a value is impossible.
    """
    if use_decay and use_multi_decay:
        raise ValueError("`use_decay` and `use_multi_decay` exclude each other: set one of them to false")
    if par_type not in (1, 2, 3):
        raise ValueError(f"`par_type` must be 1, 2 or 3, got {par_type!r}")
    if par_type == 3 and not causal:
        raise ValueError("`par_type` 3 is not defined for negative lags: use it with `causal`, or take `par_type` 1")


def flat_decay(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Decays of shape (heads, 1, head_dim) as (dim,)."""
    return {name: t.flatten() if name.split(".")[-1] == "gamma" else t for name, t in tensors.items()}


def unit_options(
    *,
    embed_dim: int,
    num_heads: int,
    bias: bool = True,
    act_fun: str = "silu",
    causal: bool = False,
    expand_ratio: float = 3,
    resi_param: bool = False,
    use_norm: bool = False,
    norm_type: str = "simplermsnorm",
    use_decay: bool = False,
    use_multi_decay: bool = False,
    rpe_layers: int = 3,
    rpe_embedding: int = 512,
    rpe_act: str = "relu",
    normalize: bool = False,
    par_type: int = 1,
    residual: bool = False,
    gamma: float = 0.99,
    act_type: str = "none",
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A published unit's arguments, with its defaults, as options of ours and of what ours leaves out."""
    check_operator(causal, use_decay, use_multi_decay, par_type)
    if resi_param:
        raise ValueError("`resi_param` cannot be true: the published code fails to build such a unit")
    width = int(expand_ratio * embed_dim) // num_heads * num_heads
    if width < 1:
        raise ValueError(f"`expand_ratio` {expand_ratio} leaves no channel for each of the {num_heads} heads")
    if width != int(expand_ratio * embed_dim):
        expand_ratio = math.nextafter(width / embed_dim, math.inf)
    options = {
        "expand_ratio": expand_ratio,
        "activation": activation_name(act_fun),
        "norm": norm_name(norm_type) if use_norm else None,
        "bias": bias,
        "decay": gamma if use_decay or use_multi_decay else None,
        "learn_decay": use_multi_decay,
        "rpe_hidden_size": rpe_embedding,
        "rpe_layers": rpe_layers,
        "rpe_activation": activation_name(rpe_act),
        "rpe_norm": norm_name(norm_type),
        "rpe_residual": residual,
        "kernel_activation": activation_name(act_type),
    }
    return options, {"par_type": par_type, "normalize": normalize}


def _extend(unit: GTU, options: dict[str, Any], legacy: dict[str, Any]) -> GTU:
    """Give a unit the published operator where ours does not do."""
    if legacy != PLAIN:
        operator = {key: value for key, value in options.items() if key in inspect.signature(TNO).parameters}
        unit.operator = PublishedTNO(unit.operator.dim, unit.causal, rpe_bias=options["bias"], **operator, **legacy)
    return unit


@register_family("tnn.norm")
def norm(tensors: dict[str, Tensor], *, norm_type: str, d: int, p: float = -1.0, bias: bool = False) -> Conversion:
    """A norm over the last axis; `p` and `bias` are options of "rmsnorm" alone."""
    module = build_norm(norm_name(norm_type), d)
    if norm_type == "rmsnorm":
        module = RMSNorm(d, bias)
        if 0 <= p <= 1:
            if int(d * p) < 1:
                raise ValueError(f"`p` = {p} measures none of the {d} entries: use at least 1/{d}, or -1 for all")
            module = PartialRMSNorm(d, int(d * p), bias)
    names = [(r"^", "norm."), *_norm_names(norm_type), (r"^norm\.", "")]
    return Conversion(module, tensors, names)


@register_family("tnn.Rpe")
def rpe(
    tensors: dict[str, Tensor],
    *,
    dim: int,
    outdim: int,
    residual: bool,
    act: str = "relu",
    bias: bool = True,
    layers: int = 3,
    norm_type: str = "simplermsnorm",
) -> Conversion:
    """A relative position encoder, (num_positions, 1) to (num_positions, outdim)."""
    encoder = RelativePositionEncoder(outdim, dim, layers, activation_name(act), norm_name(norm_type), residual, bias)
    return Conversion(PublishedRPE(encoder), tensors, [*operator_names(norm_type, layers), (r"^rpe\.", "")])


@register_family("tnn.Tno")
def tno(
    tensors: dict[str, Tensor],
    *,
    h: int,
    dim: int,
    rpe_dim: int,
    causal: bool = False,
    use_decay: bool = False,
    use_multi_decay: bool = False,
    residual: bool = False,
    act: str = "relu",
    par_type: int = 1,
    gamma: float = 0.999,
    bias: bool = True,
    act_type: str = "none",
    layers: int = 3,
    norm_type: str = "simplermsnorm",
) -> Conversion:
    """A Toeplitz operator over (batch, heads, length, head_dim)."""
    check_operator(causal, use_decay, use_multi_decay, par_type)
    operator = PublishedTNO(
        h * dim,
        causal,
        par_type=par_type,
        decay=gamma if use_decay or use_multi_decay else None,
        learn_decay=use_multi_decay,
        rpe_hidden_size=rpe_dim,
        rpe_layers=layers,
        rpe_activation=activation_name(act),
        rpe_norm=norm_name(norm_type),
        rpe_residual=residual,
        rpe_bias=bias,
        kernel_activation=activation_name(act_type),
    )
    names = [*operator_names(norm_type, layers), (r"^tno\.", "")]
    return Conversion(HeadFirstTNO(operator), flat_decay(tensors), names)


@register_family("tnn.Gtu")
def gtu(tensors: dict[str, Tensor], **config: Any) -> Conversion:
    """A gated Toeplitz unit over (batch, length, dim)."""
    check_options("tnn.Gtu", unit_options, config)
    options, legacy = unit_options(**config)
    unit = _extend(GTU(config["embed_dim"], config.get("causal", False), **options), options, legacy)
    names = _unit_names(config.get("norm_type", "simplermsnorm"), options["rpe_layers"])
    return Conversion(OnlyOutput(unit), flat_decay(tensors), [*UNWRAP, *names])


@register_family("tnn.GLU")
def glu(
    tensors: dict[str, Tensor],
    *,
    d1: int,
    d2: int,
    act_fun: str,
    fina_act: str = "None",
    dropout: float = 0.0,
    bias: bool = True,
) -> Conversion:
    """A gated linear unit over (..., d1)."""
    unit: nn.Module = GLU(d1, d2, activation_name(act_fun), bias, dropout)
    if activation_name(fina_act) != "identity":
        unit = nn.Sequential(unit, fairseq.Elementwise(get_activation(activation_name(fina_act))))
    return Conversion(unit, tensors, [(r"^0\.", ""), *GLU_NAMES])


@register_family("tnn.TnnLayer")
def tnn_layer(
    tensors: dict[str, Tensor],
    *,
    dim: int,
    num_heads: int,
    rpe_embedding: int,
    glu_dim: int,
    prenorm: bool = True,
    norm_type: str = "simplermsnorm",
    causal: bool = False,
    gtu_act: str = "silu",
    expand_ratio: float = 3,
    use_decay: bool = False,
    gamma: float = 0.999,
    rpe_act: str = "relu",
    rpe_layers: int = 3,
    glu_act: str = "silu",
) -> Conversion:
    """A block over (batch, length, dim), its norms before the mixers or on their outputs."""
    options, _ = unit_options(
        embed_dim=dim,
        num_heads=num_heads,
        act_fun=gtu_act,
        causal=causal,
        expand_ratio=expand_ratio,
        norm_type=norm_type,
        use_decay=use_decay,
        rpe_layers=rpe_layers,
        rpe_embedding=rpe_embedding,
        rpe_act=rpe_act,
        gamma=gamma,
    )
    config = SubquadConfig(
        hidden_size=dim,
        num_hidden_layers=1,
        mixers=[{"type": "tno", **options}],
        channel_mixer={"type": "glu", "hidden_size": glu_dim, "activation": activation_name(glu_act)},
        norm=norm_name(norm_type),
        norm_position="pre" if prenorm else "branch",
        causal=causal,
    )
    names = [
        *UNWRAP,
        (r"^channel_mixer\.gate_proj\.", "feature_mixer.l1."),
        (r"^channel_mixer\.up_proj\.", "feature_mixer.l2."),
        (r"^channel_mixer\.down_proj\.", "feature_mixer.l3."),
        *_unit_names(norm_type, rpe_layers),
        (r"^channel_norm\.", "feature_norm."),
    ]
    return Conversion(OnlyOutput(Block(config, 0)), flat_decay(tensors), names)


@register_family("tnn.fairseq_lm")
def fairseq_lm(tensors: dict[str, Tensor], **args: Any) -> Conversion:
    """The language models of fairseq-evo, "tnn_v2_lm" and "tnn_lm"; padding tokens are ordinary inputs."""
    if not args.get("no_token_positional_embeddings", True):
        raise ValueError("`no_token_positional_embeddings` = False: no published TNN has positional embeddings")
    blocks = _fairseq_blocks(tensors, args, "decoder", ("tnn_lm", "tnn_v2_lm"))
    return fairseq.language_model(
        flat_decay(tensors),
        args,
        blocks.names,
        parts=blocks.parts,
        causal=blocks.causal,
        use_cache=args.get("par_type", 1) == 1,
        **blocks.options,
    )


@register_family("tnn.fairseq_roberta")
def fairseq_roberta(tensors: dict[str, Tensor], **args: Any) -> Conversion:
    """The masked language models of fairseq-evo, "roberta_tnn_v2" and "roberta_tnn"."""
    args.setdefault("no_token_positional_embeddings", True)
    blocks = _fairseq_blocks(tensors, args, "encoder", ("roberta_tnn", "roberta_tnn_v2"))
    return fairseq.masked_language_model(
        flat_decay(tensors), args, blocks.names, parts=blocks.parts, pooling="mean", **blocks.options
    )


@dataclass
class FairseqBlocks:
    """The blocks of a published fairseq model: names inside them, parts, options of `SubquadConfig`, direction."""

    names: Rules
    parts: fairseq.Parts
    options: dict[str, Any]
    causal: bool


def _fairseq_blocks(
    tensors: dict[str, Tensor], args: dict[str, Any], side: str, models: tuple[str, str]
) -> FairseqBlocks:
    """The blocks of a "decoder" or "encoder"; the first of `models` is that of the first version."""
    fairseq.require(args, "model", f"{side}_embed_dim", f"{side}_attention_heads")
    if args["model"] not in models:
        raise ValueError(unknown_name("model", args["model"], models))
    dim, heads = args[f"{side}_embed_dim"], args[f"{side}_attention_heads"]
    known = {"causal": side == "decoder", "rpe_layers": 6, "rpe_embedding": 64, "embed_dim": dim, "num_heads": heads}
    known |= {key: args[key] for key in inspect.signature(unit_options).parameters if key in args}
    options, legacy = unit_options(**known)
    # Arguments that are missing have these defaults, which differ between the unit and the norms of the block.
    block_norm = args.get("norm_type", "layernorm")
    glu_names = fairseq.SELF_GATED_GLU_NAMES if args.get("glu_type") == 2 else fairseq.GLU_NAMES
    names = [*glu_names, *_unit_names(block_norm, options["rpe_layers"]), (r"\btoken_mixer\.", "self_attn.gtu.")]
    channel_mixer, parts = _channel_mixer(args, dim, fairseq.channel_bias(args, tensors))

    differences = [f"`{key}` {value!r}" for key, value in legacy.items() if value != PLAIN[key]]
    differences += [f"`{key}` {args[key]!r}" for key in FUNCTION_OPTIONS if args.get(key) in fairseq.FUNCTIONS]
    unit: Callable[..., GTU] = GTU
    if args["model"] == models[0]:
        unit = functools.partial(ShortcutGTU, pre_norm=norm_name(known.get("norm_type", "simplermsnorm")))
        differences.append("a shortcut of its own")
    elif args.get("gtu_type") == 3:
        unit = SelfGatedGTU
        differences.append("itself as its gate")
        names += SELF_GATED_NAMES
    if side == "encoder" and known["causal"]:
        differences.append("no sight of later positions")
    if differences:

        def replace_units(model: Any) -> None:
            for block in model.model.layers:
                block.token_mixer = _extend(unit(dim, known["causal"], **options), options, legacy)
                set_functions(block.token_mixer, args, heads)

        parts[f"a token mixer with {', '.join(differences)}"] = replace_units
    layers = {"mixers": [{"type": "tno", **options}], "channel_mixer": channel_mixer, "norm": norm_name(block_norm)}
    return FairseqBlocks(names, parts, layers, known["causal"])


def set_functions(unit: GatedToeplitzUnit, args: Mapping[str, Any], heads: int) -> None:
    """Give a unit the activations that ours has none of."""
    functions = {key: fairseq.FUNCTIONS.get(args.get(key)) for key in FUNCTION_OPTIONS}
    operator: Any = unit.operator
    if functions["act_fun"]:
        unit.activation = functions["act_fun"]
    if functions["rpe_act"] and operator.rpe is not None:
        operator.rpe.activation = functions["rpe_act"]
    if functions["act_type"]:
        operator.kernel_activation = _of_each_head(functions["act_type"], heads)


def _of_each_head(function: Callable[[Tensor], Tensor], heads: int) -> Callable[[Tensor], Tensor]:
    """A function over the channels of one head, applied to the channels of all."""
    return lambda kernel: function(kernel.unflatten(-1, (heads, -1))).flatten(-2)


def _channel_mixer(args: dict[str, Any], dim: int, bias: bool) -> tuple[dict[str, Any], fairseq.Parts]:
    """The GLU, or GLUV2: W_2 (z ⊙ φ(z)) with z = W_1 x."""
    hidden_size = args.get("glu_dim", -1)
    hidden_size = dim if hidden_size == -1 else hidden_size
    act = args.get("glu_act", "silu")
    if args.get("glu_type") != 2:
        return fairseq.glu(act, hidden_size, args.get("glu_dropout", 0.0), args.get("fina_act"), bias)
    if args.get("glu_dropout"):
        raise ValueError("`glu_type` 2 with `glu_dropout`: the published code fails in such a layer")
    gate = fairseq.function(act)
    change = fairseq.set_channel_activation(lambda z: z * gate(z))
    parts = {"self-gated channel mixers": change, **fairseq.final_activation(args.get("fina_act"))}
    return {"type": "ffn", "hidden_size": hidden_size, "bias": bias}, parts
