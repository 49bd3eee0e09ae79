"""Primal-Attention: its formulas written out, and what its objective says."""

import pytest
import torch
import torch.nn.functional as F
from support import assert_close

from subquad.mixers import PrimalAttention
from subquad.mixers.primal import evenly_spaced

DOUBLE = torch.float64


def build(dim=12, *, causal=True, **options):
    """In float64, with biases and a spectrum that tell positions and signs apart."""
    mixer = PrimalAttention(dim, causal, **{"num_heads": 3, "rank": 2, **options}).to(DOUBLE)
    for parameter in mixer.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return mixer


def scores(mixer, x, weights):
    """The scores of one row (length, dim), head by head; `weights` gives (head_dim, rank) for each head."""
    head_dim = mixer.dim // mixer.num_heads
    features = []
    for proj in (mixer.q_proj, mixer.k_proj):
        projected = proj(x)
        if mixer.causal:
            projected = torch.stack([projected[: t + 1].mean(0) for t in range(len(x))])
        features.append(projected.split(head_dim, dim=-1))
    return [
        [F.normalize(part, dim=-1) @ weight for part, weight in zip(parts, heads, strict=True)]
        for parts, heads in zip(features, weights, strict=True)
    ]


def output(mixer, e, r):
    heads = [mixer.score_proj(torch.cat(pair, dim=-1)) for pair in zip(e, r, strict=True)]
    return mixer.output_proj(torch.cat(heads, dim=-1))


def test_causal_form():
    mixer = build()
    x = torch.randn(2, 7, 12, dtype=DOUBLE)
    y, _ = mixer(x)
    for row in range(2):
        assert_close(y[row], output(mixer, *scores(mixer, x[row], (mixer.e_weight, mixer.r_weight))))


@pytest.mark.parametrize("num_samples", [1, 4, 11])
def test_bidirectional_form(num_samples):
    mixer = build(causal=False, num_samples=num_samples)
    x = torch.randn(2, 9, 12, dtype=DOUBLE)
    y, _ = mixer(x)
    for row in range(2):
        samples = x[row, torch.linspace(0, 8, num_samples, dtype=torch.int64)].split(4, dim=-1)
        weights = [
            [sample.mT @ weight for sample, weight in zip(samples, heads, strict=True)]
            for heads in (mixer.e_weight, mixer.r_weight)
        ]
        assert_close(y[row], output(mixer, *scores(mixer, x[row], weights)))


@pytest.mark.parametrize("causal", [True, False])
def test_objective(causal):
    mixer = build(causal=causal).train()
    x = torch.randn(3, 6, 12, dtype=DOUBLE)
    mixer(x)
    e, r, _ = mixer.scores(x, None, None)
    squared = []
    for row in range(3):
        variances = 0.0
        for part in (e, r):
            for head in range(3):
                for score in part[row, head]:
                    variances += 0.5 * ((mixer.spectrum[head] * score) ** 2).sum() / (3 * 6)
        trace = sum(torch.trace(mixer.e_weight[head].mT @ mixer.r_weight[head]) for head in range(3)) / 3
        squared.append((variances - trace) ** 2)
    assert_close(mixer.take_auxiliary_losses()["ksvd"], torch.stack(squared).mean())


@torch.no_grad()
def singular_value_decomposition(mixer, x):
    """Set the projections to those that decompose the attention matrix of each head over `x`; its left vectors."""
    z = x.cumsum(1) / torch.arange(1, x.shape[1] + 1).unsqueeze(-1)
    queries, keys = (
        F.normalize(proj(z)[0].unflatten(-1, (mixer.num_heads, -1)).transpose(0, 1), dim=-1)
        for proj in (mixer.q_proj, mixer.k_proj)
    )
    left, values, right = torch.linalg.svd(queries @ keys.mT)
    rank = mixer.spectrum.shape[-1]
    left, values, right = left[..., :rank], values[:, :rank], right.mT[..., :rank]
    mixer.e_weight.copy_(keys.mT @ right)
    mixer.r_weight.copy_(queries.mT @ left)
    mixer.spectrum.copy_((x.shape[1] / values).sqrt())
    return left


