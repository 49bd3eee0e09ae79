"""SKI-TNN and FD-TNN as published (arXiv 2305.09028): operators, units, Long Range Arena layers and fairseq models.

What the published code computes otherwise than the paper stands here. The interpolation of SKI takes the neighbour
above as its base and swaps the two weights, at positions stretched to 0 … n, and multiplies row i of W by γ^(t_i n).
Causal SKI interpolates its kernel from `rank` samples. Free coefficients in the frequency domain sit at places that
move with the length. Everything follows the length: there is no horizon.
"""

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from subquad.compat import fairseq, lra, tnn, tnn_grid
from subquad.compat.reference import (
    UNWRAP,
    Conversion,
    OnlyOutput,
    Rules,
    check_options,
    norm_name,
    register_family,
)
from subquad.layers import RelativePositionEncoder
from subquad.mixers import FDGTU, FDGTU2D, FDTNO, SKIGTU, SKITNO
from subquad.mixers.fd_tno import Response
from subquad.mixers.gated_toeplitz import GatedGridUnit, GatedToeplitzUnit
from subquad.ops import toeplitz
from subquad.ops.ski import hat_functions


class PublishedSKITNO(SKITNO):
    """Sparse plus smooth Toeplitz operator with the published interpolation.

    Args:
        dim: Channels.
        causal: As in `SKITNO`.
        decay: γ; a buffer of the published module.
        **options: As in `SKITNO`.
    """

    decay: Any

    def __init__(self, dim: int, causal: bool, *, decay: float, **options: Any):
        with warnings.catch_warnings():
            # Some presets have γ = 1.
            warnings.simplefilter("ignore", UserWarning)
            super().__init__(dim, causal, decay=decay, horizon=None, **options)
        del self.decay
        self.register_buffer("decay", torch.tensor([decay]))

    def smooth_part(self, lags: Tensor, length: int) -> Tensor:
        """As in `SKITNO`, but interpolated from `rank` lags if causal; the encoder sees k/(n−1) if bidirectional."""
        span = max(length - 1, 1)
        if not self.causal:
            return super().smooth_part(lags, length) if self.rpe is None else self._encode(lags.double() / span)
        samples = torch.linspace(0, span, self.rank, device=lags.device, dtype=torch.float64)
        values = super().smooth_part(samples, length) if self.rpe is None else self.rpe(samples)
        values = hat_functions(lags.double() * ((self.rank - 1) / span), self.rank).to(values.dtype) @ values
        if self.rpe is None:
            return values
        return self.kernel_activation(values) * (self.decay.to(values.dtype) ** lags).unsqueeze(-1)

    def _encode(self, positions: Tensor) -> Tensor:
        assert self.rpe is not None
        return self.kernel_activation(self.rpe(positions))

    def kernel(self, length: int) -> Tensor:
        """The kernel of exactly this length: that of a longer one differs."""
        return self.coefficients(length)

    def interpolation(self, length: int) -> Tensor:
        """W (length, rank), float64."""
        span = max(length - 1, 1)
        inducing = torch.linspace(0, span, self.rank, device=self.taps.device, dtype=torch.float64)
        positions = torch.arange(length, device=self.taps.device, dtype=torch.float64) * (length / span)
        upper = torch.searchsorted(inducing, positions).clamp_max(self.rank - 2).unsqueeze(1)
        base = inducing[upper] if self.rpe is None else inducing[upper] / span
        share = (positions.unsqueeze(1) - base) * ((self.rank - 1) / span)
        weights = torch.zeros(length, self.rank, device=self.taps.device, dtype=torch.float64)
        weights.scatter_(1, upper, share).scatter_(1, upper + 1, 1 - share)
        return weights * self.decay.double() ** (positions * length).unsqueeze(1)

    def forward(self, x: Tensor, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Apply the operator, as in `SKITNO`."""
        if self.causal:
            return super().forward(x, past)
        length = x.shape[1]
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        weights = self.interpolation(length).to(wide.dtype)
        lags = torch.arange(1 - self.rank, self.rank, device=x.device).double() * ((length - 1) / (self.rank - 1))
        with torch.autocast(x.device.type, enabled=False):
            smooth = weights @ toeplitz(weights.T @ wide, self.smooth_part(lags, length), center=self.rank - 1)
            return (smooth + toeplitz(wide, self.taps, center=len(self.taps) // 2)).to(x.dtype), x


class PublishedSKIGTU(SKIGTU):
    """Gated Toeplitz unit with the published interpolation."""

    operator_class = PublishedSKITNO


class PublishedSKIGTU2D(GatedGridUnit):
    """Gated Toeplitz unit over a grid with the published interpolation."""

    operator_class = PublishedSKITNO


class FreeFDTNO(FDTNO):
    """Toeplitz operator whose response is resampled from free coefficients, as published.

    The K coefficients are taken to lie in the middle of K equal parts of the grid's upper N/2 points.

    Args:
        dim: Channels.
        causal: As in `FDTNO`.
        num_heads: Heads, which share the coefficients.
        num_frequencies: K.
    """

    def __init__(self, dim: int, causal: bool, *, num_heads: int = 1, num_frequencies: int = 128):
        # Its coefficients make way for ours, of which there may be one.
        super().__init__(dim, causal, horizon=None, num_frequencies=max(num_frequencies, 2))
        self.num_heads = num_heads
        shape = num_frequencies, dim // num_heads
        self.real = nn.Parameter(torch.empty(shape))
        self.imaginary = None if causal else nn.Parameter(torch.empty(shape))
        self.dc = nn.Parameter(torch.ones(1, dim // num_heads))
        self.reset_parameters()

    @classmethod
    def unit_defaults(cls, dim: int, bias: bool) -> dict[str, Any]:
        """None: there is no encoder."""
        return {}

    def response(self, size: int) -> tuple[Response, Response | None]:
        """As in `FDTNO`."""
        num_frequencies = len(self.real)
        index = torch.arange(size // 2, device=self.real.device, dtype=torch.float64)
        positions = (index + 0.5) * (2 * num_frequencies / size) - 0.5
        resampled = hat_functions(positions.clamp(0, num_frequencies - 1), num_frequencies)
        dtype = torch.promote_types(self.real.dtype, torch.float32)
        constant = torch.ones(1, 1, device=index.device, dtype=torch.float64)
        real = torch.block_diag(constant, resampled).to(dtype), torch.cat([self.dc, self.real])
        parts = [real]
        if self.imaginary is not None:
            inner = F.pad(resampled[:-1], (0, 0, 1, 1)).to(dtype)
            parts.append((inner, self.imaginary))
        parts = [(basis, values.to(dtype).repeat(1, self.num_heads)) for basis, values in parts]
        return parts[0], parts[1] if len(parts) > 1 else None


class FreeFDGTU(FDGTU):
    """Gated Toeplitz unit around `FreeFDTNO`."""

    operator_class = FreeFDTNO


class Sequences(nn.Module):
    """An operator called as published on (batch, length, heads · dim), along axis -2."""

    def __init__(self, operator: PublishedSKITNO):
        super().__init__()
        self.operator = operator

    def forward(self, x: Tensor, dim: int = -2, normalize: bool = False) -> Tensor:
        """Apply the operator to `x`."""
        if dim not in (-2, 1) or normalize:
            raise ValueError(f"the published operator works along axis -2, without `normalize`: got {dim}, {normalize}")
        return self.operator(x)[0]


def _names(norm_type: str, rpe_layers: int, *, causal: bool, grid: bool = False) -> Rules:
    """Names inside a unit or an operator."""
    return [
        (r"\.taps$", ".conv_kernel"),
        (r"\.past$", ".alphas"),
        (r"\.future$", ".betas"),
        (r"\.real$", ".coeffs" if causal else ".coeffs_re"),
        (r"\.imaginary$", ".coeffs_im"),
        *(tnn_grid.GRID_NAMES if grid else []),
        *tnn.operator_names(norm_type, rpe_layers),
        *tnn_grid.UNIT_NAMES,
    ]


def _used(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without those that every published module of its kind has and none uses."""
    unused = (".inducing", ".pre_norm.weight", ".pre_norm.bias", ".d")
    return {name: tensor for name, tensor in tensors.items() if not f".{name}".endswith(unused)}


def _our_layout(tensors: dict[str, Tensor], *, causal: bool, response_heads: int | None = None) -> dict[str, Tensor]:
    """Tensors in our layout, with lags, knots and frequencies first.

    Published bidirectional taps run against the lag, and `betas` from near to far. Where the encoder gives a frequency
    response, it has `response_heads` heads: each has all of its real parts before its imaginary ones.
    """
    ours = {}
    for name, tensor in _used(tensors).items():
        leaf = name.rpartition(".")[2]
        if leaf == "conv_kernel" and tensor.ndim == 2:
            tensor = tensor.T if causal else tensor.T.flip(0)
        elif leaf in ("alphas", "betas") and tensor.ndim == 4:
            tensor = tensor[0, :, 0].T
            tensor = tensor.flip(0) if leaf == "betas" else tensor
        elif leaf in ("coeffs", "coeffs_re", "coeffs_im", "dc") and tensor.ndim == 2:
            tensor = tensor.T
        elif response_heads and not causal and "rpe.out.2." in name and len(tensor) % (2 * response_heads) == 0:
            tensor = tensor.unflatten(0, (response_heads, 2, -1)).transpose(0, 1).flatten(0, 2)
        ours[name] = tensor
    return ours


def _num_taps(nk: int) -> int:
    """The published number of taps: an even one is raised by one."""
    return nk + 1 - nk % 2


@register_family("ski.SKITno")
def ski_tno(
    tensors: dict[str, Tensor],
    *,
    h: int,
    dim: int,
    r: int,
    nk: int,
    causal: bool = False,
    gamma: float = 0.999,
    rpe_dim: int = 4,
    layers: int = 3,
    act: str = "relu",
    norm_type: str = "simplermsnorm",
    residual: bool = False,
    bias: bool = True,
    act_type: str = "none",
    use_decay: bool = False,
    use_multi_decay: bool = False,
    par_type: int = 1,
) -> Conversion:
    """A sparse plus smooth operator with an encoder, over (batch, length, h · dim); the last three are ignored."""
    operator: Any = PublishedSKITNO(
        h * dim,
        causal,
        rank=r,
        num_taps=_num_taps(nk),
        decay=gamma,
        kernel="rpe",
        rpe_hidden_size=rpe_dim,
        rpe_layers=layers,
        rpe_norm=norm_name(norm_type),
        rpe_residual=residual,
        rpe_bias=bias,
    )
    operator.rpe.activation = fairseq.function(act)
    operator.kernel_activation = fairseq.function(act_type)
    names = [*_names(norm_type, layers, causal=causal), (r"^toep\.", "")]
    return Conversion(Sequences(operator), _our_layout(tensors, causal=causal), names)


@register_family("ski.SKITnoInvTime")
def ski_tno_inv_time(
    tensors: dict[str, Tensor],
    *,
    h: int,
    dim: int,
    r: int,
    nk: int,
    causal: bool = False,
    gamma: float = 0.999,
    **ignored: Any,
) -> Conversion:
    """A sparse plus smooth operator with a table over warped lags, over (batch, length, h · dim); it has no encoder."""
    check_options("ski.SKITnoInvTime", ski_tno, {"h": h, "dim": dim, "r": r, "nk": nk, **ignored})
    operator = PublishedSKITNO(h * dim, causal, rank=r, num_taps=_num_taps(nk), decay=gamma)
    names = [*_names("simplermsnorm", 0, causal=causal), (r"^toep\.", "")]
    return Conversion(Sequences(operator), _our_layout(tensors, causal=causal), names)


@register_family("fd.TnoFD")
def tno_fd(
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
    """An operator given by its response, over (batch, h, length, dim); decay and `act_type` are ignored."""
    operator: Any = FDTNO(
        h * dim,
        causal,
        horizon=None,
        rpe_hidden_size=rpe_dim,
        rpe_layers=layers,
        rpe_norm=norm_name(norm_type),
        rpe_residual=residual,
        rpe_bias=bias,
    )
    operator.rpe.activation = fairseq.function(act)
    names = [*_names(norm_type, layers, causal=causal), (r"^toep\.", "")]
    return Conversion(tnn.HeadFirstTNO(operator), _our_layout(tensors, causal=causal, response_heads=h), names)


@register_family("fd.TnoFDNoRPE")
def tno_fd_norpe(
    tensors: dict[str, Tensor], *, h: int, dim: int, causal: bool = False, num_freqs: int = 128
) -> Conversion:
    """An operator given by free coefficients of its response, over (batch, h, length, dim)."""
    operator: Any = FreeFDTNO(h * dim, causal, num_heads=h, num_frequencies=num_freqs)
    names = [*_names("simplermsnorm", 0, causal=causal), (r"^toep\.", "")]
    return Conversion(tnn.HeadFirstTNO(operator), _our_layout(tensors, causal=causal), names)


def _unit(
    tno_type: str, *, rank: int | None = None, nk: int | None = None, **config: Any
) -> tuple[str, type[GatedToeplitzUnit], dict[str, Any], int | None]:
    """A published unit other than TNN's: its nearest name, class, options, and the heads of a frequency response."""
    published = {"use_decay": False, "use_multi_decay": False, "par_type": 1, "resi_param": False}
    options, legacy = tnn.unit_options(**config | published)
    kept = {key: options[key] for key in ("expand_ratio", "activation", "norm", "bias")}
    encoder = {key: value for key, value in options.items() if key.startswith("rpe_")}
    if tno_type == "tno_fd":
        return "fd_tno", FDGTU, {**kept, **encoder, "horizon": None}, config["num_heads"]
    if tno_type == "tno_fd_norpe":
        return "fd_tno", FreeFDGTU, {**kept, "num_heads": config["num_heads"]}, None
    if legacy["normalize"]:
        raise ValueError("`normalize` cannot be true: the published code fails in such an operator")
    if rank is None or nk is None:
        raise ValueError(f"an operator of type {tno_type!r} needs `rank` and `nk`")
    kept |= {"rank": rank, "num_taps": _num_taps(nk), "decay": config.get("gamma", 0.99)}
    if tno_type == "skitno":
        kept |= {"kernel": "rpe", "kernel_activation": options["kernel_activation"], **encoder}
    return "ski_tno", PublishedSKIGTU, kept, None


@register_family("ski.Gtu")
def gtu(tensors: dict[str, Tensor], *, args: Mapping[str, Any] | None = None, **config: Any) -> Conversion:
    """A gated unit over (batch, length, embed_dim), around the operator `args` names."""
    check_options("ski.Gtu", tnn.unit_options, config)
    operator = dict(args or {})
    tno_type = operator.pop("tno_type", "tno")
    if tno_type == "tno":
        conversion = tnn.gtu(_used(tensors), **config | {"resi_param": False})
        published: Any = conversion.module
        tnn.set_functions(published.module, config, config["num_heads"])
        return conversion
    causal = config.get("causal", False)
    kept = {key: operator[key] for key in ("rank", "nk") if key in operator}
    _, unit, options, heads = _unit(tno_type, **kept, **config)
    names = _names(config.get("norm_type", "simplermsnorm"), config.get("rpe_layers", 3), causal=causal)
    mixer = unit(config["embed_dim"], causal, **options)
    tnn.set_functions(mixer, config, heads=1)
    return Conversion(OnlyOutput(mixer), _our_layout(tensors, causal=causal, response_heads=heads), [*UNWRAP, *names])


LONG_RANGE_IGNORED = {
    *("use_decay", "use_multi_decay", "par_type", "l", "transform_type"),
    *("tno_type", "tno_max_l", "tno_H", "tno_W"),
    *("dpb_type", "dpb_use_pad", "dpb_embedding", "dpb_layers", "dpb_act", "residual"),
}
"""Arguments that the published configurations hand to every layer, and that those here have no use for."""


def _long_range_options(
    *,
    d_model: int,
    n_heads: int,
    tno_expand_ratio: float = 2,
    act_fun: str = "silu",
    causal: bool = False,
    gamma: float = 0.999,
    bias: bool = True,
    use_norm: bool = False,
    norm_type: str = "layernorm",
    token_shift_type: int = -1,
    dropout: float = 0.0,
    resi_param: bool = False,
) -> tuple[dict[str, Any], float]:
    """Options of our unit from the arguments that all layers share, and the token shift."""
    if token_shift_type not in tnn_grid.TOKEN_SHIFTS:
        raise ValueError(f"`token_shift_type` must be -1, 1 or 2, got {token_shift_type}")
    unit, _ = tnn.unit_options(
        embed_dim=d_model,
        num_heads=n_heads,
        expand_ratio=tno_expand_ratio,
        bias=bias,
        use_norm=use_norm,
        norm_type=norm_type if norm_type == "simplermsnorm" else "layernorm",
    )
    return {key: unit[key] for key in ("expand_ratio", "norm", "bias")}, tnn_grid.TOKEN_SHIFTS[token_shift_type]


def _long_range_layer(
    family: str,
    tensors: dict[str, Tensor],
    unit: Callable[..., GatedToeplitzUnit],
    operator: dict[str, Any],
    config: dict[str, Any],
    rpe_act: str = "relu",
) -> Conversion:
    """A layer of the Long Range Arena code, around an operator with these options."""
    config = {key: value for key, value in config.items() if key not in LONG_RANGE_IGNORED}
    check_options(family, _long_range_options, config)
    options, token_shift = _long_range_options(**config)
    causal = config.get("causal", False)
    mixer = unit(config["d_model"], causal, **options, **operator)
    mixer.activation = lra.function(config.get("act_fun", "silu"))
    for encoder in (part for part in mixer.modules() if isinstance(part, RelativePositionEncoder)):
        encoder.activation = lra.function(rpe_act)
    module = lra.SequenceMixer(mixer, token_shift)
    names = _names("simplermsnorm", operator.get("rpe_layers", 0), causal=causal, grid=mixer.grid is not None)
    heads = config["n_heads"] if isinstance(mixer.operator, FDTNO) else None
    return Conversion(module, _our_layout(tensors, causal=causal, response_heads=heads), [*names, *lra.UNWRAP])


def _table(rank: int, nk: int, gamma: float = 0.999, **_: Any) -> dict[str, Any]:
    return {"rank": rank, "num_taps": _num_taps(nk), "decay": gamma}


def _grid(unit: type[GatedGridUnit], dropout: float = 0.0, combine: str = "product", **_: Any) -> Callable[..., Any]:
    """A unit over the grid that its sequence is."""
    return functools.partial(unit, height=1, width=1, dropout=dropout, combine=combine)


@register_family("ski.Skitno1d")
def skitno1d(tensors: dict[str, Tensor], *, rank: int = 64, nk: int = 32, **config: Any) -> Conversion:
    """The layer "skitno" over (batch, length, d_model)."""
    return _long_range_layer("ski.Skitno1d", tensors, PublishedSKIGTU, _table(rank, nk, **config), config)


@register_family("ski.Skitno2d")
def skitno2d(tensors: dict[str, Tensor], *, rank: int = 32, nk: int = 16, **config: Any) -> Conversion:
    """The layer "skitno2d" over (batch, height · width, d_model)."""
    unit = _grid(PublishedSKIGTU2D, **config)
    return _long_range_layer("ski.Skitno2d", tensors, unit, _table(rank, nk, **config), config)


def _response(dpb_embedding: int, dpb_layers: int, residual: bool, bias: bool) -> dict[str, Any]:
    return {
        "horizon": None,
        "rpe_hidden_size": dpb_embedding,
        "rpe_layers": dpb_layers,
        "rpe_residual": residual,
        "rpe_bias": bias,
    }


@register_family("fd.TnoFD1d")
def tno_fd1d(
    tensors: dict[str, Tensor],
    *,
    dpb_embedding: int = 512,
    dpb_layers: int = 3,
    dpb_act: str = "relu",
    residual: bool = False,
    **config: Any,
) -> Conversion:
    """The layer "tno_fd" over (batch, length, d_model)."""
    response = _response(dpb_embedding, dpb_layers, residual, config.get("bias", True))
    return _long_range_layer("fd.TnoFD1d", tensors, FDGTU, response, config, dpb_act)


@register_family("fd.TnoFD2d")
def tno_fd2d(
    tensors: dict[str, Tensor],
    *,
    tno_type: int = 4,
    dpb_embedding: int = 512,
    dpb_layers: int = 3,
    dpb_act: str = "relu",
    residual: bool = False,
    **config: Any,
) -> Conversion:
    """The layer "tno_fd2d" over (batch, height · width, d_model), along the named axis; as released it raises."""
    if tno_type not in (4, 6):
        raise ValueError(f"`tno_type` must be 4 or 6, got {tno_type}: no published model has another")
    unit = _grid(FDGTU2D, combine="sum" if tno_type == 6 else "product", **config)
    response = _response(dpb_embedding, dpb_layers, residual, config.get("bias", True))
    return _long_range_layer("fd.TnoFD2d", tensors, unit, response, config, dpb_act)


def _fairseq_model(tensors: dict[str, Tensor], args: dict[str, Any], side: str) -> Conversion:
    """A fairseq model, side "decoder" or "encoder", whatever its operators are."""
    fairseq.require(args, f"{side}_embed_dim", f"{side}_attention_heads")
    args.setdefault("no_token_positional_embeddings", True)
    tno_type = args.get("tno_type") or "tno"
    if tno_type == "tno":
        version = {"model": "tnn_v2_lm" if side == "decoder" else "roberta_tnn_v2", "gtu_type": 1, "resi_param": False}
        build = tnn.fairseq_lm if side == "decoder" else tnn.fairseq_roberta
        return build(_used(tensors), **args | version)
    dim, heads = args[f"{side}_embed_dim"], args[f"{side}_attention_heads"]
    # Arguments that are missing have these defaults, which differ between the unit and the norms of the block.
    known = {"causal": side == "decoder", "rpe_layers": 6, "rpe_embedding": 64}
    known |= {key: args[key] for key in inspect.signature(tnn.unit_options).parameters if key in args}
    known |= {"embed_dim": dim, "num_heads": heads}
    block_norm, causal = args.get("norm_type", "layernorm"), known["causal"]
    kind, unit, options, response_heads = _unit(tno_type, rank=args.get("rank"), nk=args.get("nk"), **known)
    hidden_size = args.get("glu_dim", -1)
    channel_mixer, parts = fairseq.glu(
        args.get("glu_act", "silu"),
        dim if hidden_size == -1 else hidden_size,
        args.get("glu_dropout", 0.0),
        args.get("fina_act"),
        fairseq.channel_bias(args, tensors),
    )
    mixer = {"type": kind, **options}
    differences = [f"`{key}` {args[key]!r}" for key in tnn.FUNCTION_OPTIONS if args.get(key) in fairseq.FUNCTIONS]
    if unit is not FDGTU or causal != (side == "decoder"):
        differences.insert(0, f"the published operator {tno_type!r}")
    if differences:

        def replace_units(model: Any) -> None:
            for block in model.model.layers:
                block.token_mixer = unit(dim, causal, **options)
                tnn.set_functions(block.token_mixer, args, heads=1)

        mixer = {"type": kind}
        parts[", ".join(differences)] = replace_units
    names = [
        *fairseq.GLU_NAMES,
        *_names(block_norm, known["rpe_layers"], causal=causal),
        (r"\btoken_mixer\.", "self_attn.gtu."),
    ]
    tensors = _our_layout(tensors, causal=causal, response_heads=response_heads)
    layers = {"mixers": [mixer], "channel_mixer": channel_mixer, "norm": norm_name(block_norm)}
    if side == "encoder":
        return fairseq.masked_language_model(tensors, args, names, parts=parts, pooling="mean", **layers)
    # The kernels follow the length, so what was computed for fewer tokens is of no use for more.
    return fairseq.language_model(tensors, args, names, parts=parts, causal=causal, use_cache=False, **layers)


@register_family("fd.fairseq_lm")
def fairseq_lm(tensors: dict[str, Tensor], **args: Any) -> Conversion:
    """The causal language models; padding tokens are ordinary inputs."""
    return _fairseq_model(tensors, args, "decoder")


@register_family("ski.fairseq_roberta")
def fairseq_roberta(tensors: dict[str, Tensor], **args: Any) -> Conversion:
    """The masked language models."""
    return _fairseq_model(tensors, args, "encoder")
