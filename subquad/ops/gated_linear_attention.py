"""Linear attention whose memory decays: each key channel of the state has a gate at every step.

    S_t = Diag(e^{g_t}) S_{t−1} + k_t v_tᵀ          g = log_decay ≤ 0
    o_t = S_tᵀ q_t

Layout: q, k, log_decay (batch, length, heads, key_dim), v (batch, length, heads, value_dim), states (batch, heads,
key_dim, value_dim). Precision: float64 in float64; everything else is computed, and states are kept, in float32; o has
the dtype of v. Cost: linear in the length; q, k, v and g are all that is kept for the backward pass.

| backend   | what it is                                         | gradients of every input and state |
| reference | the formula, step by step                          | autograd, any order |
| torch     | chunks: scores inside, a state from chunk to chunk | hand-written, first order |

Inside a chunk score (t, s) is Σ_j q_tj k_sj e^{g_{s+1,j} + … + g_{t,j}}. It is a matrix product where a point between s
and t splits the sum, and each factor takes its share: a chunk is halved, its halves are halved, and so on. So only sums
of gates are exponentiated, never a difference: nothing overflows, and gates of −∞, which forget everything, are
ordinary.

Gradients: those of q, k and v are products of the same kind. That of the gates follows from them, in every chunk for
itself: with L_t = g_1 + … + g_t the outputs depend on q_t e^{L_t} and k_t e^{−L_t}, the state at the end on e^{L_n}, so

    ∂L_t = q_t ⊙ ∂q_t − k_t ⊙ ∂k_t,  at the end + Σ_value S_n ⊙ ∂S_n;      ∂g_t = ∂L_t + … + ∂L_n
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from subquad.ops.backends import choose, refuse_second_order
from subquad.ops.precision import accumulator

CHUNK = 64
"""Steps that are multiplied at once; a power of two."""


def gated_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    initial_state: Tensor | None = None,
    *,
    reverse: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Attend with a decaying state (gated linear attention, arXiv 2312.06635; HGRN2, arXiv 2404.07904).

    Args:
        q: (batch, length, heads, key_dim).
        k: (batch, length, heads, key_dim).
        v: (batch, length, heads, value_dim).
        log_decay: (batch, length, heads, key_dim), g: logarithms of gates in [0, 1], −∞ allowed.
        initial_state: (batch, heads, key_dim, value_dim), the state before the first step; default zeros.
        reverse: Run from the last position to the first: S_t = Diag(e^{g_t}) S_{t+1} + k_t v_tᵀ.
        backend: "auto", "reference" or "torch".

    Returns:
        o (batch, length, heads, value_dim), dtype of `v`, and the state after the last step, float32 or float64.

    Raises:
        ValueError: If shapes or dtypes do not fit or the backend cannot run.
    """
    _validate(q, k, v, log_decay, initial_state)
    backend = choose("gated_linear_attention", backend, q.device)
    wide = accumulator(v)
    if initial_state is not None:
        initial_state = initial_state.to(wide)
    if backend == "reference":
        return _reference(q, k, v, log_decay, initial_state, reverse)
    if q.shape[1] == 1:
        # A decoding step: a few expressions cost less than one call of a registered operator.
        o, state = _step([x.squeeze(1).to(wide) for x in (q, k, v, log_decay)], initial_state)
        return o.unsqueeze(1).to(v.dtype), state
    return _gated_linear_attention(q, k, v, log_decay, initial_state, reverse)


def _validate(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, initial_state: Tensor | None) -> None:
    if q.ndim != 4 or q.shape[1] == 0:
        raise ValueError(f"`q` must be (batch, length, heads, key_dim) with length > 0, got {tuple(q.shape)}")
    for name, x in {"k": k, "log_decay": log_decay}.items():
        if x.shape != q.shape:
            raise ValueError(f"`{name}` must be {tuple(q.shape)}, as `q`, got {tuple(x.shape)}")
    if v.ndim != 4 or v.shape[:3] != q.shape[:3]:
        raise ValueError(f"`v` must be {tuple(q.shape[:3])} and value_dim, got {tuple(v.shape)}")
    for name, x in {"q": q, "k": k, "v": v, "log_decay": log_decay}.items():
        if not x.is_floating_point():
            raise ValueError(f"`{name}` must be a real floating-point tensor, got {x.dtype}")
    expected = (q.shape[0], *q.shape[2:], v.shape[3])
    if initial_state is not None and tuple(initial_state.shape) != expected:
        raise ValueError(f"`initial_state` must be {expected}, got {tuple(initial_state.shape)}")


def _step(inputs: Sequence[Tensor], state: Tensor | None) -> tuple[Tensor, Tensor]:
    """One step, from q, k, v and log_decay (batch, heads, dim): its output, and the state after it."""
    q, k, v, log_decay = inputs
    update = k.unsqueeze(-1) * v.unsqueeze(-2)
    state = update if state is None else log_decay.exp().unsqueeze(-1) * state + update
    return (q.unsqueeze(-1) * state).sum(-2), state