def test_the_objective_is_zero_and_stationary_at_singular_vectors():
    """At a decomposition of the attention matrix the scores are its singular vectors, and nothing pulls away."""
    mixer = build(rank=3)
    x = torch.randn(1, 8, 12, dtype=DOUBLE)
    left = singular_value_decomposition(mixer, x)
    e, r, _ = mixer.scores(x, None, None)
    directions = e[0] / e[0].norm(dim=-2, keepdim=True)
    assert_close(directions, left)
    objective = mixer.objective(e, r, None)
    assert objective.abs().item() < 1e-12
    for gradient in torch.autograd.grad(objective.sum(), [mixer.e_weight, mixer.r_weight]):
        assert gradient.abs().max() < 1e-12


def test_sampled_positions_are_the_only_way_from_one_position_to_another():
    mixer = build(causal=False, num_samples=3)
    x = torch.randn(1, 9, 12, dtype=DOUBLE)
    y, _ = mixer(x)
    for position in range(9):
        changed = x.clone()
        changed[:, position] += 1
        rows = (mixer(changed)[0] - y).abs().amax(-1)[0] > 1e-9
        expected = torch.ones(9, dtype=torch.bool) if position in (0, 4, 8) else torch.arange(9) == position
        assert torch.equal(rows, expected)


def test_sampled_positions_are_rounded_as_published():
    """As integer `linspace` rounds; ⌊k (n−1) / (A−1)⌋ differs, for instance at n = 59, A = 15, k = 7."""
    for length in [*range(1, 70), 2048]:
        for num_samples in [*range(1, 40), 200]:
            ours = evenly_spaced(torch.zeros(1, length, 1), None, num_samples)[0]
            assert torch.equal(ours, torch.linspace(0, length - 1, num_samples, dtype=torch.int64))
    assert evenly_spaced(torch.zeros(1, 59, 1), None, 15)[0, 7] == 28


def test_samples_are_taken_among_real_positions():
    mask = torch.tensor([[0, 1, 1, 0, 1, 1, 1], [0, 0, 0, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1]], dtype=torch.bool)
    positions = evenly_spaced(torch.zeros(3, 7, 1), mask, 3)
    assert positions.tolist() == [[1, 4, 6], [3, 3, 3], [0, 3, 6]]


def test_a_row_of_padding_alone_is_finite():
    for causal in (True, False):
        mixer = build(causal=causal).train()
        mask = torch.tensor([[True] * 4, [False] * 4])
        y, _ = mixer(torch.randn(2, 4, 12, dtype=DOUBLE), mask=mask)
        (y.sum() + mixer.take_auxiliary_losses()["ksvd"]).backward()
        assert all(torch.isfinite(parameter.grad).all() for parameter in mixer.parameters())


def test_the_state_is_the_sum_of_the_inputs_in_float32():
    mixer = PrimalAttention(8, num_heads=2, rank=2).bfloat16()
    x = torch.randn(2, 300, 8, dtype=torch.bfloat16)
    mask = torch.ones(2, 300, dtype=torch.bool)
    mask[1, :100] = False
    _, (total, count) = mixer(x, mask=mask)
    assert total.dtype == count.dtype == torch.float32
    assert_close(total, (x.double() * mask.unsqueeze(-1)).sum(1), torch.float32)
    assert count.tolist() == [[300.0], [200.0]]
    assert total.untyped_storage().nbytes() == total.nbytes


def test_initial_projections_are_orthonormal_across_heads():
    mixer = PrimalAttention(24, num_heads=4, rank=5)
    for weight in (mixer.e_weight, mixer.r_weight):
        assert_close(weight.flatten(1) @ weight.flatten(1).T, torch.eye(4))
    assert mixer.spectrum.min() >= 0
    assert mixer.spectrum.max() < 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 5}, "must divide the 12 features, got 5"),
        ({"rank": 0}, "`rank` must be positive, got 0"),
        ({"num_samples": 4}, "a causal one samples no positions"),
        ({"num_samples": 0, "causal": False}, "`num_samples` must be positive, got 0"),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(ValueError, match=message):
        PrimalAttention(12, **{"num_heads": 3, **options})
