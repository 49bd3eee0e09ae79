"""TransNormer's layers and language models of fairseq-evo, around the mixers of `subquad.compat.transnormer`."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from subquad.compat import fairseq
from subquad.compat.reference import Conversion, OnlyOutput, Rules, norm_name, register_family
from subquad.compat.transnormer import (
    KINDS,
    URPE_OPTIONS,
    Changes,
    attention,
    build,
    flat_angles,
    mixer_names,
    norm_weight,
    used_tensors,
)
from subquad.models import Block, SubquadConfig
from subquad.registry import unknown_name


@dataclass
class FairseqBlocks:
    """The blocks of a published fairseq model: names inside them, parts, and options of `SubquadConfig`."""

    names: Rules
    parts: fairseq.Parts
    options: dict[str, Any]


def _blocks(args: dict[str, Any], side: str, kinds: list[str]) -> FairseqBlocks:
    """The blocks of a "decoder" (causal) or an "encoder" with token mixers of these kinds."""
    fairseq.require(args, f"{side}_embed_dim", f"{side}_attention_heads", "linear_act_fun")
    dim, causal = args[f"{side}_embed_dim"], side == "decoder"
    mixers = [_of_layer(args, side, kind) for kind in kinds]
    channel_mixer, parts, names = _channel_mixer(args, side)
    if changes := {name for _, changes in mixers for name in changes}:

        def replace_mixers(model: Any) -> None:
            for block, (options, changes) in zip(model.model.layers, mixers, strict=True):
                block.token_mixer = build(options, changes, dim, causal)

        parts = {**parts, f"token mixers with {', '.join(sorted(changes))}": replace_mixers}
    block_norm = args.get("attn_type")
    for index, kind in enumerate(kinds):
        names = [*names, *mixer_names(rf"\blayers\.{index}\.token_mixer\.", kind, _norm_type(args, kind))]
    names += [
        (r"\b(token|channel)_norm\.weight$", rf"\1_norm.{norm_weight(block_norm)}"),
        (r"\btoken_mixer\.", "self_attn."),
    ]
    options = {
        "mixers": [mixer for mixer, _ in mixers],
        "channel_mixer": channel_mixer,
        "norm": norm_name(block_norm or ""),
    }
    return FairseqBlocks(names, parts, options)


def _kinds(args: dict[str, Any], side: str) -> list[str]:
    """The kind of each layer: where nothing is said, the first half attends inside blocks."""
    layers = args[f"{side}_layers"]
    numbers = args.get(f"{side}_attention_types") or [2] * (layers // 2) + [1] * (layers - layers // 2)
    return [_kind(number) for number in numbers]


def _kind(number: Any) -> str:
    if number not in KINDS:
        raise ValueError(f"an attention type must be 1 (NormAttention) or 2 (DiagAttention), got {number!r}")
    return KINDS[number]


def _norm_type(args: dict[str, Any], kind: str) -> str | None:
    """The published norm inside a mixer, or None."""
    if kind == "diag_attention":
        return args.get("local_norm_type", "gatedrmsnorm")
    return args.get("norm_type", "layernorm") if args.get("attention_use_layer_norm", True) else None


def _of_layer(args: dict[str, Any], side: str, kind: str) -> tuple[dict[str, Any], Changes]:
    """The mixer of a layer."""
    for name in ("weight_type", "use_toeplizt", "use_cos"):
        if args.get(name, -1) not in (-1, False, None):
            raise ValueError(f"`{name}` = {args[name]!r}: no published TransNormer has it, nor has subquad")
    positions = {name: args[f"{side}_{name}"] for name in URPE_OPTIONS if f"{side}_{name}" in args}
    arguments: dict[str, Any] = {
        "embed_dim": args[f"{side}_embed_dim"],
        "num_heads": args[f"{side}_attention_heads"],
        "norm_type": _norm_type(args, kind),
        "positions": positions if args.get(f"{side}_use_urpe") else None,
    }
    if kind == "norm_attention":
        return attention(kind, side == "decoder", act_fun=args["linear_act_fun"], **arguments)
    return attention(
        kind,
        side == "decoder",
        act_fun=args.get("local_act_fun", "relu"),
        group_type=args.get("group_type", "chunk"),
        chunk_size=args.get(f"{side}_chunk_size", 32),
        use_softmax=bool(args.get("use_softmax")),
        dropout=float(args.get("attention_dropout", 0.0)),
        **arguments,
    )


def _channel_mixer(args: dict[str, Any], side: str) -> tuple[dict[str, Any], fairseq.Parts, Rules]:
    """Our channel mixer, what must be put into it, and the names inside it."""
    if args.get("use_glu"):
        width = int(args[f"{side}_embed_dim"] * (args.get("multiple") or 8 / 3))
        unit, parts = fairseq.glu(args.get("glu_act"), width, args.get("glu_dropout", 0.0), args.get("fina_act"), True)
        return unit, parts, fairseq.GLU_NAMES
    act = args.get("activation_fn", "relu" if side == "decoder" else "gelu")
    fairseq.fairseq_activation("activation_fn", act)
    ffn = {
        "type": "ffn",
        "hidden_size": args[f"{side}_ffn_embed_dim"],
        "activation": fairseq.ACTIVATIONS[act],
        "dropout": float(args.get("activation_dropout", 0.0)),
    }
    return ffn, {}, [(r"\bchannel_mixer\.up_proj\.", "fc1."), (r"\bchannel_mixer\.down_proj\.", "fc2.")]


@register_family("transnormer.layer")
def layer(tensors: dict[str, Tensor], *, kind: str, attention_type: int, **args: Any) -> Conversion:
    """One layer over (length, batch, dim): `kind` "decoder", causal, or "encoder"."""
    if kind not in ("decoder", "encoder"):
        raise ValueError(unknown_name("kind of layer", kind, ("decoder", "encoder")))
    blocks = _blocks(args, kind, [_kind(attention_type)])
    config = SubquadConfig(
        hidden_size=args[f"{kind}_embed_dim"],
        num_hidden_layers=1,
        norm_position="pre" if args.get(f"{kind}_normalize_before", kind == "decoder") else "post",
        dropout=float(args.get("dropout", 0.1)),
        causal=kind == "decoder",
        **blocks.options,
    )
    model = nn.Module()
    model.model = nn.Module()
    model.model.layers = nn.ModuleList([Block(config, 0)])
    for change in blocks.parts.values():
        change(model)
    names = [(r"^module\.", "layers.0."), *blocks.names, *fairseq.NAMES, (r"^layers\.0\.", "")]
    tensors = used_tensors(flat_angles(tensors), args.get("use_softmax"))
    return Conversion(OnlyOutput(model.model.layers[0], time_first=True), tensors, names)


@register_family("transnormer.fairseq_lm")
def fairseq_lm(tensors: dict[str, Tensor], **args: Any) -> Conversion:
    """The language models "transnormer_t1" and "transnormer_t2"; where no mask is given, padding has no position."""
    fairseq.require(args, "decoder_layers")
    blocks = _blocks(args, "decoder", _kinds(args, "decoder"))
    if args.get("decoder_learned_pos"):
        raise ValueError("`decoder_learned_pos` = True: no published TransNormer language model has learned positions")
    if not args.get("no_token_positional_embeddings"):
        blocks.options |= {"position_embedding": "sinusoidal", "position_offset": args.get("padding_idx", 1) + 1}
    final_norm, embedding_norm = args.get("final_layernorm"), args.get("embdding_layernorm")
    conversion = fairseq.language_model(
        used_tensors(flat_angles(tensors), args.get("use_softmax")),
        {"decoder_normalize_before": True, **args},
        [
            *blocks.names,
            (r"^model\.final_norm\.weight$", f"model.final_norm.{norm_weight(final_norm)}"),
            (r"^model\.embedding_norm\.weight$", f"model.embedding_norm.{norm_weight(embedding_norm)}"),
        ],
        parts=blocks.parts,
        final_norm=norm_name(final_norm or ""),
        embedding_norm=norm_name(embedding_norm or ""),
        **blocks.options,
    )
    conversion.module.register_forward_pre_hook(count_positions, with_kwargs=True)
    return conversion


def count_positions(
    model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Forward hook: where the caller says nothing about padding, padding tokens are mixed, but are not counted."""
    tokens = kwargs.get("input_ids", args[0] if args else None)
    told = any(kwargs.get(name) is not None for name in ("attention_mask", "position_ids", "past_key_values"))
    if told or len(args) > 1 or tokens is None or not (tokens == model.config.pad_token_id).any():
        return args, kwargs
    real = tokens != model.config.pad_token_id
    return args, {**kwargs, "position_ids": (real.cumsum(-1) - 1).where(real, -1)}


@register_family("transnormer.fairseq_roberta")
def fairseq_roberta(tensors: dict[str, Tensor], **args: Any) -> Conversion:
    """The masked language models "roberta_transnormer_t1" and "roberta_transnormer_t2"."""
    fairseq.require(args, "encoder_layers")
    blocks = _blocks(args, "encoder", _kinds(args, "encoder"))
    tensors = used_tensors(flat_angles(tensors), args.get("use_softmax"))
    return fairseq.masked_language_model(
        tensors, args, blocks.names, parts=blocks.parts, pooling="first", **blocks.options
    )
