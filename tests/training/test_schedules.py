import pytest
import torch

from subquad.training.schedules import build_schedule

TABLES = [
    (
        {"type": "inverse_sqrt", "peak": 5e-4, "warmup": 4000, "initial": 1e-7},
        50_000,
        {0: 1e-7, 1: 2.24975e-7, 3999: 4.99875025e-4, 4000: 5e-4, 8000: 3.53553391e-4, 50_000: 1.41421356e-4},
    ),
    (
        {"type": "inverse_sqrt", "peak": 5e-4, "warmup": 8000, "initial": 1e-7},
        100_000,
        {1: 1.624875e-7, 100_000: 1.41421356e-4},
    ),
    (
        {"type": "inverse_sqrt", "peak": 1e-3, "warmup": 6000, "initial": 1e-7},
        150_000,
        {1: 2.6665e-7, 150_000: 2e-4},
    ),
    (
        {"type": "polynomial", "peak": 5e-4, "warmup": 3000},
        50_000,
        {
            0: 0,
            1: 1.66666667e-7,
            3000: 5e-4,
            3001: 4.99989362e-4,
            26_500: 2.5e-4,
            49_999: 1.06382979e-8,
            50_000: 0,
            60_000: 0,
        },
    ),
    ({"type": "polynomial", "peak": 1.0, "end": 0.2, "power": 2}, 10, {0: 1.0, 5: 0.4, 10: 0.2}),
    ({"type": "cosine", "peak": 1.0, "warmup": 2, "end": 0.1}, 10, {0: 0, 1: 0.5, 2: 1.0, 6: 0.55, 10: 0.1, 11: 0.1}),
    (
        {"type": "cosine", "peak": 1.0, "warmup": 100, "end": 0.1, "trough": 900},
        2500,
        {50: 0.5, 100: 1.0, 500: 0.55, 900: 0.1, 1700: 1.0, 2500: 0.1},
    ),
    (
        # Epochs 0, 1, 2, 10, 11, 150, 299 and the end of epoch 1, of 625 updates each.
        {"type": "epoch_cosine", "peak": 2e-3, "initial": 1e-6, "warmup": 6250, "end": 1e-5, "epoch": 625},
        187_500,
        {
            0: 1e-6,
            625: 1e-6,
            1249: 1e-6,
            2 * 625: 2.009e-4,
            10 * 625: 1.8001e-3,
            11 * 625: 1.9945492856e-3,
            150 * 625: 1.01541942520e-3,
            299 * 625: 1.02182199425e-5,
        },
    ),
    ({"type": "constant", "peak": 1.0, "warmup": 2}, 10, {0: 0, 1: 0.5, 2: 1.0, 9: 1.0}),
    ({"type": "constant", "peak": 1.0}, 10, {0: 1.0}),
]


@pytest.mark.parametrize(("config", "steps", "table"), TABLES)
def test_values(config, steps, table):
    rate = build_schedule(config, steps)
    assert {k: rate(k) for k in table} == pytest.approx(table, rel=1e-8)


def test_one_cycle_is_that_of_torch():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter])
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-4, 500, pct_start=0.2, anneal_strategy="linear")
    rate = build_schedule({"type": "polynomial", "peak": 1e-4, "warmup": 100, "initial": 4e-6, "end": 4e-10}, 500)
    beta = build_schedule({"type": "polynomial", "peak": 0.85, "warmup": 100, "initial": 0.95, "end": 0.95}, 500)
    for k in range(500):
        (group,) = optimizer.param_groups
        # torch counts to the update before the last of each part
        assert rate(k) == pytest.approx(group["lr"], abs=1.01e-6)
        assert beta(k) == pytest.approx(group["betas"][0], abs=1.01e-3)
        optimizer.step()
        cycle.step()


@pytest.mark.parametrize("config", [{"type": name, "peak": 1.0, "warmup": 10} for name in ("polynomial", "cosine")])
def test_a_run_that_is_shorter_than_its_warmup(config):
    assert build_schedule(config, 5)(4) == 0.4


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"type": "inverse-sqrt", "peak": 1.0}, "mean 'inverse_sqrt'"),
        ({"type": "constant", "peek": 1.0}, "mean 'peak'"),
        ({"type": "cosine", "peak": 1.0, "warmup": 10, "trough": 10}, "needs a trough after the warmup of 10"),
        ({"type": "epoch_cosine", "peak": 1.0, "warmup": 0, "epoch": 0}, "an epoch of at least 1 update, got 0"),
        ({"type": "constant"}, "peak"),
        ({"type": "constant", "peak": "high"}, "'peak' must be a number.*'high'"),
        ({"type": "constant", "peak": -1.0}, "-1.0"),
        ({"type": "inverse_sqrt", "peak": 1.0, "warmup": 0}, "at least 1 update, got 0"),
    ],
)
def test_mistakes_are_named(config, message):
    with pytest.raises(ValueError, match=message):
        build_schedule(config, 10)
