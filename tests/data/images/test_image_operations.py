"""The operations of RandAugment against Pillow, which defines them, and the rules of their strengths."""

import math

import numpy as np
import pytest
import torch

from subquad.data.images import RandAugment, operations
from subquad.data.images.randaugment import OPERATIONS, Draw, apply_operations, rand_augment

pytest.importorskip("PIL")
from PIL import Image, ImageEnhance, ImageOps

COLOURS = {3: (124, 116, 104), 1: (33,)}


def pictures(channels, height=29, width=33, count=8):
    """Noise and smooth pictures of less than the whole range; one of a single colour."""
    generator = torch.Generator().manual_seed(channels)
    noise = torch.randint(256, (count, channels, height, width), generator=generator).float()
    coarse = torch.rand(count, channels, 4, 5, generator=generator) * 150 + 30
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    images = torch.where(torch.arange(count)[:, None, None, None] % 2 == 0, noise, smooth)
    images[-1] = 77
    return images.to(torch.uint8)


def to_pillow(image):
    array = image.permute(1, 2, 0).numpy()
    return Image.fromarray(array if len(image) == 3 else array[:, :, 0])


def with_pillow(function, images):
    """A function of a picture and its number, applied to each."""
    changed = [np.array(function(to_pillow(image), i)) for i, image in enumerate(images)]
    return torch.from_numpy(np.stack(changed)).view(len(images), *images.shape[2:], -1).permute(0, 3, 1, 2)


FACTORS = torch.tensor([0.0, 0.1, 0.37, 0.55, 1.0, 1.19, 1.55, 1.9])
BITS = torch.tensor([1, 2, 3, 4, 5, 6, 7, 8])
THRESHOLDS = torch.tensor([0, 10, 26, 77, 128, 200, 255, 256])


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize(
    ("operation", "reference"),
    [
        (operations.autocontrast, lambda picture, i: ImageOps.autocontrast(picture)),
        (operations.equalize, lambda picture, i: ImageOps.equalize(picture)),
        (operations.invert, lambda picture, i: ImageOps.invert(picture)),
        (lambda x: operations.posterize(x, BITS), lambda picture, i: ImageOps.posterize(picture, int(BITS[i]))),
        (lambda x: operations.solarize(x, THRESHOLDS), lambda picture, i: ImageOps.solarize(picture, THRESHOLDS[i])),
        *(
            (
                lambda x, name=name: getattr(operations, name.lower())(x, FACTORS),
                lambda picture, i, name=name: getattr(ImageEnhance, name)(picture).enhance(FACTORS[i].item()),
            )
            for name in ("Color", "Contrast", "Brightness", "Sharpness")
        ),
    ],
)
def test_colours_are_changed_as_pillow_does(channels, operation, reference):
    images = pictures(channels)
    before = images.clone()
    assert torch.equal(operation(images), with_pillow(reference, images))
    assert torch.equal(images, before)


def test_equalize_of_few_pixels():
    """Steps of no or few pixels: the table would leave the range."""
    for size in (4, 16, 17, 23):
        images = pictures(3, size, size)
        expected = with_pillow(lambda picture, i: ImageOps.equalize(picture), images)
        assert torch.equal(operations.equalize(images), expected)


def test_posterize_to_no_bits_is_black():
    assert not operations.posterize(pictures(3), torch.zeros(8, dtype=torch.long)).any()


def test_solarize_add_changes_dark_values():
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    changed = operations.solarize_add(images, torch.tensor([99])).flatten().tolist()
    assert changed == [value + 99 for value in range(128)] + list(range(128, 256))
    assert operations.solarize_add(images, torch.tensor([200])).flatten()[100] == 255


def affine_with_pillow(images, coefficients, fill):
    return with_pillow(
        lambda picture, i: picture.transform(
            picture.size,
            Image.Transform.AFFINE,
            coefficients(picture, i),
            Image.Resampling.BICUBIC,
            fillcolor=fill if len(fill) == 3 else fill[0],
        ),
        images,
    )


