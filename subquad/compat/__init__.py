"""Reading the checkpoints that others wrote. Nothing else imports it, but what reads a run folder that holds one."""

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
    transnormer_models,
    vit,
)
from subquad.compat.pretrained import to_pretrained
from subquad.compat.recognize import recognize
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
    "recognize",
    "ski",
    "tnn",
    "tnn_grid",
    "to_pretrained",
    "transformer",
    "transnormer",
    "transnormer_grid",
    "transnormer_models",
    "vit",
]
