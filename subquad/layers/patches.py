"""Patch embeddings: from an image to a sequence of vectors, row after row. Built by name from a plain dictionary."""

import itertools
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from subquad.registry import build_from

Size = int | Sequence[int]


def as_pair(size: Size) -> tuple[int, int]:
    """Height and width; one number is both.

    Raises:
        ValueError: If it is not one or two positive numbers.
    """
    height, width = (size, size) if isinstance(size, int) else size if len(size) == 2 else (0, 0)
    if height < 1 or width < 1:
        raise ValueError(f"a size must be one positive number, or two for height and width, got {size!r}")
    return height, width


class PatchEmbedding(nn.Module):
    """Base of patch embeddings. A subclass sets `grid` and implements `embed`.

    Args:
        dim: Features of a patch.
        image_size: Height and width of the images.
        num_channels: Channels of the images.
    """

    grid: tuple[int, int]
    """Rows and columns of patches."""

    def __init__(self, dim: int, image_size: Size, num_channels: int):
        super().__init__()
        self.shape = (num_channels, *as_pair(image_size))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Patches (batch, rows · columns, dim) of `pixel_values` (batch, channels, height, width).

        Raises:
            ValueError: If the images have another shape.
        """
        if pixel_values.shape[1:] != self.shape:
            raise ValueError(
                f"`pixel_values` must be (batch, {', '.join(map(str, self.shape))}), got {tuple(pixel_values.shape)}"
            )
        return self.embed(pixel_values)

    def embed(self, pixel_values: Tensor) -> Tensor:
        """As `forward`, for images that are already validated."""
        raise NotImplementedError


class LinearPatches(PatchEmbedding):
    """One linear map of each patch, flattened in the order row, column, channel (ViT, arXiv 2010.11929).

    Args:
        dim: As in `PatchEmbedding`.
        image_size: As in `PatchEmbedding`.
        num_channels: As in `PatchEmbedding`.
        patch_size: Height and width of a patch; divides `image_size`.
    """

    def __init__(self, dim: int, image_size: Size, num_channels: int, patch_size: Size = 16):
        super().__init__(dim, image_size, num_channels)
        self.patch_size = as_pair(patch_size)
        (height, width), image = self.patch_size, as_pair(image_size)
        if image[0] % height or image[1] % width:
            raise ValueError(
                f"images of {image[0]} × {image[1]} pixels cannot be cut into patches of {height} × {width}: "
                "choose a `patch_size` that divides `image_size`"
            )
        self.grid = (image[0] // height, image[1] // width)
        self.proj = nn.Linear(height * width * num_channels, dim)

    def embed(self, pixel_values: Tensor) -> Tensor:
        """Cut the images into patches and map each."""
        (rows, columns), (height, width) = self.grid, self.patch_size
        patches = pixel_values.unflatten(3, (columns, width)).unflatten(2, (rows, height))
        return self.proj(patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2))


class ConvolutionalPatches(PatchEmbedding):
    """Base of patch embeddings by convolutions. A subclass sets `stem`."""

    stem: nn.Module

    def embed(self, pixel_values: Tensor) -> Tensor:
        """Run the stem."""
        # Not flatten and transpose: the gradient of batch norm on the CPU would be wrong with one image (torch 2.13).
        return self.stem(pixel_values).permute(0, 2, 3, 1).flatten(1, 2)


class OverlappingPatches(ConvolutionalPatches):
    """One convolution over patches that overlap, padded by half a patch.

    Args:
        dim: As in `PatchEmbedding`.
        image_size: As in `PatchEmbedding`.
        num_channels: As in `PatchEmbedding`.
        patch_size: Height and width of a patch.
        stride: Step from one patch to the next.
    """

    def __init__(self, dim: int, image_size: Size, num_channels: int, patch_size: Size = 16, stride: Size = 14):
        super().__init__(dim, image_size, num_channels)
        patch, step = as_pair(patch_size), as_pair(stride)
        padding = (patch[0] // 2, patch[1] // 2)
        self.stem = nn.Conv2d(num_channels, dim, patch, step, padding)
        rows, columns = (
            (side + 2 * pad - size) // by + 1
            for side, pad, size, by in zip(as_pair(image_size), padding, patch, step, strict=True)
        )
        self.grid = (rows, columns)


class ConvolutionalStem(ConvolutionalPatches):
    """Four 3×3 convolutions of stride 2 to dim/8, dim/4, dim/2 and dim features, each with batch norm, GELU between.

    Patches are of 16 × 16 pixels (Xiao et al. 2021, arXiv 2106.14881; LeViT, arXiv 2104.01136).

    Args:
        dim: As in `PatchEmbedding`; a multiple of 8.
        image_size: As in `PatchEmbedding`.
        num_channels: As in `PatchEmbedding`.
    """

    def __init__(self, dim: int, image_size: Size, num_channels: int):
        super().__init__(dim, image_size, num_channels)
        if dim % 8:
            raise ValueError(f"a convolutional stem needs a multiple of 8 features, got {dim}")
        widths = [num_channels, dim // 8, dim // 4, dim // 2, dim]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.GELU()]
        self.stem = nn.Sequential(*layers[:-1])
        height, width = as_pair(image_size)
        self.grid = (-(-height // 16), -(-width // 16))


PATCH_EMBEDDINGS: dict[str, type[PatchEmbedding]] = {
    "linear": LinearPatches,
    "overlap": OverlappingPatches,
    "conv": ConvolutionalStem,
}


def build_patch_embedding(config: dict[str, Any], dim: int, image_size: Size, num_channels: int) -> PatchEmbedding:
    """Build a patch embedding from `{"type": "linear" | "overlap" | "conv", "patch_size": ..., ...}`.

    Raises:
        ValueError: If the type or an option is unknown, or sizes do not fit.
    """
    return build_from("patch embedding", PATCH_EMBEDDINGS, config, dim, image_size, num_channels)
