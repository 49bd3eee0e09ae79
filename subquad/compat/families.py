"""The published families by which checkpoints are recognised: one entry each.

Names tell the families apart, because each code base has its own. Shapes tell widths, depths, vocabularies and which
parts are there. What neither tells (activations, often the number of heads) comes from the arguments that the file
stores, or from the person who converts it. Only what no published preset sets has the default of the published code.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from subquad.compat import classifier_sizes as classifiers
from subquad.compat import language_sizes as language
from subquad.compat.shapes import Config, Tensors


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
        derive=lambda tensors, config: language.tnn(tensors, config, "decoder"),
        published={"model": "tnn_v2_lm", "decoder_attention_heads": 1, **_FRAME, **_UNIT, **_ENCODER_NETWORK},
    ),
    Entry(
        "fd.fairseq_lm",
        "causal-lm",
        has=(_DECODER + r"gtu\.toep\.(rpe\.|dc$)",),
        lacks=r"\.toep\.gamma$",
        tells=lambda arguments: arguments.get("tno_type", "tno") != "tno",
        derive=lambda tensors, config: language.ski(tensors, config, "decoder"),
        published={"tno_type": "tno_fd", "decoder_attention_heads": 1, **_FRAME, **_UNIT, **_ENCODER_NETWORK},
    ),
    Entry(
        "fd.fairseq_lm",
        "causal-lm",
        has=(_DECODER + r"gtu\.toep\.conv_kernel$",),
        derive=lambda tensors, config: language.ski(tensors, config, "decoder"),
        published={"decoder_attention_heads": 1, **_FRAME, **_UNIT, "gamma": 0.99},
    ),
    Entry(
        "hgrn.fairseq_lm",
        "causal-lm",
        has=(_DECODER + r"hgru\.",),
        derive=language.hgrn,
        published={"act_fun": "silu", "glu_act": "none"},
    ),
    Entry(
        "transnormer.fairseq_lm",
        "causal-lm",
        has=(_DECODER + r"q_proj\.", r"^decoder\.layers\.0\.(self_attn\.urpe|glu)\."),
        derive=lambda tensors, config: language.transnormer(tensors, config, "decoder"),
        published={"decoder_attention_heads": 8, "decoder_chunk_size": 64, **_TRANSNORMER},
    ),
    Entry(
        "primal.fairseq_lm",
        "causal-lm",
        has=(r"^decoder\.layers\.\d+\.self_attn\.We$",),
        derive=language.primal,
        published={"decoder_normalize_before": False, "activation_fn": "relu"},
    ),
    Entry(
        "transformer.fairseq_lm",
        "causal-lm",
        has=(_DECODER + r"q_proj\.", r"^decoder\.layers\.0\.fc1\."),
        lacks=r"\.self_attn\.(We$|urpe\.)",
        derive=lambda tensors, config: language.fairseq(tensors, config, "decoder"),
        published={"decoder_attention_heads": 8, "decoder_normalize_before": False, "activation_fn": "relu"},
    ),
    Entry(
        "tnn.fairseq_roberta",
        "masked-lm",
        has=(_ENCODER + r"gtu\.toep\.rpe\.",),
        tells=lambda arguments: arguments.get("tno_type", "tno" if arguments else None) == "tno",
        derive=lambda tensors, config: language.tnn(tensors, config, "encoder"),
        published={"model": "roberta_tnn_v2", "encoder_attention_heads": 1, **_UNIT, **_ENCODER_NETWORK},
    ),
    Entry(
        "ski.fairseq_roberta",
        "masked-lm",
        has=(_ENCODER + r"gtu\.toep\.(rpe\.|dc$|conv_kernel$)",),
        tells=lambda arguments: arguments.get("tno_type", "tno") != "tno",
        derive=lambda tensors, config: language.ski(tensors, config, "encoder"),
        published={"tno_type": "skitno_inv_time", "encoder_attention_heads": 1, **_UNIT, "gamma": 0.99},
    ),
    Entry(
        "transnormer.fairseq_roberta",
        "masked-lm",
        has=(_ENCODER + r"q_proj\.", r"^encoder\.sentence_encoder\.layers\.0\.(self_attn\.urpe|glu)\."),
        derive=lambda tensors, config: language.transnormer(tensors, config, "encoder"),
        published={"encoder_attention_heads": 12, "encoder_chunk_size": 64, **_TRANSNORMER},
    ),
    Entry(
        "hgrn.fla",
        "causal-lm",
        has=(r"^model\.layers\.0\.attn\.i_proj\.", r"\.attn\.g_proj\."),
        derive=language.fla,
    ),
    Entry(
        "hgrn2.fla",
        "causal-lm",
        has=(r"^model\.layers\.0\.attn\.i_proj\.", r"\.attn\.q_proj\."),
        derive=language.fla,
    ),
    *(
        Entry(
            family,
            "sequence-classification",
            has=(pattern, r"^encoder\.(0\.)?weight$"),
            stored=classifiers.pipeline_arguments,
            derive=classifiers.pipeline,
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
        derive=classifiers.byte_pipeline,
        published={"model_class": "ModelForSC", "pooling_mode": "MEAN", "num_head": 2, "head_dim": 32},
    ),
    Entry(
        "primal.lra_trans",
        "sequence-classification",
        has=(r"^model\.transformer_0\.mha\.W_v\.", r"^model\.transformer_1\.mha\.We$"),
        derive=classifiers.byte_pipeline,
        published={"model_class": "ModelForSC", "pooling_mode": "MEAN", "num_head": 2, "head_dim": 32},
    ),
    Entry(
        "primal.ts_former",
        "sequence-classification",
        has=(r"^pos_enc\.pe$", r"^encoder\.attn_layers\.0\.attention\."),
        lacks=_SERIES_HYBRID,
        derive=classifiers.series,
        published={"n_heads": 8, "activation": "gelu"},
    ),
    Entry(
        "primal.ts_trans",
        "sequence-classification",
        has=(r"^pos_enc\.pe$", _SERIES_HYBRID),
        derive=classifiers.series,
        published={"n_heads": 8, "activation": "gelu"},
    ),
    Entry(
        "tnn.im_vit",
        "image-classification",
        has=(_PATCHES, r"^layers\.0\.token_mixer\.toep1\."),
        stored=classifiers.image_arguments,
        derive=classifiers.tnn_image,
        published={"img_size": 224, "num_heads": 1, "glu_act": "silu", "prenorm": True},
        stores_all=False,
    ),
    Entry(
        "hgrn.im_vit",
        "image-classification",
        has=(_PATCHES, r"^layers\.0\.token_mixer\.theta"),
        stored=classifiers.image_arguments,
        derive=classifiers.hgrn_image,
        published={"img_size": 224, "glu_act": "silu", "prenorm": True},
        stores_all=False,
    ),
    Entry(
        "transnormer.im_vit",
        "image-classification",
        has=(_PATCHES, r"^layers\.0\.token_mixer\.to_qkv\."),
        stored=classifiers.image_arguments,
        derive=classifiers.transnormer_image,
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
