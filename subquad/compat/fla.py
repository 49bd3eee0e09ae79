"""HGRN and HGRN2 as flash-linear-attention publishes them (fla-hub/hgrn*): Hugging Face configurations and weights.

The recurrences are real, no map has a bias, the norms have their epsilon inside the root. A checkpoint like the
published ones is a `SubquadForCausalLM`.
"""

import functools
import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from subquad.compat.fairseq import Parts, PublishedForCausalLM, drop_second_name
from subquad.compat.reference import Conversion, Rules, register_family
from subquad.layers.norms import EpsilonRMSNorm
from subquad.mixers import HGRU, Mixer, State
from subquad.models import SubquadConfig, SubquadForCausalLM

NAMES: Rules = [
    (r"\.token_mixer\.(input|v)_proj\.", ".token_mixer.i_proj."),
    (r"\.token_mixer\.forget_proj\.", ".token_mixer.f_proj."),
    (r"\.token_mixer\.gate_proj\.", ".token_mixer.g_proj."),
    (r"\.token_mixer\.output_proj\.", ".token_mixer.o_proj."),
    (r"\.token_mixer\.norm\.", ".token_mixer.g_norm."),
    (r"\.token_mixer\.([if])_proj\.convolution\.", r".token_mixer.\1_conv1d."),
    (r"\.token_mixer\.([if])_proj\.linear\.", r".token_mixer.\1_proj."),
    (r"\.token_mixer\.", ".attn."),
    (r"\.token_norm\.", ".attn_norm."),
    (r"\.channel_norm\.", ".mlp_norm."),
    (r"\.channel_mixer\.", ".mlp."),
    (r"^model\.embed_tokens\.", "model.embeddings."),
    (r"^model\.shared\.\w+\.weight$", "model.lower_bounds"),
    (r"^model\.final_norm\.", "model.norm."),
]


