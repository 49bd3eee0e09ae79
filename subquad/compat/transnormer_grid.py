"""TransNormer as published (arXiv 2210.10340) in the Long Range Arena and on images: its mixers there, and the models.

The Long Range Arena code has rotary positions and the model's norm inside its mixers. The image code has one map to
queries, keys and values, windows of the grid in place of blocks of the sequence, and positions that are the sum of row
and column. Zero rows that fill a block or a window take part in its softmax.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from subquad.compat import lra, vit
from subquad.compat.reference import (
    UNWRAP,
    Conversion,
    OnlyOutput,
    Rules,
    activation_name,
    check_options,
    register_family,
)
from subquad.compat.transnormer import LeakyDiagAttention
from subquad.layers import FFN, LRPE
from subquad.mixers import NormAttention
from subquad.mixers.base import State
from subquad.mixers.transnormer import TransNormerMixer
from subquad.registry import unknown_name

NORMS = {"layer": "layernorm", "batch": "batchnorm", "synbatch": "batchnorm"}

MIXER_NAMES: Rules = [(r"\boutput_proj\.", "out_proj.")]
LOCAL_NAMES: Rules = [(r"\bmixer\.norm\.", "mixer.normalize.norm."), *MIXER_NAMES]
LINEAR_NAMES: Rules = [(r"\bmixer\.norm\.", "mixer.layer_norm.norm."), *MIXER_NAMES]
IMAGE_NAMES: Rules = [
    (r"\bpositions\.theta$", "lrpe.theta"),
    (r"\bpositions\.reflection$", "lrpe.v"),
    (r"\boutput_proj\.", "to_out.0."),
]


# --- Long Range Arena ------------------------------------------------------------------------------------------------


def _norm(published: str) -> str:
    if published not in NORMS:
        raise ValueError(unknown_name("norm inside a mixer", published, NORMS))
    return NORMS[published]


def _activation(mixer: Any, act_fun: str) -> Any:
    """The mixer with this activation, which a description of ours does not know."""
    if act_fun == "relu2":
        mixer.activation = lra.squared_relu
    return mixer


def _local(
    *,
    d_model: int,
    n_heads: int,
    norm_type: str,
    chunk_size: int = 64,
    act_fun: str = "relu",
    use_lrpe: bool = True,
    use_softmax: bool = False,
    dropout: float = 0.0,
) -> LeakyDiagAttention:
    """The published layer "localattn"; its norm is applied without a softmax alone."""
    mixer = LeakyDiagAttention(
        d_model,
        False,
        num_heads=n_heads,
        block_size=chunk_size,
        kernel="softmax" if use_softmax else activation_name(act_fun),
        norm=None if use_softmax else _norm(norm_type),
        positions="rotary" if use_lrpe else None,
        dropout=dropout,
    )
    return mixer if use_softmax else _activation(mixer, act_fun)


def _linear(
    *, d_model: int, n_heads: int, norm_type: str, act_fun: str = "elu", use_lrpe: bool = True, dropout: float = 0.0
) -> NormAttention:
    """The published layer "linearattn", which has no dropout of its own."""
    mixer = NormAttention(
        d_model,
        False,
        num_heads=n_heads,
        activation=activation_name(act_fun),
        norm=_norm(norm_type),
        positions="rotary" if use_lrpe else None,
    )
    return _activation(mixer, act_fun)


LAYERS = {"localattn": _local, "linearattn": _linear}


def _used(tensors: dict[str, Tensor], options: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors without those of norms that a softmax has no use for."""
    if not options.get("use_softmax"):
        return tensors
    return {name: tensor for name, tensor in tensors.items() if not re.search(r"(^|\.)normalize\.norm\.", name)}


@register_family("transnormer.lra_local")
def lra_local(tensors: dict[str, Tensor], **config: Any) -> Conversion:
    """Attention inside blocks, over (batch, length, dim)."""
    check_options("transnormer.lra_local", _local, config)
    return Conversion(lra.SequenceMixer(_local(**config)), _used(tensors, config), [*LOCAL_NAMES, *lra.UNWRAP])


@register_family("transnormer.lra_linear")
def lra_linear(tensors: dict[str, Tensor], **config: Any) -> Conversion:
    """Linear attention with a norm, over (batch, length, dim)."""
    check_options("transnormer.lra_linear", _linear, config)
    return Conversion(lra.SequenceMixer(_linear(**config)), tensors, [*LINEAR_NAMES, *lra.UNWRAP])


