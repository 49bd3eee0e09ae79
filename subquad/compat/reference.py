"""Published modules from their own configuration and weights: the registry of families, and the strict loader.

A family is a class of a published code base. For each there is one function that takes the reference's keyword
arguments, with the reference's defaults, and builds our module; the loader then asks for every parameter of ours under
the name the reference gave it.
"""

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from subquad.registry import unknown_name

Rules = list[tuple[str, str]]

NORMS = {
    "simplermsnorm": "simple_rmsnorm",
    "rmsnorm": "rmsnorm",
    "gatedrmsnorm": "gated_rmsnorm",
    "scalenorm": "scalenorm",
}
ACTIVATIONS = {
    "leak": "leaky_relu",
    **{name: name for name in ("gelu", "relu", "elu", "sigmoid", "exp", "1+elu", "2+elu", "silu")},
}


def norm_name(published: str) -> str:
    """Our name of a norm; every name that the published code does not know is a LayerNorm there."""
    return NORMS.get(published, "layernorm")


def activation_name(published: Any) -> str:
    """Our name of an activation; everything that the published code does not know is the identity there."""
    return ACTIVATIONS.get(published, "identity")


@dataclass
class Conversion:
    """What a family makes of a configuration and weights, before the weights are loaded.

    Args:
        module: Ours, with parameters of any values.
        tensors: The reference's tensors under its names, each once, each of the shape ours has.
        names: Regular expressions and replacements that turn the name of a parameter of ours into the reference's.
    """

    module: nn.Module
    tensors: dict[str, Tensor]
    names: Rules = field(default_factory=list)

    def reference_name(self, name: str) -> str:
        """The reference's name of a parameter of ours."""
        for pattern, replacement in self.names:
            name = re.sub(pattern, replacement, name)
        return name


FAMILIES: dict[str, Callable[..., Conversion]] = {}


def register_family(name: str) -> Callable[[Callable[..., Conversion]], Callable[..., Conversion]]:
    """Decorator: `build(tensors, **config)` converts modules of the family `name`."""

    def register(build: Callable[..., Conversion]) -> Callable[..., Conversion]:
        FAMILIES[name] = build
        return build

    return register


def from_reference(family: str, config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> nn.Module:
    """Rebuild a module of published code with its weights; it computes what the published code computes.

    A language model whose every part we have too is a `SubquadForCausalLM`: it can be saved, trained and generated
    from as any other. See the documentation page "Published checkpoints".

    Args:
        family: Class of the published code, such as "tnn.fairseq_lm" or "hgrn.Hgru1d".
        config: The keyword arguments of its constructor, or the resolved arguments of a fairseq model with
            `vocab_size` and `padding_idx`; omitted ones have the defaults of the published code.
        state_dict: Its parameters and buffers under their published names.

    Returns:
        The module in evaluation mode and in the dtype of the weights, called in the layout of the published code.

    Raises:
        ValueError: If the family or an option is unknown, options contradict each other, or weights are missing,
            unexpected, of another shape or not finite (all of them are listed).

    Example:
        >>> import torch
        >>> from subquad.compat import from_reference
        >>> weights = {"scale": torch.tensor([1.0, 2.0, 3.0])}
        >>> norm = from_reference("tnn.norm", {"norm_type": "rmsnorm", "d": 3}, weights)
        >>> norm(torch.ones(1, 3)).round(decimals=3).tolist()
        [[1.0, 2.0, 3.0]]
    """
    if family not in FAMILIES:
        raise ValueError(unknown_name("reference family", family, FAMILIES))
    build = FAMILIES[family]
    check_options(family, build, config)
    if not_tensors := [name for name, value in state_dict.items() if not isinstance(value, Tensor)]:
        raise ValueError(f"`state_dict` must hold tensors alone; these are none: {', '.join(not_tensors)}")
    conversion = build(dict(state_dict), **config)
    _load(family, conversion)
    return conversion.module.eval()


def check_options(family: str, build: Callable[..., Any], config: Mapping[str, Any]) -> None:
    """Hold a configuration against the keyword arguments of `build`.

    Raises:
        ValueError: If options are unknown (and not all are taken) or missing.
    """
    parameters = inspect.signature(build).parameters.values()
    options = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    for key in config:
        if key not in options and not any(p.kind is p.VAR_KEYWORD for p in parameters):
            raise ValueError(unknown_name(f"option of {family}", key, options))
    lacking = [name for name, default in options.items() if default is inspect.Parameter.empty and name not in config]
    if lacking:
        raise ValueError(f"the configuration of a {family} must have {', '.join(lacking)}")


def _load(family: str, conversion: Conversion) -> None:
    """Copy every tensor to its parameter or buffer, or raise one error that lists all that does not fit."""
    tensors = dict(conversion.tensors)
    dtypes = [tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()]
    if dtypes:
        conversion.module.to(functools.reduce(torch.promote_types, dtypes))
    missing, misshaped, not_finite = [], [], []
    stored = conversion.module.state_dict().keys()
    buffers = [(name, buffer) for name, buffer in conversion.module.named_buffers() if name in stored]
    with torch.no_grad():
        for name, parameter in [*conversion.module.named_parameters(), *buffers]:
            published = conversion.reference_name(name)
            tensor = tensors.pop(published, None)
            if tensor is None:
                missing.append(f"{published} {tuple(parameter.shape)}")
            elif tensor.shape != parameter.shape:
                misshaped.append(f"{published} {tuple(tensor.shape)}, expected {tuple(parameter.shape)}")
            elif not tensor.isfinite().all():
                not_finite.append(published)
            else:
                parameter.copy_(tensor)
    problems = {"missing": missing, "unexpected": tensors, "of another shape": misshaped, "not finite": not_finite}
    found = "; ".join(f"{problem}: {', '.join(names)}" for problem, names in problems.items() if names)
    if found:
        raise ValueError(f"the weights do not fit this configuration of a {family}. {found[0].upper()}{found[1:]}")


def drop_second_name(tensors: dict[str, Tensor], second: str, first: str) -> None:
    """Take the second name of a tied tensor out, or make it the first where that is missing.

    Raises:
        ValueError: If the two differ.
    """
    tensor = tensors.pop(second, None)
    if tensor is not None and not torch.equal(tensors.setdefault(first, tensor), tensor):
        raise ValueError(f"the configuration ties {second} to {first}, but the two differ")


class OnlyOutput(nn.Module):
    """A mixer or block of ours, called as published: without a state, and time first where `time_first`."""

    def __init__(self, module: nn.Module, time_first: bool = False):
        super().__init__()
        self.module = module
        self.time_first = time_first

    def forward(self, x: Tensor) -> Tensor:
        """Run the module on `x`, (batch, length, dim) or (length, batch, dim)."""
        if not self.time_first:
            return self.module(x)[0]
        return self.module(x.transpose(0, 1))[0].transpose(0, 1)


UNWRAP: Rules = [(r"^module\.", "")]
