"""TNN as published (arXiv 2305.04749) in the Long Range Arena and on images: its units over sequences and over grids.

Beyond the layers of tnn-pytorch, the Long Range Arena code has an encoder of another shape, a window of lags, kernels
made positive by an exponential, and units over a grid that apply one order of the operators, with a norm and a
shortcut of their own.
"""

import copy
import functools
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from subquad.compat import lra, tnn, vit
from subquad.compat.reference import Conversion, Rules, activation_name, check_options, norm_name, register_family
from subquad.layers import RelativePositionEncoder, build_norm
from subquad.mixers import GTU, GTU2D
from subquad.mixers.base import State
from subquad.registry import unknown_name


class TwoMapEncoder(RelativePositionEncoder):
    """Relative position encoder with two hidden maps, and one norm before the output map.

        z_0 = W_0 p + b_0;   z_i = W_i φ(z_{i−1}) + b_i [+ φ(z_{i−1})] for i = 1, 2;   W_3 φ(norm(z_2)) + b_3

    Args:
        dim: Number of coefficients.
        hidden_size: Width of the network.
        activation: φ, "relu" or "silu".
        residual: Whether the hidden maps have shortcuts; they add what is activated.
        bias: Whether the maps have biases.
    """

    def __init__(self, dim: int, hidden_size: int, activation: str, residual: bool, bias: bool):
        super().__init__(dim, hidden_size, 2, activation, "layernorm", residual, bias)
        self.norms = nn.ModuleList([nn.Identity(), nn.Identity(), self.norms[-1]])
        in_place = {"relu": F.relu_, "silu": functools.partial(F.silu, inplace=True)}
        if activation not in in_place:
            raise ValueError(unknown_name("activation of this position encoder", activation, in_place))
        # In place as published: that is how the shortcut comes to add what is activated.
        self.activation = in_place[activation]


class LongRangeTNO(tnn.PublishedTNO):
    """Toeplitz operator of the Long Range Arena code.

    Args:
        dim: Channels.
        causal: As in `TNO`.
        rpe_type: 1 for `TwoMapEncoder`, 8 for the encoder of tnn-pytorch.
        use_exp: Whether the kernel is exp(u + k log γ), clamped to exp(−60) … exp(30), and exp(−60) beyond the window.
        use_neg_exp: Whether u is the encoder's output or −exp of it, with `use_exp`.
        **options: As in `PublishedTNO`.
    """

    def __init__(
        self,
        dim: int,
        causal: bool,
        *,
        rpe_type: int = 1,
        use_exp: bool = False,
        use_neg_exp: bool = False,
        **options: Any,
    ):
        super().__init__(dim, causal, **options)
        if rpe_type not in (1, 8):
            raise ValueError(f"the type of the position encoder must be 1, or 8 for the one of tnn-pytorch: {rpe_type}")
        if rpe_type == 1:
            names = ("rpe_hidden_size", "rpe_activation", "rpe_residual", "rpe_bias")
            self.rpe = TwoMapEncoder(dim, *(options[name] for name in names))
        self.use_exp = use_exp
        self.use_neg_exp = use_neg_exp

    def coefficients(self, length: int) -> Tensor:
        """The kernel (num_lags, dim): what is beyond the window is zero before the decay and the activation."""
        distance = self.lags(length).abs().unsqueeze(-1)
        seen = distance < (self.window or length)
        kernel = self.rpe(self.positions(length))
        decay = self.decays(kernel.dtype)
        if self.use_exp:
            kernel = -kernel.exp() if self.use_neg_exp else kernel
            kernel = kernel if decay is None else kernel + distance * decay.log()
            kernel = kernel.where(seen, -torch.inf).clamp(-60, 30).exp()
        else:
            kernel = kernel if decay is None else kernel * decay**distance
            kernel = kernel.where(seen, 0.0)
        return self.kernel_activation(kernel)


class LongRangeGTU(GTU):
    """Gated Toeplitz unit of the Long Range Arena code."""

    operator_class = LongRangeTNO


class LongRangeGTU2D(GTU2D):
    """Gated Toeplitz unit over a grid, of the Long Range Arena code."""

    operator_class = LongRangeTNO


