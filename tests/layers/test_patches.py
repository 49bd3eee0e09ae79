"""Patch embeddings: which pixel meets which weight, how many patches there are, and images that do not fit."""

import pytest
import torch
from support import assert_close

from subquad.layers import build_patch_embedding


def build(config, image_size=(8, 12), dim=16, channels=3):
    return build_patch_embedding(config, dim, image_size, channels).double()


def test_a_patch_is_flattened_by_row_column_and_channel():
    patches = build({"type": "linear", "patch_size": [2, 3]})
    assert patches.grid == (4, 4)
    images = torch.zeros(1, 3, 8, 12, dtype=torch.float64)
    images[0, 2, 5, 7] = 1  # in patch (2, 2): row 1, column 1, channel 2
    y = patches(images) - patches.proj.bias
    assert_close(y[0, 2 * 4 + 2], patches.proj.weight[:, (1 * 3 + 1) * 3 + 2])
    y[0, 10] = 0
    assert_close(y, torch.zeros_like(y))


def test_overlapping_patches_are_one_convolution():
    patches = build({"type": "overlap", "patch_size": 4, "stride": 3})
    images = torch.randn(2, 3, 8, 12, dtype=torch.float64)
    expected = torch.nn.functional.conv2d(images, patches.stem.weight, patches.stem.bias, stride=3, padding=2)
    assert patches.grid == tuple(expected.shape[2:])
    assert_close(patches(images), expected.flatten(2).transpose(1, 2))
    assert build_patch_embedding({"type": "overlap"}, 8, 224, 3).grid == (17, 17)


@pytest.mark.parametrize(("size", "grid"), [((32, 32), (2, 2)), ((224, 224), (14, 14)), ((33, 47), (3, 3))])
def test_a_convolutional_stem_has_patches_of_16_pixels(size, grid):
    patches = build({"type": "conv"}, size)
    assert patches.grid == grid
    assert patches(torch.randn(1, 3, *size, dtype=torch.float64)).shape == (1, grid[0] * grid[1], 16)


def test_gradient_of_the_stem_with_one_image():
    patches = build({"type": "conv"}, (32, 32))
    images = torch.randn(1, 3, 32, 32, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: patches(x).square().mean(1), images, fast_mode=True)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"type": "linear", "patch_size": 5}, "images of 8 × 12 pixels cannot be cut into patches of 5 × 5"),
        ({"type": "linear", "patch_size": [2, 2, 2]}, "one positive number, or two"),
        ({"type": "linear", "stride": 2}, "unknown option of patch embedding 'linear' 'stride'"),
        ({"type": "mlp"}, "unknown patch embedding 'mlp'"),
    ],
)
def test_bad_configurations(config, message):
    with pytest.raises(ValueError, match=message):
        build(config)


def test_images_of_another_size():
    with pytest.raises(ValueError, match=r"must be \(batch, 3, 8, 12\), got \(1, 3, 12, 8\)"):
        build({"type": "linear", "patch_size": 4})(torch.zeros(1, 3, 12, 8))


def test_a_stem_needs_widths_that_divide():
    with pytest.raises(ValueError, match="multiple of 8 features, got 12"):
        build({"type": "conv"}, dim=12)
