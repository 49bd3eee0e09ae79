r"""What the published fairseq language models share: their arguments, embeddings, output layers and names.

A family brings its blocks, as options of `SubquadConfig`, and the names of what is inside them. The order is

    causal (`language_model`, prefix `decoder.`)
        √d · E[token] → [map in] → [+ positions] → [norm] → dropout → blocks → [norm] → [map out] → logits
    masked (`masked_language_model`, prefix `encoder.sentence_encoder.`)
        E[token] → [+ positions] → [norm] → dropout → zero where padding → blocks → [norm] → dense → logits

for example

    @register_family("family.fairseq_roberta")
    def fairseq_roberta(tensors, **args):
        return fairseq.masked_language_model(
            tensors, args, [*fairseq.GLU_NAMES, (r"\btoken_mixer\.", "self_attn.")],
            parts={}, pooling="first", mixers=[...], channel_mixer={...}, norm="simple_rmsnorm",
        )
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from subquad.compat.adaptive import AdaptiveInput, AdaptiveSoftmax, name_words_once, vocabulary_edges
from subquad.compat.reference import Conversion, Rules, activation_name, drop_second_name
from subquad.layers import activation as get_activation
from subquad.models import SubquadConfig, SubquadForCausalLM, SubquadForMaskedLM
from subquad.models.classification import RobertaClassifier, pool
from subquad.registry import unknown_name

BOS, EOS = 0, 2
"""`<s>` and `</s>` in every fairseq dictionary. In causal models `</s>` ends a text and stands before the next, and
`<s>` is never fed to them; in masked ones `<s>` begins a text."""

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
    (r"^model\.positions\.", "model.embed_positions."),
    (r"^model\.embedding_norm\.", "model.layernorm_embedding."),
    (r"^model\.final_norm\.", "model.layer_norm."),
]
DECODER_NAMES: Rules = [
    (r"^model\.embed_tokens\.embeddings\.(\d+)\.", r"model.embed_tokens.embeddings.\1.0."),
    (r"^model\.embed_tokens\.projections\.(\d+)\.", r"model.embed_tokens.embeddings.\1.1."),
    (r"^model\.project_(in|out)\.", r"model.project_\1_dim."),
    *NAMES,
    (r"^model\.", "decoder."),
    (r"^lm_head\.weight", "decoder.output_projection.weight"),
    (r"^lm_head\.head_proj\.", "decoder.adaptive_softmax.head.word_proj.0."),
    (r"^lm_head\.head_words\.", "decoder.adaptive_softmax.head.word_proj."),
    (r"^lm_head\.head_classes\.", "decoder.adaptive_softmax.head.class_proj."),
    (r"^lm_head\.tail_proj\.(\d+)\.", r"decoder.adaptive_softmax.tail.\1.0."),
    (r"^lm_head\.tail_words\.(\d+)\.", r"decoder.adaptive_softmax.tail.\1.2."),
]
# The heads of an encoder go before what is inside a layer: both have norms and output maps.
ENCODER_HEAD_NAMES: Rules = [
    (r"^lm_head\.decoder\.", "encoder.lm_head."),
    (r"^lm_head\.norm\.", "encoder.lm_head.layer_norm."),
    (r"^lm_head\.", "encoder.lm_head."),
    (r"^classification_heads\.(.+)\.output_proj\.", r"classification_heads.\1.out_proj."),
]
ENCODER_NAMES: Rules = [*NAMES, (r"^model\.", "encoder.sentence_encoder.")]

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


ACTIVATIONS = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_accurate": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "swish": "silu",
    "linear": "identity",
    "tanh": "tanh",
}
"""Our names of the activations that fairseq itself has, `activation_fn` and `pooler_activation_fn`."""

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


class Published:
    """What a published model with parts that no configuration of ours describes has beside our class."""

    parts: tuple[str, ...] = ()

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Refuse: what is read back would be another model.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            f"this published model has {', '.join(self.parts)}, which no `SubquadConfig` describes: "
            "`subquad.compat.to_pretrained` makes a model of it that can be saved"
        )


class PublishedForCausalLM(Published, SubquadForCausalLM):
    """A published causal language model with parts of its own."""


class PublishedForMaskedLM(Published, SubquadForMaskedLM):
    """A published masked language model with parts of its own, and perhaps with classifiers.

    Args:
        config: Configuration of the model.
        pooling: What classifiers see of a sequence: "mean" is the mean over all positions, padding included; "first".
    """

    def __init__(self, config: SubquadConfig, pooling: str = "mean"):
        super().__init__(config)
        self.pooling = pooling
        self.classification_heads = nn.ModuleDict()

    def forward(self, *args: Any, classification_head_name: str | None = None, **kwargs: Any) -> Any:
        """Predict tokens, as in `SubquadForMaskedLM`, or the classes of one of the classifiers.

        Raises:
            ValueError: If there is no such classifier.
        """
        if classification_head_name is None:
            return super().forward(*args, **kwargs)
        if classification_head_name not in self.classification_heads:
            raise ValueError(unknown_name("classification head", classification_head_name, self.classification_heads))
        hidden = self.model(*args, **kwargs).last_hidden_state
        classifier = self.classification_heads[classification_head_name]
        return SequenceClassifierOutput(logits=classifier(pool(hidden, None, self.pooling)))

    def class_logits(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Logits (batch, num_labels) of its only classifier for `tokens` (batch, length) and their padding mask.

        Raises:
            ValueError: If it has none or several.
        """
        names = list(self.classification_heads)
        if len(names) != 1:
            raise ValueError(f"a model with one classifier is needed, this one has {len(names)}: {', '.join(names)}")
        return self(tokens, attention_mask=mask, classification_head_name=names[0]).logits


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


