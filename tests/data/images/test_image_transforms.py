"""Crops, erasing, mixing, and the images that training and evaluation see."""

import dataclasses
import math

import image_files as write
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import assert_close, shared
from torch.utils.data import DataLoader

from subquad.data.images import Augmentation, EvaluationImages, RandAugment, TrainingImages, open_images
from subquad.data.images.erasing import random_erase
from subquad.data.images.geometry import (
    Box,
    central_box,
    padded_crop,
    random_box,
    random_flip,
    random_padded_crop,
    random_resized_crop,
    resize,
    resized_centre,
)
from subquad.data.images.mixing import cut_mix, random_mix, random_mix_box, smoothed
from subquad.data.images.sources import ImageData
from subquad.data.images.splits import ImageArrays
from subquad.data.images.transforms import evaluation_crop

PUBLISHED = {
    "flip": 0.5,
    "randaugment": RandAugment(),
    "erasing": 0.25,
    "mixup": 0.8,
    "cutmix": 1.0,
    "label_smoothing": 0.1,
}


def sources(count):
    return [np.random.default_rng(i) for i in range(count)]


def noise(*shape):
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def image_data(num_images=12, channels=3, size=32, num_classes=10):
    images, labels = noise(num_images, channels, size, size).numpy(), np.arange(num_images) % num_classes
    split = ImageArrays(images, labels)
    mean, std = (0.5, 0.4, 0.3)[:channels], (0.2, 0.3, 0.25)[:channels]
    return ImageData("toy", tuple(map(str, range(num_classes))), channels, mean, std, split, split, None, "the same")


# Geometry


def test_random_boxes():
    """Shares of the area are uniform in [0.08, 1], logarithms of shapes uniform in ±log 4/3."""
    rng = np.random.default_rng(0)
    count, side = 4000, 1000
    boxes = [random_box(side, side, rng) for _ in range(count)]
    heights, widths = np.array([box.height for box in boxes]), np.array([box.width for box in boxes])
    tops, lefts = np.array([box.top for box in boxes]), np.array([box.left for box in boxes])
    assert (tops >= 0).all()
    assert (lefts >= 0).all()
    assert (tops + heights <= side).all()
    assert (lefts + widths <= side).all()
    areas, shapes = heights * widths / side**2, np.log(widths / heights)
    assert areas.min() > 0.079
    assert abs(shapes).max() < math.log(4 / 3) + 0.01
    assert abs(shapes.mean()) < 5 * math.log(4 / 3) / math.sqrt(3 * count)
    # Shares below 0.75 are never refused; those above are, if the shape is too far from a square.
    small, rare = areas[areas < 0.75], math.log(4 / 3) / math.sqrt(3)
    assert abs(small.mean() - (0.08 + 0.75) / 2) < 5 * 0.67 / math.sqrt(12 * len(small))
    assert abs(shapes[areas < 0.75].std() - rare) < 0.02
    free = heights < side
    assert abs((tops[free] / (side - heights[free])).mean() - 0.5) < 5 / math.sqrt(12 * free.sum())


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (90, 90, Box(0, 0, 90, 90)),
        (30, 90, Box(0, 25, 30, 40)),
        (80, 30, Box(20, 0, 40, 30)),
        (9, 12, Box(0, 0, 9, 12)),
    ],
)
def test_central_boxes(height, width, expected):
    assert central_box(height, width) == expected


def test_images_of_impossible_shape_are_cut_in_the_middle():
    image = noise(3, 4, 400)
    assert random_box(4, 400, np.random.default_rng(0)) is None
    assert torch.equal(random_resized_crop(image, 8, np.random.default_rng(0)), resize(image[:, :, 197:202], 8, 8))


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("shape", [(20, 31, 24, 24), (100, 75, 32, 24), (7, 9, 40, 33)])
def test_resizing_is_that_of_pillow(channels, shape):
    module = pytest.importorskip("PIL.Image")
    height, width, new_height, new_width = shape
    image = noise(channels, height, width)
    array = image.permute(1, 2, 0).numpy()
    picture = module.fromarray(array if channels == 3 else array[:, :, 0])
    expected = np.array(picture.resize((new_width, new_height), module.Resampling.BICUBIC))
    expected = torch.from_numpy(expected).view(new_height, new_width, channels).permute(2, 0, 1)
    assert (resize(image, new_height, new_width).int() - expected.int()).abs().max() <= 1


