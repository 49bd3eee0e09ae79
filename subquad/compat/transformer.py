"""Fairseq's softmax transformer language model, the baseline of the published comparisons."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from subquad.compat import fairseq
from subquad.compat.reference import UNWRAP, Conversion, OnlyOutput, Rules, register_family
from subquad.layers import FFN, SinusoidalPositions
from subquad.mixers import Mixer
from subquad.models import Block, SubquadConfig, SubquadForCausalLM
from subquad.registry import unknown_name

NAMES: Rules = [
    (r"\btoken_mixer\.output_proj\.head_scale$", "c_attn"),
    (r"\btoken_mixer\.output_proj\.norm\.", "attn_ln."),
    (r"\btoken_mixer\.output_proj\.(proj\.)?", "self_attn.out_proj."),
    (r"\btoken_mixer\.", "self_attn."),
    (r"\bchannel_mixer\.up_proj\.", "fc1."),
    (r"\bchannel_mixer\.down_proj\.", "fc2."),
    (r"\bchannel_mixer\.hidden_norm\.", "ffn_layernorm."),
    (r"\bresidual_scale$", "w_resid"),
]
SCALES = ("scale_heads", "scale_attn", "scale_fc", "scale_resids")


class ScaledOutput(nn.Module):
    """A mixer's output map, then a factor for each head's slice, then a LayerNorm (NormFormer, arXiv 2110.09456)."""

    def __init__(self, proj: nn.Linear, num_heads: int, *, scale_heads: bool, scale_attn: bool):
        super().__init__()
        self.proj = proj
        self.num_heads = num_heads
        self.head_scale = nn.Parameter(torch.ones(num_heads)) if scale_heads else None
        self.norm = nn.LayerNorm(proj.out_features) if scale_attn else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` (..., dim) to (..., dim)."""
        y = self.proj(x)
        if self.head_scale is not None:
            y = (y.unflatten(-1, (self.num_heads, -1)) * self.head_scale.unsqueeze(-1)).flatten(-2)
        return self.norm(y)


