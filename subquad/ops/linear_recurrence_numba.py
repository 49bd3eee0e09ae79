"""The linear recurrence as compiled loops for the CPU.

One task is one sequence and a block of channels: it walks along the time once, its state in a small array, and the
inner loop over channels is contiguous. Real and complex recurrences differ only in the inner loop.

Legend: s sequence, t position, c channel in a block, d number of channels, p previous state, a gradient of the state.
"""

import numpy as np
import torch
from numba import prange
from torch import Tensor

from subquad.ops.loops import array, compiled, run


@compiled
def _forward_real(x, decay, initial, rows, starts, stops, reverse, block, h, final):
    d = decay.shape[2]
    blocks = (d + block - 1) // block
    for task in prange(len(rows) * blocks):
        s, low = task // blocks, task % blocks * block
        high = min(low + block, d)
        state = initial[s, low:high].copy()
        for step in range(stops[s] - starts[s]):
            t = stops[s] - 1 - step if reverse else starts[s] + step
            x_t, decay_t, h_t = x[rows[s], t, low:high], decay[rows[s], t, low:high], h[rows[s], t, low:high]
            for c in range(high - low):
                state[c] = decay_t[c] * state[c] + x_t[c]
                h_t[c] = state[c]
        final[s, low:high] = state


@compiled
def _backward_real(
    grad_h, grad_final, h, decay, initial, rows, starts, stops, reverse, block, grad_x, grad_decay, grad_initial
):
    d = decay.shape[2]
    blocks = (d + block - 1) // block
    for task in prange(len(rows) * blocks):
        s, low = task // blocks, task % blocks * block
        high = min(low + block, d)
        a = grad_final[s, low:high].copy()
        steps = stops[s] - starts[s]
        for step in range(steps):
            t = starts[s] + step if reverse else stops[s] - 1 - step
            decay_t, g_t = decay[rows[s], t, low:high], grad_h[rows[s], t, low:high]
            grad_x_t, grad_decay_t = grad_x[rows[s], t, low:high], grad_decay[rows[s], t, low:high]
            before = t + 1 if reverse else t - 1
            p = initial[s, low:high] if step == steps - 1 else h[rows[s], before, low:high]
            for c in range(high - low):
                a_c = a[c] + g_t[c]
                grad_x_t[c] = a_c
                grad_decay_t[c] = a_c * p[c]
                a[c] = decay_t[c] * a_c
        grad_initial[s, low:high] = a


@compiled
def _forward_complex(x, decay, initial, cos, sin, rows, starts, stops, reverse, block, h, final):
    d = decay.shape[2]
    blocks = (d + block - 1) // block
    for task in prange(len(rows) * blocks):
        s, low = task // blocks, task % blocks * block
        high = min(low + block, d)
        re, im = initial[s, low:high].copy(), initial[s, d + low : d + high].copy()
        cos_c, sin_c = cos[low:high], sin[low:high]
        for step in range(stops[s] - starts[s]):
            t = stops[s] - 1 - step if reverse else starts[s] + step
            decay_t = decay[rows[s], t, low:high]
            x_re, x_im = x[rows[s], t, low:high], x[rows[s], t, d + low : d + high]
            h_re, h_im = h[rows[s], t, low:high], h[rows[s], t, d + low : d + high]
            for c in range(high - low):
                turned_re = cos_c[c] * re[c] - sin_c[c] * im[c]
                turned_im = sin_c[c] * re[c] + cos_c[c] * im[c]
                re[c] = decay_t[c] * turned_re + x_re[c]
                im[c] = decay_t[c] * turned_im + x_im[c]
                h_re[c] = re[c]
                h_im[c] = im[c]
        final[s, low:high] = re
        final[s, d + low : d + high] = im


