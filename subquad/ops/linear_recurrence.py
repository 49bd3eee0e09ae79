"""Linear recurrence with a gate for each channel, real or turning by a constant angle.

    real:      h_t = decay_t ⊙ h_{t−1} + x_t               x (batch, length, dim)
    complex:   h_t = decay_t e^{iθ} ⊙ h_{t−1} + x_t        x (batch, length, 2·dim), real parts before imaginary ones

Precision: float64 in float64; everything else is computed, and states are kept, in float32; h has the dtype of x.
Cost: linear in the length; no quotient of gates and no exponential occurs, so gates of exactly 0 and 1 are ordinary.

| backend   | what it is                                               | gradients of every input and state |
| reference | the formula, step by step                                | autograd, any order |
| torch     | scan in two levels; complex in a frame that turns along  | hand-written, first order |
| numba     | compiled loop over the time, channels in parallel (CPU)  | hand-written, first order |

The gradients (a_t is the gradient of h_t, g_t what comes in from outside; conj turns backwards):

    a_t = g_t + decay_{t+1} e^{−iθ} a_{t+1};    ∂x_t = a_t;    ∂h_0 = decay_1 e^{−iθ} a_1
    with v_t = e^{−iθ} a_t and p_t = h_{t−1}:   ∂decay_t = Re(v_t p̄_t);    ∂θ = Σ decay_t Im(v_t p̄_t)
"""

import math
from itertools import pairwise

import torch
from torch import Tensor

from subquad.ops.backends import choose, refuse_second_order
from subquad.ops.precision import accumulator


