"""Which published model a checkpoint holds: the family from the names of its tensors, the configuration from shapes.

Names tell the families apart, because each code base has its own. Shapes tell widths, depths, vocabularies and which
parts are there. What neither tells (activations, often the number of heads) comes from the arguments that the file
stores, or from the person who converts it. Only what no published preset sets has the default of the published code.

A family is one entry at the end of this file.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from subquad.compat.fairseq import classification_heads, current_names
from subquad.data import DataError
from subquad.registry import unknown_name

Tensors = Mapping[str, Tensor]
Config = dict[str, Any]


@dataclass(frozen=True)
class Recognized:
    """What `from_reference` needs, and what the model is for.

    Args:
        family: Name of the family.
        task: "causal-lm", "masked-lm", "sequence-classification" or "image-classification"; None for a part of a
            model.
        config: The published configuration, complete.
    """

    family: str
    task: str | None
    config: Config


def recognize(tensors: Tensors, stored: Config, given: Config | None = None, family: str | None = None) -> Recognized:
    """Find out what a checkpoint holds.

    Args:
        tensors: Its parameters and buffers under their published names.
        stored: The arguments it stores; empty where it stores none.
        given: What the person who converts it says; it goes before what is stored. A key with dots reaches inside.
        family: The family, where that person says it.

    Raises:
        DataError: No family has these names or several have, options are missing (with the published values), or the
            configuration contradicts the shapes.
    """
    tensors = _current(tensors)
    entry = _choose(tensors, stored | (given or {}), family)
    config = entry.stored(stored)
    for key, value in (given or {}).items():
        _set(config, key, value)
    facts = entry.derive(tensors, config)
    wrong = []
    for key, value in facts.items():
        said = _get(config, key)
        if said is None:
            _set(config, key, value)
        elif said != value:
            wrong.append(f"{key} is {said!r}, by the weights {value!r}")
    if wrong:
        raise DataError(f"the configuration contradicts the weights of this {entry.family}: {'; '.join(wrong)}")
    unknown = {key: value for key, value in entry.published.items() if _get(config, key) is None}
    if unknown and not (stored and entry.stores_all):
        options = " ".join(f"--set {key}={_as_yaml(value)}" for key, value in unknown.items())
        raise DataError(
            f"this {entry.family} stores no arguments, and its weights do not tell {', '.join(unknown)}; with the "
            f"published values: {options}"
        )
    task = "sequence-classification" if config.get("classification_heads") else entry.task
    return Recognized(entry.family, task, config)


def preset(config: Config) -> str | None:
    """The published name of a fairseq configuration, where it stores one."""
    names = (config.get("arch"), config.get("_name"))
    return next((name for name in names if isinstance(name, str)), None)


@dataclass(frozen=True)
class Entry:
    """How a family is recognised.

    Args:
        family: Its name in `from_reference`.
        task: See `Recognized`.
        has: Regular expressions, each of which some name must contain.
        lacks: A regular expression that no name may contain.
        tells: Whether the arguments allow this family, where names do not decide.
        stored: The family's configuration from the arguments of a file.
        derive: What follows from the tensors: fills what a configuration leaves open, and returns what it must agree
            with. Keys with dots reach inside.
        published: Options that tensors do not tell, with the published values.
        stores_all: Whether the options that a file with arguments does not name have their published defaults.
    """

    family: str
    task: str | None
    has: tuple[str, ...]
    lacks: str | None = None
    tells: Callable[[Config], bool] = lambda arguments: True
    stored: Callable[[Config], Config] = dict
    derive: Callable[[Tensors, Config], Config] = lambda tensors, config: {}
    published: Config = field(default_factory=dict)
    stores_all: bool = True

    def fits(self, names: str) -> bool:
        """Whether the names, one on each line, are those of this family."""
        found = all(re.search(pattern, names, re.MULTILINE) for pattern in self.has)
        return found and not (self.lacks and re.search(self.lacks, names, re.MULTILINE))


def _choose(tensors: Tensors, arguments: Config, family: str | None) -> Entry:
    if family is not None:
        entry = next((entry for entry in ENTRIES if entry.family == family), None)
        if entry is None:
            raise DataError(unknown_name("family", family, {entry.family for entry in ENTRIES}))
        return entry
    names = "\n".join(tensors)
    fitting = [entry for entry in ENTRIES if entry.fits(names)]
    if len(fitting) > 1:
        fitting = [entry for entry in fitting if entry.tells(arguments)] or fitting
    if len(fitting) > 1:
        raise DataError(f"the weights may be those of {' or '.join(e.family for e in fitting)}: say which, --family")
    if not fitting:
        shown = ", ".join(sorted(tensors)[:5])
        raise DataError(f"not a published model that is known: no family has the names of its tensors ({shown}, …)")
    return fitting[0]


def _current(tensors: Tensors) -> Tensors:
    """Names of old fairseq versions as those of today."""
    if any(name.startswith("decoder.sentence_encoder.") for name in tensors):
        tensors = {re.sub(r"^decoder\.", "encoder.", name): tensor for name, tensor in tensors.items()}
    tensors = {name.replace(".emb_layer_norm.", ".layernorm_embedding."): t for name, t in tensors.items()}
    return current_names(tensors)


def _get(config: Config, key: str) -> Any:
    for part in key.split("."):
        config = config.get(part) if isinstance(config, dict) else None  # pyright: ignore[reportAssignmentType]
    return config


def _set(config: Config, key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        inner = config.get(parent)
        # A copy: the dictionary may be that of the checkpoint.
        config[parent] = dict(inner) if isinstance(inner, dict) else {}
        config = config[parent]
    config[last] = value


def _as_yaml(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


def _shape(tensors: Tensors, name: str, axes: int = 2) -> tuple[int, ...]:
    if name not in tensors:
        raise DataError(f"the checkpoint lacks {name}, which says how wide its model is")
    shape = tuple(tensors[name].shape)
    if len(shape) != axes or not all(shape):
        raise DataError(f"{name} has shape {shape}, expected {axes} axes with entries")
    return shape


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)


def _numbers(tensors: Tensors, prefix: str) -> set[str]:
    """The different numbers behind a prefix."""
    return {match[1] for match in (re.match(rf"{re.escape(prefix)}(\d+)\.", name) for name in tensors) if match}


def _count(tensors: Tensors, prefix: str) -> int:
    return len(_numbers(tensors, prefix))


def _ratio(said: Any, width: int, dim: int, unit: int = 1) -> float:
    """The factor between two widths: what is said where it gives this width, which is rounded down."""
    if isinstance(said, int | float) and 0 < said <= width and int(said * dim) // unit * unit == width:
        return said
    return math.nextafter(width / dim, math.inf) if int(width / dim * dim) != width else width / dim


# Language models of fairseq

_PREFIXES = {"decoder": "decoder.", "encoder": "encoder.sentence_encoder."}


def _fairseq(tensors: Tensors, config: Config, side: str) -> Config:
    """Vocabulary, widths, depth, norms and tying of a causal ("decoder") or masked ("encoder") model."""
    prefix = _PREFIXES[side]
    bands = _numbers(tensors, f"{prefix}embed_tokens.embeddings.")
    rows = [_shape(tensors, f"{prefix}embed_tokens.embeddings.{band}.0.weight")[0] for band in bands]
    layer = f"{prefix}layers.0."
    is_glu = f"{layer}glu.l1.weight" in tensors
    hidden, dim = _shape(tensors, f"{layer}glu.l1.weight" if is_glu else f"{layer}fc1.weight")
    facts = {f"{side}_layers": _count(tensors, f"{prefix}layers."), f"{side}_embed_dim": dim}
    if not is_glu:
        facts[f"{side}_ffn_embed_dim"] = hidden
    if is_glu:
        config.setdefault("glu_bias", f"{layer}glu.l1.bias" in tensors)
    if not isinstance(config.setdefault("padding_idx", 1), int):
        raise DataError(f"padding_idx must be a row of the embedding, got {config['padding_idx']!r}")
    # Checkpoints of the first two versions were trained without a final norm, whatever their arguments say.
    if "decoder.version" in tensors and (tensors["decoder.version"] <= 2).any():
        config["no_decoder_final_norm"] = True
    config.setdefault("layernorm_embedding", f"{prefix}layernorm_embedding.weight" in tensors)
    if f"{prefix}layer_norm.weight" in tensors:
        config.setdefault(f"{side}_normalize_before", True)
    positions = f"{prefix}embed_positions.weight"
    if positions in tensors:
        config.setdefault(f"{side}_learned_pos", True)
        count = _shape(tensors, positions)[0] - config["padding_idx"] - 1
        facts["max_target_positions" if side == "decoder" else "max_positions"] = count
        if 0 <= config["padding_idx"] <= count + config["padding_idx"]:
            config.setdefault("padding_position", bool(tensors[positions][config["padding_idx"]].any()))
    if bands:
        return facts | {"vocab_size": sum(rows)}
    facts["vocab_size"], input_dim = _shape(tensors, f"{prefix}embed_tokens.weight")
    if side == "encoder":
        config.setdefault("no_token_positional_embeddings", positions not in tensors)
        return facts
    facts["decoder_input_dim"] = input_dim
    if not config.get("adaptive_softmax_cutoff"):
        embedding, output = f"{prefix}embed_tokens.weight", f"{prefix}output_projection.weight"
        is_tied = output not in tensors or _equal(tensors[embedding], tensors[output])
        facts["decoder_output_dim"] = input_dim if output not in tensors else _shape(tensors, output)[1]
        config.setdefault("share_decoder_input_output_embed", is_tied)
    return facts


def _masked(tensors: Tensors, config: Config) -> Config:
    """What only masked models have: heads for classes, and a head for words that may not be tied."""
    facts = _fairseq(tensors, config, "encoder")
    if heads := classification_heads(tensors):
        config.setdefault("classification_heads", heads)
    embedding, output = "encoder.sentence_encoder.embed_tokens.weight", "encoder.lm_head.weight"
    is_tied = output not in tensors or _equal(tensors[embedding], tensors[output])
    config.setdefault("untie_weights_roberta", not is_tied)
    return facts


def _gtu(tensors: Tensors, config: Config, side: str) -> Config:
    """The gated Toeplitz unit and the GLU of TNN, FD-TNN and SKI-TNN."""
    layer = f"{_PREFIXES[side]}layers.0."
    unit = f"{layer}self_attn.gtu."
    facts = _masked(tensors, config) if side == "encoder" else _fairseq(tensors, config, side)
    gates_itself = f"{unit}in_proj.weight" in tensors
    width, dim = _shape(tensors, f"{unit}in_proj.weight" if gates_itself else f"{unit}u_proj.weight")
    heads = config.get(f"{side}_attention_heads")
    unit_size = heads if isinstance(heads, int) and 0 < heads <= width else 1
    facts["expand_ratio"] = _ratio(config.get("expand_ratio", 3), width, dim, unit_size)
    if config.get("glu_dim") == -1:
        del config["glu_dim"]
    facts["glu_dim"] = _shape(tensors, f"{layer}glu.l1.weight")[0]
    if f"{layer}glu.l3.weight" not in tensors:
        facts["glu_type"] = 2
    if gates_itself:
        facts["gtu_type"] = 3
    config.setdefault("bias", f"{unit}{'out_proj' if gates_itself else 'o'}.bias" in tensors)
    if not config.get("use_multi_decay"):
        config.setdefault("use_decay", f"{unit}toep.gamma" in tensors)
    encoder = f"{unit}toep.rpe."
    if f"{encoder}pos_proj.weight" in tensors:
        facts["rpe_embedding"] = _shape(tensors, f"{encoder}pos_proj.weight")[0]
        facts["rpe_layers"] = _count(tensors, f"{encoder}layers.")
    return facts


def _tnn(tensors: Tensors, config: Config, side: str) -> Config:
    """TNN: the class of the model follows from the preset's name."""
    if arch := preset(config):
        version = "_v2" if "tnn_v2" in arch else ""
        config.setdefault("model", f"roberta_tnn{version}" if side == "encoder" else f"tnn{version}_lm")
    return _gtu(tensors, config, side)


