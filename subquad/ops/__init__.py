"""Mathematics on tensors, without parameters: each op is one function with a readable reference and fast paths."""

from subquad.ops.backends import explain
from subquad.ops.linear_recurrence import linear_recurrence
from subquad.ops.toeplitz import toeplitz

__all__ = ["explain", "linear_recurrence", "toeplitz"]
