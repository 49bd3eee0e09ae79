"""The gated Toeplitz unit as published: PyTorch's linear maps, time before channels, around an operator."""

import copy
from collections.abc import Callable

from torch import nn

from subquad.mixers.gated_toeplitz import GatedToeplitzUnit


def published_unit(unit: GatedToeplitzUnit, operator: Callable[..., nn.Module]) -> GatedToeplitzUnit:
    """A copy of `unit` with plain maps, and with `operator` of its operator in that one's place."""
    unit = copy.deepcopy(unit)
    for name in ("gate_proj", "input_proj"):
        ours = unit.get_submodule(name)
        assert isinstance(ours, nn.Linear)
        plain = nn.Linear(ours.in_features, ours.out_features, bias=ours.bias is not None)
        plain.load_state_dict(ours.state_dict())
        setattr(unit, name, plain)
    unit.operator = operator(unit.operator)
    return unit
