"""The laws of token mixers, written once and run over everything that is registered.

A mixer registered with `register_mixer` is tested by that alone, with its default options; options worth a run of their
own are listed in VARIANTS.
"""

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from support import assert_close
from torch import Tensor

from subquad.mixers import MIXERS, Mixer, build_mixer

DIM = 16
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "tno": [
        {},
        {"decay": None, "norm": "rmsnorm", "rpe_activation": "silu", "rpe_residual": True},
        {"learn_decay": True, "decay": 0.8, "kernel_activation": "2+elu", "bias": False},
        {"window": 4},
    ],
    "fd_tno": [
        {},
        {"smooth_spectrum": True, "rpe_activation": "silu", "norm": "layernorm", "bias": False},
        {"num_frequencies": 6},
    ],
    "fd_tno_2d": [{}, {"combine": "sum", "num_frequencies": 4}],
    "ski_tno": [
        {},
        {"horizon": 14, "rank": 4, "num_taps": 5, "decay": 0.9, "norm": "rmsnorm"},
        {"horizon": 30, "rank": 8, "num_taps": 1, "kernel": "rpe", "kernel_activation": "silu", "bias": False},
    ],
    "ski_tno_2d": [{}, {"rank": 3, "num_taps": 3, "combine": "sum"}, {"rank": 2, "kernel": "rpe"}],
    "tno_2d": [{}, {"combine": "sum", "norm": "layernorm"}],
    "hgrn2": [
        {},
        {"head_dim": 4, "query_activation": "sigmoid", "value_activation": "silu", "norm": "rmsnorm", "bias": False},
        {"head_dim": 1, "lower_bounds": False},
    ],
    "hgru": [
        {},
        {"complex": False, "norm": "rmsnorm", "bias": False},
        {"separate_phases": False, "expand_ratio": 0.5, "gate_rank": 3, "lower_bounds": False},
    ],
    "hgru_2d": [{}, {"complex": False, "norm": "rmsnorm", "bias": False}, {"separate_phases": False}],
    "softmax": [{}, {"num_heads": 2, "rotary": True}, {"num_heads": 3, "head_dim": 2, "bias": False}],
    "norm_attention": [
        {"num_heads": 2},
        {"num_heads": 1, "activation": "1+elu", "norm": "layernorm", "positions": "rotary", "bias": False},
        {"num_heads": 4, "positions": None},
    ],
    "diag_attention": [
        {"num_heads": 2, "block_size": 4},
        {"num_heads": 4, "block_size": 5, "kernel": "softmax"},
        {"num_heads": 1, "block_size": 6, "kernel": "1+elu", "norm": "rmsnorm", "positions": "rotary", "bias": False},
        {"num_heads": 2, "block_size": 64, "kernel": "softmax", "norm": "layernorm", "positions": None},
    ],
    "diag_attention_2d": [
        {"num_heads": 2},
        {"num_heads": 4, "tile": 2, "kernel": "softmax"},
        {"num_heads": 1, "tile": 3, "kernel": "1+elu", "norm": "rmsnorm", "positions": "rotary", "bias": False},
    ],
    "primal": [{"num_heads": 2}, {"num_heads": 4, "rank": 1, "bias": False}],
}


GRID = {"height": 3, "width": 4}


def is_grid(name: str) -> bool:
    """Whether a registered mixer works on grids."""
    return "height" in inspect.signature(MIXERS[name]).parameters


def variants(*, grid: bool = False) -> Iterator[tuple[dict[str, Any], bool]]:
    """Every registered mixer with every set of options that is tested, and each of its directions."""
    for name, mixer in MIXERS.items():
        for options in VARIANTS.get(name, [{}]):
            if is_grid(name) == grid:
                for causal in mixer.directions:
                    yield {"type": name, **options, **(GRID if grid else {})}, causal