def fairseq_activation(option: str, name: str) -> Callable[[Tensor], Tensor]:
    """The activation that fairseq itself means by `name`, the value of `option`.

    Raises:
        ValueError: If it has no such activation.
    """
    if name not in ACTIVATIONS:
        raise ValueError(unknown_name(option, name, ACTIVATIONS))
    return get_activation(ACTIVATIONS[name])


def channel_bias(args: dict[str, Any], tensors: dict[str, Tensor]) -> bool:
    """Whether channel mixers have biases; where the token mixers have none, `glu_bias` or the weights say it."""
    said = bool(args.get("glu_bias", args.get("bias", True)))
    return said or any(name.endswith(".layers.0.glu.l1.bias") for name in tensors)


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
    input_edges = vocabulary_edges(args, "adaptive_input_cutoff") if args.get("adaptive_input") else None
    output_edges = vocabulary_edges(args, "adaptive_softmax_cutoff") if args.get("adaptive_softmax_cutoff") else None
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
        name_words_once(tensors, output_edges, tie_adaptive, bool(args.get("tie_adaptive_proj")))
    tensors = {name: tensor for name, tensor in tensors.items() if not IGNORED.fullmatch(name)}
    return Conversion(model, tensors, names + DECODER_NAMES)


def masked_language_model(
    tensors: dict[str, Tensor],
    args: dict[str, Any],
    names: Rules,
    *,
    parts: Parts,
    pooling: str,
    final_norm: str = "layernorm",
    **options: Any,
) -> Conversion:
    """Convert a published RoBERTa-shaped model: its blocks see padding, whose embedding is zero.

    Where the caller gives no `attention_mask`, padding is read off the tokens. A model with `classification_heads` is
    called with `classification_head_name` too.

    Args:
        tensors: Its state dict.
        args: Its resolved arguments, with `vocab_size`, and perhaps `classification_heads` by name, each with
            `num_classes`; without them its state dict says which there are.
        names: What the parameters inside a layer are called, as in `Conversion`.
        parts: What no configuration of ours describes.
        pooling: What its classifiers see: "mean" of all positions, padding included, or the "first".
        final_norm: Norm after the last block, where the arguments ask for one.
        **options: `SubquadConfig`'s options of the blocks.

    Raises:
        ValueError: If an argument is missing or asks for what no published model of these families has.
    """
    require(args, "vocab_size", "encoder_embed_dim", "encoder_layers")
    for name in ("adaptive_input", "encoder_layers_to_keep"):
        if args.get(name):
            raise ValueError(f"`{name}` = {args[name]!r}: no published model of these families has it, nor has subquad")
    tensors = current_names({_encoder_name(name): tensor for name, tensor in tensors.items()})
    padding_idx, tied = args.get("padding_idx", 1), not args.get("untie_weights_roberta")
    if not args.get("no_token_positional_embeddings"):
        options["position_embedding"] = "learned" if args.get("encoder_learned_pos", True) else "sinusoidal"
        options["position_offset"] = padding_idx + 1
        options["max_position_embeddings"] = args.get("max_positions") or args.get("tokens_per_sample")
    pre_norm = bool(args.get("encoder_normalize_before"))
    config = SubquadConfig(
        vocab_size=args["vocab_size"],
        hidden_size=args["encoder_embed_dim"],
        num_hidden_layers=args["encoder_layers"],
        norm_position="pre" if pre_norm else "post",
        final_norm=final_norm if pre_norm else None,
        scale_embedding=not args.get("no_scale_embedding", True),
        embedding_norm="layernorm" if args.get("layernorm_embedding", True) else None,
        padding="zeroed",
        dropout=float(args.get("dropout", 0.1)),
        initializer_range=0.02,
        causal=False,
        pad_token_id=padding_idx,
        bos_token_id=BOS,
        eos_token_id=EOS,
        tie_word_embeddings=tied,
        **options,
    )
    parts = parts | _head_activation(args) | _classifiers(args, tensors)
    model = PublishedForMaskedLM(config, pooling) if parts else SubquadForMaskedLM(config)
    for change in parts.values():
        change(model)
    if isinstance(model, PublishedForMaskedLM):
        model.parts = tuple(parts)
    model.register_forward_pre_hook(mask_padding, with_kwargs=True)
    if tied:
        drop_second_name(tensors, "encoder.lm_head.weight", "encoder.sentence_encoder.embed_tokens.weight")
    tensors = {name: tensor for name, tensor in tensors.items() if not IGNORED.fullmatch(name)}
    return Conversion(model, tensors, [*ENCODER_HEAD_NAMES, *names, *ENCODER_NAMES])


