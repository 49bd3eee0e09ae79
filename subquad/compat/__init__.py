"""Reading the checkpoints that others wrote. Nothing else imports it."""

from subquad.compat import (
    fla,
    hgrn,
    hgrn2,
    lra,
    primal,
    primal_lra,
    primal_timeseries,
    primal_vision,
    ski,
    tnn,
    tnn_grid,
    transformer,
    transnormer,
    transnormer_grid,
    vit,
)
from subquad.compat.reference import from_reference

__all__ = [
    "fla",
    "from_reference",
    "hgrn",
    "hgrn2",
    "lra",
    "primal",
    "primal_lra",
    "primal_timeseries",
    "primal_vision",
    "ski",
    "tnn",
    "tnn_grid",
    "transformer",
    "transnormer",
    "transnormer_grid",
    "vit",
]
