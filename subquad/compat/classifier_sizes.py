"""The configurations of published classifiers, as far as their tensors tell them: the Long Range Arena, series, images.

Each function of tensors fills what a configuration leaves open, and returns what it must agree with.
"""

import math
from typing import Any

from subquad.compat.shapes import Config, Tensors, count_behind, ratio_of, shape_of


def pipeline_arguments(arguments: Config) -> Config:
    """Of what a whole program was told, what its model was; `_name_` is the class, which is always the same."""
    config = {key: arguments[key] for key in ("dataset", "encoder", "model", "decoder") if key in arguments}
    if isinstance(config.get("model"), dict):
        config["model"] = {key: value for key, value in config["model"].items() if key != "_name_"}
    return config


def pipeline(tensors: Tensors, config: Config) -> Config:
    """The Long Range Arena: sizes of the encoder, the backbone and the head."""
    head = "decoder.output_transform.weight"
    if head not in tensors:
        head = "decoder.retrieval.classifier.2.weight"
    encoder = "encoder.0.weight" if "encoder.0.weight" in tensors else "encoder.weight"
    rows, columns = shape_of(tensors, encoder)
    is_linear = encoder.replace("weight", "bias") in tensors
    return {
        "dataset.d_input" if is_linear else "dataset.n_tokens": columns if is_linear else rows,
        "dataset.d_output": shape_of(tensors, head)[0],
        "model.d_model": rows if is_linear else columns,
        "model.n_layers": count_behind(tensors, "model.layers.") // 2,
    }


def byte_pipeline(tensors: Tensors, config: Config) -> Config:
    """The Long Range Arena of Primal-Attention."""
    words, dim = shape_of(tensors, "model.embeddings.word_embeddings.weight")
    facts = {
        "vocab_size": words,
        "embedding_dim": dim,
        "transformer_dim": dim,
        "num_classes": shape_of(tensors, "seq_classifer.mlpblock.2.weight")[0],
    }
    for name in tensors:
        if name.endswith(".mlpblock.0.weight") and name.startswith("model."):
            facts["transformer_hidden_dim"] = shape_of(tensors, name)[0]
        elif name.endswith(".mha.We"):
            facts["num_head"], samples, facts["low_rank"] = shape_of(tensors, name, 3)
            # Fewer where the sequence is shorter.
            config.setdefault("rank_multi", math.ceil(samples / facts["low_rank"]))
        elif name.endswith(".mha.attn.concate_weight.weight"):
            facts["head_dim"] = shape_of(tensors, name)[0]
    config["num_positions"] = shape_of(tensors, "model.embeddings.position_embeddings.weight")[0]
    config.setdefault("max_seq_len", config["num_positions"])
    config.setdefault("attn_type", "primal_cos" if "low_rank" in facts else "softmax")
    is_tied = any(name.startswith("model.transformer.") for name in tensors)
    config.setdefault("tied_weights", is_tied)
    if not is_tied:
        facts["num_layers"] = count_behind(tensors, "model.transformer_")
    return facts


def series(tensors: Tensors, config: Config) -> Config:
    """The time series of Primal-Attention."""
    layer, positions = "encoder.attn_layers.", shape_of(tensors, "pos_enc.pe", 3)[0]
    facts = {
        "max_len": positions,
        "num_classes": shape_of(tensors, "output_layer.weight")[0],
        "num_layers": count_behind(tensors, layer),
        "d_ff": shape_of(tensors, f"{layer}0.conv1.weight", tensors[f"{layer}0.conv1.weight"].ndim)[0],
    }
    facts["d_model"], facts["feat_dim"] = shape_of(tensors, "project_inp.weight")
    for name in tensors:
        if name.endswith(".attention.We"):
            facts["n_heads"], samples, facts["low_rank"] = shape_of(tensors, name, 3)
            # Fewer where the series are shorter.
            config.setdefault("rank_multi", math.ceil(samples / facts["low_rank"]))
    config.setdefault("attn_type", "primal_cos" if "low_rank" in facts else "softmax")
    return facts


def image(tensors: Tensors, config: Config) -> Config:
    """The image models: patches, depth, channel mixer, classes."""
    facts: Config = {"depth": count_behind(tensors, "layers."), "num_classes": shape_of(tensors, "head.1.weight")[0]}
    if "layers.0.feature_mixer.l1.weight" in tensors:
        facts["glu_dim"], dim = shape_of(tensors, "layers.0.feature_mixer.l1.weight")
    else:
        facts["mlp_dim"], dim = shape_of(tensors, "layers.0.feature_mixer.net.0.weight")
    facts["dim" if "layers.0.token_mixer.to_qkv.weight" in tensors else "embed_dim"] = dim
    if "to_patch_embedding.proj.weight" in tensors:
        facts |= {"patch_type": "overlap", "patch_size": shape_of(tensors, "to_patch_embedding.proj.weight", 4)[-1]}
    elif "to_patch_embedding.9.weight" in tensors:
        facts |= {"patch_type": "conv", "patch_size": 16}
    else:
        said, size = config.get("patch_size"), shape_of(tensors, "to_patch_embedding.1.weight")[1]
        sides: list[Any] = said if isinstance(said, list) else [said, said]
        fits = all(isinstance(side, int) for side in sides) and 3 * math.prod(sides) == size
        facts["patch_size"] = said if fits else math.isqrt(size // 3)
    return facts


def tnn_image(tensors: Tensors, config: Config) -> Config:
    """The images of TNN: the gated Toeplitz unit and its network of positions."""
    mixer = "layers.0.token_mixer."
    facts = image(tensors, config)
    width, dim = shape_of(tensors, f"{mixer}u_proj.weight")
    facts["expand_ratio"] = ratio_of(config.get("expand_ratio", 3), width, dim)
    facts["rpe_embdding"] = shape_of(tensors, f"{mixer}toep1.rpe.pos_proj.weight")[0]
    facts["rpe_layers"] = count_behind(tensors, f"{mixer}toep1.rpe.layers.")
    config.setdefault("use_decay", f"{mixer}toep1.gamma" in tensors)
    config.setdefault("use_pos", "pos_embedding" in tensors)
    return facts


def hgrn_image(tensors: Tensors, config: Config) -> Config:
    """The images of HGRN: whether both directions have one phase."""
    return {**image(tensors, config), "param_share": "layers.0.token_mixer.theta" in tensors}


def transnormer_image(tensors: Tensors, config: Config) -> Config:
    """The images of TransNormer: heads, by the positions of each layer."""
    facts = image(tensors, config)
    vector = "layers.0.token_mixer.lrpe.v"
    config.setdefault("use_lrpe", vector in tensors)
    if vector in tensors:
        sizes = [shape_of(tensors, f"layers.{i}.token_mixer.lrpe.v", 1)[0] for i in range(facts["depth"])]
        facts["num_heads"] = facts["dim"] // sizes[0]
        if len(set(sizes)) > 1:
            facts["num_heads_list"] = [facts["dim"] // size for size in sizes]
    config.setdefault("use_glu", "glu_dim" in facts)
    # In all presets, and there the identity.
    config.setdefault("glu_act", "swish")
    return facts


def image_arguments(arguments: Config) -> Config:
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
