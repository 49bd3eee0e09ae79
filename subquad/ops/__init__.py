"""Mathematics on tensors, without parameters: each op is one function with a readable reference and fast paths."""

from subquad.ops.backends import explain
from subquad.ops.gated_input import forget_gate, gated_input
from subquad.ops.gated_linear_attention import gated_linear_attention
from subquad.ops.gated_product import gated_product
from subquad.ops.linear_attention import linear_attention
from subquad.ops.linear_cross_entropy import linear_cross_entropy
from subquad.ops.linear_recurrence import linear_recurrence
from subquad.ops.rms_norm import rms_norm
from subquad.ops.rotation import rotate_pairs
from subquad.ops.ski import ski
from subquad.ops.spectral_filter import spectral_filter
from subquad.ops.toeplitz import toeplitz

__all__ = [
    "explain",
    "forget_gate",
    "gated_input",
    "gated_linear_attention",
    "gated_product",
    "linear_attention",
    "linear_cross_entropy",
    "linear_recurrence",
    "rms_norm",
    "rotate_pairs",
    "ski",
    "spectral_filter",
    "toeplitz",
]
