"""The shell of the Long Range Arena models of TNN, TransNormer and HGRN, which share a fork of the S4 code.

    encoder → [+ positions → dropout] → n × (mixer block, channel block) → [norm] → pooling → classes

A family brings its token mixers, one for each pair of blocks, and the names of what is inside them:

    @register_family("family.lra_model")
    def lra_model(tensors, *, dataset, encoder, model, decoder):
        check_options("family.lra_model", lra.Backbone, model)
        name, options = lra.layer_options(model["layer"][0], model)
        mixers = [lra.SequenceMixer(OurMixer(model["d_model"], causal=False, ...)) for _ in range(model["n_layers"])]
        backbone = lra.Backbone(mixers, **model)
        return lra.classifier(tensors, backbone, names, dataset=dataset, encoder=encoder, decoder=decoder)

and, where a backbone stands alone, `lra.backbone(tensors, backbone, names)`. `names` are rules, as in `Conversion`, for
parameters that our mixer calls "layers.0.layer.mixer.…": the "mixer." goes last, and by itself. What layers share, as
lower bounds, is the backbone's `shared`, under its name in `names` ("shared.…").

As published: padding is an ordinary input of every mixer and norm, and only the pooling reads the lengths.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from subquad.compat.reference import Conversion, Rules, activation_name, check_options
from subquad.layers import FFN, GLU, SinusoidalPositions
from subquad.layers import activation as get_activation
from subquad.layers.norms import BatchNorm
from subquad.mixers import Mixer
from subquad.registry import unknown_name


def squared_relu(x: Tensor) -> Tensor:
    """relu(x)²."""
    return F.relu(x).square()


FUNCTIONS: dict[Any, Callable[[Tensor], Tensor]] = {
    "swish": F.silu,
    "relu2": squared_relu,
    "cos": torch.cos,
    "sin": torch.sin,
}
"""Activations that only this code has."""

POOLINGS = ("pool", "last", "first", "sum")

NAMES: Rules = [
    (r"^((?:model\.)?(?:layers\.\d+\.)?)norm\.", r"\1norm.norm."),
    (r"\blayer\.gate_proj\.", "layer.l1."),
    (r"\blayer\.up_proj\.", "layer.l2."),
    (r"\blayer\.down_proj\.", "layer.l3."),
    (r"\blayer\.0\.up_proj\.", "layer.ff.0.0."),
    (r"\blayer\.0\.down_proj\.", "layer.ff.1."),
    (r"^decoder\.classifier\.", "decoder.retrieval.classifier."),
]
UNWRAP: Rules = [(r"\bmixer\.", "")]


def function(name: Any) -> Callable[[Tensor], Tensor]:
    """The activation that this code means by `name`."""
    return FUNCTIONS.get(name) or get_activation(activation_name(name))


def layer_options(config: Mapping[str, Any], model: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name of a layer and its arguments; its dropout is the model's where it has none of its own."""
    name, options = _described(config)
    if options.get("dropout") is None:
        options["dropout"] = model.get("dropout", 0.0)
    return name, options


