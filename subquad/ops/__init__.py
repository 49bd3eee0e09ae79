"""Mathematics on tensors, without parameters (references only so far)."""

import torch


def toeplitz(x, kernel, *, center=0, num_outputs=None, backend="auto"):
    n = x.shape[1]
    m = n if num_outputs is None else num_outputs
    i = torch.arange(n - m, n)[:, None]
    j = torch.arange(n)[None]
    idx = center + i - j
    ok = (idx >= 0) & (idx < len(kernel))
    T = kernel[idx.clamp(0, len(kernel) - 1)] * ok[..., None]
    w = torch.float64 if x.dtype == torch.float64 else torch.float32
    return torch.einsum("ijd,bjd->bid", T.to(w), x.to(w)).to(x.dtype)


def linear_recurrence(x, decay, initial_state=None, *, phase=None, reverse=False, cu_seqlens=None, backend="auto"):
    w = torch.float64 if x.dtype == torch.float64 else torch.float32
    if cu_seqlens is not None:
        outs = [
            linear_recurrence(x[:, a:b], decay[:, a:b], None, phase=phase, reverse=reverse)
            for a, b in zip(cu_seqlens[:-1], cu_seqlens[1:])
        ]
        return torch.cat([o[0] for o in outs], 1), torch.cat([o[1] for o in outs])
    if reverse:
        y, f = linear_recurrence(x.flip(1), decay.flip(1), initial_state, phase=phase)
        return y.flip(1), f
    b, n, d = decay.shape
    xx = x.to(w)
    dec = decay.to(w)
    if phase is None:
        h = xx.new_zeros(b, d) if initial_state is None else initial_state.to(w)
        hs = []
        for u, l in zip(xx.unbind(1), dec.unbind(1)):
            h = l * h + u
            hs.append(h)
        return torch.stack(hs, 1).to(x.dtype), h
    c, s = phase.to(w).cos(), phase.to(w).sin()
    h = xx.new_zeros(b, 2 * d) if initial_state is None else initial_state.to(w)
    hs = []
    for u, l in zip(xx.unbind(1), dec.unbind(1)):
        re, im = h.chunk(2, -1)
        h = torch.cat([l * (c * re - s * im), l * (s * re + c * im)], -1) + u
        hs.append(h)
    return torch.stack(hs, 1).to(x.dtype), h
