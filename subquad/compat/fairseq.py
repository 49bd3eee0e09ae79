"""What the published fairseq language models share: their arguments, embeddings, output layers and names.

The order is √d · E[token] → [map in] → [+ positions] → [norm] → dropout → blocks → [norm] → [map out] → logits.
"""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from subquad.compat.reference import Conversion, Rules, activation_name
from subquad.layers import activation as get_activation
from subquad.models import SubquadConfig, SubquadForCausalLM

EOS = 2
"""`</s>` in every fairseq dictionary. It ends a text and stands before the next; `<s>` is never fed to these models."""

Parts = dict[str, Callable[[Any], None]]
"""What a published model has and no new one should: a description, and how it is put into ours."""

# Buffers that are recomputed, or say nothing about the model.
IGNORED = re.compile(
    r".*_float_tensor|(.*\.)?(version|positions_used|cache_matrix|causal_mask)|.*embed_positions.weights"
)

# The order matters: what is inside a layer first.
NAMES: Rules = [
    (r"\.token_norm\.", ".self_attn_layer_norm."),
    (r"\.channel_norm\.", ".final_layer_norm."),
    (r"^model\.embed_tokens\.embeddings\.(\d+)\.", r"model.embed_tokens.embeddings.\1.0."),
    (r"^model\.embed_tokens\.projections\.(\d+)\.", r"model.embed_tokens.embeddings.\1.1."),
    (r"^model\.project_(in|out)\.", r"model.project_\1_dim."),
    (r"^model\.positions\.", "model.embed_positions."),
    (r"^model\.embedding_norm\.", "model.layernorm_embedding."),
    (r"^model\.final_norm\.", "model.layer_norm."),
    (r"^model\.", "decoder."),
    (r"^lm_head\.weight", "decoder.output_projection.weight"),
    (r"^lm_head\.head_proj\.", "decoder.adaptive_softmax.head.word_proj.0."),
    (r"^lm_head\.head_words\.", "decoder.adaptive_softmax.head.word_proj."),
    (r"^lm_head\.head_classes\.", "decoder.adaptive_softmax.head.class_proj."),
    (r"^lm_head\.tail_proj\.(\d+)\.", r"decoder.adaptive_softmax.tail.\1.0."),
    (r"^lm_head\.tail_words\.(\d+)\.", r"decoder.adaptive_softmax.tail.\1.2."),
]

GLU_NAMES: Rules = [
    (r"\bchannel_mixer(\.0)?\.gate_proj\.", "glu.l1."),
    (r"\bchannel_mixer(\.0)?\.up_proj\.", "glu.l2."),
    (r"\bchannel_mixer(\.0)?\.down_proj\.", "glu.l3."),
]
SELF_GATED_GLU_NAMES: Rules = [
    (r"\bchannel_mixer(\.0)?\.up_proj\.", "glu.l1."),
    (r"\bchannel_mixer(\.0)?\.down_proj\.", "glu.l2."),
]


def shifted_exp(x: Tensor) -> Tensor:
    """exp(x − max x) over the last axis, the maximum a constant in the backward pass: fairseq's "exp"."""
    return torch.exp(x - x.detach().amax(-1, keepdim=True))


FUNCTIONS: dict[Any, Callable[[Tensor], Tensor]] = {"exp": shifted_exp, "sine": torch.sin}
"""Activations of the published fairseq code that ours has none of."""