class OneOrderGTU2D(LongRangeGTU2D):
    """The unit with one order of the operators, T_H T_W v, and with a norm and a shortcut of its own.

    Args:
        dim: Features in and out.
        pre_norm: Norm before the unit, by name.
        scale_shortcut: Whether the shortcut has a learned scale for each feature.
        **options: As in `GTU2D`.
    """

    def __init__(self, dim: int, causal: bool = False, *, pre_norm: str, scale_shortcut: bool = False, **options: Any):
        super().__init__(dim, causal, **options)
        self.pre_norm = build_norm(pre_norm, dim)
        self.shortcut = nn.Parameter(torch.empty(dim)) if scale_shortcut else None

    def branches(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The gate, not activated, and the operators' input, halved because the unit adds both orders."""
        gate, v = super().branches(self.pre_norm(x))
        return gate, v / 2

    def mix(self, x: Tensor, state: State | None, mask: Tensor | None) -> tuple[Tensor, State | None]:
        """Mix a batch of grids, as in `GTU2D`."""
        y, state = super().mix(x, state, mask)
        return y + (x if self.shortcut is None else x * self.shortcut), state


class ImageGTU2D(GTU2D):
    """Gated Toeplitz unit over a grid, of the image code."""

    operator_class = tnn.PublishedTNO


TWO_MAP_NAMES: Rules = [
    (r"\brpe\.input_proj\.", "rpe.pos_proj."),
    (r"\brpe\.layers\.0\.", "rpe.pos1.1."),
    (r"\brpe\.layers\.1\.", "rpe.pos2.1."),
    (r"\brpe\.norms\.2\.", "rpe.pos3.0."),
    (r"\brpe\.output_proj\.", "rpe.pos3.2."),
]
DPB_NAMES: Rules = [(r"\brpe\.", "dpb.")]
GRID_NAMES: Rules = [(r"\boperator\.", "toep1."), (r"\bcolumn_operator\.", "toep2."), (r"\bshortcut$", "d")]
UNIT_NAMES: Rules = [
    (r"\b(tno|operator)\.", "toep."),
    (r"\b(toep\d?)\.decay(_logit)?$", r"\1.gamma"),
    (r"\bgate_proj\.", "u_proj."),
    (r"\binput_proj\.", "v_proj."),
    (r"\boutput_proj\.", "o."),
]


def _encoder_names(rpe_type: int, rpe_layers: int) -> Rules:
    return TWO_MAP_NAMES if rpe_type == 1 else tnn.operator_names("simplermsnorm", rpe_layers)


@register_family("tnn.lra_rpe")
def lra_rpe(
    tensors: dict[str, Tensor],
    *,
    dim: int,
    outdim: int,
    residual: bool = False,
    act: str = "relu",
    bias: bool = True,
) -> Conversion:
    """A relative position encoder of the Long Range Arena code, (num_positions, 1) to (num_positions, outdim)."""
    encoder = TwoMapEncoder(outdim, dim, activation_name(act), residual, bias)
    return Conversion(tnn.PublishedRPE(encoder), tensors, [*TWO_MAP_NAMES, (r"^rpe\.", "")])


@register_family("tnn.lra_tno")
def lra_tno(
    tensors: dict[str, Tensor],
    *,
    h: int,
    n: int,
    dim: int,
    rpe_dim: int,
    causal: bool = False,
    use_exp: bool = False,
    use_neg_exp: bool = False,
    use_decay: bool = False,
    use_multi_decay: bool = False,
    residual: bool = False,
    act: str = "relu",
    use_pad: bool = False,
    par_type: int = 1,
    rpe_type: int = 1,
    l: int = 1,  # noqa: E741 - the published name
    transform_type: int = 1,
    gamma: float = 0.999,
    bias: bool = True,
    act_type: str = "none",
    layers: int = 3,
) -> Conversion:
    """An operator of the Long Range Arena code; `n` is its window where `use_pad`, `l` and `transform_type` nothing."""
    tnn.check_operator(causal, use_decay, use_multi_decay, par_type)
    operator = LongRangeTNO(
        h * dim,
        causal,
        window=n if use_pad else None,
        rpe_type=rpe_type,
        use_exp=use_exp,
        use_neg_exp=use_neg_exp,
        par_type=par_type,
        decay=gamma if use_decay or use_multi_decay else None,
        learn_decay=use_multi_decay,
        rpe_hidden_size=rpe_dim,
        rpe_layers=layers,
        rpe_activation=activation_name(act),
        rpe_residual=residual,
        rpe_bias=bias,
    )
    operator.kernel_activation = lra.function(act_type)
    names = [*_encoder_names(rpe_type, layers), *UNIT_NAMES, (r"^toep\.", "")]
    return Conversion(tnn.HeadFirstTNO(operator), tnn.flat_decay(tensors), names)


LAYERS = {"gtu": (False, False), "gtu2d": (True, False), "tno": (False, True), "tno2d": (True, True)}
"""Published layers of the Long Range Arena: whether over a grid, and whether in the names with "tno" and "dpb"."""

TOKEN_SHIFTS = {-1: 0.0, 1: 1.0, 2: 0.5}


def _long_range_unit(
    layer: str,
    *,
    d_model: int,
    n_heads: int,
    dropout: float = 0.0,
    act_fun: str = "silu",
    resi_param: bool = False,
    use_exp: bool = False,
    use_neg_exp: bool = False,
    tno_max_l: int = 512,
    rpe_act: str = "relu",
    rpe_use_pad: bool | None = None,
    rpe_type: int = 1,
    token_shift_type: int = -1,
    tno_type: int = 4,
    tno_H: int = 32,
    tno_W: int = 32,
    l: int = 1,  # noqa: E741 - the published name
    transform_type: int = 1,
    **unit: Any,
) -> tuple[lra.SequenceMixer, Rules]:
    """A published layer from its arguments, named as in "gtu", and what its parameters are called."""
    grid, in_tno_names = LAYERS[layer]
    defaults = {"expand_ratio": 2, "norm_type": "layernorm", "gamma": 0.999}
    check_options(f"layer {layer!r}", tnn.unit_options, {"embed_dim": d_model, "num_heads": n_heads, **unit})
    options, published = tnn.unit_options(embed_dim=d_model, num_heads=n_heads, **{**defaults, **unit})
    options |= published | {
        # Layers with the names of "tno" do not hand on the activation.
        "rpe_activation": "relu" if in_tno_names else activation_name(rpe_act),
        "rpe_norm": "simple_rmsnorm",
        "rpe_type": rpe_type,
        "use_exp": use_exp,
        "use_neg_exp": use_neg_exp,
        "window": tno_max_l if (not grid if rpe_use_pad is None else rpe_use_pad) else None,
    }
    if token_shift_type not in TOKEN_SHIFTS:
        raise ValueError(f"`token_shift_type` must be -1, 1 or 2, got {token_shift_type}")
    if tno_type not in (2, 3, 4, 6):
        raise ValueError(f"`tno_type` must be 2, 3, 4 or 6, got {tno_type}: the published code builds no other")
    one_order = layer == "tno2d" and tno_type in (2, 3)
    causal = unit.get("causal", False)
    if one_order:
        own = {"pre_norm": norm_name(unit.get("norm_type", "layernorm")), "scale_shortcut": resi_param}
        mixer = OneOrderGTU2D(d_model, causal, height=tno_H, width=tno_W, dropout=dropout, **own, **options)
    elif grid:
        combine = "sum" if tno_type == 6 else "product"
        mixer = LongRangeGTU2D(d_model, causal, height=1, width=1, combine=combine, dropout=dropout, **options)
    else:
        mixer = LongRangeGTU(d_model, causal, **options)
    mixer.activation = lra.function(act_fun)
    for operator in (module for module in mixer.modules() if isinstance(module, LongRangeTNO)):
        operator.kernel_activation = lra.function(unit.get("act_type", "none"))
    names = [
        *(GRID_NAMES if grid else []),
        *_encoder_names(rpe_type, options["rpe_layers"]),
        *(DPB_NAMES if in_tno_names else []),
        *UNIT_NAMES,
    ]
    return lra.SequenceMixer(mixer, TOKEN_SHIFTS[token_shift_type], fixed_grid=one_order), names


def _arguments(layer: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a published layer, those of "tno" and "tno2d" in the names of "gtu"."""
    if not LAYERS[layer][1]:
        return dict(config)
    return {key.replace("dpb_", "rpe_").replace("tno_expand", "expand"): value for key, value in config.items()}


def _used(tensors: dict[str, Tensor], mixer: nn.Module) -> dict[str, Tensor]:
    """The tensors without those of parameters that most published layers have and do not use."""
    if isinstance(mixer, OneOrderGTU2D):
        return tensors
    unused = ("pre_norm.weight", "pre_norm.bias", "d")
    return {name: tensor for name, tensor in tensors.items() if not f".{name}".endswith(tuple(f".{u}" for u in unused))}


def _layer(tensors: dict[str, Tensor], layer: str, config: dict[str, Any]) -> Conversion:
    arguments = _arguments(layer, config)
    check_options(f"layer {layer!r}", _long_range_unit, arguments)
    module, names = _long_range_unit(layer, **arguments)
    return Conversion(module, tnn.flat_decay(_used(tensors, module.mixer)), [*names, *lra.UNWRAP])


@register_family("tnn.lra_gtu")
def lra_gtu(tensors: dict[str, Tensor], **config: Any) -> Conversion:
    """The layer "gtu" over (batch, length, dim)."""
    return _layer(tensors, "gtu", config)


@register_family("tnn.lra_tno_layer")
def lra_tno_layer(tensors: dict[str, Tensor], **config: Any) -> Conversion:
    """The layer "tno" over (batch, length, dim)."""
    return _layer(tensors, "tno", config)


@register_family("tnn.Gtu2d")
def gtu2d(tensors: dict[str, Tensor], **config: Any) -> Conversion:
    """The layer "gtu2d" over (batch, height · width, dim)."""
    return _layer(tensors, "gtu2d", config)


@register_family("tnn.Tno2d")
def tno2d(tensors: dict[str, Tensor], **config: Any) -> Conversion:
    """The layer "tno2d" over (batch, height · width, dim)."""
    return _layer(tensors, "tno2d", config)


@register_family("tnn.lra_model")
def lra_model(
    tensors: dict[str, Tensor], *, dataset: dict[str, Any], encoder: Any, model: dict[str, Any], decoder: Any
) -> Conversion:
    """A whole model of the Long Range Arena, called with tokens or features, and lengths where it pools by them."""
    check_options("tnn.lra_model", lra.Backbone, model)
    layer, options = lra.layer_options(model["layer"][0], model)
    if layer not in LAYERS:
        raise ValueError(unknown_name("layer of a TNN", layer, LAYERS))
    arguments = {"d_model": model["d_model"], **_arguments(layer, options)}
    check_options(f"layer {layer!r}", _long_range_unit, arguments)
    mixer, names = _long_range_unit(layer, **arguments)
    # A copy has the same values, which are those of the file in the end.
    backbone = lra.Backbone([copy.deepcopy(mixer) for _ in range(model["n_layers"])], **model)
    tensors = tnn.flat_decay(_used(tensors, mixer.mixer))
    return lra.classifier(tensors, backbone, names, dataset=dataset, encoder=encoder, decoder=decoder)


class Grids(nn.Module):
    """A unit over grids called as published: (batch, height, width, dim)."""

    def __init__(self, unit: GTU2D):
        super().__init__()
        self.unit = unit

    def forward(self, x: Tensor, H: int | None = None, W: int | None = None) -> Tensor:
        """Mix `x`; `H` and `W` say nothing that its shape does not."""
        self.unit.grid = (x.shape[1], x.shape[2])
        return self.unit(x.flatten(1, 2))[0].view_as(x)


def _image_names(rpe_layers: int) -> Rules:
    """Names inside a unit of the image models."""
    return [*GRID_NAMES, *tnn.operator_names("simplermsnorm", rpe_layers), *UNIT_NAMES]


@register_family("tnn.im_gtu")
def im_gtu(tensors: dict[str, Tensor], **config: Any) -> Conversion:
    """The unit of the image models over (batch, height, width, dim)."""
    check_options("tnn.im_gtu", tnn.unit_options, config)
    if config.get("norm_type", "simplermsnorm") != "simplermsnorm":
        # All that this code has beside it.
        config = {**config, "norm_type": "layernorm"}
    options, published = tnn.unit_options(**config)
    shape = {"height": 1, "width": 1, "combine": "sum"}
    unit = ImageGTU2D(config["embed_dim"], config.get("causal", False), **shape, **options, **published)
    names = [(r"^unit\.", ""), *_image_names(options["rpe_layers"])]
    return Conversion(Grids(unit), tnn.flat_decay(tensors), names)


@register_family("tnn.im_vit")
def im_vit(
    tensors: dict[str, Tensor],
    *,
    embed_dim: int,
    depth: int,
    glu_dim: int,
    rpe_embdding: int,
    img_size: int | list[int] = 224,
    patch_size: int | list[int] = 16,
    num_classes: int = 1000,
    num_heads: int = 1,
    glu_act: str = "silu",
    expand_ratio: float = 3,
    channels: int = 3,
    emb_dropout: float = 0.0,
    use_pos: bool = False,
    use_decay: bool = False,
    use_multi_decay: bool = False,
    gamma: float = 0.999,
    rpe_layers: int = 3,
    prenorm: bool = True,
    in_chans: int = 3,
    rpe_act: str = "relu",
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
) -> Conversion:
    """An image classifier; the published code ignores the last four arguments."""
    patches = vit.patches("mlp", patch_size)
    height, width = vit.grid(patches, img_size)
    unit = {
        "embed_dim": embed_dim,
        "num_heads": num_heads,
        "expand_ratio": expand_ratio,
        "use_decay": use_decay,
        "use_multi_decay": use_multi_decay,
        "gamma": gamma,
        "rpe_layers": rpe_layers,
        "rpe_embedding": rpe_embdding,
    }
    options, _ = tnn.unit_options(**unit)
    return vit.image_classifier(
        tnn.flat_decay(tensors),
        _image_names(rpe_layers),
        image_size=img_size,
        patch_embedding=patches,
        num_channels=channels,
        hidden_size=embed_dim,
        num_hidden_layers=depth,
        mixers=[{"type": "tno_2d", "height": height, "width": width, "combine": "sum", **options}],
        channel_mixer={"type": "glu", "hidden_size": glu_dim, "activation": activation_name(glu_act)},
        prenorm=prenorm,
        use_pos=use_pos,
        embedding_dropout=float(emb_dropout),
        num_classes=num_classes,
    )