@register_family("transnormer.lra_FF")
def lra_ff(tensors: dict[str, Tensor], *, d_input: int, expand: float = 2, dropout: float = 0.0) -> Conversion:
    """The channel mixer, over (..., d_input)."""
    module = lra.channel_mixer({"_name_": "ff", "expand": expand, "dropout": dropout}, {"d_model": d_input})
    return Conversion(module, tensors, [(r"^0\.up_proj\.", "ff.0.0."), (r"^0\.down_proj\.", "ff.1.")])


@register_family("transnormer.lra")
def lra_backbone(tensors: dict[str, Tensor], **model: Any) -> Conversion:
    """The backbone of the Long Range Arena, over (batch, length, dim)."""
    return lra.backbone(*_backbone("transnormer.lra", tensors, model))


@register_family("transnormer.lra_classifier")
def lra_classifier(
    tensors: dict[str, Tensor], *, dataset: dict[str, Any], encoder: Any, model: dict[str, Any], decoder: Any
) -> Conversion:
    """A whole model of the Long Range Arena, called with tokens or features, and lengths where it pools by them."""
    backbone = _backbone("transnormer.lra_classifier", tensors, model)
    return lra.classifier(*backbone, dataset=dataset, encoder=encoder, decoder=decoder)


def _backbone(
    family: str, tensors: dict[str, Tensor], model: dict[str, Any]
) -> tuple[dict[str, Tensor], lra.Backbone, Rules]:
    """Half of the pairs, rounded down, have local attention, the others linear attention."""
    check_options(family, lra.Backbone, model)
    layers = dict(lra.layer_options(layer, model) for layer in model["layer"][:-1])
    if set(layers) != set(LAYERS):
        raise ValueError(f"`layer` must be localattn, linearattn and a channel mixer, got {', '.join(layers)}")
    for name, options in layers.items():
        options["d_model"] = model["d_model"]
        check_options(f"layer {name!r}", LAYERS[name], options)
    count = model["n_layers"]
    local = count // 2
    mixers = [_local(**layers["localattn"]) for _ in range(local)]
    mixers += [_linear(**layers["linearattn"]) for _ in range(count - local)]
    backbone = lra.Backbone([lra.SequenceMixer(mixer) for mixer in mixers], **model)
    norms = [(rf"\b(layers\.{2 * index}\.layer\.mixer)\.norm\.", r"\1.normalize.norm.") for index in range(local)]
    return _used(tensors, layers["localattn"]), backbone, [*norms, *LINEAR_NAMES]


# --- images ----------------------------------------------------------------------------------------------------------


