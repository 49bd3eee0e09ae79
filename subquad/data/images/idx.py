"""The idx files of MNIST (LeCun et al., 1998) and of data sets of the same form, as Fashion-MNIST; gzipped or not."""

import gzip
import itertools
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from subquad.data.errors import DataError, DataNotFoundError
from subquad.data.images.splits import ImageArrays, Release

PARTS = {"train": "train", "test": "t10k"}
# Two zeros, the code of uint8, and the number of dimensions.
MAGIC = {"images": b"\0\0\x08\x03", "labels": b"\0\0\x08\x01"}
# The most that a byte of a gzip file can stand for.
MAX_RATIO = 1032


def find_idx(root: Path) -> Path | None:
    """The folder with idx files: `root`, or `raw` or `MNIST/raw` in it; None if there is none."""
    places = (root / place for place in ("", "raw", "MNIST/raw"))
    return next(
        (place for place in places for part in PARTS for kind in MAGIC if _find(place, part, kind) is not None), None
    )


def read_idx(root: Path) -> Release:
    """Read the images of a folder; the mean and standard deviation are those of its training images.

    Args:
        root: Where the files are; see `find_idx`.

    Raises:
        DataNotFoundError: A file is missing.
        DataError: A file is not what its header says.
    """
    folder = find_idx(root) or root
    files = {(part, kind): _find(folder, part, kind) for part in PARTS for kind in MAGIC}
    if missing := [_names(part, kind)[0] for (part, kind), path in files.items() if path is None]:
        raise DataNotFoundError(f"{folder}: lacking {', '.join(missing)}, gzipped or not")
    parts = {part: _read_part(*(files[part, kind] for kind in MAGIC)) for part in PARTS}  # pyright: ignore[reportArgumentType]
    shapes = {part: images.images.shape[1:] for part, images in parts.items()}
    if shapes["train"] != shapes["test"]:
        raise DataError(f"{folder}: training images are {shapes['train']}, test images {shapes['test']}")
    num_classes = max(int(images.labels.max()) for images in parts.values()) + 1
    # In blocks, for numbers are counted as int64.
    blocks = np.array_split(parts["train"].images.reshape(-1), 64)
    counts = sum(np.bincount(block, minlength=256) for block in blocks)
    values = np.arange(256) / 255
    mean = np.average(values, weights=counts)
    std = np.sqrt(np.average((values - mean) ** 2, weights=counts))
    if not std:
        raise DataError(f"{files['train', 'images']}: all pixels are equal")
    return Release(
        "MNIST (idx files)",
        [str(label) for label in range(num_classes)],
        parts,
        (round(float(mean), 4),),
        (max(round(float(std), 4), 1e-4),),
    )


def _names(part: str, kind: str) -> list[str]:
    stem, dimensions = f"{PARTS[part]}-{kind}", MAGIC[kind][-1]
    names = (f"{stem}-idx{dimensions}-ubyte", f"{stem}.idx{dimensions}-ubyte")
    return [name + suffix for name, suffix in itertools.product(names, ("", ".gz"))]


def _find(folder: Path, part: str, kind: str) -> Path | None:
    return next((folder / name for name in _names(part, kind) if (folder / name).is_file()), None)


def _read_part(images_path: Path, labels_path: Path) -> ImageArrays:
    images = _read_array(images_path, MAGIC["images"])
    labels = _read_array(labels_path, MAGIC["labels"])
    if len(images) != len(labels):
        raise DataError(f"{labels_path}: {len(labels)} labels for {len(images)} images of {images_path.name}")
    return ImageArrays(images[:, None], labels.astype(np.int64))


def _read_array(path: Path, magic: bytes) -> np.ndarray:
    """The array of a file; nothing is reserved that the file cannot hold."""
    size = path.stat().st_size
    is_packed = path.name.endswith(".gz")
    try:
        with gzip.open(path) if is_packed else path.open("rb") as file:
            header_size = 4 + 4 * magic[-1]
            header = file.read(header_size)
            if header[:4] != magic or len(header) < header_size:
                raise DataError(
                    f"{path}: not an idx file of {magic[-1]} dimensions (it begins with {header[:4].hex()})"
                )
            shape = struct.unpack(f">{magic[-1]}I", header[4:])
            expected = math.prod(shape)
            if not expected:
                raise DataError(f"{path}: the header says that there is nothing in it, {shape}")
            if expected > size * (MAX_RATIO if is_packed else 1):
                raise DataError(f"{path}: the header says {expected:,} bytes of {shape}; the file is cut off")
            content = file.read(expected + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if len(content) != expected:
        found = f"{len(content):,}" if len(content) < expected else "more"
        raise DataError(f"{path}: the header says {expected:,} bytes of {shape}, there are {found}")
    return np.frombuffer(content, np.uint8).reshape(shape)