def _ski(tensors: Tensors, config: Config, side: str) -> Config:
    """SKI-TNN and FD-TNN: which operator, and its size."""
    operator = f"{_PREFIXES[side]}layers.0.self_attn.gtu.toep."
    facts = _gtu(tensors, config, side)
    if f"{operator}conv_kernel" in tensors:
        taps, said = _shape(tensors, f"{operator}conv_kernel")[1], config.get("nk")
        # Lags on both sides of 0, or that half of them which a causal operator has; an even number is one less.
        num_taps = taps if side == "encoder" else 2 * taps - 1
        facts["nk"] = said if isinstance(said, int) and said + 1 - said % 2 == num_taps else num_taps
        inverse_time = f"{operator}alphas" in tensors
        config.setdefault("tno_type", "skitno_inv_time" if inverse_time else "skitno")
        if inverse_time:
            facts["rank"] = _shape(tensors, f"{operator}alphas", 4)[-1]
        elif f"{operator}inducing" in tensors:
            facts["rank"] = _shape(tensors, f"{operator}inducing", 1)[0]
    elif f"{operator}dc" in tensors:
        config.setdefault("tno_type", "tno_fd_norpe")
    return facts


def _hgrn(tensors: Tensors, config: Config) -> Config:
    """HGRN: the GLU's width as a multiple, and norms that have parameters or none."""
    layer = "decoder.layers.0."
    facts = _fairseq(tensors, config, "decoder")
    hidden, dim = _shape(tensors, f"{layer}glu.l1.weight")
    facts["multiple"] = _ratio(config.get("multiple", 2), hidden, dim)
    config.setdefault("bias", f"{layer}self_attn.hgru.out_proj.bias" in tensors)
    for option, norm in (("attn_type", f"{layer}self_attn_layer_norm"), ("final_layernorm", "decoder.layer_norm")):
        config.setdefault(option, "layernorm" if f"{norm}.weight" in tensors else "simplermsnorm")
    return facts