class GridPositions(TransNormerMixer):
    """Mixin of mixers over a grid whose positions are the sum of row and column: the same angles turn both."""

    def encode(
        self, q: Tensor, k: Tensor, positions: Tensor, activation: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Put the positions on the grid into queries and keys (batch, height · width, heads, head_dim)."""
        row, column = self.coordinates(q.device)
        return super().encode(q, k, row + column, activation)

    def coordinates(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Row and column (height · width,) of each position."""
        assert self.grid is not None
        height, width = self.grid
        row, column = torch.arange(height, device=device), torch.arange(width, device=device)
        return row.repeat_interleave(width), column.repeat(height)


class GridNormAttention(GridPositions, NormAttention):
    """Linear attention over a grid."""


class WindowAttention(GridPositions, LeakyDiagAttention):
    """Attention inside square windows of a grid, zeros where a window reaches beyond it.

    Args:
        dim: As in `DiagAttention`.
        window: Side of a window.
        **options: As in `DiagAttention`.
    """

    def __init__(self, dim: int, *, window: int, **options: Any):
        super().__init__(dim, False, block_size=window * window, **options)
        self.window = window

    def mix(self, x: Tensor, state: State | None, mask: Tensor | None) -> tuple[Tensor, State | None]:
        """Mix a batch of grids (batch, height · width, dim)."""
        assert self.grid is not None
        row, column = self.coordinates(x.device)
        side = self.window
        down, across = (-(-length // side) for length in self.grid)
        window = row // side * across + column // side
        places = window * self.block_size + row % side * side + column % side
        o, _, _ = self._attend_in_blocks(x, places.expand(x.shape[0], -1), down * across, None)
        return self.output(o, x), None


def _image_norm(published: str) -> str:
    """Our name of a norm: the image code has one, and every other name is a LayerNorm."""
    return "simple_rmsnorm" if published == "simplermsnorm" else "layernorm"


def _image_activation(published: str) -> str:
    """Our name of an activation; "2+elu" is unknown to the image code, as "swish" is."""
    return "identity" if published == "2+elu" else activation_name(published)


def _image_mixer(
    kind: type[TransNormerMixer],
    grid: tuple[int, int],
    *,
    dim: int,
    num_heads: int,
    dim_head: int | None = None,
    use_lrpe: bool,
    norm: str | None,
    **options: Any,
) -> TransNormerMixer:
    """A mixer of the image code: the output map alone has a bias."""
    if (dim_head or dim // num_heads) * num_heads != dim:
        raise ValueError(f"{num_heads} heads of {dim_head} features must have the {dim} features of the model together")
    positions = "lrpe" if use_lrpe else None
    mixer = kind(dim, num_heads=num_heads, positions=positions, norm=norm, bias=False, **options)
    mixer.output_proj = nn.Linear(dim, dim)
    mixer.grid = grid
    return mixer


def _windows(
    grid: tuple[int, int],
    *,
    norm_type: str,
    block_size: int,
    act_fun: str,
    use_softmax: bool,
    dropout: float,
    **options: Any,
) -> TransNormerMixer:
    """Attention inside windows; its norm is applied without a softmax alone."""
    kernel = "softmax" if use_softmax else _image_activation(act_fun)
    norm = None if use_softmax else _image_norm(norm_type)
    return _image_mixer(WindowAttention, grid, norm=norm, window=block_size, kernel=kernel, dropout=dropout, **options)


def _whole(grid: tuple[int, int], *, norm_type: str, act_fun: str, **options: Any) -> TransNormerMixer:
    """Linear attention over the whole grid."""
    activation = _image_activation(act_fun)
    return _image_mixer(
        GridNormAttention, grid, norm=_image_norm(norm_type), causal=False, activation=activation, **options
    )


def _split_maps(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The map to queries, keys and values as three."""
    split = {}
    for name, tensor in tensors.items():
        if re.search(r"(^|\.)to_qkv\.weight$", name):
            parts = zip("qkv", tensor.chunk(3), strict=True)
            split |= {name.replace("to_qkv", f"{kind}_proj"): part for kind, part in parts}
        else:
            split[name] = tensor
    return split


@register_family("transnormer.im_diag")
def im_diag(
    tensors: dict[str, Tensor],
    *,
    dim: int,
    num_heads: int,
    num_row_patches: int,
    dim_head: int | None = None,
    use_lrpe: bool = False,
    use_softmax: bool = True,
    norm_type: str = "layernorm",
    block_size: int = 4,
    act_fun: str = "relu",
    dropout: float = 0.0,
) -> Conversion:
    """Attention inside windows, over (batch, rows · rows, dim)."""
    mixer = _windows(
        (num_row_patches, num_row_patches),
        dim=dim,
        num_heads=num_heads,
        dim_head=dim_head,
        use_lrpe=use_lrpe,
        use_softmax=use_softmax,
        norm_type=norm_type,
        block_size=block_size,
        act_fun=act_fun,
        dropout=dropout,
    )
    return Conversion(OnlyOutput(mixer), _split_maps(tensors), [*UNWRAP, *IMAGE_NAMES])


@register_family("transnormer.im_norm")
def im_norm(
    tensors: dict[str, Tensor],
    *,
    dim: int,
    num_heads: int,
    num_row_patches: int,
    dim_head: int | None = None,
    use_lrpe: bool = False,
    norm_type: str = "layernorm",
    act_fun: str = "relu",
) -> Conversion:
    """Linear attention over the whole grid, over (batch, rows · rows, dim)."""
    mixer = _whole(
        (num_row_patches, num_row_patches),
        dim=dim,
        num_heads=num_heads,
        dim_head=dim_head,
        use_lrpe=use_lrpe,
        norm_type=norm_type,
        act_fun=act_fun,
    )
    return Conversion(OnlyOutput(mixer), _split_maps(tensors), [*UNWRAP, *IMAGE_NAMES])


class PublishedLRPE(nn.Module):
    """LRPE called as published: (..., dim), the position the sum of the indices along some axes."""

    def __init__(self, positions: LRPE, dims: list[int]):
        super().__init__()
        self.positions = positions
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        """Encode `x` (..., dim)."""
        total = torch.zeros([1] * (x.ndim - 1), device=x.device)
        for dim in self.dims:
            index = torch.arange(x.shape[dim], device=x.device)
            total = total + index.view([-1 if axis == dim else 1 for axis in range(x.ndim - 1)])
        return self.positions(x, self.positions.angles(total))


@register_family("transnormer.im_lrpe")
def im_lrpe(
    tensors: dict[str, Tensor],
    *,
    embedding_dim: int,
    dims: list[int],
    core_matrix: int = 1,
    p_matrix: int = 3,
    theta_learned: bool = True,
) -> Conversion:
    """The positions of the image code, over (..., embedding_dim)."""
    if (core_matrix, p_matrix, theta_learned) != (1, 3, True):
        raise ValueError("positions of images have `core_matrix` 1, `p_matrix` 3 and a learned theta in all models")
    names = [(r"^positions\.theta$", "theta"), (r"^positions\.reflection$", "v")]
    return Conversion(PublishedLRPE(LRPE(embedding_dim), dims), tensors, names)


@register_family("transnormer.im_FFN")
def im_ffn(tensors: dict[str, Tensor], *, dim: int, hidden_dim: int, dropout: float = 0.0) -> Conversion:
    """The channel mixer of the image code, over (..., dim), with dropout after both maps."""
    module = nn.Sequential(FFN(dim, hidden_dim, "gelu", dropout=dropout), nn.Dropout(dropout))
    return Conversion(module, tensors, [(r"^0\.up_proj\.", "net.0."), (r"^0\.down_proj\.", "net.3.")])


@register_family("transnormer.im_vit")
def im_vit(
    tensors: dict[str, Tensor],
    *,
    dim: int,
    depth: int,
    num_heads: int,
    mlp_dim: int,
    image_size: int | list[int] = 224,
    patch_size: int | list[int] = 16,
    patch_type: str = "mlp",
    stride: int | list[int] = 14,
    channels: int = 3,
    num_classes: int = 1000,
    norm_type: str = "simplermsnorm",
    type_list: list[int] | None = None,
    block_size: int = 4,
    block_act: str = "relu",
    linear_act: str = "1+elu",
    num_heads_list: list[int] | None = None,
    use_softmax: bool = True,
    use_lrpe: bool = False,
    use_pos: bool = True,
    use_glu: bool = False,
    glu_act: str = "silu",
    glu_dim: int | None = None,
    drop_rate: float = 0.0,
    emb_dropout: float = 0.0,
    drop_path_rate: float = 0.0,
    pool: str = "cls",
    use_final_norm: bool = False,
) -> Conversion:
    """An image classifier; the published code ignores the last three arguments."""
    patches = vit.patches(patch_type, patch_size, stride)
    grid = vit.grid(patches, image_size)
    kinds = type_list or [1] * (depth // 2) + [2] * (depth - depth // 2)
    if len(kinds) != depth or not set(kinds) <= {1, 2}:
        raise ValueError(f"`type_list` must be {depth} times 1 or 2, one for each layer, got {kinds}")
    heads = num_heads_list or [num_heads] * depth
    if len(heads) != depth:
        raise ValueError(f"`num_heads_list` must have one number for each of the {depth} layers, got {heads}")
    common = {"dim": dim, "use_lrpe": use_lrpe, "norm_type": norm_type}
    local = {"block_size": block_size, "act_fun": block_act, "use_softmax": use_softmax, "dropout": drop_rate}

    def replace_mixers(model: Any) -> None:
        for kind, count, block in zip(kinds, heads, model.model.layers, strict=True):
            if kind == 1:
                block.token_mixer = _windows(grid, num_heads=count, **common, **local)
            else:
                block.token_mixer = _whole(grid, num_heads=count, act_fun=linear_act, **common)

    if use_glu:
        # "swish" is unknown there, which is the identity.
        channel_mixer = {"type": "glu", "hidden_size": glu_dim or mlp_dim, "activation": _image_activation(glu_act)}
    else:
        channel_mixer = {"type": "ffn", "hidden_size": mlp_dim, "activation": "gelu", "dropout": drop_rate}
    return vit.image_classifier(
        _split_maps(tensors),
        IMAGE_NAMES,
        image_size=image_size,
        patch_embedding=patches,
        num_channels=channels,
        hidden_size=dim,
        num_hidden_layers=depth,
        mixers=[{"type": "norm_attention", "num_heads": num_heads}],
        channel_mixer=channel_mixer,
        norm=_image_norm(norm_type),
        pooling_norm=_image_norm(norm_type),
        prenorm=True,
        use_pos=use_pos,
        # The last row is spare.
        max_position_embeddings=grid[0] * grid[1] + 1,
        dropout=drop_rate,
        embedding_dropout=emb_dropout,
        num_classes=num_classes,
        parts={"attention with the sum of row and column as position, and in windows of the grid": replace_mixers},
    )