class NormedFFN(FFN):
    """Feed-forward network with a LayerNorm before its second map (NormFormer)."""

    def __init__(self, dim: int, hidden_size: int, **options: Any):
        super().__init__(dim, hidden_size, **options)
        self.hidden_norm = nn.LayerNorm(hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` (..., dim) to (..., dim)."""
        return self.down_proj(self.hidden_norm(self.dropout(self.activation(self.up_proj(x)))))


class ScaledResidualBlock(Block):
    """Block with a factor for each feature of the channel mixer's residual (NormFormer)."""

    def __init__(self, config: SubquadConfig, index: int):
        super().__init__(config, index)
        self.residual_scale = nn.Parameter(torch.ones(config.hidden_size))

    def _after(self, norm: nn.Module, x: Tensor, branch: Tensor, mask: Tensor | None) -> Tensor:
        return super()._after(norm, x * self.residual_scale if norm is self.channel_norm else x, branch, mask)


class PaddedPositions(nn.Module):
    """Learned positions in which padding has a vector of its own: row `padding_idx` of the table, without gradient."""

    def __init__(self, num_positions: int, dim: int, padding_idx: int):
        super().__init__()
        self.padding_idx = padding_idx
        self.weight = nn.Parameter(torch.empty(num_positions, dim))

    def forward(self, positions: Tensor, dtype: torch.dtype) -> Tensor:
        """Vectors (..., dim) of `positions` (...), −1 for padding, in `dtype`."""
        rows = positions.where(positions >= 0, self.padding_idx)
        return F.embedding(rows, self.weight, self.padding_idx).to(dtype)


class FairseqPositions(SinusoidalPositions):
    """Sinusoidal positions from fairseq's table, which is float32 in models of any precision."""

    def forward(self, positions: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Vectors (..., dim) of `positions` (...), −1 for padding, in `dtype`."""
        return super().forward(positions).to(dtype)


def block_options(args: dict[str, Any]) -> dict[str, Any]:
    """The options of `SubquadConfig` that one layer's arguments determine."""
    fairseq.require(args, "decoder_embed_dim", "decoder_attention_heads", "decoder_ffn_embed_dim")
    act = args.get("activation_fn", "relu")
    if act not in fairseq.ACTIVATIONS:
        raise ValueError(unknown_name("activation_fn", act, fairseq.ACTIVATIONS))
    attention = {"num_heads": args["decoder_attention_heads"], "dropout": args.get("attention_dropout", 0.0)}
    ffn = {
        "hidden_size": args["decoder_ffn_embed_dim"],
        "activation": fairseq.ACTIVATIONS[act],
        "dropout": args.get("activation_dropout") or args.get("relu_dropout") or 0.0,
    }
    return {"mixers": [{"type": "softmax", **attention}], "channel_mixer": {"type": "ffn", **ffn}, "norm": "layernorm"}


def build_block(config: SubquadConfig, index: int, args: dict[str, Any], mixer: Mixer | None = None) -> Block:
    """A block with the NormFormer switches that are on, and with another token mixer than its configuration's."""
    block: Any = (ScaledResidualBlock if args.get("scale_resids") else Block)(config, index)
    if mixer is not None:
        block.token_mixer = mixer
    if args.get("scale_heads") or args.get("scale_attn"):
        scales = {"scale_heads": bool(args.get("scale_heads")), "scale_attn": bool(args.get("scale_attn"))}
        attention: Any = block.token_mixer
        attention.output_proj = ScaledOutput(attention.output_proj, attention.num_heads, **scales)
    if args.get("scale_fc"):
        assert config.channel_mixer is not None
        options = {key: value for key, value in config.channel_mixer.items() if key != "type"}
        block.channel_mixer = NormedFFN(config.hidden_size, **options)
    return block


def block_conversion(tensors: dict[str, Tensor], args: dict[str, Any], mixer: Mixer | None = None) -> Conversion:
    """One causal layer, as a block; its attention, where `mixer` is given, is that."""
    config = SubquadConfig(
        **block_options(args),
        hidden_size=args["decoder_embed_dim"],
        num_hidden_layers=1,
        norm_position="pre" if args.get("decoder_normalize_before") else "post",
        dropout=float(args.get("dropout", 0.1)),
    )
    names = [*UNWRAP, *NAMES, (r"^token_norm\.", "self_attn_layer_norm."), (r"^channel_norm\.", "final_layer_norm.")]
    return Conversion(build_block(config, 0, args, mixer), fairseq.current_names(tensors), names)


@register_family("transformer.decoder_layer")
def decoder_layer(tensors: dict[str, Tensor], **args: Any) -> Conversion:
    """One causal layer over (length, batch, dim)."""
    conversion = block_conversion(tensors, args)
    conversion.module = OnlyOutput(conversion.module, time_first=True)
    return conversion


@register_family("transformer.fairseq_lm")
def fairseq_lm(tensors: dict[str, Tensor], **args: Any) -> Conversion:
    """Fairseq's `transformer_lm`; where no mask is given, padding is read off the tokens."""
    return language_model(tensors, args)


def language_model(tensors: dict[str, Tensor], args: dict[str, Any], **options: Any) -> Conversion:
    """Convert a `transformer_lm`.

    Args:
        tensors: Its state dict.
        args: Its resolved arguments, with `vocab_size`.
        **options: Options of `SubquadConfig` in place of those of the plain model, such as other token mixers.
    """
    padding_idx = args.get("padding_idx", 1)
    parts: fairseq.Parts = {}
    if scales := [name for name in SCALES if args.get(name)]:

        def replace_blocks(model: Any) -> None:
            for index in range(len(model.model.layers)):
                model.model.layers[index] = build_block(model.config, index, args)

        parts[f"the NormFormer switches {', '.join(scales)}"] = replace_blocks
    options = block_options(args) | options
    if not args.get("no_token_positional_embeddings"):
        learned = bool(args.get("decoder_learned_pos"))
        options["position_embedding"] = "learned" if learned else "sinusoidal"
        options["position_offset"] = padding_idx + 1
        if learned:
            count = args.get("max_target_positions") or args.get("tokens_per_sample")
            options["max_position_embeddings"] = count
            table = tensors.get("decoder.embed_positions.weight")
            is_stored = table is not None and len(table) > padding_idx and bool(table[padding_idx].any())
            if args.get("padding_position", is_stored):
                parts["a position vector for padding"] = _set_padded_positions
    arguments = {"decoder_normalize_before": False, **args}
    conversion = fairseq.language_model(tensors, arguments, NAMES, parts=parts, **options)
    model: Any = conversion.module
    if options.get("position_embedding") == "sinusoidal":
        model.model.positions = FairseqPositions(model.config.hidden_size)
    model.register_forward_pre_hook(fairseq.mask_padding, with_kwargs=True)
    return conversion


def _set_padded_positions(model: SubquadForCausalLM) -> None:
    table, padding_idx = model.model.positions, model.config.pad_token_id
    assert isinstance(table, nn.Embedding)
    assert padding_idx is not None
    model.model.positions = PaddedPositions(table.num_embeddings, table.embedding_dim, padding_idx)
