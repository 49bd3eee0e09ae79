"""Images with classes: what is on disk → changed, normalised batches."""

from subquad.data.images.augmentation import Augmentation, RandAugment
from subquad.data.images.sources import ImageData, open_images
from subquad.data.images.splits import ImageSplit
from subquad.data.images.transforms import EvaluationImages, ImageExample, TrainingImages

__all__ = [
    "Augmentation",
    "EvaluationImages",
    "ImageData",
    "ImageExample",
    "ImageSplit",
    "RandAugment",
    "TrainingImages",
    "open_images",
]