def _transnormer(tensors: Tensors, config: Config, side: str) -> Config:
    """TransNormer: positions of the heads, and the GLU's width where it is not the usual 8/3."""
    layer = f"{_PREFIXES[side]}layers.0."
    facts = _masked(tensors, config) if side == "encoder" else _fairseq(tensors, config, side)
    dim = facts[f"{side}_embed_dim"]
    angles, reflection = f"{layer}self_attn.urpe.theta", f"{layer}self_attn.urpe.v"
    if reflection in tensors:
        facts[f"{side}_attention_heads"] = dim // _shape(tensors, reflection, 1)[0]
    config.setdefault(f"{side}_use_urpe", angles in tensors or reflection in tensors)
    config.setdefault(f"{side}_core_matrix", 1)
    config.setdefault(f"{side}_p_matrix", 3 if reflection in tensors else 1)
    config.setdefault(f"{side}_theta_learned", angles in tensors)
    config.setdefault("use_glu", f"{layer}glu.l1.weight" in tensors)
    if f"{layer}glu.l1.weight" in tensors:
        hidden = _shape(tensors, f"{layer}glu.l1.weight")[0]
        if config.get("multiple") or hidden != int(dim * 8 / 3):
            facts["multiple"] = _ratio(config.get("multiple"), hidden, dim)
    norms = {
        "attn_type": r"\.self_attn_layer_norm\.",
        "norm_type": r"\.self_attn\.layer_norm\.",
        "local_norm_type": r"\.self_attn\.(gated_rms_)?norm\.",
        "final_layernorm": r"^decoder\.layer_norm\.",
    }
    for option, pattern in norms.items():
        if not any(re.search(pattern, name) for name in tensors):
            config.setdefault(option, "simplermsnorm")
    return facts