@compiled
def _backward_complex(
    grad_h,
    grad_final,
    h,
    decay,
    initial,
    cos,
    sin,
    rows,
    starts,
    stops,
    reverse,
    block,
    grad_x,
    grad_decay,
    grad_initial,
    grad_phase,
):
    d = decay.shape[2]
    blocks = (d + block - 1) // block
    for task in prange(len(rows) * blocks):
        s, low = task // blocks, task % blocks * block
        high = min(low + block, d)
        re, im = grad_final[s, low:high].copy(), grad_final[s, d + low : d + high].copy()
        cos_c, sin_c, phase_c = cos[low:high], sin[low:high], grad_phase[s, low:high]
        steps = stops[s] - starts[s]
        for step in range(steps):
            t = starts[s] + step if reverse else stops[s] - 1 - step
            decay_t, grad_decay_t = decay[rows[s], t, low:high], grad_decay[rows[s], t, low:high]
            g_re, g_im = grad_h[rows[s], t, low:high], grad_h[rows[s], t, d + low : d + high]
            x_re, x_im = grad_x[rows[s], t, low:high], grad_x[rows[s], t, d + low : d + high]
            if step == steps - 1:
                p_re, p_im = initial[s, low:high], initial[s, d + low : d + high]
            else:
                before = t + 1 if reverse else t - 1
                p_re, p_im = h[rows[s], before, low:high], h[rows[s], before, d + low : d + high]
            for c in range(high - low):
                a_re = re[c] + g_re[c]
                a_im = im[c] + g_im[c]
                x_re[c] = a_re
                x_im[c] = a_im
                v_re = cos_c[c] * a_re + sin_c[c] * a_im
                v_im = cos_c[c] * a_im - sin_c[c] * a_re
                grad_decay_t[c] = v_re * p_re[c] + v_im * p_im[c]
                phase_c[c] += decay_t[c] * (v_im * p_re[c] - v_re * p_im[c])
                re[c] = decay_t[c] * v_re
                im[c] = decay_t[c] * v_im
        grad_initial[s, low:high] = re
        grad_initial[s, d + low : d + high] = im


def _sequences(x: Tensor, cu_seqlens: Tensor | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The row, start and stop of each sequence."""
    if cu_seqlens is None:
        batch, length = x.shape[:2]
        return np.arange(batch), np.zeros(batch, np.int64), np.full(batch, length, np.int64)
    boundaries = cu_seqlens.numpy().astype(np.int64)
    return np.zeros(len(boundaries) - 1, np.int64), boundaries[:-1], boundaries[1:]


def _block(num_sequences: int, dim: int) -> int:
    """Channels of a task: as many as leave every thread work, in steps that fill vector registers and cache lines."""
    share = -(-dim * num_sequences // torch.get_num_threads())
    return max(1, min(dim, -(-share // 32) * 32))


def forward(
    x: Tensor,
    decay: Tensor,
    initial_state: Tensor | None,
    phase: Tensor | None,
    reverse: bool,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The states (batch, length, width) and the final ones, in the dtype of `decay`."""
    rows, starts, stops = _sequences(x, cu_seqlens)
    h, final = decay.new_empty(x.shape), decay.new_empty(len(rows), x.shape[2])
    initial = decay.new_zeros(final.shape) if initial_state is None else initial_state
    block = _block(len(rows), decay.shape[2])
    walk: list = [rows, starts, stops, reverse, block, h.numpy(), final.numpy()]
    arrays: list = [array(x.to(decay.dtype)), array(decay), array(initial)]
    if phase is None:
        run(_forward_real, arrays, walk)
    else:
        run(_forward_complex, arrays, [array(phase.cos()), array(phase.sin())], walk)
    return h, final


def backward(
    grad_h: Tensor,
    grad_final: Tensor,
    h: Tensor,
    decay: Tensor,
    initial_state: Tensor | None,
    phase: Tensor | None,
    reverse: bool,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, decay, initial state and phase, in the dtype of `decay`."""
    rows, starts, stops = _sequences(h, cu_seqlens)
    grad_x, grad_decay = decay.new_empty(h.shape), decay.new_empty(decay.shape)
    grad_initial = decay.new_empty(grad_final.shape)
    initial = decay.new_zeros(grad_final.shape) if initial_state is None else initial_state
    block = _block(len(rows), decay.shape[2])
    arrays: list = [array(tensor) for tensor in (grad_h, grad_final, h, decay, initial)]
    walk: list = [rows, starts, stops, reverse, block, grad_x.numpy(), grad_decay.numpy(), grad_initial.numpy()]
    if phase is None:
        run(_backward_real, arrays, walk)
        return grad_x, grad_decay, grad_initial, decay.new_empty(0)
    # One row for each sequence, added up at the end: no two tasks write to the same place.
    grad_phase = decay.new_zeros(len(rows), decay.shape[2])
    run(_backward_complex, arrays, [array(phase.cos()), array(phase.sin())], [*walk, grad_phase.numpy()])
    return grad_x, grad_decay, grad_initial, grad_phase.sum(0)
