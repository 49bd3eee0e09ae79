"""Reading the checkpoints that others wrote. Nothing else imports it."""

from subquad.compat import hgrn, tnn, transformer
from subquad.compat.reference import from_reference

__all__ = ["from_reference", "hgrn", "tnn", "transformer"]