class ConvolvedLinear(nn.Module):
    """A linear map without bias, then a causal convolution of each channel over the time."""

    def __init__(self, linear: Any, size: int):
        super().__init__()
        width = linear.out_features
        self.linear = linear
        self.convolution = nn.Conv1d(width, width, size, groups=width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` (batch, length, dim) to (batch, length, out_features)."""
        before = self.convolution.kernel_size[0] - 1
        return self.convolution(F.pad(self.linear(x).mT, (before, 0))).mT


class PublishedHGRU(HGRU):
    """A causal unit with what its code offers beside ours, used by no checkpoint or by none that is known.

    Args:
        dim: Features in and out.
        swapped_gate: Whether the norm is that of the gate, norm(W_g x) ⊙ φ(h), as in fla until 14 July 2024.
        conv_size: Positions that input and forget gate see; None is the present one alone.
        **options: Options of `HGRU`.
    """

    def __init__(self, dim: int, *, swapped_gate: bool, conv_size: int | None, **options: Any):
        super().__init__(dim, **options)
        self.swapped_gate = swapped_gate
        self.conv_size = conv_size
        if conv_size is not None:
            self.input_proj = ConvolvedLinear(self.input_proj, conv_size)
            self.forget_proj = ConvolvedLinear(self.forget_proj, conv_size)

    def mix(
        self, x: Tensor, state: State | None, mask: Tensor | None, lower_bound: Tensor | None = None
    ) -> tuple[Tensor, State | None]:
        """Mix a batch of rows; `lower_bound` (channels,) is γ. The convolutions see padding as zeros."""
        if self.conv_size is not None:
            if state is not None:
                raise ValueError("no state of short convolutions is kept: pass whole sequences, without a cache")
            if mask is not None:
                x = x * mask.unsqueeze(-1)
        return super().mix(x, state, mask, lower_bound)

    def mix_packed(self, x: Tensor, cu_seqlens: Tensor, **shared: Tensor) -> Tensor:
        """Mix sequences packed into one row, each with padding of its own."""
        return Mixer.mix_packed(self, x, cu_seqlens, **shared)

    def readout(self, x: Tensor, h: Tensor) -> Tensor:
        """The output (batch, length, dim) from the input and the states."""
        if not self.swapped_gate:
            return super().readout(x, h)
        return self.output_proj(self.norm(self.gate_proj(x)) * self.activation(h.to(x.dtype)))


@register_family("hgrn.fla")
def hgrn(
    tensors: dict[str, Tensor],
    *,
    hidden_size: int = 2048,
    expand_ratio: int = 1,
    use_short_conv: bool = False,
    conv_size: int = 4,
    use_lower_bound: bool = True,
    swapped_gate: bool = False,
    **config: Any,
) -> Conversion:
    """`HGRNForCausalLM`; `swapped_gate`, no key of the original, is for weights trained with the gate of early 2024."""
    if use_lower_bound and expand_ratio != 1:
        raise ValueError(f"`expand_ratio` = {expand_ratio} needs `use_lower_bound` = False: the published code fails")
    parts: Parts = {}
    if swapped_gate or use_short_conv:
        published = {"swapped_gate": swapped_gate, "conv_size": conv_size if use_short_conv else None}

        def replace_units(model: Any) -> None:
            options = {key: value for key, value in model.config.mixers[0].items() if key != "type"}
            for block in model.model.layers:
                block.token_mixer = PublishedHGRU(hidden_size, **published, **options)

        names = {"a norm of the output gate": swapped_gate, "short convolutions": use_short_conv}
        parts[", ".join(name for name, wanted in names.items() if wanted)] = replace_units
    mixer = {"type": "hgru", "complex": False, "expand_ratio": expand_ratio, "lower_bounds": use_lower_bound}
    return _language_model(tensors, mixer, parts, hidden_size=hidden_size, use_cache=not use_short_conv, **config)


@register_family("hgrn2.fla")
def hgrn2(
    tensors: dict[str, Tensor],
    *,
    hidden_size: int = 2048,
    expand_ratio: int | None = 128,
    num_heads: int | None = None,
    use_short_conv: bool = False,
    use_lower_bound: bool = True,
    **config: Any,
) -> Conversion:
    """`HGRN2ForCausalLM`; the norm of its mixers has the epsilon 1e-5, whatever `norm_eps` says."""
    if use_short_conv:
        raise ValueError("`use_short_conv` = True: no published HGRN2 has short convolutions")
    head_dim = expand_ratio or hidden_size // (num_heads or 1)
    if num_heads is not None and num_heads * head_dim != hidden_size:
        raise ValueError(f"`num_heads` = {num_heads} heads of {head_dim} are no `hidden_size` = {hidden_size}")
    mixer = {"type": "hgrn2", "head_dim": head_dim, "lower_bounds": use_lower_bound, "norm": "rmsnorm_1e-5"}
    return _language_model(tensors, mixer, {}, hidden_size=hidden_size, **config)


def _language_model(
    tensors: dict[str, Tensor],
    mixer: dict[str, Any],
    parts: Parts,
    *,
    hidden_size: int,
    use_cache: bool = True,
    vocab_size: int = 32000,
    num_hidden_layers: int = 24,
    hidden_ratio: int = 4,
    intermediate_size: int | None = None,
    hidden_act: str = "swish",
    elementwise_affine: bool = True,
    norm_eps: float | None = None,
    rms_norm_eps: float = 1e-6,
    tie_word_embeddings: bool = False,
    pad_token_id: int | None = None,
    bos_token_id: int | None = 1,
    eos_token_id: int | None = 2,
    attn: Any = None,
    **others: Any,
) -> Conversion:
    """A model whose layers are `mixer` and gated linear units; keys that change no number are ignored."""
    residuals = [key for key, value in others.items() if value and re.search(r"attn_?res|attention_?res", key)]
    if attn or residuals:
        raise ValueError(f"{'`attn`' if attn else residuals[0]!r}: no published HGRN has attention layers or residuals")
    if hidden_act not in ("swish", "silu"):
        raise ValueError(f"`hidden_act` must be 'swish' or 'silu', which are the same, got {hidden_act!r}")
    eps = rms_norm_eps if norm_eps is None else norm_eps
    norm = "rmsnorm_1e-5" if eps == 1e-5 else "rmsnorm_1e-6"
    if eps not in (1e-5, 1e-6):
        parts = {**parts, f"epsilon {eps} in the norms": functools.partial(_set_epsilon, eps=eps)}
    hidden = intermediate_size or 256 * -(-int(hidden_size * hidden_ratio * 2 / 3) // 256)
    config = SubquadConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_hidden_layers=num_hidden_layers,
        mixers=[{"norm": norm, "bias": False, **mixer}],
        channel_mixer={"type": "glu", "hidden_size": hidden, "activation": "silu", "bias": False},
        norm=norm,
        final_norm=norm,
        use_cache=use_cache,
        pad_token_id=pad_token_id,
        bos_token_id=bos_token_id,
        eos_token_id=eos_token_id,
        tie_word_embeddings=tie_word_embeddings,
    )
    model: Any = (PublishedForCausalLM if parts else SubquadForCausalLM)(config)
    for change in parts.values():
        change(model)
    if isinstance(model, PublishedForCausalLM):
        model.parts = tuple(parts)
    tensors = _split_gates(tensors)
    if tie_word_embeddings:
        drop_second_name(tensors, "lm_head.weight", "model.embeddings.weight")
    conversion = Conversion(model, tensors, NAMES)
    if not elementwise_affine:
        _fix_scales(conversion)
    return conversion


def _set_epsilon(model: Any, eps: float) -> None:
    for module in model.modules():
        # HGRN2's mixers keep theirs, which is not that of the configuration.
        if isinstance(module, EpsilonRMSNorm) and module.eps == 1e-6:
            module.eps = eps


def _split_gates(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Files of before February 2025 hold both branches of a gated linear unit as one matrix."""
    tensors = dict(tensors)
    for name in list(tensors):
        up = name.replace(".mlp.gate_proj.", ".mlp.up_proj.")
        if up not in tensors:
            tensors[name], tensors[up] = tensors[name].chunk(2)
    return tensors


def _fix_scales(conversion: Conversion) -> None:
    """The mixers' norms have weights of one, which are not trained."""
    dtype = next(iter(conversion.tensors.values())).dtype
    for name, weight in conversion.module.named_parameters():
        if name.endswith("token_mixer.norm.weight"):
            weight.requires_grad_(False)
            conversion.tensors[conversion.reference_name(name)] = torch.ones_like(weight, dtype=dtype)