class Subject:
    """A mixer with asymmetric parameters and its part of the shared module, as a function of `x`."""

    def __init__(self, config: dict[str, Any], causal: bool, dtype: torch.dtype = torch.float64):
        self.mixer: Mixer = build_mixer(config, DIM, causal).to(dtype).eval()
        shared = type(self.mixer).shared_module([config] * 3, DIM)
        self.shared_module = None if shared is None else shared.to(dtype)
        for module in (self.mixer, self.shared_module):
            for parameter in () if module is None else module.parameters():
                if parameter.requires_grad:
                    parameter.data += 0.1 * torch.randn_like(parameter)
        self.dtype = dtype

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Any]:
        shared = {} if self.shared_module is None else self.shared_module()[-1]
        return self.mixer(x, *args, **kwargs, **shared)

    def parameters(self) -> list[torch.nn.Parameter]:
        modules = [m for m in (self.mixer, self.shared_module) if m is not None]
        return [p for m in modules for p in m.parameters() if p.requires_grad]

    def loss(self, x: Tensor, weight: Tensor) -> Tensor:
        """A weighted sum of the outputs, plus what the mixer adds to the loss in training."""
        self.mixer.train()
        y, _ = self(x)
        self.mixer.eval()
        return (y * weight).sum() + sum(self.mixer.take_auxiliary_losses().values())

    def inputs(self, batch: int, length: int) -> Tensor:
        return torch.randn(batch, length, DIM, dtype=self.dtype)


def causality(subject: Subject, length: int) -> None:
    """A later token never changes an earlier output."""
    x = subject.inputs(2, length)
    y, _ = subject(x)
    for k in {1, length // 2, length - 1}:
        changed = torch.cat([x[:, :k], subject.inputs(2, length - k)], dim=1)
        assert_close(subject(changed)[0][:, :k], y[:, :k], name=f"outputs before {k}")


def streaming(subject: Subject, length: int) -> None:
    """Cutting a sequence anywhere, and everywhere, changes nothing; nor does using a state twice."""
    x = subject.inputs(2, length)
    y, final = subject(x)
    for k in range(1, length):
        first, state = subject(x[:, :k])
        assert_close(first, y[:, :k], name=f"outputs before the cut at {k}")
        for _ in range(2):
            second, end = subject(x[:, k:], state)
            assert_close(second, y[:, k:], name=f"outputs after the cut at {k}")
            for ours, whole in zip(end, final, strict=True):
                assert_close(ours, whole, name=f"final state after a cut at {k}")
    state, steps = None, []
    with torch.no_grad():
        for token in x.split(1, dim=1):
            step, state = subject(token, state)
            steps.append(step)
    assert_close(torch.cat(steps, dim=1), y, name="token by token")


def packing(subject: Subject) -> None:
    """Sequences packed into one row behave as if each stood alone, gradients included."""
    lengths = [5, 1, 8, 3]
    x = subject.inputs(1, sum(lengths)).requires_grad_()
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0)
    weight = torch.randn(1, sum(lengths), DIM, dtype=subject.dtype)
    packed, state = subject(x, cu_seqlens=cu_seqlens)
    assert state is None
    alone = torch.cat([subject(part)[0] for part in x.split(lengths, dim=1)], dim=1)
    assert_close(packed, alone, name="packed outputs")
    leaves = [x, *subject.parameters()]
    ours = torch.autograd.grad((packed * weight).sum(), leaves, materialize_grads=True)
    expected = torch.autograd.grad((alone * weight).sum(), leaves, materialize_grads=True)
    for a, b in zip(ours, expected, strict=True):
        assert_close(a, b, name="gradient of packed sequences")


def padding(subject: Subject, side: str, length: int) -> None:
    """Padded positions change no real one, whatever they hold; a state carries on after them."""
    amounts = [0, 3, length - 2]
    x = subject.inputs(3, length)
    mask = torch.ones(3, length, dtype=torch.bool)
    for row, amount in enumerate(amounts):
        mask[row, slice(0, amount) if side == "left" else slice(length - amount, length)] = False
    y, _ = subject(x, mask=mask)
    assert torch.isfinite(y).all()
    for row in range(3):
        assert_close(y[row, mask[row]], subject(x[row : row + 1, mask[row]])[0][0], name=f"{side}-padded row {row}")
    if subject.mixer.causal and side == "left":
        for k in (1, 4, length - 1):
            first, state = subject(x[:, :k], mask=mask[:, :k])
            second, _ = subject(x[:, k:], state, mask=mask)
            assert_close(torch.cat([first, second], dim=1)[mask], y[mask], name=f"padded stream cut at {k}")
    if subject.mixer.causal and side == "right" and subject.mixer.state_type == "recurrent":
        _, state = subject(x, mask=mask)
        for row in range(3):
            alone = subject(x[row : row + 1, mask[row]])[1]
            for ours, expected in zip(state, alone, strict=True):
                assert_close(ours[row], expected[0], name=f"state after padding, row {row}")


