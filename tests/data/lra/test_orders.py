"""Orders of pixels, by their definitions."""

import lra_files as write
import numpy as np
import pytest
import torch

from subquad.data.lra import open_lra
from subquad.data.lra.orders import ORDERS

pytestmark = pytest.mark.filterwarnings("ignore:Long Range Arena .* the published data has:UserWarning")
every_order = pytest.mark.parametrize("name", ORDERS)


@pytest.mark.parametrize("side", [1, 2, 8, 32])
@every_order
def test_every_pixel_stands_once(name, side):
    assert sorted(ORDERS[name](side)) == list(range(side * side))


def test_bit_reversal():
    assert ORDERS["bit_reversal"](2).tolist() == [0, 2, 1, 3]
    assert ORDERS["bit_reversal"](8).tolist() == [int(f"{place:06b}"[::-1], 2) for place in range(64)]


def test_snake_and_hilbert_go_from_neighbour_to_neighbour():
    assert ORDERS["snake"](3).tolist() == [0, 1, 2, 5, 4, 3, 6, 7, 8]
    for name in ("snake", "hilbert"):
        rows, columns = np.divmod(ORDERS[name](32), 32)
        assert (abs(np.diff(rows)) + abs(np.diff(columns)) == 1).all()


@pytest.mark.parametrize("size", [2, 4, 8, 16])
def test_each_part_of_a_hilbert_curve_is_a_square(size):
    squares = np.stack(np.divmod(ORDERS["hilbert"](32).reshape(-1, size * size), 32)) // size
    assert (squares == squares[:, :, :1]).all()


@pytest.mark.parametrize("name", ["bit_reversal", "hilbert"])
def test_sides_that_cannot_be_halved(name):
    with pytest.raises(ValueError, match="a side that is a power of two, got 12"):
        ORDERS[name](12)


@every_order
def test_images_in_another_order(tmp_path, name):
    write.cifar(tmp_path / "cifar-10-batches-py")
    plain, moved = open_lra("image", tmp_path), open_lra("image", tmp_path, permute=name)
    assert torch.equal(moved.train[3]["input_values"], plain.train[3]["input_values"][ORDERS[name](32)])
    assert moved.input_features == 1


def test_images_beside_their_transpose(tmp_path):
    write.cifar(tmp_path / "cifar-10-batches-py")
    data = open_lra("image", tmp_path, permute="transpose", colour=True)
    values = data.train[3]["input_values"]
    assert (values.shape, data.input_features) == ((1024, 6), 6)
    assert torch.equal(values[:, 3:].view(32, 32, 3).transpose(0, 1), values[:, :3].view(32, 32, 3))


def test_orders_are_for_images_as_numbers(tmp_path):
    write.cifar(tmp_path / "cifar-10-batches-py")
    with pytest.raises(ValueError, match="unknown order of pixels 'hilbrt'"):
        open_lra("image", tmp_path, permute="hilbrt")
    for task, options in (("pathfinder", {}), ("image", {"pipeline": "byte"}), ("image", {"tokenize": True})):
        with pytest.raises(ValueError, match="option permute is not for"):
            open_lra(task, tmp_path, permute="snake", **options)