def _primal(tensors: Tensors, config: Config) -> Config:
    """A transformer with a primal layer, which tells the number of heads."""
    facts = _fairseq(tensors, config, "decoder")
    name = next(name for name in tensors if name.endswith(".self_attn.We"))
    config["low_rank"] = _shape(tensors, name, 3)[-1]
    return facts | {"decoder_attention_heads": _shape(tensors, name, 3)[0]}


# Models for classes


def _pipeline_arguments(arguments: Config) -> Config:
    """Of what a whole program was told, what its model was; `_name_` is the class, which is always the same."""
    config = {key: arguments[key] for key in ("dataset", "encoder", "model", "decoder") if key in arguments}
    if isinstance(config.get("model"), dict):
        config["model"] = {key: value for key, value in config["model"].items() if key != "_name_"}
    return config


def _pipeline(tensors: Tensors, config: Config) -> Config:
    """The Long Range Arena: sizes of the encoder, the backbone and the head."""
    head = "decoder.output_transform.weight"
    if head not in tensors:
        head = "decoder.retrieval.classifier.2.weight"
    encoder = "encoder.0.weight" if "encoder.0.weight" in tensors else "encoder.weight"
    rows, columns = _shape(tensors, encoder)
    is_linear = encoder.replace("weight", "bias") in tensors
    return {
        "dataset.d_input" if is_linear else "dataset.n_tokens": columns if is_linear else rows,
        "dataset.d_output": _shape(tensors, head)[0],
        "model.d_model": rows if is_linear else columns,
        "model.n_layers": _count(tensors, "model.layers.") // 2,
    }