def assert_nearly_equal(actual, expected):
    """Fractions are cut off, so that float32 and float64 may differ by one, seldom."""
    difference = (actual.int() - expected.int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 2e-3


@pytest.mark.parametrize("channels", [3, 1])
def test_affine_is_that_of_pillow(channels):
    generator = torch.Generator().manual_seed(0)
    images = pictures(channels)
    matrices = torch.eye(2, 3, dtype=torch.float64).repeat(8, 1, 1)
    matrices[2:] += torch.randn(6, 2, 3, generator=generator, dtype=torch.float64) * torch.tensor([0.2, 0.2, 3.0])
    matrices[1, 0, 2] = 2.5
    fill = COLOURS[channels]
    moved = operations.affine(images, matrices, torch.tensor(fill, dtype=torch.uint8))
    assert torch.equal(moved[0], images[0])
    assert_nearly_equal(moved, affine_with_pillow(images, lambda _, i: matrices[i].flatten().tolist(), fill))


@pytest.mark.parametrize(
    ("move", "coefficients"),
    [
        (operations.shear_x, lambda picture, s: (1, s, 0, 0, 1, 0)),
        (operations.shear_y, lambda picture, s: (1, 0, 0, s, 1, 0)),
        (operations.translate_x, lambda picture, s: (1, 0, s * picture.width, 0, 1, 0)),
        (operations.translate_y, lambda picture, s: (1, 0, 0, 0, 1, s * picture.height)),
    ],
)
def test_movements(move, coefficients):
    strengths = torch.linspace(-0.45, 0.45, 8, dtype=torch.float64)
    images, fill = pictures(3), COLOURS[3]
    expected = affine_with_pillow(images, lambda picture, i: coefficients(picture, strengths[i].item()), fill)
    assert_nearly_equal(move(images, strengths, torch.tensor(fill, dtype=torch.uint8)), expected)


def test_rotate():
    degrees = torch.linspace(-30, 30, 8, dtype=torch.float64) + 0.5
    images, fill = pictures(3), COLOURS[3]
    expected = with_pillow(
        lambda picture, i: picture.rotate(degrees[i].item(), Image.Resampling.BICUBIC, fillcolor=fill), images
    )
    assert_nearly_equal(operations.rotate(images, degrees, torch.tensor(fill, dtype=torch.uint8)), expected)


# Strengths


@pytest.mark.parametrize(
    ("name", "at_zero", "at_nine", "at_ten"),
    [
        ("Rotate", 0, 27, 30),
        ("Posterize", 4, 1, 0),
        ("Solarize", 256, 26, 0),
        ("SolarizeAdd", 0, 99, 110),
        *((name, 1, 1.81, 1.9) for name in ("Color", "Contrast", "Brightness", "Sharpness")),
        *((name, 0, 0.27, 0.3) for name in ("ShearX", "ShearY")),
        *((name, 0, 0.405, 0.45) for name in ("TranslateX", "TranslateY")),
    ],
)
def test_strengths(name, at_zero, at_nine, at_ten):
    magnitudes = torch.tensor([0, 0.9, 1], dtype=torch.float64)
    strength = OPERATIONS[name].strength
    plus, minus = strength(magnitudes, torch.ones(3)), strength(magnitudes, -torch.ones(3))
    assert plus.tolist() == pytest.approx([at_zero, at_nine, at_ten])
    if name in ("Posterize", "Solarize", "SolarizeAdd"):
        assert plus.dtype == torch.long
        assert torch.equal(plus, minus)
    else:
        assert (plus + minus).tolist() == pytest.approx([2 * at_zero] * 3)


def test_there_are_fifteen_operations():
    names = "AutoContrast Equalize Invert Rotate Posterize Solarize SolarizeAdd Color Contrast Brightness Sharpness"
    assert list(OPERATIONS) == [*names.split(), "ShearX", "ShearY", "TranslateX", "TranslateY"]
    assert [name for name, operation in OPERATIONS.items() if operation.strength is None] == names.split()[:3]


# What is drawn


def sources(count):
    return [np.random.default_rng(i) for i in range(count)]


def test_draws():
    count = 6000
    draw = Draw.random(sources(count), RandAugment(magnitude=9, deviation=0.5, operations=2))
    frequencies = torch.bincount(draw.operations.flatten(), minlength=15) / (2 * count)
    # Five standard deviations of a share.
    assert (frequencies - 1 / 15).abs().max() < 5 * math.sqrt(1 / 15 / (2 * count))
    assert draw.operations.max() == 14
    same = (draw.operations[:, 0] == draw.operations[:, 1]).double().mean()
    assert abs(same - 1 / 15) < 5 * math.sqrt(1 / 15 / count)
    assert abs(draw.applied.double().mean() - 0.5) < 2.5 / math.sqrt(2 * count)
    assert abs(draw.signs.mean()) < 5 / math.sqrt(2 * count)
    assert set(draw.signs.flatten().tolist()) == {-1.0, 1.0}
    # N(9, ½) cut off at 10, which is two standard deviations above the mean.
    below = draw.magnitudes[draw.magnitudes < 0.9]
    assert abs((below - 0.9).square().mean().sqrt() - 0.05) < 0.002
    assert draw.magnitudes.max() == 1
    assert abs((draw.magnitudes == 1).double().mean() - 0.02275) < 5 * math.sqrt(0.02275 / (2 * count))


def test_magnitudes_stay_in_range():
    low = Draw.random(sources(200), RandAugment(magnitude=0, deviation=3, operations=4)).magnitudes
    assert (low.min(), low.shape) == (0, (200, 4))
    assert (Draw.random(sources(50), RandAugment(magnitude=10, deviation=0)).magnitudes == 1).all()


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("name", list(OPERATIONS))
def test_one_operation_for_some_of_the_images(name, channels):
    images, fill = pictures(channels), torch.tensor(COLOURS[channels], dtype=torch.uint8)
    number = list(OPERATIONS).index(name)
    applied = torch.tensor([[False], [True]] * 4)
    magnitudes, signs = torch.full((8, 1), 0.9).double(), torch.ones(8, 1).double()
    draw = Draw(torch.full((8, 1), number), applied, magnitudes, signs)
    changed = apply_operations(images, draw, fill)
    assert torch.equal(changed[::2], images[::2])
    assert (name == "Color" and channels == 1) == torch.equal(changed[1::2], images[1::2])
    # Alone or among others, an image is changed in the same way.
    for i in range(8):
        alone = apply_operations(images[i : i + 1], Draw(*(entries[i : i + 1] for entries in draw)), fill)
        assert torch.equal(alone[0], changed[i])


def test_operations_follow_one_another():
    images, fill = pictures(3), torch.tensor(COLOURS[3], dtype=torch.uint8)
    names = list(OPERATIONS)
    numbers = torch.tensor([[names.index("Invert"), names.index("Solarize")]] * 8)
    magnitudes, signs = torch.full((8, 2), 0.5).double(), torch.ones(8, 2).double()
    changed = apply_operations(images, Draw(numbers, torch.ones(8, 2, dtype=torch.bool), magnitudes, signs), fill)
    assert torch.equal(changed, torch.where(255 - images < 128, 255 - images, images))


@pytest.mark.parametrize("channels", [3, 1])
def test_rand_augment_keeps_the_form_of_a_batch(channels):
    images, fill = pictures(channels, count=64), torch.tensor(COLOURS[channels], dtype=torch.uint8)
    changed = rand_augment(images, sources(64), RandAugment(), fill)
    assert (changed.shape, changed.dtype) == (images.shape, torch.uint8)
    same = torch.tensor([torch.equal(a, b) for a, b in zip(changed, images, strict=True)])
    assert 4 <= same.sum() <= 40
    assert torch.equal(changed, rand_augment(images, sources(64), RandAugment(), fill))