def squarest_grid(length: int) -> tuple[int, int]:
    """Height and width of the picture that a sequence is.

    Raises:
        ValueError: If `length` is not ⌊√length⌋ times a whole number.
    """
    height = math.isqrt(length)
    if height * (length // height) != length:
        raise ValueError(f"a sequence of {length} is no picture: {height} rows of equal length need another number")
    return height, length // height


class SequenceMixer(nn.Module):
    """A mixer of ours called as published: without a state, and over the grid that the sequence is.

    Args:
        mixer: The mixer.
        token_shift: The share of the token before in each: 1 shifts by one position, 0.5 averages.
        fixed_grid: Whether a grid mixer keeps its grid.
    """

    def __init__(self, mixer: Mixer, token_shift: float = 0.0, fixed_grid: bool = False):
        super().__init__()
        self.mixer = mixer
        self.token_shift = token_shift
        self.fixed_grid = fixed_grid

    def forward(self, x: Tensor, **shared: Any) -> Tensor:
        """Mix `x` (batch, length, dim); `shared` is the layer's part of the shared module."""
        if self.mixer.grid is not None and not self.fixed_grid:
            self.mixer.grid = squarest_grid(x.shape[1])
        if self.token_shift:
            x = torch.lerp(x, F.pad(x, (0, 0, 1, -1)), self.token_shift)
        return self.mixer(x, **shared)[0]


class InstanceNorm(nn.InstanceNorm1d):
    """Each feature of each sequence normalised over positions, without parameters."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` (batch, length, dim)."""
        return super().forward(x.mT).mT


class WideRMSNorm(nn.Module):
    """x / (‖x‖₂/√d + 0.01) over the last axis: a root-mean-square norm whose epsilon is seen."""

    def __init__(self, dim: int):
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` (..., dim)."""
        root = torch.linalg.vector_norm(x, dim=-1, keepdim=True) * x.shape[-1] ** -0.5
        return x / (root + 0.01)


NORMS: dict[str, type[nn.Module]] = {
    "layer": nn.LayerNorm,
    "batch": BatchNorm,
    "synbatch": BatchNorm,
    "instance": InstanceNorm,
    "simplerms": WideRMSNorm,
    "none": nn.Identity,
}


def build_norm(published: str | None, dim: int) -> nn.Module:
    """The norm of (batch, length, dim) that this code means by `published`.

    Raises:
        ValueError: If no published model has such a norm.
    """
    if (published or "none") not in NORMS:
        raise ValueError(unknown_name("norm of a Long Range Arena model", published, NORMS))
    return NORMS[published or "none"](dim)


def channel_mixer(config: Mapping[str, Any], model: Mapping[str, Any]) -> nn.Module:
    """The channel mixer "glu" or "ff" of a model."""
    name, options = layer_options(config, model)
    kinds = {"glu": _glu, "ff": _ffn}
    if name not in kinds:
        raise ValueError(unknown_name("channel mixer of a Long Range Arena model", name, kinds))
    check_options(f"layer {name!r}", kinds[name], options)
    return kinds[name](model["d_model"], **options)


def _glu(dim: int, *, act_fun: str = "swish", glu_expand_ratio: float = 2, dropout: float = 0.0) -> nn.Module:
    unit = GLU(dim, int(dim * glu_expand_ratio), dropout=dropout)
    unit.activation = function(act_fun)
    return unit


def _ffn(dim: int, *, expand: float = 2, dropout: float = 0.0, transposed: bool = False) -> nn.Module:
    if transposed or expand != int(expand):
        raise ValueError(f"`expand` must be whole and `transposed` false, got {expand} and {transposed}")
    return nn.Sequential(FFN(dim, dim * int(expand), "gelu"), nn.Dropout(dropout))


class Residual(nn.Module):
    """One layer with a norm and a shortcut.

    Args:
        layer: f, called as f(x, **shared).
        norm: Norm of (batch, length, dim).
        prenorm: x + f(norm(x)), else norm(x + f(x)).
        dropout: Probability of dropping entries of what the layer returns.
    """

    def __init__(self, layer: nn.Module, norm: nn.Module, prenorm: bool, dropout: float):
        super().__init__()
        self.layer = layer
        self.norm = norm
        self.prenorm = prenorm
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, **shared: Any) -> Tensor:
        """Run the block on `x` (batch, length, dim)."""
        if self.prenorm:
            return x + self.dropout(self.layer(self.norm(x), **shared))
        return self.norm(x + self.dropout(self.layer(x, **shared)))


class Backbone(nn.Module):
    """The residual blocks, called on (batch, length, dim); arguments but the first and the last as published.

    Args:
        mixers: One token mixer for each pair of blocks, called as mixer(x, **shared) and returning y.
        d_model: Features.
        n_layers: Pairs of blocks.
        layer: The layers of a pair; the last is the channel mixer.
        prenorm: x + f(norm(x)) and a norm at the end, else norm(x + f(x)).
        dropout: Probability of dropping entries of what a layer returns.
        residual: "R", a plain shortcut.
        norm: Norm of the blocks, by its published name.
        track_norms: Ignored.
        shared: Parameters that the mixers share; returns keyword arguments for each.
    """

    def __init__(
        self,
        mixers: Sequence[nn.Module],
        *,
        d_model: int,
        n_layers: int,
        layer: Sequence[Mapping[str, Any]],
        prenorm: bool = True,
        dropout: float = 0.0,
        residual: str = "R",
        norm: str | None = "layer",
        track_norms: bool = False,
        shared: nn.Module | None = None,
    ):
        super().__init__()
        if residual != "R":
            raise ValueError(f"`residual` must be 'R', the plain shortcut of all published models, got {residual!r}")
        if n_layers < 1:
            raise ValueError(f"`n_layers` must be positive, got {n_layers}")
        assert len(mixers) == n_layers
        model = {"d_model": d_model, "dropout": dropout}
        layers = [f for mixer in mixers for f in (mixer, channel_mixer(layer[-1], model))]
        self.dim = d_model
        self.layers = nn.ModuleList(Residual(f, build_norm(norm, d_model), prenorm, dropout) for f in layers)
        self.norm = build_norm(norm if prenorm else None, d_model)
        self.shared = shared

    def forward(self, x: Tensor) -> Tensor:
        """Run the blocks on `x` (batch, length, dim)."""
        shared = [{}] * (len(self.layers) // 2) if self.shared is None else self.shared()
        for index, block in enumerate(self.layers):
            x = block(x) if index % 2 else block(x, **shared[index // 2])
        return self.norm(x)


class Positions(nn.Module):
    """A table of positions added to (batch, length, dim), and dropout."""

    def __init__(self, dim: int, *, dropout: float = 0.1, max_len: int = 16384):
        super().__init__()
        self.pe: Tensor
        self.register_buffer("pe", torch.empty(max_len, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Add positions to `x`."""
        if x.shape[1] > len(self.pe):
            raise ValueError(f"this model has {len(self.pe)} positions: a sequence of {x.shape[1]} is too long")
        return self.dropout(x + self.pe[: x.shape[1]])


class Pooling(nn.Module):
    """One vector for each sequence.

    Args:
        mode: "pool" (mean), "last", "first" or "sum".
        use_lengths: Whether padding at the end of sequences, as their lengths say, is left out.
    """

    def __init__(self, mode: str = "last", use_lengths: bool = False):
        super().__init__()
        if mode not in POOLINGS:
            raise ValueError(unknown_name("pooling", mode, POOLINGS))
        self.mode = mode
        self.use_lengths = use_lengths

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """Pool `x` (batch, length, dim) to (batch, dim)."""
        if not self.use_lengths:
            lengths = torch.full(x.shape[:1], x.shape[1], device=x.device)
        elif lengths is None or lengths.shape != x.shape[:1] or not ((lengths > 0) & (lengths <= x.shape[1])).all():
            raise ValueError(f"this model needs `lengths` ({len(x)},), each from 1 to {x.shape[1]}, got {lengths}")
        if self.mode == "first":
            return x[:, 0]
        if self.mode == "last":
            return x[torch.arange(len(x), device=x.device), lengths - 1]
        real = torch.arange(x.shape[1], device=x.device) < lengths.unsqueeze(-1)
        total = x.where(real.unsqueeze(-1), 0.0).sum(1)
        return total / lengths.unsqueeze(-1) if self.mode == "pool" else total


class SequenceHead(Pooling):
    """Classes (batch, num_classes) of pooled sequences."""

    def __init__(self, dim: int, num_classes: int, *, mode: str = "last", use_lengths: bool = False):
        super().__init__(mode, use_lengths)
        self.output_transform = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """Classify `x` (batch, length, dim)."""
        return self.output_transform(super().forward(x, lengths))


class RetrievalHead(Pooling):
    """Classes (pairs, num_classes) of pairs of documents; all first documents stand before all second ones.

    Args:
        dim: Features a document, pooled to a and b.
        num_classes: Classes.
        mode: As in `Pooling`.
        use_lengths: As in `Pooling`.
        nli: Whether the features are [a, b, a − b, a ⊙ b], with one hidden layer, else [a, b], with two.
        activation: "relu" or "gelu".
        d_model: Width of the hidden layer; default `dim`.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        *,
        mode: str = "last",
        use_lengths: bool = False,
        nli: bool = True,
        activation: str = "relu",
        d_model: int | None = None,
    ):
        super().__init__(mode, use_lengths)
        functions = {"relu": nn.ReLU, "gelu": nn.GELU}
        if activation not in functions:
            raise ValueError(unknown_name("activation of a retrieval head", activation, functions))
        width = d_model or dim
        widths = [4 * dim, width] if nli else [2 * dim, width, width // 2]
        hidden = [
            module
            for first, second in itertools.pairwise(widths)
            for module in (nn.Linear(first, second), functions[activation]())
        ]
        self.nli = nli
        self.classifier = nn.Sequential(*hidden, nn.Linear(widths[-1], num_classes))

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """Classify pairs of `x` (2 · pairs, length, dim)."""
        if len(x) % 2:
            raise ValueError(f"retrieval needs pairs: first documents, then second ones; got {len(x)} documents")
        a, b = super().forward(x, lengths).chunk(2)
        return self.classifier(torch.cat([a, b, a - b, a * b] if self.nli else [a, b], dim=-1))


HEADS: dict[str, type[nn.Module]] = {"sequence": SequenceHead, "retrieval": RetrievalHead}


class Classifier(nn.Module):
    """A whole model: called as model(x) or model(x, lengths), x (batch, length) tokens or (batch, length, features)."""

    def __init__(self, encoder: nn.Module, model: nn.Module, decoder: nn.Module):
        super().__init__()
        self.encoder = encoder
        self.model = model
        self.decoder = decoder

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Logits (batch, num_classes), or (batch / 2, num_classes) of pairs."""
        return self.decoder(self.model(self.encoder(x)), lengths)

    def class_logits(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Logits (batch, num_classes).

        Args:
            x: Tokens (batch, length), features (batch, length, features), or pairs of them, (batch, 2, length, …).
            mask: Of the shape of the tokens, 1 for real ones; padding stands at the end.
        """
        if isinstance(self.decoder, RetrievalHead):
            x = x.transpose(0, 1).flatten(0, 1)
            mask = None if mask is None else mask.transpose(0, 1).flatten(0, 1)
        lengths = torch.full(x.shape[:1], x.shape[1], device=x.device) if mask is None else mask.long().sum(-1)
        return self(x, lengths)

    @property
    def facts(self) -> dict[str, Any]:
        """What it takes and returns, as fields of a configuration."""
        first: Any = self.encoder[0] if isinstance(self.encoder, nn.Sequential) else self.encoder
        is_pair, decoder = isinstance(self.decoder, RetrievalHead), cast(Any, self.decoder)
        return {
            "vocab_size": getattr(first, "num_embeddings", None),
            "input_features": getattr(first, "in_features", None),
            "classifier": "pair" if is_pair else "linear",
            "num_labels": (decoder.classifier[-1] if is_pair else decoder.output_transform).out_features,
        }


def backbone(tensors: dict[str, Tensor], module: Backbone, names: Rules) -> Conversion:
    """Convert a backbone that stands alone."""
    return Conversion(module, tensors, [*NAMES, *names, *UNWRAP])


def classifier(
    tensors: dict[str, Tensor],
    model: Backbone,
    names: Rules,
    *,
    dataset: Mapping[str, Any],
    encoder: Any,
    decoder: Any,
) -> Conversion:
    """Convert a whole model.

    Args:
        tensors: Its state dict.
        model: The backbone, with parameters of any values.
        names: What the parameters of the mixers are called.
        dataset: Its sizes, `d_output` and `n_tokens` or `d_input`.
        encoder: The names or descriptions of its encoders: "embedding" or "linear", then "position", "id" or nothing.
        decoder: The name or description of its head.

    Raises:
        ValueError: If an encoder or a head is unknown or does not fit the data set.
    """
    entries = [encoder] if isinstance(encoder, str | Mapping) else list(encoder)
    stages = [_encoder(entry, dataset, model.dim) for entry in entries]
    for index, stage in enumerate(stages):
        if isinstance(stage, Positions):
            # Where the table is not stored, it is the one that was: sin and cos alternate.
            table = SinusoidalPositions(model.dim, interleaved=True)(torch.arange(len(stage.pe)), torch.float64)
            like = next((t for t in tensors.values() if t.is_floating_point()), table)
            tensors.setdefault(f"encoder.{index}.pe", table.to(like.dtype))
    if "d_output" not in dataset:
        raise ValueError("`dataset` must have `d_output`, the number of classes")
    if dataset.get("l_output"):
        raise ValueError(f"`l_output` must be 0, one output for each sequence, got {dataset['l_output']}")
    name, options = _described(decoder)
    if name not in HEADS:
        raise ValueError(unknown_name("head of a Long Range Arena model", name, HEADS))
    check_options(f"head {name!r}", HEADS[name], options)
    head = HEADS[name](model.dim, dataset["d_output"], **options)
    module = Classifier(stages[0] if len(stages) == 1 else nn.Sequential(*stages), model, head)
    return Conversion(module, tensors, [*NAMES, *names, *UNWRAP])


def _described(entry: Any) -> tuple[str, dict[str, Any]]:
    """A name, or a mapping with "_name_" and options."""
    if isinstance(entry, str):
        return entry, {}
    if "_name_" not in entry:
        raise ValueError(f'a layer, an encoder and a head are described by {{"_name_": name, ...}}, got {dict(entry)}')
    options = dict(entry)
    return options.pop("_name_"), options


def _encoder(entry: Any, dataset: Mapping[str, Any], dim: int) -> nn.Module:
    name, options = _described(entry)
    if name == "position":
        check_options("encoder 'position'", Positions, options)
        return Positions(dim, **options)
    if options:
        raise ValueError(f"the encoder {name!r} has no options: its sizes are those of the data set, got {options}")
    if name == "id":
        return nn.Identity()
    sizes = {"embedding": "n_tokens", "linear": "d_input"}
    if name not in sizes:
        raise ValueError(unknown_name("encoder of a Long Range Arena model", name, [*sizes, "position", "id"]))
    if sizes[name] not in dataset:
        raise ValueError(f"the encoder {name!r} needs `{sizes[name]}` in `dataset`")
    return (nn.Embedding if name == "embedding" else nn.Linear)(dataset[sizes[name]], dim)