def _encoder_name(name: str) -> str:
    """A name of old masked language models as that of today."""
    name = re.sub(r"^decoder\.", "encoder.", name)
    return name.replace(".emb_layer_norm.", ".layernorm_embedding.")


def _head_activation(args: dict[str, Any]) -> Parts:
    """A part where the output layer does not have a GELU."""
    name = args.get("activation_fn", "gelu")
    activation = fairseq_activation("activation_fn", name)
    if name == "gelu":
        return {}

    def change(model: Any) -> None:
        model.lm_head.activation = activation

    return {f"activation {name!r} in its output layer": change}


def classification_heads(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, int]]:
    """The classifiers in a state dict, by name."""
    heads = {}
    for name, tensor in tensors.items():
        if (match := re.fullmatch(r"classification_heads\.(.+)\.out_proj\.weight", name)) and tensor.ndim == 2:
            heads[match[1]] = {"num_classes": tensor.shape[0], "inner_dim": tensor.shape[1]}
    return heads


def _classifiers(args: dict[str, Any], tensors: dict[str, Tensor]) -> Parts:
    """The classifiers of a model that was finetuned, as a part; its arguments often say nothing about them."""
    heads = args.get("classification_heads") or classification_heads(tensors)
    activation = fairseq_activation("pooler_activation_fn", args.get("pooler_activation_fn", "tanh"))

    def change(model: Any) -> None:
        dim, dropout = model.config.hidden_size, args.get("pooler_dropout", 0.0)
        for name, head in heads.items():
            classifier = RobertaClassifier(dim, head["num_classes"], dropout, head.get("inner_dim"))
            classifier.activation = activation
            model.classification_heads[name] = classifier
        if len(heads) == 1:
            model.config.num_labels = classifier.output_proj.out_features

    return {f"the classifiers {', '.join(heads)}": change} if heads else {}


def mask_padding(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Forward hook: where the caller says nothing about padding, the padding tokens of `input_ids` are masked."""
    tokens = kwargs.get("input_ids", args[0] if args else None)
    told = len(args) > 1 or kwargs.get("attention_mask") is not None or kwargs.get("past_key_values") is not None
    if told or tokens is None or not (tokens == model.config.pad_token_id).any():
        return args, kwargs
    return args, {**kwargs, "attention_mask": tokens != model.config.pad_token_id}


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