def gradients(subject: Subject, length: int) -> None:
    """Gradients flow through the state: two pieces give the gradients of the whole, for inputs and parameters."""
    x = subject.inputs(2, length).requires_grad_()
    weight = torch.randn(2, length, DIM, dtype=subject.dtype)
    leaves = [x, *subject.parameters()]
    whole = torch.autograd.grad((subject(x)[0] * weight).sum(), leaves, materialize_grads=True)
    first, state = subject(x[:, : length // 2])
    second, _ = subject(x[:, length // 2 :], state)
    pieces = torch.autograd.grad((torch.cat([first, second], dim=1) * weight).sum(), leaves, materialize_grads=True)
    for ours, expected in zip(pieces, whole, strict=True):
        assert_close(ours, expected, name="gradient through the state")


def influence(subject: Subject, length: int) -> None:
    """Every parameter and every input has a gradient: through the outputs, or through a loss that the mixer adds."""
    x = subject.inputs(2, length).requires_grad_()
    loss = subject.loss(x, torch.randn(2, length, DIM, dtype=subject.dtype))
    gradients = torch.autograd.grad(loss, [x, *subject.parameters()])
    assert all(gradient.abs().max() > 0 for gradient in gradients), "a parameter has no influence"


def auxiliary_losses(subject: Subject) -> None:
    """Losses are added in training alone and handed out once; those of a batch are the mean over its sequences."""
    lengths = [5, 1, 8]
    sequences = [subject.inputs(1, length) for length in lengths]
    packed = torch.cat(sequences, dim=1)
    mask = torch.arange(8) < torch.tensor(lengths).unsqueeze(1)
    padded = subject.inputs(3, 8)
    padded[mask] = packed[0]
    subject(packed)
    assert subject.mixer.take_auxiliary_losses() == {}, "a loss outside training"

    def added(*args: Any, **kwargs: Any) -> dict[str, Tensor]:
        subject(*args, **kwargs)
        losses = subject.mixer.take_auxiliary_losses()
        assert set(losses) == set(subject.mixer.auxiliary_losses)
        assert subject.mixer.take_auxiliary_losses() == {}, "a loss is handed out twice"
        return losses

    subject.mixer.train()
    alone = [added(sequence) for sequence in sequences]
    by_padding, by_packing = added(padded, mask=mask), added(packed, cu_seqlens=torch.tensor([0, 5, 6, 14]))
    for name in subject.mixer.auxiliary_losses:
        expected = torch.stack([losses[name] for losses in alone]).mean()
        assert_close(by_padding[name], expected, name=f"{name} of a padded batch")
        assert_close(by_packing[name], expected, name=f"{name} of packed sequences")
    subject.mixer.eval()


def batch_independence(subject: Subject, length: int) -> None:
    """A row's output does not depend on the other rows."""
    x = subject.inputs(3, length)
    y, _ = subject(x)
    for row in range(3):
        assert_close(y[row : row + 1], subject(x[row : row + 1])[0], name=f"row {row} alone")


def determinism(subject: Subject, length: int) -> None:
    """The same call gives the same bits."""
    x = subject.inputs(2, length)
    assert torch.equal(subject(x)[0], subject(x)[0])


def half_precision(config: dict[str, Any], causal: bool, length: int) -> None:
    """Bfloat16 parameters, and bfloat16 autocast, stay near float32: dtype kept, values close, gradients finite."""
    subject = Subject(config, causal, torch.float32)
    x = subject.inputs(2, length)
    expected, _ = subject(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, _ = subject(x)
        loss = subject.loss(x, torch.ones_like(x))
    assert_close(y.float(), expected, torch.bfloat16, name="autocast")
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in subject.parameters())
    subject.mixer.to(torch.bfloat16)
    rounded = Subject(config, causal, torch.float32)
    rounded.mixer.load_state_dict(subject.mixer.state_dict())
    rounded.shared_module = subject.shared_module
    x = x.bfloat16()
    y, state = subject(x)
    assert y.dtype == torch.bfloat16
    assert_close(y.float(), rounded(x.float())[0], torch.bfloat16, name="bfloat16 parameters")
    if causal and subject.mixer.state_type == "recurrent":
        assert all(s.dtype == torch.float32 for s in state), "recurrent states are float32"
