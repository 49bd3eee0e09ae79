"""The configurations of published language models, as far as their tensors tell them.

Each function fills what a configuration leaves open, and returns what it must agree with.
"""

import re

from subquad.compat.fairseq import classification_heads
from subquad.compat.shapes import Config, Tensors, count_behind, numbers_behind, ratio_of, same, shape_of
from subquad.data import DataError

PREFIXES = {"decoder": "decoder.", "encoder": "encoder.sentence_encoder."}


def preset(config: Config) -> str | None:
    """The published name of a fairseq configuration, where it stores one."""
    names = (config.get("arch"), config.get("_name"))
    return next((name for name in names if isinstance(name, str)), None)


def fairseq(tensors: Tensors, config: Config, side: str) -> Config:
    """Vocabulary, widths, depth, norms and tying of a causal ("decoder") or masked ("encoder") model."""
    prefix = PREFIXES[side]
    bands = numbers_behind(tensors, f"{prefix}embed_tokens.embeddings.")
    rows = [shape_of(tensors, f"{prefix}embed_tokens.embeddings.{band}.0.weight")[0] for band in bands]
    layer = f"{prefix}layers.0."
    is_glu = f"{layer}glu.l1.weight" in tensors
    hidden, dim = shape_of(tensors, f"{layer}glu.l1.weight" if is_glu else f"{layer}fc1.weight")
    facts = {f"{side}_layers": count_behind(tensors, f"{prefix}layers."), f"{side}_embed_dim": dim}
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
        count = shape_of(tensors, positions)[0] - config["padding_idx"] - 1
        facts["max_target_positions" if side == "decoder" else "max_positions"] = count
        if 0 <= config["padding_idx"] <= count + config["padding_idx"]:
            config.setdefault("padding_position", bool(tensors[positions][config["padding_idx"]].any()))
    if bands:
        return facts | {"vocab_size": sum(rows)}
    facts["vocab_size"], input_dim = shape_of(tensors, f"{prefix}embed_tokens.weight")
    if side == "encoder":
        config.setdefault("no_token_positional_embeddings", positions not in tensors)
        return facts
    facts["decoder_input_dim"] = input_dim
    if not config.get("adaptive_softmax_cutoff"):
        embedding, output = f"{prefix}embed_tokens.weight", f"{prefix}output_projection.weight"
        is_tied = output not in tensors or same(tensors[embedding], tensors[output])
        facts["decoder_output_dim"] = input_dim if output not in tensors else shape_of(tensors, output)[1]
        config.setdefault("share_decoder_input_output_embed", is_tied)
    return facts


def masked(tensors: Tensors, config: Config) -> Config:
    """What only masked models have: heads for classes, and a head for words that may not be tied."""
    facts = fairseq(tensors, config, "encoder")
    if heads := classification_heads(tensors):
        config.setdefault("classification_heads", heads)
    embedding, output = "encoder.sentence_encoder.embed_tokens.weight", "encoder.lm_head.weight"
    is_tied = output not in tensors or same(tensors[embedding], tensors[output])
    config.setdefault("untie_weights_roberta", not is_tied)
    return facts


def gtu(tensors: Tensors, config: Config, side: str) -> Config:
    """The gated Toeplitz unit and the GLU of TNN, FD-TNN and SKI-TNN."""
    layer = f"{PREFIXES[side]}layers.0."
    unit = f"{layer}self_attn.gtu."
    facts = masked(tensors, config) if side == "encoder" else fairseq(tensors, config, side)
    gates_itself = f"{unit}in_proj.weight" in tensors
    width, dim = shape_of(tensors, f"{unit}in_proj.weight" if gates_itself else f"{unit}u_proj.weight")
    heads = config.get(f"{side}_attention_heads")
    unit_size = heads if isinstance(heads, int) and 0 < heads <= width else 1
    facts["expand_ratio"] = ratio_of(config.get("expand_ratio", 3), width, dim, unit_size)
    if config.get("glu_dim") == -1:
        del config["glu_dim"]
    facts["glu_dim"] = shape_of(tensors, f"{layer}glu.l1.weight")[0]
    if f"{layer}glu.l3.weight" not in tensors:
        facts["glu_type"] = 2
    if gates_itself:
        facts["gtu_type"] = 3
    config.setdefault("bias", f"{unit}{'out_proj' if gates_itself else 'o'}.bias" in tensors)
    if not config.get("use_multi_decay"):
        config.setdefault("use_decay", f"{unit}toep.gamma" in tensors)
    encoder = f"{unit}toep.rpe."
    if f"{encoder}pos_proj.weight" in tensors:
        facts["rpe_embedding"] = shape_of(tensors, f"{encoder}pos_proj.weight")[0]
        facts["rpe_layers"] = count_behind(tensors, f"{encoder}layers.")
    return facts