# --- reference -------------------------------------------------------------------------------------------------------


def _reference(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None, reverse: bool
) -> tuple[Tensor, Tensor]:
    wide = accumulator(v)
    steps = list(zip(*(x.to(wide).unbind(1) for x in (q, k, v, log_decay)), strict=True))
    outputs = []
    for step in reversed(steps) if reverse else steps:
        o, state = _step(step, state)
        outputs.append(o)
    assert state is not None
    return torch.stack(outputs[::-1] if reverse else outputs, dim=1).to(v.dtype), state


# --- torch: chunks ---------------------------------------------------------------------------------------------------


def _cut(x: Tensor, dtype: torch.dtype, reverse: bool) -> Tensor:
    """Rows as chunks: (batch, length, heads, dim) as (batch · heads, chunks, steps, dim), zeros after the last step."""
    length = x.shape[1]
    steps = min(CHUNK, 1 << (length - 1).bit_length())
    x = x.to(dtype).transpose(1, 2).flatten(0, 1)
    x = F.pad(x.flip(1) if reverse else x, (0, 0, 0, -length % steps))
    return x.unflatten(1, (-1, steps)).contiguous()


def _join(chunks: Tensor, like: Tensor, reverse: bool) -> Tensor:
    """The rows of chunks, in shape and dtype of `like`."""
    batch, length, heads, _ = like.shape
    x = chunks.flatten(1, 2)[:, :length]
    x = (x.flip(1) if reverse else x).unflatten(0, (batch, heads)).transpose(1, 2)
    return x.to(like.dtype).contiguous()


def _halves(x: Tensor, half: int) -> tuple[Tensor, Tensor]:
    """Left and right halves of blocks of 2 · half steps: of (chunks, steps, dim) views (chunks, blocks, half, dim)."""
    blocks = x.unflatten(1, (-1, 2, half))
    return blocks[:, :, 0], blocks[:, :, 1]