def _byte_pipeline(tensors: Tensors, config: Config) -> Config:
    """The Long Range Arena of Primal-Attention."""
    words, dim = _shape(tensors, "model.embeddings.word_embeddings.weight")
    facts = {
        "vocab_size": words,
        "embedding_dim": dim,
        "transformer_dim": dim,
        "num_classes": _shape(tensors, "seq_classifer.mlpblock.2.weight")[0],
    }
    for name in tensors:
        if name.endswith(".mlpblock.0.weight") and name.startswith("model."):
            facts["transformer_hidden_dim"] = _shape(tensors, name)[0]
        elif name.endswith(".mha.We"):
            facts["num_head"], samples, facts["low_rank"] = _shape(tensors, name, 3)
            # Fewer where the sequence is shorter.
            config.setdefault("rank_multi", math.ceil(samples / facts["low_rank"]))
        elif name.endswith(".mha.attn.concate_weight.weight"):
            facts["head_dim"] = _shape(tensors, name)[0]
    config["num_positions"] = _shape(tensors, "model.embeddings.position_embeddings.weight")[0]
    config.setdefault("max_seq_len", config["num_positions"])
    config.setdefault("attn_type", "primal_cos" if "low_rank" in facts else "softmax")
    is_tied = any(name.startswith("model.transformer.") for name in tensors)
    config.setdefault("tied_weights", is_tied)
    if not is_tied:
        facts["num_layers"] = _count(tensors, "model.transformer_")
    return facts


def _series(tensors: Tensors, config: Config) -> Config:
    """The time series of Primal-Attention."""
    layer, positions = "encoder.attn_layers.", _shape(tensors, "pos_enc.pe", 3)[0]
    facts = {
        "max_len": positions,
        "num_classes": _shape(tensors, "output_layer.weight")[0],
        "num_layers": _count(tensors, layer),
        "d_ff": _shape(tensors, f"{layer}0.conv1.weight", tensors[f"{layer}0.conv1.weight"].ndim)[0],
    }
    facts["d_model"], facts["feat_dim"] = _shape(tensors, "project_inp.weight")
    for name in tensors:
        if name.endswith(".attention.We"):
            facts["n_heads"], samples, facts["low_rank"] = _shape(tensors, name, 3)
            # Fewer where the series are shorter.
            config.setdefault("rank_multi", math.ceil(samples / facts["low_rank"]))
    config.setdefault("attn_type", "primal_cos" if "low_rank" in facts else "softmax")
    return facts


