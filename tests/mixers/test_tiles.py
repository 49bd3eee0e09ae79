"""Attention inside tiles of a grid: which positions see each other, and by which formula."""

import pytest
import torch
from support import assert_close

from subquad.compat.transnormer_grid import WindowAttention
from subquad.mixers import DiagAttention, DiagAttention2D
from subquad.ops import rms_norm

HEIGHT, WIDTH, DIM, HEADS = 5, 6, 8, 2


def mixer(**options):
    mixer = DiagAttention2D(DIM, **{"height": HEIGHT, "width": WIDTH, "num_heads": HEADS, **options})
    for parameter in mixer.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return mixer.double().eval()


def grids(height=HEIGHT, width=WIDTH):
    return torch.randn(2, height * width, DIM, dtype=torch.float64)


@pytest.mark.parametrize("kernel", ["relu", "softmax"])
@pytest.mark.parametrize("tile", [1, 2, 3, 4, 6])
def test_it_is_its_formula_in_every_tile(kernel, tile):
    """Of a grid that most tiles do not divide, tile by tile; what is missing from one is no key."""
    attention, x = mixer(kernel=kernel, tile=tile), grids()
    picture, lrpe = x.unflatten(1, (HEIGHT, WIDTH)), attention.positions
    assert lrpe is not None
    expected = torch.empty_like(picture)
    for top in range(0, HEIGHT, tile):
        for left in range(0, WIDTH, tile):
            here = picture[:, top : top + tile, left : left + tile]
            places = torch.tensor([[tile * i + j for j in range(here.shape[2])] for i in range(here.shape[1])])
            angles = lrpe.angles(places.flatten()).unsqueeze(1)
            q, k, v = (
                proj(here.flatten(1, 2)).unflatten(-1, (HEADS, -1))
                for proj in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            q, k = lrpe(q, angles), lrpe(k, angles)
            scores = torch.einsum("bihd,bjhd->bhij", q, k) / (DIM // HEADS) ** 0.5
            weights = scores.softmax(-1) if kernel == "softmax" else scores.relu()
            o = torch.einsum("bhij,bjhd->bihd", weights, v).flatten(2)
            o = attention.output_proj(o if kernel == "softmax" else rms_norm(o))
            expected[:, top : top + tile, left : left + tile] = o.view_as(here)
    assert_close(attention(x)[0], expected.flatten(1, 2))


def test_a_patch_changes_its_tile_and_nothing_else():
    attention, x = mixer(tile=2, kernel="softmax"), grids()
    changed = x.unflatten(1, (HEIGHT, WIDTH)).clone()
    changed[:, 2, 5] += 1
    difference = (attention(changed.flatten(1, 2))[0] != attention(x)[0]).any(-1).unflatten(1, (HEIGHT, WIDTH))
    expected = torch.zeros_like(difference)
    expected[:, 2:4, 4:6] = True
    assert torch.equal(difference, expected)


@pytest.mark.parametrize("kernel", ["relu", "softmax"])
def test_one_tile_of_all_is_attention_in_one_block(kernel):
    attention = mixer(height=4, width=4, tile=4, kernel=kernel)
    whole = DiagAttention(DIM, False, num_heads=HEADS, block_size=16, kernel=kernel).double()
    whole.load_state_dict(attention.state_dict())
    x = grids(4, 4)
    assert_close(attention(x)[0], whole(x)[0])


def test_published_arithmetic_is_the_same_without_positions_and_padding():
    """What compat keeps of the published code: other positions, and zeros beyond the grid that count in a softmax."""
    options = {"num_heads": HEADS, "kernel": "softmax", "positions": None}
    attention = mixer(height=4, width=6, tile=2, **options)
    published = WindowAttention(DIM, window=2, **options).double()
    published.grid = (4, 6)
    published.load_state_dict(attention.state_dict())
    x = grids(4, 6)
    assert_close(published(x)[0], attention(x)[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"height": 0}, "positive `height` and `width`, got 0 × 6"),
        ({"tile": 0}, "`tile` must be positive, got 0"),
        ({"causal": True}, "has no causal form"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        mixer(**options)