@pytest.mark.parametrize(
    ("height", "width", "size", "resized", "corner"),
    [(375, 500, 224, (256, 341), (16, 58)), (500, 300, 224, (426, 256), (101, 16)), (64, 64, 32, (36, 36), (2, 2))],
)
def test_evaluation_sees_the_middle(height, width, size, resized, corner):
    image = noise(3, height, width)
    top, left = corner
    expected = resize(image, *resized)[:, top : top + size, left : left + size]
    assert torch.equal(resized_centre(image, size), expected)


@pytest.mark.parametrize("shape", [(1, 1_000_000), (1_000_000, 1)])
def test_a_very_long_image_is_not_enlarged_whole(shape):
    """All of it would have 224 · 10⁸ values."""
    image = torch.zeros(1, *shape, dtype=torch.uint8)
    image[:, shape[0] // 2 - 50 : shape[0] // 2 + 50, shape[1] // 2 - 50 : shape[1] // 2 + 50] = 9
    seen = resized_centre(image, 224)
    assert seen.shape == (1, 224, 224)
    assert (seen == 9).all()


def test_padded_crops():
    images = noise(3, 2, 9, 7)
    crops = padded_crop(images, torch.tensor([[4, 4], [0, 8], [7, 3]]))
    assert torch.equal(crops[0], images[0])
    expected = torch.zeros(2, 9, 7, dtype=torch.uint8)
    expected[:, 4:, :3] = images[1][:, :5, 4:]
    assert torch.equal(crops[1], expected)
    expected = torch.zeros(2, 9, 7, dtype=torch.uint8)
    expected[:, :6, 1:] = images[2][:, 3:, :6]
    assert torch.equal(crops[2], expected)


def test_padded_crops_are_at_all_places():
    # With every pixel of another value the first one that is not black tells the place.
    image = torch.arange(1, 101, dtype=torch.uint8).view(1, 1, 10, 10)
    crops = random_padded_crop(image.repeat(4000, 1, 1, 1), sources(4000))
    places = padded_crop(image.repeat(81, 1, 1, 1), torch.cartesian_prod(torch.arange(9), torch.arange(9)))
    counts = torch.stack([(crops == place).flatten(1).all(1).sum() for place in places])
    assert counts.sum() == 4000
    assert (counts - 4000 / 81).abs().max() < 5 * math.sqrt(4000 / 81)


def test_flips():
    images = noise(2000, 1, 2, 3)
    flipped = random_flip(images, sources(2000), 0.3)
    changed = (flipped != images).flatten(1).any(1)
    assert torch.equal(flipped[changed], images[changed].flip(-1))
    can_change = (images != images.flip(-1)).flatten(1).any(1)
    share = changed[can_change].double().mean()
    assert abs(share - 0.3) < 5 * math.sqrt(0.3 * 0.7 / can_change.sum())


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    size=st.integers(2, 48),
    channels=st.sampled_from([1, 3]),
    seed=st.integers(0, 2**64 - 1),
)
def test_images_of_any_size(height, width, size, channels, seed):
    image = noise(channels, height, width)
    box = random_box(height, width, np.random.default_rng(seed)) or central_box(height, width)
    assert 0 <= box.top < box.top + box.height <= height
    assert 0 <= box.left < box.left + box.width <= width
    cropped = random_resized_crop(image, size, np.random.default_rng(seed))
    evaluated = evaluation_crop(image, size)
    for result in (cropped, evaluated):
        assert (result.shape, result.dtype) == ((channels, size, size), torch.uint8)
    assert torch.equal(evaluated, evaluation_crop(image, size))
    assert torch.equal(cropped, random_resized_crop(image, size, np.random.default_rng(seed)))


# Erasing