def tnn(tensors: Tensors, config: Config, side: str) -> Config:
    """TNN: the class of the model follows from the preset's name."""
    if arch := preset(config):
        version = "_v2" if "tnn_v2" in arch else ""
        config.setdefault("model", f"roberta_tnn{version}" if side == "encoder" else f"tnn{version}_lm")
    return gtu(tensors, config, side)


def ski(tensors: Tensors, config: Config, side: str) -> Config:
    """SKI-TNN and FD-TNN: which operator, and its size."""
    operator = f"{PREFIXES[side]}layers.0.self_attn.gtu.toep."
    facts = gtu(tensors, config, side)
    if f"{operator}conv_kernel" in tensors:
        taps, said = shape_of(tensors, f"{operator}conv_kernel")[1], config.get("nk")
        # Lags on both sides of 0, or that half of them which a causal operator has; an even number is one less.
        num_taps = taps if side == "encoder" else 2 * taps - 1
        facts["nk"] = said if isinstance(said, int) and said + 1 - said % 2 == num_taps else num_taps
        inverse_time = f"{operator}alphas" in tensors
        config.setdefault("tno_type", "skitno_inv_time" if inverse_time else "skitno")
        if inverse_time:
            facts["rank"] = shape_of(tensors, f"{operator}alphas", 4)[-1]
        elif f"{operator}inducing" in tensors:
            facts["rank"] = shape_of(tensors, f"{operator}inducing", 1)[0]
    elif f"{operator}dc" in tensors:
        config.setdefault("tno_type", "tno_fd_norpe")
    return facts


def hgrn(tensors: Tensors, config: Config) -> Config:
    """HGRN: the GLU's width as a multiple, and norms that have parameters or none."""
    layer = "decoder.layers.0."
    facts = fairseq(tensors, config, "decoder")
    hidden, dim = shape_of(tensors, f"{layer}glu.l1.weight")
    facts["multiple"] = ratio_of(config.get("multiple", 2), hidden, dim)
    config.setdefault("bias", f"{layer}self_attn.hgru.out_proj.bias" in tensors)
    for option, norm in (("attn_type", f"{layer}self_attn_layer_norm"), ("final_layernorm", "decoder.layer_norm")):
        config.setdefault(option, "layernorm" if f"{norm}.weight" in tensors else "simplermsnorm")
    return facts


def transnormer(tensors: Tensors, config: Config, side: str) -> Config:
    """TransNormer: positions of the heads, and the GLU's width where it is not the usual 8/3."""
    layer = f"{PREFIXES[side]}layers.0."
    facts = masked(tensors, config) if side == "encoder" else fairseq(tensors, config, side)
    dim = facts[f"{side}_embed_dim"]
    angles, reflection = f"{layer}self_attn.urpe.theta", f"{layer}self_attn.urpe.v"
    if reflection in tensors:
        facts[f"{side}_attention_heads"] = dim // shape_of(tensors, reflection, 1)[0]
    config.setdefault(f"{side}_use_urpe", angles in tensors or reflection in tensors)
    config.setdefault(f"{side}_core_matrix", 1)
    config.setdefault(f"{side}_p_matrix", 3 if reflection in tensors else 1)
    config.setdefault(f"{side}_theta_learned", angles in tensors)
    config.setdefault("use_glu", f"{layer}glu.l1.weight" in tensors)
    if f"{layer}glu.l1.weight" in tensors:
        hidden = shape_of(tensors, f"{layer}glu.l1.weight")[0]
        if config.get("multiple") or hidden != int(dim * 8 / 3):
            facts["multiple"] = ratio_of(config.get("multiple"), hidden, dim)
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


def primal(tensors: Tensors, config: Config) -> Config:
    """A transformer with a primal layer, which tells the number of heads."""
    facts = fairseq(tensors, config, "decoder")
    name = next(name for name in tensors if name.endswith(".self_attn.We"))
    config["low_rank"] = shape_of(tensors, name, 3)[-1]
    return facts | {"decoder_attention_heads": shape_of(tensors, name, 3)[0]}


def fla(tensors: Tensors, config: Config) -> Config:
    """flash-linear-attention: everything stands in config.json; sizes are held against it."""
    words, dim = shape_of(tensors, "model.embeddings.weight")
    return {"vocab_size": words, "hidden_size": dim, "num_hidden_layers": count_behind(tensors, "model.layers.")}
