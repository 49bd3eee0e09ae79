"""The operations of RandAugment on batches, as Pillow computes them on one image.

`images` are `(batch, channels, height, width)` uint8 with one channel or three, and so is what is returned; where an
operation has a strength, `(batch,)` float32 or int64, each image has its own.
"""

import torch
from torch import Tensor


def luma(images: Tensor) -> Tensor:
    """Grey values by ITU-R 601 in whole numbers: `(batch, 1, height, width)` int32."""
    if images.shape[1] == 1:
        return images.int()
    red, green, blue = images.int().split(1, dim=1)
    return (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16


# Tables: the new value of a pixel depends on its old one, and on the whole image


def _look_up(images: Tensor, tables: Tensor) -> Tensor:
    """Values of tables `(batch, channels, 256)` at those of the pixels."""
    return tables.gather(2, images.flatten(2).long()).view_as(images)


def _histograms(images: Tensor) -> Tensor:
    """How often each value occurs, `(batch, channels, 256)` int64."""
    values = images.flatten(2).long()
    return torch.zeros(*values.shape[:2], 256, dtype=torch.long).scatter_add_(2, values, torch.ones_like(values))


def autocontrast(images: Tensor) -> Tensor:
    """Stretch each channel to the range 0 … 255."""
    values = images.flatten(2)
    low, high = values.amin(2, keepdim=True).double(), values.amax(2, keepdim=True).double()
    scale = torch.full_like(low, 255) / (high - low).clamp_min(1)
    stretched = torch.arange(256) * scale - low * scale
    tables = torch.where(high > low, stretched, torch.arange(256.0)).clamp(0, 255)
    return _look_up(images, tables.to(torch.uint8))


def equalize(images: Tensor) -> Tensor:
    """Make all values of each channel about equally frequent."""
    histograms = _histograms(images)
    num_pixels = images.shape[2] * images.shape[3]
    last = images.flatten(2).amax(2, keepdim=True).long()
    step = (num_pixels - histograms.gather(2, last)) // 255
    before = histograms.cumsum(2) - histograms
    tables = ((before + step // 2) // step.clamp_min(1)).clamp_max(255)
    return _look_up(images, torch.where(step > 0, tables, torch.arange(256)).to(torch.uint8))


def invert(images: Tensor) -> Tensor:
    """The negative."""
    return 255 - images


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keep the highest bits, 0 … 8 of them, of each value."""
    masks = (256 - (1 << (8 - bits))).to(torch.uint8)
    return images & _per_image(masks)


def solarize(images: Tensor, thresholds: Tensor) -> Tensor:
    """Invert values that are not below a threshold."""
    return torch.where(images < _per_image(thresholds), images, 255 - images)


def solarize_add(images: Tensor, amounts: Tensor) -> Tensor:
    """Make the values below 128 larger."""
    larger = (images + _per_image(amounts)).clamp_max(255).to(torch.uint8)
    return torch.where(images < 128, larger, images)


# Mixtures of the image with a poorer one; a factor above 1 goes away from that one


def color(images: Tensor, factors: Tensor) -> Tensor:
    """Mix with the grey image."""
    return _blend(luma(images), images, factors)


def contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Mix with the mean of the grey image."""
    means = (luma(images).double().mean((1, 2, 3), keepdim=True) + 0.5).floor()
    return _blend(means, images, factors)


def brightness(images: Tensor, factors: Tensor) -> Tensor:
    """Mix with black."""
    return _blend(torch.zeros(()), images, factors)


def sharpness(images: Tensor, factors: Tensor) -> Tensor:
    """Mix with the image whose inner pixels are means of 3×3, the middle counting five times."""
    blurred = images.float()
    triples = blurred[..., :-2, :] + blurred[..., 1:-1, :] + blurred[..., 2:, :]
    sums = triples[..., :-2] + triples[..., 1:-1] + triples[..., 2:] + 4 * blurred[..., 1:-1, 1:-1]
    blurred[..., 1:-1, 1:-1] = (sums / 13 + 0.5).floor()
    return _blend(blurred, images, factors)


def _blend(poorer: Tensor, images: Tensor, factors: Tensor) -> Tensor:
    poorer = poorer.float()
    return (poorer + _per_image(factors.float()) * (images - poorer)).clamp(0, 255).to(torch.uint8)


def _per_image(values: Tensor) -> Tensor:
    return values[:, None, None, None]


# Movements; what comes from outside the image has the colour `fill`, (channels,) uint8


def rotate(images: Tensor, degrees: Tensor, fill: Tensor) -> Tensor:
    """Turn around the middle, counter-clockwise."""
    height, width = images.shape[2:]
    x, y = width / 2, height / 2
    cos, sin = torch.deg2rad(degrees).cos(), torch.deg2rad(degrees).sin()
    return affine(images, _matrices(cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y), fill)


def shear_x(images: Tensor, factors: Tensor, fill: Tensor) -> Tensor:
    """Move each row to the left by `factors` times its distance from the top."""
    return affine(images, _matrices(1, factors, 0, 0, 1, 0), fill)


def shear_y(images: Tensor, factors: Tensor, fill: Tensor) -> Tensor:
    """Move each column up by `factors` times its distance from the left."""
    return affine(images, _matrices(1, 0, 0, factors, 1, 0), fill)


def translate_x(images: Tensor, shares: Tensor, fill: Tensor) -> Tensor:
    """Move to the left by shares of the width."""
    return affine(images, _matrices(1, 0, shares * images.shape[3], 0, 1, 0), fill)


def translate_y(images: Tensor, shares: Tensor, fill: Tensor) -> Tensor:
    """Move up by shares of the height."""
    return affine(images, _matrices(1, 0, 0, 0, 1, shares * images.shape[2]), fill)


def _matrices(*entries: Tensor | float) -> Tensor:
    """Matrices `(batch, 2, 3)` of six entries, row by row."""
    tensors = torch.broadcast_tensors(*(torch.as_tensor(entry, dtype=torch.float64) for entry in entries))
    return torch.stack(tensors, dim=-1).unflatten(-1, (2, 3))


def affine(images: Tensor, matrices: Tensor, fill: Tensor) -> Tensor:
    """Move pixels: the one at (x, y) is taken from (a x + b y + c, d x + e y + f), bicubic.

    Coordinates are those of pixels' centres, x from the left and y from the top, (½, ½) being the first pixel.

    Args:
        images: `(batch, channels, height, width)` uint8.
        matrices: `(batch, 2, 3)`, rows a b c and d e f, float64.
        fill: The colour of what comes from outside, `(channels,)` uint8.

    Returns:
        As `images`.
    """
    height, width = images.shape[2:]
    centres = torch.stack(
        [
            (torch.arange(width) + 0.5).expand(height, width),
            (torch.arange(height) + 0.5)[:, None].expand(height, width),
            torch.ones(height, width),
        ]
    )
    x, y = (matrices @ centres.double().flatten(1)).unbind(1)  # (batch, pixels) each
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    rows, columns = _cubic_taps(y - 0.5, height), _cubic_taps(x - 0.5, width)
    pixels = images.flatten(2).float()
    result = torch.zeros_like(pixels)
    for row, row_weight in rows:
        line, start = torch.zeros_like(pixels), row * width
        for column, column_weight in columns:
            source = (start + column)[:, None].expand_as(pixels)
            line.addcmul_(pixels.gather(2, source), column_weight[:, None])
        result.addcmul_(line, row_weight[:, None])
    # Pillow cuts fractions off; what should be whole may lie a little below.
    moved = (result + 1e-3).clamp(0, 255).to(torch.uint8)
    return torch.where(inside[:, None], moved, fill[:, None]).view_as(images)


def _cubic_taps(places: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    """The four pixels around each place, and their weights by Keys' cubic convolution with a = −1, as in Pillow.

    Movements along one side leave the places along the other one whole, where one pixel has all the weight.
    """
    first = places.floor()
    t = (places - first).float()
    u = 1 - t
    weights = [-t * u * u, 1 + t * t * (t - 2), 1 + u * u * (u - 2), -u * t * t]
    taps = enumerate(weights, start=-1)
    return [((first.long() + offset).clamp(0, size - 1), weight) for offset, weight in taps if weight.any()]
