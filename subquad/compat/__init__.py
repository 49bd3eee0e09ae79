"""Reading the checkpoints that others wrote. Nothing else imports it."""

from subquad.compat import fla, hgrn, tnn, transformer
from subquad.compat.reference import from_reference

__all__ = ["fla", "from_reference", "hgrn", "tnn", "transformer"]
