"""Output layer and cross-entropy in one: the logits of a large vocabulary never exist all at once.

    loss = Σ_i −log softmax(W h_i + b)[target_i]

With word-level WikiText-103 the logits of 4,096 tokens are 4.4 GB in float32, and their gradient as much again. Here a
slice of rows is computed at a time; where gradients are wanted they come in the same pass, from logits that are there,
so nothing is computed twice and nothing of the size of the logits is kept. On a GPU liger-kernel does the same, where
it is installed.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from subquad.ops.backends import choose
from subquad.ops.precision import accumulator

IGNORED = -100
SLICE_ENTRIES = 1 << 26  # Logits in memory at a time: 256 MiB in float32.


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None, *, backend: str = "auto"
) -> Tensor:
    """Cross-entropy of an output layer in nats, summed over targets other than −100.

    Args:
        hidden: (num_tokens, dim); half precision is multiplied as such, and its logits widened to float32.
        weight: (vocab_size, dim), of the dtype of `hidden`.
        targets: (num_tokens,) int64, −100 where nothing is scored.
        bias: (vocab_size,).
        backend: "auto", "liger" (on a GPU, not for float64), "torch" (a slice of rows at a time) or "reference" (all
            logits).

    Returns:
        The sum, a scalar, float32 (float64 for float64 inputs).

    Raises:
        ValueError: If the backend cannot run or shapes do not fit.
        IndexError: If a target is not in the vocabulary.

    Example:
        >>> import torch
        >>> from subquad.ops import linear_cross_entropy
        >>> loss = linear_cross_entropy(torch.zeros(3, 8), torch.randn(100, 8), torch.tensor([5, 7, -100]))
        >>> round(loss.item() / 2, 4)  # log 100
        4.6052
    """
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            "`hidden` must be (num_tokens, dim) and `weight` (vocab_size, dim), got "
            f"{tuple(hidden.shape)} and {tuple(weight.shape)}"
        )
    if targets.shape != hidden.shape[:1]:
        raise ValueError(f"`targets` must be ({hidden.shape[0]},), got {tuple(targets.shape)}")
    taken = choose("linear_cross_entropy", backend, hidden.device)
    if taken == "reference":
        logits = F.linear(hidden, weight, bias)
        return F.cross_entropy(logits.to(accumulator(logits)), targets, ignore_index=IGNORED, reduction="sum")
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight, bias = hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    if taken == "liger" and hidden.dtype != torch.float64:
        _check_targets(targets, weight)
        return _through_liger(hidden, weight, bias, targets)
    # Outside of autograd no gradient is computed at all.
    inputs = [tensor for tensor in (hidden, weight, bias) if tensor is not None]
    differentiate = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
    return _linear_cross_entropy(hidden, weight, bias, targets, differentiate)[0]


def _through_liger(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """The sum by liger-kernel (arXiv 2410.10989), which is imported when it is first needed."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss  # pyright: ignore[reportMissingImports]

    wide = accumulator(hidden)
    loss = LigerFusedLinearCrossEntropyLoss(ignore_index=IGNORED, reduction="sum", accum_dtype=wide)
    return loss(weight, hidden, targets, bias).to(wide)


def _check_targets(targets: Tensor, weight: Tensor) -> Tensor:
    """The rows that are scored, (num_scored,); IndexError where a target is not in the vocabulary."""
    scored = (targets != IGNORED).nonzero().squeeze(1)
    if scored.numel() and not 0 <= targets[scored].min() <= targets[scored].max() < weight.shape[0]:
        raise IndexError(f"a target is outside of the vocabulary, 0 … {weight.shape[0] - 1}, and not −100")
    return scored


@torch.library.custom_op("subquad::linear_cross_entropy", mutates_args=())
def _linear_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, differentiate: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The sum, and its gradients by hidden, weight and bias (empty where not wanted)."""
    wide = accumulator(hidden)
    total = hidden.new_zeros((), dtype=wide)
    by_hidden = torch.zeros_like(hidden) if differentiate else hidden.new_empty(0)
    by_weight = torch.zeros_like(weight, dtype=wide) if differentiate else weight.new_empty(0, dtype=wide)
    by_bias = weight.new_zeros(weight.shape[0], dtype=wide) if differentiate else by_weight.new_empty(0)
    scored = _check_targets(targets, weight)
    rows = max(1, min(SLICE_ENTRIES // weight.shape[0], len(scored)))
    buffer = hidden.new_empty(rows, weight.shape[0])
    for chosen in scored.split(rows):
        inputs, target = hidden[chosen], targets[chosen].unsqueeze(1)
        product = torch.mm(inputs, weight.t(), out=buffer[: len(chosen)])
        if bias is not None:
            product += bias
        logits = product.to(wide)
        largest = logits.amax(1, keepdim=True)
        at_target = logits.gather(1, target)
        shares = torch.softmax(logits, 1, out=logits)
        # log Σ exp = largest logit − log of its share, which is at least 1/vocab_size and so never underflows.
        total += (largest - shares.amax(1, keepdim=True).log() - at_target).sum()
        if differentiate:
            gradient = shares.scatter_add_(1, target, shares.new_full((1, 1), -1).expand_as(target))
            by_bias += gradient.sum(0) if bias is not None else 0
            gradient = gradient.to(hidden.dtype)
            by_hidden[chosen] = gradient @ weight
            if hidden.dtype == wide:
                by_weight.addmm_(gradient.t(), inputs)
            else:
                by_weight += gradient.t() @ inputs
    return total, by_hidden, by_weight.to(weight.dtype), by_bias.to(weight.dtype)


@_linear_cross_entropy.register_fake
def _(hidden, weight, bias, targets, differentiate):
    wide = accumulator(hidden)
    total = hidden.new_empty((), dtype=wide)
    if not differentiate:
        return total, hidden.new_empty(0), weight.new_empty(0), weight.new_empty(0)
    return total, torch.empty_like(hidden), torch.empty_like(weight), weight.new_empty(weight.shape[0])


def _save(ctx, inputs, output):
    ctx.has_bias = inputs[2] is not None
    _, *gradients = output
    ctx.save_for_backward(*gradients)
    ctx.mark_non_differentiable(*gradients)
    # The gradients have none of their own: zeros in their place would be as large as the weights.
    ctx.set_materialize_grads(False)


@once_differentiable  # The gradients are numbers here: they know nothing of what they depend on.
def _differentiate(ctx, upstream, *_):
    by_hidden, by_weight, by_bias = ctx.saved_tensors
    wanted = (True, True, ctx.has_bias)
    gradients = [
        by * upstream.to(by.dtype) if want and need else None
        for by, want, need in zip((by_hidden, by_weight, by_bias), wanted, ctx.needs_input_grad, strict=False)
    ]
    return *gradients, None, None


_linear_cross_entropy.register_autograd(_differentiate, setup_context=_save)
