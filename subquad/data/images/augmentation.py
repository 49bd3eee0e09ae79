"""How training images are changed, as a recipe says it."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class RandAugment:
    """Random operations on colours and geometry (Cubuk et al., 2020, arXiv 1909.13719).

    Args:
        magnitude: Mean strength of an operation, 0 … 10.
        deviation: Standard deviation of the strength.
        operations: How many are drawn for an image; each is applied with probability ½.
    """

    magnitude: float = 9.0
    deviation: float = 0.5
    operations: int = 2

    def __post_init__(self) -> None:
        if not 0 <= self.magnitude <= 10:
            raise ValueError(f"randaugment.magnitude must be in [0, 10], got {self.magnitude}")
        if self.deviation < 0:
            raise ValueError(f"randaugment.deviation must not be negative, got {self.deviation}")
        if self.operations < 1:
            raise ValueError(f"randaugment.operations must be at least 1, got {self.operations}")


@dataclass(frozen=True)
class Augmentation:
    """How training images are changed; without arguments they are not, and are cut out as for evaluation.

    Args:
        crop: "random-resized": a random part of the image, resized; "padded": a random part of the image with 4 black
            pixels around it, for small images; "none": as for evaluation.
        flip: Probability that an image is mirrored, left to right.
        randaugment: Random operations; None: none.
        erasing: Probability that a rectangle of an image is replaced by noise.
        mixup: α of Beta(α, α), the share of an image that is mixed with another one; 0: images are not mixed.
        cutmix: α of Beta(α, α), the share of an image that is kept when a box of another one is put in; 0: never.
            With both, each batch is mixed in one of the two ways, with probability ½.
        label_smoothing: Share of the target that is spread over all classes.
        repeats: How often an epoch shows an image, in another form each time; it shows as many fewer images.
    """

    crop: Literal["random-resized", "padded", "none"] = "none"
    flip: float = 0.0
    randaugment: RandAugment | None = None
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    label_smoothing: float = 0.0
    repeats: int = 1

    def __post_init__(self) -> None:
        for name in ("flip", "erasing"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"augmentation.{name} is a probability, got {getattr(self, name)}")
        for name in ("mixup", "cutmix"):
            if getattr(self, name) < 0:
                raise ValueError(f"augmentation.{name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"augmentation.label_smoothing must be in [0, 1), got {self.label_smoothing}")
        if self.repeats < 1:
            raise ValueError(f"augmentation.repeats must be at least 1, got {self.repeats}")

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are mixed; it must hold an even number of them."""
        return bool(self.mixup or self.cutmix)