def linear_recurrence(
    x: Tensor,
    decay: Tensor,
    initial_state: Tensor | None = None,
    *,
    phase: Tensor | None = None,
    reverse: bool = False,
    cu_seqlens: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Run the recurrence h_t = decay_t e^{i·phase} ⊙ h_{t−1} + x_t.

    Args:
        x: (batch, length, dim), or with `phase` (batch, length, 2·dim), real parts before imaginary ones.
        decay: (batch, length, dim), the factor on the way from t−1 to t.
        initial_state: State before the first step, (batch, dim or 2·dim); default zeros.
        phase: (dim,), the angle θ of each step in radians; None for the real recurrence.
        reverse: Run from the last position to the first: h_t = decay_t e^{i·phase} ⊙ h_{t+1} + x_t.
        cu_seqlens: (num_sequences + 1,) int, boundaries of sequences packed into one row: the batch must be 1, the
            recurrence starts anew at each, and states are (num_sequences, dim or 2·dim). Empty sequences are allowed.
        backend: "auto", "reference", "torch" or "numba".

    Returns:
        h, shape and dtype of `x`, and the state after the last step (of each sequence), float32 or float64.

    Raises:
        ValueError: If shapes or dtypes do not fit or the backend cannot run.
    """
    _validate(x, decay, initial_state, phase, cu_seqlens)
    backend = choose("linear_recurrence", backend, x.device)
    wide = accumulator(x)
    if initial_state is not None:
        initial_state = initial_state.to(wide)
    decay = decay.to(wide)
    if phase is not None:
        phase = phase.to(wide)
    if x.shape[1] == 1 and initial_state is not None and cu_seqlens is None:
        # A decoding step: a few expressions cost less than one call of a registered operator.
        h = _step(decay.squeeze(1), initial_state, phase) + x.squeeze(1).to(wide)
        return h.unsqueeze(1).to(x.dtype), h
    if backend == "reference":
        return _reference(x, decay, initial_state, phase, reverse, cu_seqlens)
    return _linear_recurrence(x, decay, initial_state, phase, reverse, cu_seqlens, backend)


def _validate(
    x: Tensor, decay: Tensor, initial_state: Tensor | None, phase: Tensor | None, cu_seqlens: Tensor | None
) -> None:
    if decay.ndim != 3 or decay.shape[1] == 0:
        raise ValueError(f"`decay` must be (batch, length, dim) with length > 0, got {tuple(decay.shape)}")
    batch, length, dim = decay.shape
    width = dim if phase is None else 2 * dim
    if tuple(x.shape) != (batch, length, width):
        kind = "of a real" if phase is None else "of a complex"
        raise ValueError(f"`x` {kind} recurrence must be {(batch, length, width)}, as `decay`, got {tuple(x.shape)}")
    if phase is not None and tuple(phase.shape) != (dim,):
        raise ValueError(f"`phase` must be ({dim},), got {tuple(phase.shape)}")
    if not (x.is_floating_point() and decay.is_floating_point()):
        raise ValueError(f"`x` and `decay` must be real floating-point tensors, got {x.dtype} and {decay.dtype}")
    if cu_seqlens is not None:
        if batch != 1:
            raise ValueError(f"`cu_seqlens` needs batch size 1, got {batch}: flatten the batch first")
        if cu_seqlens.ndim != 1 or cu_seqlens.shape[0] < 2 or cu_seqlens.dtype not in (torch.int32, torch.int64):
            raise ValueError(
                f"`cu_seqlens` must be (num_sequences + 1,) int32 or int64, got {tuple(cu_seqlens.shape)} "
                f"{cu_seqlens.dtype}"
            )
        batch = cu_seqlens.shape[0] - 1
    if initial_state is not None and tuple(initial_state.shape) != (batch, width):
        raise ValueError(f"`initial_state` must be {(batch, width)}, got {tuple(initial_state.shape)}")


def _boundaries(cu_seqlens: Tensor, length: int) -> list[int]:
    """The boundaries as numbers, checked: their values are only looked at where the op really runs."""
    boundaries: list[int] = cu_seqlens.tolist()
    if boundaries[0] != 0 or boundaries[-1] != length or any(a > b for a, b in pairwise(boundaries)):
        raise ValueError(f"`cu_seqlens` must rise from 0 to the length {length}, got {boundaries}")
    return boundaries


def _step(decay: Tensor, h: Tensor, phase: Tensor | None) -> Tensor:
    """One step without input: decay e^{i·phase} ⊙ h."""
    if phase is None:
        return decay * h
    return torch.cat([decay, decay], dim=-1) * _turn(h, phase.cos(), phase.sin())


def _turn(z: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn complex numbers (..., 2·dim), real parts before imaginary ones, by angles given as (..., dim)."""
    real, imaginary = z.chunk(2, dim=-1)
    return torch.cat([real * cos - imaginary * sin, real * sin + imaginary * cos], dim=-1)


# --- reference -------------------------------------------------------------------------------------------------------


def _reference(
    x: Tensor,
    decay: Tensor,
    initial_state: Tensor | None,
    phase: Tensor | None,
    reverse: bool,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor]:
    if cu_seqlens is not None:
        boundaries = _boundaries(cu_seqlens, x.shape[1])
        lengths = [stop - start for start, stop in pairwise(boundaries)]
        states = [None] * len(lengths) if initial_state is None else initial_state.split(1)
        parts = [
            _reference(*sequence, phase, reverse, None)
            for sequence in zip(x.split(lengths, dim=1), decay.split(lengths, dim=1), states, strict=True)
        ]
        return torch.cat([h for h, _ in parts], dim=1), torch.cat([final for _, final in parts])
    h = decay.new_zeros(x.shape[0], x.shape[2]) if initial_state is None else initial_state
    steps = list(zip(x.to(decay.dtype).unbind(1), decay.unbind(1), strict=True))
    outputs = []
    for x_t, decay_t in reversed(steps) if reverse else steps:
        h = _step(decay_t, h, phase) + x_t
        outputs.append(h)
    if not outputs:
        return x, h
    return torch.stack(outputs[::-1] if reverse else outputs, dim=1).to(x.dtype), h


# --- torch: two levels, division free --------------------------------------------------------------------------------


def _scan_torch(x: Tensor, decay: Tensor, initial_state: Tensor | None, phase: Tensor | None, reverse: bool) -> Tensor:
    """The states (batch, length, width) of one recurrence, in the dtype of `decay`."""
    if reverse:
        return _scan_torch(x.flip(1), decay.flip(1), initial_state, phase, False).flip(1)
    if phase is not None:
        # In a frame that turns along, the recurrence is real. Angles are reduced in float64, or late steps lose theirs.
        steps = torch.arange(1, x.shape[1] + 1, device=x.device, dtype=torch.float64)
        angles = (steps.unsqueeze(-1) * phase.double()).remainder(2 * math.pi).to(decay.dtype)
        cos, sin = angles.cos(), angles.sin()
        h = _scan_torch(_turn(x, cos, -sin), torch.cat([decay, decay], dim=-1), initial_state, None, False)
        return _turn(h, cos, sin)
    batch, length, width = x.shape
    chunk = 1 << math.ceil(math.log2(length) / 2)
    chunks = -(-length // chunk)
    h, kept = x.new_zeros(2, batch, chunks * chunk, width)
    h[:, :length], kept[:, :length] = x, decay
    h, kept = h.view(batch, chunks, chunk, width), kept.view(batch, chunks, chunk, width)
    # All chunks at once, each from a zero state; and how much of the state before its chunk is left at each step.
    for t in range(1, chunk):
        h[:, :, t].addcmul_(kept[:, :, t], h[:, :, t - 1])
        kept[:, :, t].mul_(kept[:, :, t - 1])
    # The state before each chunk, one after another.
    state = x.new_zeros(batch, width) if initial_state is None else initial_state
    for i in range(chunks):
        h[:, i].addcmul_(kept[:, i], state.unsqueeze(1))
        state = h[:, i, -1]
    return h.view(batch, chunks * chunk, width)[:, :length]


def _ends(cu_seqlens: Tensor, reverse: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Which sequences are not empty, and the positions of their first and last step in the order of the recurrence."""
    filled = (cu_seqlens.diff() > 0).nonzero().squeeze(-1)
    left, right = cu_seqlens[filled], cu_seqlens[filled + 1] - 1
    return filled, *((right, left) if reverse else (left, right))


def _forward_torch(
    x: Tensor,
    decay: Tensor,
    initial_state: Tensor | None,
    phase: Tensor | None,
    reverse: bool,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor]:
    x = x.to(decay.dtype)
    if cu_seqlens is None:
        h = _scan_torch(x, decay, initial_state, phase, reverse)
        return h, h[:, 0 if reverse else -1].clone()
    # Where a sequence starts nothing is carried over, and its own state comes in with the input.
    filled, starts, stops = _ends(cu_seqlens, reverse)
    if initial_state is None:
        final = x.new_zeros(len(cu_seqlens) - 1, x.shape[-1])
    else:
        final = initial_state.clone()
        x = x.index_add(1, starts, _step(decay[0, starts], initial_state[filled], phase).unsqueeze(0))
    h = _scan_torch(x, decay.index_fill(1, starts, 0.0), None, phase, reverse)
    final[filled] = h[0, stops]
    return h, final


def _backward_torch(
    grad_h: Tensor,
    grad_final: Tensor,
    h: Tensor,
    decay: Tensor,
    initial_state: Tensor | None,
    phase: Tensor | None,
    reverse: bool,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # `previous` is what each step started from, `onward` the decay of the step after: of nothing after the last one.
    if cu_seqlens is None:
        first, last = (-1, 0) if reverse else (0, -1)
        g = grad_h.clone()
        g[:, last] += grad_final
        previous, onward = h.roll(-1 if reverse else 1, 1), decay.roll(1 if reverse else -1, 1)
        previous[:, first] = 0 if initial_state is None else initial_state
        onward[:, last] = 0
        a = _scan_torch(g, onward, None, None if phase is None else -phase, not reverse)
        grad_initial = _step(decay[:, first], a[:, first], None if phase is None else -phase)
    else:
        filled, starts, stops = _ends(cu_seqlens, reverse)
        g = grad_h.index_add(1, stops, grad_final[filled].unsqueeze(0))
        previous, onward = h.roll(-1 if reverse else 1, 1), decay.roll(1 if reverse else -1, 1)
        previous[0, starts] = 0 if initial_state is None else initial_state[filled]
        onward[0, stops] = 0
        a = _scan_torch(g, onward, None, None if phase is None else -phase, not reverse)
        grad_initial = grad_final.clone()
        grad_initial[filled] = _step(decay[0, starts], a[0, starts], None if phase is None else -phase)
    if phase is None:
        return a, a * previous, grad_initial, a.new_zeros(0)
    v_real, v_imaginary = _turn(a, phase.cos(), -phase.sin()).chunk(2, -1)
    p_real, p_imaginary = previous.chunk(2, -1)
    grad_decay = v_real * p_real + v_imaginary * p_imaginary
    grad_phase = (decay * (v_imaginary * p_real - v_real * p_imaginary)).sum((0, 1))
    return a, grad_decay, grad_initial, grad_phase


# --- the registered operator -----------------------------------------------------------------------------------------


@torch.library.custom_op("subquad::linear_recurrence", mutates_args=())
def _linear_recurrence(
    x: Tensor,
    decay: Tensor,
    initial_state: Tensor | None,
    phase: Tensor | None,
    reverse: bool,
    cu_seqlens: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor]:
    if cu_seqlens is not None:
        _boundaries(cu_seqlens, x.shape[1])
    if backend == "numba":
        from subquad.ops import linear_recurrence_numba

        h, final = linear_recurrence_numba.forward(x, decay, initial_state, phase, reverse, cu_seqlens)
    else:
        h, final = _forward_torch(x, decay, initial_state, phase, reverse, cu_seqlens)
    return h.to(x.dtype).contiguous(), final


@_linear_recurrence.register_fake
def _(x, decay, initial_state, phase, reverse, cu_seqlens, backend):
    sequences = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    return x.new_empty(x.shape), decay.new_empty(sequences, x.shape[2])


@torch.library.custom_op("subquad::linear_recurrence_backward", mutates_args=())
def _linear_recurrence_backward(
    grad_h: Tensor,
    grad_final: Tensor,
    h: Tensor,
    decay: Tensor,
    initial_state: Tensor | None,
    phase: Tensor | None,
    reverse: bool,
    cu_seqlens: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    arguments = (
        grad_h.to(decay.dtype),
        grad_final,
        h.to(decay.dtype),
        decay,
        initial_state,
        phase,
        reverse,
        cu_seqlens,
    )
    if backend == "numba":
        from subquad.ops import linear_recurrence_numba

        a, grad_decay, grad_initial, grad_phase = linear_recurrence_numba.backward(*arguments)
    else:
        a, grad_decay, grad_initial, grad_phase = _backward_torch(*arguments)
    return a.to(h.dtype).contiguous(), grad_decay.contiguous(), grad_initial, grad_phase


@_linear_recurrence_backward.register_fake
def _(grad_h, grad_final, h, decay, initial_state, phase, reverse, cu_seqlens, backend):
    return (
        h.new_empty(h.shape),
        decay.new_empty(decay.shape),
        grad_final.new_empty(grad_final.shape),
        decay.new_empty(0 if phase is None else phase.shape[0]),
    )


def _save(ctx, inputs, output):
    _, decay, initial_state, phase, ctx.reverse, cu_seqlens, ctx.backend = inputs
    ctx.save_for_backward(output[0], decay, initial_state, phase, cu_seqlens)


def _differentiate(ctx, grad_h, grad_final):
    h, decay, initial_state, phase, cu_seqlens = ctx.saved_tensors
    grad_x, grad_decay, grad_initial, grad_phase = _linear_recurrence_backward(
        grad_h, grad_final, h, decay, initial_state, phase, ctx.reverse, cu_seqlens, ctx.backend
    )
    return (
        grad_x,
        grad_decay,
        None if initial_state is None else grad_initial,
        None if phase is None else grad_phase,
        None,
        None,
        None,
    )


_linear_recurrence.register_autograd(_differentiate, setup_context=_save)
_linear_recurrence_backward.register_autograd(refuse_second_order("linear_recurrence"))