def _corners(scores: Tensor, half: int) -> Tensor:
    """Scores of right halves with left halves (chunks, blocks, half, half), as a view of (chunks, steps, steps)."""
    steps = scores.shape[-1]
    shape = (len(scores), steps // (2 * half), half, half)
    return scores.as_strided(shape, (steps * steps, 2 * half * (steps + 1), steps, 1), half * steps)


def _splits(gates: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Blocks of 2, 4, … steps of (chunks, steps, dim), cut in the middle.

    Yields:
        Half the size of a block, and what is left on the way from the end of a left half to each step of the right one,
        and from each step of the left half to its end, both (chunks, blocks, half, dim).
    """
    inward, outward = gates.clone(), torch.zeros_like(gates)
    half = 1
    while half < gates.shape[1]:
        (left_in, right_in), (left_out, _) = _halves(inward, half), _halves(outward, half)
        yield half, right_in.exp(), left_out.exp()
        left_out += right_in[:, :, -1:]
        right_in += left_in[:, :, -1:]
        half *= 2


def _ways(gates: Tensor) -> tuple[Tensor, Tensor]:
    """What is left on the way from the start of the chunk to each step, and from each step to the end of the chunk."""
    inward = gates.cumsum(-2)
    outward = F.pad(gates[..., 1:, :].flip(-2).cumsum(-2).flip(-2), (0, 0, 0, 1))
    return inward.exp(), outward.exp()


def _carry(updates: Tensor, kept: Tensor, state: Tensor, reverse: bool = False) -> tuple[Tensor, Tensor]:
    """The states between chunks.

    Args:
        updates: (rows, chunks, key_dim, value_dim), what each chunk adds; overwritten.
        kept: (rows, chunks, key_dim), what each chunk leaves of the state.
        state: (rows, key_dim, value_dim), the state at the start.
        reverse: Go from the last chunk to the first.

    Returns:
        The state that each chunk starts from, shape of `updates`, and the state at the end.
    """
    chunks = range(updates.shape[1])
    for i in reversed(chunks) if reverse else chunks:
        after = torch.addcmul(updates[:, i], kept[:, i].unsqueeze(-1), state)
        updates[:, i] = state
        state = after
    return updates, state


def _start(q: Tensor, v: Tensor, state: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The initial state as (batch · heads, key_dim, value_dim)."""
    batch, _, heads, key_dim = q.shape
    return q.new_zeros(batch * heads, key_dim, v.shape[3], dtype=dtype) if state is None else state.flatten(0, 1)


def _forward(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, initial_state: Tensor | None, reverse: bool
) -> tuple[Tensor, Tensor]:
    wide = accumulator(v)
    queries, keys, values, gates = (_cut(x, wide, reverse) for x in (q, k, v, log_decay))
    inward, outward = _ways(gates)
    updates = (keys * outward).mT @ values
    states, final = _carry(updates, inward[:, :, -1], _start(q, v, initial_state, wide))
    o = (queries * inward) @ states
    scores = torch.diag_embed((queries * keys).sum(-1)).flatten(0, 1)
    queries, keys, gates = (x.flatten(0, 1) for x in (queries, keys, gates))
    for half, right_decay, left_decay in _splits(gates):
        right, left = _halves(queries, half)[1] * right_decay, _halves(keys, half)[0] * left_decay
        _corners(scores, half).copy_(right @ left.mT)
    o.flatten(0, 1).baddbmm_(scores, values.flatten(0, 1))
    return _join(o, v, reverse), final.unflatten(0, (q.shape[0], q.shape[2])).clone()


def _backward(
    grad_o: Tensor,
    grad_final: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    initial_state: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    wide = accumulator(v)
    queries, keys, values, gates, incoming = (_cut(x, wide, reverse) for x in (q, k, v, log_decay, grad_o))
    inward, outward = _ways(gates)
    kept, sent = inward[:, :, -1], keys * outward
    states, final = _carry(sent.mT @ values, kept, _start(q, v, initial_state, wide))
    grad_states, grad_initial = _carry((queries * inward).mT @ incoming, kept, grad_final.flatten(0, 1), reverse=True)
    grad_q, grad_k, grad_v = (incoming @ states.mT) * inward, (values @ grad_states.mT) * outward, sent @ grad_states
    ends = torch.cat([states[:, 1:], final.unsqueeze(1)], dim=1)
    grad_end = (ends * grad_states).sum(-1).unsqueeze(-2)

    grad_scores = (incoming @ values.mT).flatten(0, 1)
    scores = torch.diag_embed((queries * keys).sum(-1)).flatten(0, 1)
    flat_q, flat_k, flat_gates = (x.flatten(0, 1) for x in (queries, keys, gates))
    for half, right_decay, left_decay in _splits(flat_gates):
        right, left = _halves(flat_q, half)[1] * right_decay, _halves(flat_k, half)[0] * left_decay
        _corners(scores, half).copy_(right @ left.mT)
        grad_corners = _corners(grad_scores, half)
        _halves(grad_q.flatten(0, 1), half)[1].addcmul_(grad_corners @ left, right_decay)
        _halves(grad_k.flatten(0, 1), half)[0].addcmul_(grad_corners.mT @ right, left_decay)
    grad_v.flatten(0, 1).baddbmm_(scores.mT, incoming.flatten(0, 1))
    # No gate stands between a step and itself: what the diagonal adds to q and k does not concern the gates.
    grad_gates = (queries * grad_q - keys * grad_k).flip(-2).cumsum(-2).flip(-2) + grad_end
    diagonal = grad_scores.diagonal(dim1=-2, dim2=-1).view(*keys.shape[:-1], 1)
    grad_q.addcmul_(diagonal, keys)
    grad_k.addcmul_(diagonal, queries)
    return (
        _join(grad_q, q, reverse),
        _join(grad_k, k, reverse),
        _join(grad_v, v, reverse),
        _join(grad_gates, log_decay, reverse),
        grad_initial.view(grad_final.shape).clone(),
    )


# --- the registered operator -----------------------------------------------------------------------------------------


@torch.library.custom_op("subquad::gated_linear_attention", mutates_args=())
def _gated_linear_attention(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, initial_state: Tensor | None, reverse: bool
) -> tuple[Tensor, Tensor]:
    with torch.autocast(q.device.type, enabled=False):
        return _forward(q, k, v, log_decay, initial_state, reverse)


@_gated_linear_attention.register_fake
def _(q, k, v, log_decay, initial_state, reverse):
    return v.new_empty(v.shape), v.new_empty(q.shape[0], *q.shape[2:], v.shape[3], dtype=accumulator(v))


@torch.library.custom_op("subquad::gated_linear_attention_backward", mutates_args=())
def _gated_linear_attention_backward(
    grad_o: Tensor,
    grad_final: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    initial_state: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    with torch.autocast(q.device.type, enabled=False):
        return _backward(grad_o, grad_final, q, k, v, log_decay, initial_state, reverse)


@_gated_linear_attention_backward.register_fake
def _(grad_o, grad_final, q, k, v, log_decay, initial_state, reverse):
    return *(x.new_empty(x.shape) for x in (q, k, v, log_decay)), grad_final.new_empty(grad_final.shape)


def _save(ctx, inputs, output):
    *tensors, ctx.reverse = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx, grad_o, grad_final):
    initial_state = ctx.saved_tensors[-1]
    *gradients, grad_initial = _gated_linear_attention_backward(grad_o, grad_final, *ctx.saved_tensors, ctx.reverse)
    return *gradients, None if initial_state is None else grad_initial, None


_gated_linear_attention.register_autograd(_differentiate, setup_context=_save)
_gated_linear_attention_backward.register_autograd(refuse_second_order("gated_linear_attention"))
