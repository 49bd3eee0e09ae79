"""What the heads minimise: the loss of a task, and what the mixers add to it."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from subquad.models.backbone import BackboneOutput


def token_loss(logits: Tensor, targets: Tensor, num_items_in_batch: int | Tensor | None = None) -> Tensor:
    """Cross-entropy in nats, summed over targets other than −100 and divided by their number.

    Args:
        logits: (batch, length, vocab_size); half precision is widened to float32.
        targets: (batch, length) int64.
        num_items_in_batch: Number to divide by instead, where a batch is part of a larger one.
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    total = F.cross_entropy(wide.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum")
    count = (targets != -100).sum().clamp_min(1) if num_items_in_batch is None else num_items_in_batch
    return total / count


def add_auxiliary_losses(
    loss: Tensor,
    outputs: BackboneOutput,
    config: Any,
    targets: Tensor,
    num_items_in_batch: int | Tensor | None = None,
) -> Tensor:
    """The loss of a task and what the mixers add to it, each with the weight that the configuration gives it.

    Args:
        loss: The task's own, per target.
        outputs: What the backbone returned.
        config: Configuration of the model.
        targets: Labels of any shape, −100 where none is.
        num_items_in_batch: What the task's loss was divided by, where the batch is part of a larger one: the auxiliary
            losses are then weighted with the batch's share in it.
    """
    for name, weight in (config.auxiliary_loss_weights or {}).items():
        if outputs.auxiliary_losses and name in outputs.auxiliary_losses:
            share = 1 if num_items_in_batch is None else (targets != -100).sum() / num_items_in_batch
            loss = loss + weight * share * outputs.auxiliary_losses[name]
    return loss