def test_erasing():
    count, side = 2000, 40
    values = torch.full((count, 2, side, side), 9.0)
    random_erase(values, sources(count), 0.25)
    erased = values != 9
    chosen = erased.flatten(1).any(1)
    assert abs(chosen.double().mean() - 0.25) < 5 * math.sqrt(0.25 * 0.75 / count)
    assert torch.equal(erased[:, 0], erased[:, 1])
    rows, columns = erased[chosen, 0].any(2).sum(1), erased[chosen, 0].any(1).sum(1)
    areas = erased[chosen, 0].flatten(1).sum(1)
    assert torch.equal(areas, rows * columns)  # one rectangle
    shares = areas / side**2
    assert 0.015 < shares.min() < 0.04
    assert 0.3 < shares.max() < 0.345
    assert abs(shares.mean() - (0.02 + 1 / 3) / 2) < 5 * 0.32 / math.sqrt(12 * len(shares))
    shapes = (columns / rows).log()
    assert shapes.abs().max() < math.log(1 / 0.3) + 0.35  # whole pixels
    assert abs(shapes.mean()) < 5 * math.log(1 / 0.3) / math.sqrt(3 * len(shapes))
    drawn = values[erased]
    assert abs(drawn.mean()) < 5 / math.sqrt(len(drawn))
    assert abs(drawn.std() - 1) < 5 / math.sqrt(2 * len(drawn))
    noise_of_channels = values[chosen][:, :, side // 2, side // 2]
    both = (noise_of_channels != 9).all(1)
    assert (noise_of_channels[both][:, 0] != noise_of_channels[both][:, 1]).all()


# Mixing


def test_smoothed_targets():
    targets = smoothed(torch.tensor([2, 0]), 4, 0.1)
    assert targets.tolist() == [pytest.approx([0.025, 0.025, 0.925, 0.025]), pytest.approx([0.925] + [0.025] * 3)]
    assert targets.dtype == torch.float32


def test_cutmix_puts_a_box_in_and_counts_it():
    values, targets = noise(4, 3, 10, 8).float(), torch.eye(4)
    mixed, mixed_targets = cut_mix(values, targets, Box(2, 3, 5, 4))
    inside = torch.zeros(10, 8, dtype=torch.bool)
    inside[2:7, 3:7] = True
    assert torch.equal(mixed, torch.where(inside, values.flip(0), values))
    assert_close(mixed_targets, 0.75 * torch.eye(4) + 0.25 * torch.eye(4).flip(0))
    same, same_targets = cut_mix(values, targets, Box(10, 0, 0, 8))
    assert torch.equal(same, values)
    assert torch.equal(same_targets, targets)


class Fixed:
    """A source of chance that gives what it was given."""

    def __init__(self, *numbers):
        self.numbers = iter(numbers)

    def random(self):
        return next(self.numbers)

    def beta(self, a, b):
        self.asked = (a, b)
        return next(self.numbers)


@pytest.mark.parametrize(
    ("share", "centre", "expected"),
    [
        (0.75, (0.5, 0.5), Box(25, 15, 50, 30)),
        (0.75, (0.0, 0.999), Box(0, 44, 25, 16)),
        (0.0, (0.5, 0.5), Box(0, 0, 100, 60)),
        (0.0, (0.75, 0.0), Box(25, 0, 75, 30)),
        (1.0, (0.2, 0.2), Box(20, 12, 0, 0)),
    ],
)
def test_boxes_of_cutmix_are_clipped(share, centre, expected):
    assert random_mix_box(100, 60, share, Fixed(*centre)) == expected


def test_mixup_is_a_weighted_mean():
    values, targets = torch.randn(6, 1, 4, 4), smoothed(torch.arange(6), 6, 0.1)
    rng = Fixed(0.7, 0.2)  # not CutMix; the share
    mixed, mixed_targets = random_mix(values, targets, rng, mixup=0.8, cutmix=1.0)
    assert rng.asked == (0.8, 0.8)
    assert_close(mixed, 0.2 * values + 0.8 * values.flip(0))
    assert_close(mixed_targets, 0.2 * targets + 0.8 * targets.flip(0))
    assert_close(mixed_targets.sum(1), torch.ones(6))


def test_kinds_of_mixing():
    values, targets = torch.randn(2, 1, 8, 8), torch.eye(2)
    rng = Fixed(0.3, 0.75, 0.5, 0.5)
    mixed, mixed_targets = random_mix(values, targets, rng, mixup=0.8, cutmix=1.5)
    assert rng.asked == (1.5, 1.5)
    assert (mixed == values).double().mean() == 0.75
    assert mixed_targets.tolist() == [[0.75, 0.25], [0.25, 0.75]]
    rng = Fixed(0.75)
    assert_close(random_mix(values, targets, rng, mixup=0.4, cutmix=0)[0], 0.75 * values + 0.25 * values.flip(0))
    assert rng.asked == (0.4, 0.4)
    mixed, _ = random_mix(values, targets, Fixed(0.75, 0.5, 0.5), mixup=0, cutmix=1)
    assert (mixed == values).double().mean() == 0.75
    with pytest.raises(ValueError, match="must hold an even number of them, got 3"):
        random_mix(torch.randn(3, 1, 8, 8), torch.eye(3), Fixed(), mixup=0.8, cutmix=0)


# Training and evaluation


def batch_of(images, indices, epoch=0):
    return images.collate([images.example(i, epoch) for i in indices])


@pytest.mark.parametrize("crop", ["random-resized", "padded"])
@pytest.mark.parametrize("channels", [3, 1])
def test_batches_of_the_published_augmentation(crop, channels):
    data = image_data(channels=channels)
    images = TrainingImages(data, 32, Augmentation(crop=crop, **PUBLISHED), seed=3)
    assert len(images) == 12
    batch = batch_of(images, range(12), epoch=2)
    values, labels = batch["pixel_values"], batch["labels"]
    assert (values.shape, values.dtype) == ((12, channels, 32, 32), torch.float32)
    assert (labels.shape, labels.dtype) == ((12, 10), torch.float32)
    assert_close(labels.sum(1), torch.ones(12))
    # The random numbers belong to the examples, and to the first of a batch.
    assert torch.equal(batch_of(images, range(12), epoch=2)["pixel_values"], values)
    again = TrainingImages(data, 32, Augmentation(crop=crop, **PUBLISHED), seed=3)
    assert torch.equal(batch_of(again, range(12), epoch=2)["pixel_values"], values)
    for other in (batch_of(images, range(12), epoch=3), batch_of(again, [1, 0, *range(2, 12)], epoch=2)):
        assert not torch.equal(other["pixel_values"], values)
    images = TrainingImages(data, 32, Augmentation(crop=crop, **PUBLISHED), seed=4)
    assert not torch.equal(batch_of(images, range(12), epoch=2)["pixel_values"], values)


def test_an_example_is_changed_alone_as_among_others():
    changes = Augmentation(crop="random-resized", flip=0.5, randaugment=RandAugment(), erasing=0.5)
    images = TrainingImages(image_data(), 24, changes, seed=0)
    together = batch_of(images, [5, 2, 9], epoch=7)
    assert together["labels"].tolist() == [5, 2, 9]
    for place, index in enumerate([5, 2, 9]):
        assert torch.equal(batch_of(images, [index], epoch=7)["pixel_values"][0], together["pixel_values"][place])
    assert torch.equal(images.collate([images[5]])["pixel_values"], batch_of(images, [5])["pixel_values"])


def test_normalised_values_stay_in_range():
    data = image_data()
    changes = Augmentation(crop="padded", flip=0.5, randaugment=RandAugment(operations=4), mixup=0.8, cutmix=1.0)
    values = batch_of(TrainingImages(data, 32, changes, seed=0), range(12))["pixel_values"]
    pixels = values * torch.tensor(data.std)[:, None, None] + torch.tensor(data.mean)[:, None, None]
    assert pixels.min() > -1e-5
    assert pixels.max() < 1 + 1e-5


def test_without_augmentation_training_images_are_those_of_evaluation():
    data = image_data()
    for size in (32, 24, 48):
        images, evaluated = TrainingImages(data, size, Augmentation(), seed=0), EvaluationImages(data, "train", size)
        batch = batch_of(images, range(4), epoch=5)
        expected = evaluated.collate([evaluated[i] for i in range(4)])
        assert torch.equal(batch["pixel_values"], expected["pixel_values"])
        assert batch["labels"].tolist() == expected["labels"].tolist() == [0, 1, 2, 3]
        assert expected["labels"].dtype == torch.int64


def test_evaluation_takes_small_images_as_they_are():
    data = image_data()
    evaluated = EvaluationImages(data, "valid", 32)
    assert len(evaluated) == 12
    values = evaluated.collate([evaluated[3], evaluated[7]])["pixel_values"]
    pixels = torch.stack([data.valid[3], data.valid[7]]).double()
    for channel in range(3):
        expected = (pixels[:, channel] / 255 - data.mean[channel]) / data.std[channel]
        assert_close(values[:, channel], expected.float())


def test_smoothing_without_mixing():
    images = TrainingImages(image_data(), 32, Augmentation(label_smoothing=0.1), seed=0)
    labels = batch_of(images, [3])["labels"]
    assert labels[0].tolist() == pytest.approx([0.01] * 3 + [0.91] + [0.01] * 6)


def test_workers_give_the_same_batches(tmp_path):
    write.folders(tmp_path, count=4)
    changes = Augmentation(crop="random-resized", **PUBLISHED)
    images = TrainingImages(open_images(tmp_path), 16, changes, seed=1)
    alone_loader = DataLoader(images, batch_size=4, collate_fn=images.collate)
    shared_loader = DataLoader(
        images, batch_size=4, collate_fn=images.collate, num_workers=2, multiprocessing_context="fork"
    )
    for alone, shared_work in zip(alone_loader, shared_loader, strict=True):
        assert torch.equal(alone["pixel_values"], shared_work["pixel_values"])
        assert torch.equal(alone["labels"], shared_work["labels"])


def test_mean_and_deviation_of_mnist():
    data = open_images(shared("data", "mnist"))
    images = TrainingImages(data, 28, Augmentation(), seed=0)
    values = batch_of(images, range(4000))["pixel_values"]
    assert abs(values.mean()) < 0.02
    assert abs(values.std() - 1) < 0.02


# Errors


def test_errors_of_images():
    data = image_data()
    with pytest.raises(ValueError, match="toy: crops of padded images need images of 28×28 pixels, got 32×32"):
        TrainingImages(data, 28, Augmentation(crop="padded"), seed=0)
    with pytest.raises(ValueError, match="toy: no split 'test'; there are: train, valid"):
        EvaluationImages(data, "test", 32)
    mixing = TrainingImages(data, 32, Augmentation(mixup=0.8), seed=0)
    with pytest.raises(ValueError, match=r"an even number of them, got 5; change training.device_batch_size"):
        batch_of(mixing, range(5))


def test_images_of_several_sizes_are_not_padded(tmp_path):
    for part, name, height in (("train", "a", 32), ("train", "b", 40), ("val", "a", 32), ("val", "b", 32)):
        write.picture(tmp_path / part / name / "0.png", height, 32)
    images = TrainingImages(open_images(tmp_path), 32, Augmentation(crop="padded"), seed=0)
    with pytest.raises(ValueError, match=r"images of 32×32 pixels, got 40×32 \(number 1\): use this size"):
        images.example(1, epoch=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flip": 1.5}, "augmentation.flip is a probability, got 1.5"),
        ({"erasing": -0.1}, "erasing is a probability, got -0.1"),
        ({"mixup": -1.0}, "mixup must not be negative, got -1"),
        ({"cutmix": -1.0}, "cutmix must not be negative"),
        ({"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\), got 1"),
        ({"repeats": 0}, "repeats must be at least 1, got 0"),
    ],
)
def test_errors_of_augmentation(options, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"magnitude": 11}, r"randaugment.magnitude must be in \[0, 10\], got 11"),
        ({"deviation": -1}, "randaugment.deviation must not be negative, got -1"),
        ({"operations": 0}, "randaugment.operations must be at least 1, got 0"),
    ],
)
def test_errors_of_randaugment(options, message):
    with pytest.raises(ValueError, match=message):
        RandAugment(**options)


def test_other_means_than_those_of_the_data():
    data = dataclasses.replace(image_data(channels=1), mean=(0.0,), std=(1.0,))
    images = EvaluationImages(data, "train", 32)
    assert torch.equal(images.collate([images[0]])["pixel_values"][0], data.train[0] / 255)