class Elementwise(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function."""
        return self.function(x)


class PublishedForCausalLM(SubquadForCausalLM):
    """A published language model with parts that no configuration of ours describes."""

    parts: tuple[str, ...] = ()

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Refuse: what is read back would be another model.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            f"this published model has {', '.join(self.parts)}, which no `SubquadConfig` describes: keep its "
            "configuration and weights as they are, and read them with `from_reference`"
        )


class AdaptiveInput(nn.Module):
    """Token embeddings whose width falls with the band of the vocabulary (Baevski & Auli 2018, arXiv 1809.10853).

    Args:
        edges: End of each band; the last is the size of the vocabulary.
        width: Width of the first band.
        dim: Features of every embedding after the band's map.
        factor: Band i has width ⌊width / factorⁱ⌋.
        padding_idx: Padding token, in the first band; it gets no gradient.
    """

    def __init__(self, edges: list[int], width: int, dim: int, factor: float, padding_idx: int):
        super().__init__()
        starts = [0, *edges[:-1]]
        widths = [int(width // factor**i) for i in range(len(edges))]
        self.bands = list(zip(starts, edges, strict=True))
        self.dim = dim
        self.widths = widths
        self.embeddings = nn.ModuleList(
            nn.Embedding(end - start, w, padding_idx=None if start else padding_idx)
            for (start, end), w in zip(self.bands, widths, strict=True)
        )
        self.projections = nn.ModuleList(nn.Linear(w, dim, bias=False) for w in widths)

    def forward(self, tokens: Tensor) -> Tensor:
        """Embeddings (..., dim) of `tokens` (...)."""
        out = torch.empty(*tokens.shape, self.dim, device=tokens.device, dtype=next(self.parameters()).dtype)
        for (start, end), embed, project in zip(self.bands, self.embeddings, self.projections, strict=True):
            chosen = (tokens >= start) & (tokens < end)
            out[chosen] = project(embed(tokens[chosen] - start)).to(out.dtype)
        return out


class Transposed(nn.Module):
    """A linear map read backwards: x ↦ xW for the map with weight W."""

    def __init__(self, linear: Any):
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` (..., out_features) to (..., in_features)."""
        return x @ self.linear.weight


class AdaptiveSoftmax(nn.Module):
    """Log-probabilities from a head over frequent words and tail classes (Grave et al. 2017, arXiv 1609.04309).

        log p(w) = log softmax(head)[w] in the first band,  log softmax(head)[class] + log softmax(tail)[w] elsewhere

    Args:
        edges: End of each band; the last is the size of the vocabulary.
        dim: Features in.
        factor: Tail i has width ⌊dim / factor^(i+1)⌋.
        dropout: Probability of dropping entries of a tail's features.
        tied: Embeddings whose words are the output words too, or None.
        tie_maps: Whether the tails' maps are those embeddings' maps, transposed.
    """

    def __init__(
        self,
        edges: list[int],
        dim: int,
        factor: float,
        dropout: float,
        tied: AdaptiveInput | None,
        tie_maps: bool,
    ):
        super().__init__()
        widths = [dim, *(int(dim // factor ** (i + 1)) for i in range(len(edges) - 1))]
        if tied is not None:
            widths = tied.widths
        sizes = [end - start for start, end in zip([0, *edges], edges, strict=False)]
        words = [nn.Linear(width, size, bias=False) for width, size in zip(widths, sizes, strict=True)]
        maps: list[Any] = [nn.Linear(dim, width, bias=False) for width in widths]
        if tied is not None:
            for linear, embedding in zip(words, tied.embeddings, strict=True):
                linear.register_parameter("weight", embedding.get_parameter("weight"))
            if tie_maps:
                maps[1:] = [Transposed(linear) for linear in tied.projections[1:]]
        self.head_proj = maps[0] if widths[0] != dim else None
        self.head_words = words[0]
        self.head_classes = nn.Linear(dim, len(edges) - 1, bias=False)
        self.tail_proj = nn.ModuleList(maps[1:])
        self.tail_words = nn.ModuleList(words[1:])
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Log-probabilities (..., vocab_size) of `x` (..., dim)."""
        words = x if self.head_proj is None else self.head_proj(x)
        head = torch.cat([self.head_words(words), self.head_classes(x)], dim=-1).log_softmax(-1)
        count = self.head_words.out_features
        bands = [head[..., :count]]
        for i, (project, tail) in enumerate(zip(self.tail_proj, self.tail_words, strict=True)):
            bands.append(tail(self.dropout(project(x))).log_softmax(-1) + head[..., count + i, None])
        return torch.cat(bands, dim=-1)


def require(args: dict[str, Any], *names: str) -> None:
    """Hold that options without a default are there.

    Raises:
        ValueError: If some are not, with all of their names.
    """
    lacking = [name for name in names if args.get(name) is None]
    if lacking:
        raise ValueError(f"the arguments of this fairseq model must have {', '.join(lacking)}")


def function(name: Any) -> Callable[[Tensor], Tensor]:
    """The activation that the published fairseq code means by `name`."""
    return FUNCTIONS.get(name) or get_activation(activation_name(name))


def channel_bias(args: dict[str, Any], tensors: dict[str, Tensor]) -> bool:
    """Whether channel mixers have biases; where the token mixers have none, the weights say it."""
    return bool(args.get("bias", True)) or "decoder.layers.0.glu.l1.bias" in tensors


def glu(act: Any, hidden_size: int, dropout: float, final_act: Any, bias: bool) -> tuple[dict[str, Any], Parts]:
    """Our channel mixer for a published GLU, and what must be put into it."""
    parts: Parts = {}
    if act in FUNCTIONS:
        parts[f"activation {act!r} in the channel mixer"] = set_channel_activation(function(act))
    options = {"hidden_size": hidden_size, "activation": activation_name(act), "dropout": dropout, "bias": bias}
    return {"type": "glu", **options}, parts | final_activation(final_act)


def set_channel_activation(activation: Callable[[Tensor], Tensor]) -> Callable[[Any], None]:
    """A part: the activation of all channel mixers."""

    def change(model: Any) -> None:
        for block in model.model.layers:
            block.channel_mixer.activation = activation

    return change


def final_activation(name: Any) -> Parts:
    """A part where `name` is an activation: it is applied to what the channel mixers return."""
    if name not in FUNCTIONS and activation_name(name) == "identity":
        return {}

    def change(model: Any) -> None:
        for block in model.model.layers:
            block.channel_mixer = nn.Sequential(block.channel_mixer, Elementwise(function(name)))

    return {f"activation {name!r} after the channel mixer": change}


def language_model(
    tensors: dict[str, Tensor],
    args: dict[str, Any],
    names: Rules,
    *,
    parts: Parts,
    final_norm: str = "layernorm",
    embedding_norm: str = "layernorm",
    **options: Any,
) -> Conversion:
    """Convert a published fairseq language model.

    Args:
        tensors: Its state dict.
        args: Its resolved arguments, with `vocab_size`.
        names: What the parameters inside a layer are called, as in `Conversion`.
        parts: What no configuration of ours describes.
        final_norm: Norm after the last block, where the arguments ask for one.
        embedding_norm: Norm of the embeddings, where the arguments ask for one.
        **options: `SubquadConfig`'s options of the blocks and positions.

    Raises:
        ValueError: If an argument is missing or asks for what no published model of these families has.
    """
    require(args, "vocab_size", "decoder_embed_dim", "decoder_layers", "decoder_normalize_before")
    for name in ("character_embeddings", "base_layers", "decoder_layers_to_keep"):
        if args.get(name):
            raise ValueError(f"`{name}` = {args[name]!r}: no published model of these families has it, nor has subquad")
    tensors = current_names(tensors)
    dim, padding_idx = args["decoder_embed_dim"], args.get("padding_idx", 1)
    input_dim = args.get("decoder_input_dim") or dim
    output_dim = args.get("decoder_output_dim") or dim
    input_edges = _edges(args, "adaptive_input_cutoff") if args.get("adaptive_input") else None
    output_edges = _edges(args, "adaptive_softmax_cutoff") if args.get("adaptive_softmax_cutoff") else None
    tie_adaptive = bool(args.get("tie_adaptive_weights"))
    if tie_adaptive and (input_edges is None or input_edges != output_edges):
        raise ValueError(
            "`tie_adaptive_weights` needs `adaptive_input` and the same cutoffs in input and output, got "
            f"{args.get('adaptive_input_cutoff')!r} and {args.get('adaptive_softmax_cutoff')!r}"
        )
    tied = bool(args.get("share_decoder_input_output_embed")) and not output_edges
    if tied and input_edges:
        raise ValueError("`share_decoder_input_output_embed` excludes `adaptive_input`: use `tie_adaptive_weights`")
    pre_norm = bool(args["decoder_normalize_before"])
    has_final_norm = pre_norm and not args.get("no_decoder_final_norm")
    # Checkpoints of the first two versions were trained without a final norm, whatever their arguments say.
    if "decoder.version" in tensors and (tensors["decoder.version"] <= 2).any():
        has_final_norm = False
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("decoder.layer_norm.")}
    config = SubquadConfig(
        vocab_size=args["vocab_size"],
        hidden_size=dim,
        num_hidden_layers=args["decoder_layers"],
        norm_position="pre" if pre_norm else "post",
        final_norm=final_norm if has_final_norm else None,
        embedding_size=None if input_edges else input_dim,
        output_size=None if tie_adaptive else output_dim,
        scale_embedding=not args.get("no_scale_embedding"),
        embedding_norm=embedding_norm if args.get("layernorm_embedding") else None,
        dropout=float(args.get("dropout", 0.1)),
        pad_token_id=padding_idx,
        bos_token_id=EOS,
        eos_token_id=EOS,
        tie_word_embeddings=tied,
        **options,
    )
    model: Any = (PublishedForCausalLM if parts or input_edges or output_edges else SubquadForCausalLM)(config)
    for change in parts.values():
        change(model)
    adaptive_input = None
    if input_edges:
        factor = args.get("adaptive_input_factor", 4)
        adaptive_input = AdaptiveInput(input_edges, input_dim, dim, factor, padding_idx)
        model.model.embed_tokens = adaptive_input
    if output_edges:
        model.lm_head = AdaptiveSoftmax(
            output_edges,
            config.output_dim,
            args.get("adaptive_softmax_factor", 4),
            args.get("adaptive_softmax_dropout", 0.0),
            adaptive_input if tie_adaptive else None,
            bool(args.get("tie_adaptive_proj")),
        )
    if isinstance(model, PublishedForCausalLM):
        adaptive = {"adaptive input": input_edges, "adaptive softmax": output_edges}
        model.parts = (*parts, *(name for name, edges in adaptive.items() if edges))
    if tied:
        drop_second_name(tensors, "decoder.output_projection.weight", "decoder.embed_tokens.weight")
    elif output_edges:
        _adaptive_names(tensors, output_edges, tie_adaptive, bool(args.get("tie_adaptive_proj")))
    tensors = {name: tensor for name, tensor in tensors.items() if not IGNORED.fullmatch(name)}
    return Conversion(model, tensors, names + NAMES)


def _edges(args: dict[str, Any], name: str) -> list[int]:
    """Ends of the bands of an adaptive vocabulary; cutoffs are written as a list or as text, "20000,60000"."""
    cutoffs = args.get(name)
    if isinstance(cutoffs, str):
        cutoffs = [int(number) for number in cutoffs.strip("[]() ").split(",")]
    edges = list(cutoffs or [])
    if not edges or edges != sorted(set(edges)) or edges[-1] > args["vocab_size"]:
        raise ValueError(
            f"`{name}` must be increasing numbers up to the {args['vocab_size']} tokens, got {args.get(name)!r}"
        )
    return edges if edges[-1] == args["vocab_size"] else [*edges, args["vocab_size"]]


def drop_second_name(tensors: dict[str, Tensor], second: str, first: str) -> None:
    """Take the second name of a tied tensor out, or make it the first where that is missing.

    Raises:
        ValueError: If the two differ.
    """
    tensor = tensors.pop(second, None)
    if tensor is not None and not torch.equal(tensors.setdefault(first, tensor), tensor):
        raise ValueError(f"the configuration ties {second} to {first}, but the two differ")


def _adaptive_names(tensors: dict[str, Tensor], edges: list[int], tied: bool, tie_maps: bool) -> None:
    softmax, words = "decoder.adaptive_softmax", "decoder.embed_tokens.embeddings"
    if not tied:
        head = tensors.pop(f"{softmax}.head.weight", None)
        if head is not None:
            tensors[f"{softmax}.head.word_proj.weight"] = head[: edges[0]]
            tensors[f"{softmax}.head.class_proj.weight"] = head[edges[0] :]
        return
    for name in ("word_proj.weight", "word_proj.1.weight"):
        drop_second_name(tensors, f"{softmax}.head.{name}", f"{words}.0.0.weight")
    for i in range(len(edges) - 1):
        drop_second_name(tensors, f"{softmax}.tail.{i}.2.weight", f"{words}.{i + 1}.0.weight")
        if tie_maps:
            drop_second_name(tensors, f"{softmax}.tail.{i}.0.weight", f"{words}.{i + 1}.1.weight")


def current_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of older fairseq versions as those of today."""
    current = {}
    for name, tensor in tensors.items():
        name = re.sub(r"\blayer_norms\.0\.", "self_attn_layer_norm.", name)
        name = re.sub(r"\blayer_norms\.2\.", "final_layer_norm.", name)
        name = re.sub(r"^decoder\.embed_out(\.weight)?$", "decoder.output_projection.weight", name)
        stacked = re.fullmatch(r"(.*)in_proj_(weight|bias)", name)
        if stacked and tensor.ndim and len(tensor) % 3 == 0:
            for kind, part in zip("qkv", tensor.chunk(3), strict=True):
                current[f"{stacked[1]}{kind}_proj.{stacked[2]}"] = part
        else:
            current[name] = tensor
    return current
