"""Optimisers and their parameter groups."""

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import nn

from subquad.registry import unknown_name


class FairseqAdam(torch.optim.AdamW):
    """Adam as fairseq computes it (Kingma and Ba 2015, arXiv 1412.6980, section 2, last paragraph).

        m ← β₁ m + (1 − β₁) g;   v ← β₂ v + (1 − β₂) g²
        θ ← θ (1 − lr·λ) − lr · √(1 − β₂ᵗ) / (1 − β₁ᵗ) · m / (√v + ε)

    AdamW but for ε, which stands beside √v, not beside the bias-corrected √v̂. That is AdamW with
    ε_t = ε / √(1 − β₂ᵗ), so the work is done by torch's own kernels.

    Args:
        params: Parameters or groups.
        lr: Learning rate.
        betas: β₁ and β₂.
        eps: ε.
        weight_decay: λ, decoupled from the gradient.
        **options: Of `torch.optim.AdamW` (`fused`, `foreach`).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        **options: Any,
    ):
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, **options)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Do one update of all parameters that have a gradient."""
        eps = [group["eps"] for group in self.param_groups]
        for group in self.param_groups:
            group["eps"] /= math.sqrt(1 - group["betas"][1] ** (self._updates_done(group) + 1))
        try:
            return super().step(closure)
        finally:
            for group, value in zip(self.param_groups, eps, strict=True):
                group["eps"] = value

    def _updates_done(self, group: dict[str, Any]) -> int:
        steps = [self.state[p]["step"] for p in group["params"] if "step" in self.state[p]]
        return int(steps[0]) if steps else 0


OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {"fairseq-adam": FairseqAdam, "adamw": torch.optim.AdamW}
DECAYS = ("all", "matrices", "maps")


def parameter_groups(
    model: nn.Module, weight_decay: float, decay: Literal["all", "matrices", "maps"] = "matrices"
) -> list[dict[str, Any]]:
    """Trainable parameters in groups with and without weight decay; none is empty.

    Args:
        model: The model.
        weight_decay: Decay of the parameters that have one.
        decay: "all" parameters, as the published runs do, or "matrices": no norms, biases and other vectors, and
            nothing that its module marked with the attribute `_no_weight_decay` (lower bounds, phases, decays); or
            "maps": the matrices without the tables of embeddings and learned positions.

    Raises:
        ValueError: If there is no such rule.
    """
    if decay not in DECAYS:
        raise ValueError(unknown_name("decay", decay, DECAYS))
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in model.parameters():
        if parameter.requires_grad:
            is_matrix = parameter.ndim >= 2 and not getattr(parameter, "_no_weight_decay", False)
            is_spared = decay == "maps" and id(parameter) in tables
            groups[decay == "all" or (is_matrix and not is_spared)].append(parameter)
    return [
        {"params": parameters, "weight_decay": weight_decay if decayed else 0.0}
        for decayed, parameters in groups.items()
        if parameters
    ]


def build_optimizer(
    model: nn.Module,
    name: str,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    decay: Literal["all", "matrices", "maps"],
) -> torch.optim.Optimizer:
    """Build the optimiser of a recipe.

    Args:
        model: The model.
        name: "fairseq-adam" or "adamw".
        lr: Learning rate, where no schedule sets it.
        betas: β₁ and β₂.
        eps: ε.
        weight_decay: λ.
        decay: See `parameter_groups`.

    Raises:
        ValueError: If a name is unknown; the message names the nearest valid one.
    """
    if name not in OPTIMIZERS:
        raise ValueError(unknown_name("optimizer", name, OPTIMIZERS))
    groups = parameter_groups(model, weight_decay, decay)
    fused = all(p.device.type in ("cpu", "cuda") for group in groups for p in group["params"])
    optimizer: Any = OPTIMIZERS[name]
    return optimizer(groups, lr=lr, betas=betas, eps=eps, fused=fused)
