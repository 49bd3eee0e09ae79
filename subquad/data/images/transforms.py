"""Images as a model sees them, for training and for evaluation."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from subquad.data.images.augmentation import Augmentation
from subquad.data.images.chance import Purpose, random_numbers
from subquad.data.images.erasing import random_erase
from subquad.data.images.geometry import random_flip, random_padded_crop, random_resized_crop, resized_centre
from subquad.data.images.mixing import random_mix, smoothed
from subquad.data.images.randaugment import rand_augment
from subquad.data.images.sources import ImageData

# Images of up to this size are taken as they are, if they have the size that is asked for.
SMALL = 32


class ImageExample(NamedTuple):
    """An image before what is done to a whole batch.

    Args:
        image: `(channels, size, size)` uint8.
        label: Its class.
        index: Its number.
        epoch: The epoch whose random numbers it gets.
    """

    image: Tensor
    label: int
    index: int
    epoch: int


class EvaluationImages(Dataset[ImageExample]):
    """Images of a split as evaluation sees them: of small images all, of larger ones the resized middle.

    Args:
        data: The data.
        split: train, valid or test.
        size: Height and width of the inputs.

    Raises:
        ValueError: There is no such split.
    """

    def __init__(self, data: ImageData, split: str, size: int) -> None:
        if split not in data.splits:
            raise ValueError(f"{data.name}: no split '{split}'; there are: {', '.join(data.splits)}")
        self.data, self.images, self.size = data, data.splits[split], size

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> ImageExample:
        return ImageExample(evaluation_crop(self.images[index], self.size), int(self.images.labels[index]), index, 0)

    def collate(self, examples: Sequence[ImageExample]) -> dict[str, Tensor]:
        """Stack and normalise.

        Returns:
            `pixel_values` (batch, channels, size, size) float32, and `labels` (batch,) int64.
        """
        images = torch.stack([example.image for example in examples])
        return {"pixel_values": normalize(images, self.data), "labels": _labels(examples)}


class TrainingImages(Dataset[ImageExample]):
    """Images of the split train, changed at random in each epoch: a function of (seed, epoch, index) alone.

    A batch is mixed by (seed, epoch, index) of its first example.

    Args:
        data: The data.
        size: Height and width of the inputs.
        augmentation: What is done to the images.
        seed: Of the changes.

    Raises:
        ValueError: The first image is to be padded, and has another size.
    """

    def __init__(self, data: ImageData, size: int, augmentation: Augmentation, seed: int) -> None:
        self.data, self.size, self.augmentation, self.seed = data, size, augmentation, seed
        self.example(0, 0)  # finds a wrong size before long work

    def __len__(self) -> int:
        return len(self.data.train)

    def __getitem__(self, index: int) -> ImageExample:
        return self.example(index, 0)

    def example(self, index: int, epoch: int) -> ImageExample:
        """The example as it is in an epoch.

        Raises:
            ValueError: The image is to be padded, and has another size.
        """
        image = self.data.train[index]
        if self.augmentation.crop == "random-resized":
            rng = random_numbers(self.seed, epoch, index, Purpose.CROP)
            image = random_resized_crop(image, self.size, rng)
        elif self.augmentation.crop == "none":
            image = evaluation_crop(image, self.size)
        elif (found := tuple(image.shape[1:])) != (self.size, self.size):
            raise ValueError(
                f"{self.data.name}: crops of padded images need images of {self.size}×{self.size} pixels, got "
                f"{found[0]}×{found[1]} (number {index}): use this size, or crop: random-resized"
            )
        return ImageExample(image, int(self.data.train.labels[index]), index, epoch)

    def collate(self, examples: Sequence[ImageExample]) -> dict[str, Tensor]:
        """Change the images of a batch, normalise and mix them.

        Returns:
            `pixel_values` (batch, channels, size, size) float32, and `labels`: (batch,) int64, or with mixing or
            smoothing probabilities (batch, num_classes) float32.

        Raises:
            ValueError: Images are to be mixed, and their number is odd.
        """
        augmentation = self.augmentation
        images = torch.stack([example.image for example in examples])
        rngs = [random_numbers(self.seed, e.epoch, e.index, Purpose.CHANGES) for e in examples]
        if augmentation.crop == "padded":
            images = random_padded_crop(images, rngs)
        if augmentation.flip:
            images = random_flip(images, rngs, augmentation.flip)
        if augmentation.randaugment:
            fill = torch.tensor(self.data.mean).mul(255).round().to(torch.uint8)
            images = rand_augment(images, rngs, augmentation.randaugment, fill)
        values, labels = normalize(images, self.data), _labels(examples)
        if augmentation.erasing:
            random_erase(values, rngs, augmentation.erasing)
        if augmentation.label_smoothing or augmentation.mixes:
            labels = smoothed(labels, len(self.data.classes), augmentation.label_smoothing)
        if augmentation.mixes:
            rng = random_numbers(self.seed, examples[0].epoch, examples[0].index, Purpose.MIXING)
            values, labels = random_mix(values, labels, rng, mixup=augmentation.mixup, cutmix=augmentation.cutmix)
        return {"pixel_values": values, "labels": labels}


def evaluation_crop(image: Tensor, size: int) -> Tensor:
    """The part of an image `(channels, height, width)` uint8 that evaluation sees: `(channels, size, size)`."""
    if size <= SMALL and image.shape[1:] == (size, size):
        return image
    return resized_centre(image, size)


def normalize(images: Tensor, data: ImageData) -> Tensor:
    """`(batch, channels, height, width)` uint8 as float32, of mean 0 and standard deviation 1 over the data."""
    mean, std = (255 * torch.tensor(values)[:, None, None] for values in (data.mean, data.std))
    return images.sub(mean).div_(std)


def _labels(examples: Sequence[ImageExample]) -> Tensor:
    return torch.tensor([example.label for example in examples])