def _image(tensors: Tensors, config: Config) -> Config:
    """The image models: patches, depth, channel mixer, classes."""
    facts: Config = {"depth": _count(tensors, "layers."), "num_classes": _shape(tensors, "head.1.weight")[0]}
    if "layers.0.feature_mixer.l1.weight" in tensors:
        facts["glu_dim"], dim = _shape(tensors, "layers.0.feature_mixer.l1.weight")
    else:
        facts["mlp_dim"], dim = _shape(tensors, "layers.0.feature_mixer.net.0.weight")
    facts["dim" if "layers.0.token_mixer.to_qkv.weight" in tensors else "embed_dim"] = dim
    if "to_patch_embedding.proj.weight" in tensors:
        facts |= {"patch_type": "overlap", "patch_size": _shape(tensors, "to_patch_embedding.proj.weight", 4)[-1]}
    elif "to_patch_embedding.9.weight" in tensors:
        facts |= {"patch_type": "conv", "patch_size": 16}
    else:
        said, size = config.get("patch_size"), _shape(tensors, "to_patch_embedding.1.weight")[1]
        sides: list[Any] = said if isinstance(said, list) else [said, said]
        fits = all(isinstance(side, int) for side in sides) and 3 * math.prod(sides) == size
        facts["patch_size"] = said if fits else math.isqrt(size // 3)
    return facts


def _tnn_image(tensors: Tensors, config: Config) -> Config:
    mixer = "layers.0.token_mixer."
    facts = _image(tensors, config)
    width, dim = _shape(tensors, f"{mixer}u_proj.weight")
    facts["expand_ratio"] = _ratio(config.get("expand_ratio", 3), width, dim)
    facts["rpe_embdding"] = _shape(tensors, f"{mixer}toep1.rpe.pos_proj.weight")[0]
    facts["rpe_layers"] = _count(tensors, f"{mixer}toep1.rpe.layers.")
    config.setdefault("use_decay", f"{mixer}toep1.gamma" in tensors)
    config.setdefault("use_pos", "pos_embedding" in tensors)
    return facts


def _hgrn_image(tensors: Tensors, config: Config) -> Config:
    return {**_image(tensors, config), "param_share": "layers.0.token_mixer.theta" in tensors}


def _transnormer_image(tensors: Tensors, config: Config) -> Config:
    facts = _image(tensors, config)
    vector = "layers.0.token_mixer.lrpe.v"
    config.setdefault("use_lrpe", vector in tensors)
    if vector in tensors:
        sizes = [_shape(tensors, f"layers.{i}.token_mixer.lrpe.v", 1)[0] for i in range(facts["depth"])]
        facts["num_heads"] = facts["dim"] // sizes[0]
        if len(set(sizes)) > 1:
            facts["num_heads_list"] = [facts["dim"] // size for size in sizes]
    config.setdefault("use_glu", "glu_dim" in facts)
    # In all presets, and there the identity.
    config.setdefault("glu_act", "swish")
    return facts


def _image_arguments(arguments: Config) -> Config:
    """An image program stores its own options: the name of the preset, the size of the images, the classes."""
    preset = str(arguments.get("model", ""))
    is_transnormer = preset.startswith("norm_vit")
    names = {"input_size": "image_size" if is_transnormer else "img_size", "nb_classes": "num_classes"}
    config = {ours: arguments[theirs] for theirs, ours in names.items() if theirs in arguments}
    if is_transnormer:
        has_softmax = "softmax" in preset
        config |= {"use_softmax": has_softmax, "linear_act": "1+elu" if has_softmax else "elu", "block_act": "relu"}
        config["block_size"] = 14 if "no_block" in preset else 4
    elif preset.startswith(("tnn_vit", "tno_vit")):
        config |= {"prenorm": "_prenorm" in preset, "num_heads": 1, "glu_act": "silu"}
    elif preset.startswith("hgrn1d_vit"):
        config |= {"prenorm": True, "glu_act": "silu"}
    return config


def _fla(tensors: Tensors, config: Config) -> Config:
    """flash-linear-attention: everything stands in config.json; sizes are held against it."""
    words, dim = _shape(tensors, "model.embeddings.weight")
    return {"vocab_size": words, "hidden_size": dim, "num_hidden_layers": _count(tensors, "model.layers.")}


_DECODER = r"^decoder\.layers\.0\.self_attn\."
_ENCODER = r"^encoder\.sentence_encoder\.layers\.0\.self_attn\."
_LAYER = r"^model\.layers\.0\.layer\."
_PATCHES = r"^to_patch_embedding\."

# The first layer is a softmax attention, which has no We; in the order of any file.
_SERIES_HYBRID = r"(?s)\A(?!.*^encoder\.attn_layers\.0\.attention\.We$).*^encoder\.attn_layers\.1\.attention\.We$"

_FRAME = {"decoder_normalize_before": True}
_UNIT = {"act_fun": "silu", "norm_type": "simplermsnorm", "glu_act": "silu"}
_ENCODER_NETWORK = {"rpe_act": "relu"}
_TRANSNORMER = {"linear_act_fun": "elu", "use_softmax": False, "glu_act": "swish"}
_PIPELINE = {"encoder": "[…]", "decoder": "{…}", "model.layer": "[…]"}

ENTRIES = [
    Entry(
        "tnn.fairseq_lm",
        "causal-lm",
        has=(_DECODER + r"gtu\.toep\.rpe\.",),
        tells=lambda arguments: arguments.get("tno_type", "tno" if arguments else None) == "tno",
        derive=lambda tensors, config: _tnn(tensors, config, "decoder"),
        published={"model": "tnn_v2_lm", "decoder_attention_heads": 1, **_FRAME, **_UNIT, **_ENCODER_NETWORK},
    ),
    Entry(
        "fd.fairseq_lm",
        "causal-lm",
        has=(_DECODER + r"gtu\.toep\.(rpe\.|dc$)",),
        lacks=r"\.toep\.gamma$",
        tells=lambda arguments: arguments.get("tno_type", "tno") != "tno",
        derive=lambda tensors, config: _ski(tensors, config, "decoder"),
        published={"tno_type": "tno_fd", "decoder_attention_heads": 1, **_FRAME, **_UNIT, **_ENCODER_NETWORK},
    ),
    Entry(
        "fd.fairseq_lm",
        "causal-lm",
        has=(_DECODER + r"gtu\.toep\.conv_kernel$",),
        derive=lambda tensors, config: _ski(tensors, config, "decoder"),
        published={"decoder_attention_heads": 1, **_FRAME, **_UNIT, "gamma": 0.99},
    ),
    Entry(
        "hgrn.fairseq_lm",
        "causal-lm",
        has=(_DECODER + r"hgru\.",),
        derive=_hgrn,
        published={"act_fun": "silu", "glu_act": "none"},
    ),
    Entry(
        "transnormer.fairseq_lm",
        "causal-lm",
        has=(_DECODER + r"q_proj\.", r"^decoder\.layers\.0\.(self_attn\.urpe|glu)\."),
        derive=lambda tensors, config: _transnormer(tensors, config, "decoder"),
        published={"decoder_attention_heads": 8, "decoder_chunk_size": 64, **_TRANSNORMER},
    ),
    Entry(
        "primal.fairseq_lm",
        "causal-lm",
        has=(r"^decoder\.layers\.\d+\.self_attn\.We$",),
        derive=_primal,
        published={"decoder_normalize_before": False, "activation_fn": "relu"},
    ),
    Entry(
        "transformer.fairseq_lm",
        "causal-lm",
        has=(_DECODER + r"q_proj\.", r"^decoder\.layers\.0\.fc1\."),
        lacks=r"\.self_attn\.(We$|urpe\.)",
        derive=lambda tensors, config: _fairseq(tensors, config, "decoder"),
        published={"decoder_attention_heads": 8, "decoder_normalize_before": False, "activation_fn": "relu"},
    ),
    Entry(
        "tnn.fairseq_roberta",
        "masked-lm",
        has=(_ENCODER + r"gtu\.toep\.rpe\.",),
        tells=lambda arguments: arguments.get("tno_type", "tno" if arguments else None) == "tno",
        derive=lambda tensors, config: _tnn(tensors, config, "encoder"),
        published={"model": "roberta_tnn_v2", "encoder_attention_heads": 1, **_UNIT, **_ENCODER_NETWORK},
    ),
    Entry(
        "ski.fairseq_roberta",
        "masked-lm",
        has=(_ENCODER + r"gtu\.toep\.(rpe\.|dc$|conv_kernel$)",),
        tells=lambda arguments: arguments.get("tno_type", "tno") != "tno",
        derive=lambda tensors, config: _ski(tensors, config, "encoder"),
        published={"tno_type": "skitno_inv_time", "encoder_attention_heads": 1, **_UNIT, "gamma": 0.99},
    ),
    Entry(
        "transnormer.fairseq_roberta",
        "masked-lm",
        has=(_ENCODER + r"q_proj\.", r"^encoder\.sentence_encoder\.layers\.0\.(self_attn\.urpe|glu)\."),
        derive=lambda tensors, config: _transnormer(tensors, config, "encoder"),
        published={"encoder_attention_heads": 12, "encoder_chunk_size": 64, **_TRANSNORMER},
    ),
    Entry(
        "hgrn.fla",
        "causal-lm",
        has=(r"^model\.layers\.0\.attn\.i_proj\.", r"\.attn\.g_proj\."),
        derive=_fla,
    ),
    Entry(
        "hgrn2.fla",
        "causal-lm",
        has=(r"^model\.layers\.0\.attn\.i_proj\.", r"\.attn\.q_proj\."),
        derive=_fla,
    ),
    *(
        Entry(
            family,
            "sequence-classification",
            has=(pattern, r"^encoder\.(0\.)?weight$"),
            stored=_pipeline_arguments,
            derive=_pipeline,
            published=_PIPELINE,
            stores_all=False,
        )
        for family, pattern in (
            ("tnn.lra_model", _LAYER + r"toep[12]?\.(dpb|rpe)\.pos_proj"),
            ("hgrn.lra", _LAYER + r"hgru\."),
            ("transnormer.lra_classifier", _LAYER + r"q_proj\."),
        )
    ),
    Entry(
        "primal.lra_former",
        "sequence-classification",
        has=(r"^model\.transformer(_0)?\.mha\.(We$|ff\.)",),
        lacks=r"(?s)transformer_0\.mha\.W_v.*transformer_1\.mha\.We|transformer_1\.mha\.We.*transformer_0\.mha\.W_v",
        derive=_byte_pipeline,
        published={"model_class": "ModelForSC", "pooling_mode": "MEAN", "num_head": 2, "head_dim": 32},
    ),
    Entry(
        "primal.lra_trans",
        "sequence-classification",
        has=(r"^model\.transformer_0\.mha\.W_v\.", r"^model\.transformer_1\.mha\.We$"),
        derive=_byte_pipeline,
        published={"model_class": "ModelForSC", "pooling_mode": "MEAN", "num_head": 2, "head_dim": 32},
    ),
    Entry(
        "primal.ts_former",
        "sequence-classification",
        has=(r"^pos_enc\.pe$", r"^encoder\.attn_layers\.0\.attention\."),
        lacks=_SERIES_HYBRID,
        derive=_series,
        published={"n_heads": 8, "activation": "gelu"},
    ),
    Entry(
        "primal.ts_trans",
        "sequence-classification",
        has=(r"^pos_enc\.pe$", _SERIES_HYBRID),
        derive=_series,
        published={"n_heads": 8, "activation": "gelu"},
    ),
    Entry(
        "tnn.im_vit",
        "image-classification",
        has=(_PATCHES, r"^layers\.0\.token_mixer\.toep1\."),
        stored=_image_arguments,
        derive=_tnn_image,
        published={"img_size": 224, "num_heads": 1, "glu_act": "silu", "prenorm": True},
        stores_all=False,
    ),
    Entry(
        "hgrn.im_vit",
        "image-classification",
        has=(_PATCHES, r"^layers\.0\.token_mixer\.theta"),
        stored=_image_arguments,
        derive=_hgrn_image,
        published={"img_size": 224, "glu_act": "silu", "prenorm": True},
        stores_all=False,
    ),
    Entry(
        "transnormer.im_vit",
        "image-classification",
        has=(_PATCHES, r"^layers\.0\.token_mixer\.to_qkv\."),
        stored=_image_arguments,
        derive=_transnormer_image,
        published={"image_size": 224, "block_size": 4, "use_softmax": True, "linear_act": "1+elu"},
        stores_all=False,
    ),
    Entry(
        "primal.cv_vit",
        "image-classification",
        has=(r"^blocks\.\d+\.attn\.we$", r"^patch_embed\."),
        lacks=r"^blocks\.0\.attn\.we$",
    ),
    Entry("primal.cv_former", "image-classification", has=(r"^blocks\.0\.attn\.we$", r"^patch_embed\.")),
    # Parts of models
    Entry("hgrn.lra", None, has=(r"^layers\.0\.layer\.hgru\.",)),
    Entry("transnormer.lra", None, has=(r"^layers\.0\.layer\.q_proj\.",)),
    Entry("tnn.TnnLayer", None, has=(r"^token_mixer\.toep\.", r"^feature_mixer\.")),
    Entry("tnn.Gtu", None, has=(r"^toep\.rpe\.", r"^u_proj\.")),
    Entry("tnn.Gtu2d", None, has=(r"^toep1\.rpe\.", r"^u_proj\.")),
    Entry("tnn.Tno", None, has=(r"^rpe\.pos_proj\.",)),
    Entry("tnn.Rpe", None, has=(r"^pos_proj\.",)),
    Entry("tnn.GLU", None, has=(r"^l1\.weight$", r"^l3\.weight$")),
    Entry("hgrn.Hgru1d", None, has=(r"^lambda_proj\.weight$", r"^theta$")),
    Entry("hgrn.BiHgru1d", None, has=(r"^lambda_proj\.weight$", r"^theta_forward$")),
    Entry("hgrn.HgruReal1d", None, has=(r"^lambda_proj\.weight$", r"^gate\.weight$"), lacks=r"^theta"),
    Entry("primal.PrimalAttention", None, has=(r"^We$", r"^q_proj\.")),
    Entry("primal.lra", None, has=(r"^We$", r"^W_q\.")),
]
"""All families that are recognised, with and without a model of their own."""
