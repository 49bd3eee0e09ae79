"""What the heads minimise: the loss of a task, and what the mixers add to it."""

from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from subquad.models.backbone import BackboneOutput
from subquad.ops import linear_cross_entropy


@runtime_checkable
class HasLoss(Protocol):
    """An output layer that computes its loss without all logits."""

    def total_loss(self, x: Tensor, targets: Tensor) -> Tensor:
        """Sum over `targets` (num_tokens,) other than −100, in nats, of `x` (num_tokens, dim)."""
        ...


def token_loss(
    hidden: Tensor,
    head: nn.Module,
    targets: Tensor,
    num_items_in_batch: int | Tensor | None = None,
    logits: Tensor | None = None,
) -> Tensor:
    """Cross-entropy in nats, summed over targets other than −100 and divided by their number.

    Args:
        hidden: (batch, length, dim), the input of the output layer.
        head: The output layer. Where it is a linear map and nothing else, its logits never exist all at once; nor where
            it has a loss of its own, `total_loss(hidden, targets)`.
        targets: (batch, length) int64.
        num_items_in_batch: Number to divide by instead, where a batch is part of a larger one.
        logits: (batch, length, vocab_size), where they are there already; half precision is widened to float32.
    """
    if logits is None and type(head) is nn.Linear:
        total = linear_cross_entropy(hidden.flatten(0, 1), head.weight, targets.flatten(), head.bias)
    elif logits is None and isinstance(head, HasLoss):
        total = head.total_loss(hidden.flatten(0, 1), targets.flatten())
    else:
        logits = head(hidden) if logits is None else logits
        assert logits is not None
        wide = logits if logits.dtype == torch.float64 else logits.float()
        total = F.cross_entropy(wide.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum")
    count = (targets != -100).sum().clamp_min(1) if num_items_in_batch is None else num_items_in_batch
    return total / count


def label_loss(logits: Tensor, labels: Tensor, num_items_in_batch: int | Tensor | None = None) -> Tensor:
    """Loss of one label for each example, summed over examples and divided by their number.

    Cross-entropy in nats; of a single logit the squared error.

    Args:
        logits: (batch, num_labels); half precision is widened to float32.
        labels: (batch,) int64, −100 is not scored; or (batch, num_labels) probabilities; of one logit (batch,) numbers.
        num_items_in_batch: Number to divide by instead, where a batch is part of a larger one.

    Raises:
        ValueError: If labels are neither.
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    if wide.shape[-1] == 1:
        total = F.mse_loss(wide.flatten(), labels.flatten().to(wide.dtype), reduction="sum")
        count = len(labels)
    elif labels.shape == wide.shape:
        total = F.cross_entropy(wide, labels.to(wide.dtype), reduction="sum")
        count = len(labels)
    elif labels.shape == wide.shape[:1] and not labels.is_floating_point():
        total = F.cross_entropy(wide, labels, ignore_index=-100, reduction="sum")
        count = (labels != -100).sum().clamp_min(1)
    else:
        raise ValueError(
            f"`labels` must be {len(wide)} class numbers or probabilities {tuple(wide.shape)}, got {labels.dtype} "
            f"{tuple(labels.shape)}"
        )
    return total / (count if num_items_in_batch is None else num_items_in_batch)


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
            added = weight * outputs.auxiliary_losses[name]
            if num_items_in_batch is not None:
                added = added * (targets != -100).sum() / num_items_in_batch
            loss = loss + added
    return loss
