"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009) as their pickles of Python hold them; nothing in them is executed."""

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from subquad.data.errors import DataError, DataNotFoundError
from subquad.data.images.pickles import PickledArray, as_text, read_pickle
from subquad.data.images.splits import ImageArrays, Release

PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Cifar:
    """One of the two data sets.

    Args:
        title: Its name.
        folder: The folder that its archive unpacks to.
        parts: The files of each part.
        size: Number of images in a file.
        labels: The key of the classes of a file's images.
        meta: The file with the names of the classes.
        names: The key of these.
        num_classes: Number of classes.
        mean: Of each colour over the training images, of values in [0, 1].
        std: Standard deviation, likewise.
        md5: Of each published file.
    """

    title: str
    folder: str
    parts: dict[str, tuple[str, ...]]
    size: dict[str, int]
    labels: str
    meta: str
    names: str
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    md5: dict[str, str]


CIFAR10 = Cifar(
    title="CIFAR-10",
    folder="cifar-10-batches-py",
    parts={"train": tuple(f"data_batch_{k}" for k in range(1, 6)), "test": ("test_batch",)},
    size={"train": 10_000, "test": 10_000},
    labels="labels",
    meta="batches.meta",
    names="label_names",
    num_classes=10,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    md5={
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
        "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
    },
)
CIFAR100 = Cifar(
    title="CIFAR-100",
    folder="cifar-100-python",
    parts={"train": ("train",), "test": ("test",)},
    size={"train": 50_000, "test": 10_000},
    labels="fine_labels",
    meta="meta",
    names="fine_label_names",
    num_classes=100,
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
    md5={
        "train": "16019d7e3df5f24257cddd939b257f8d",
        "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
        "meta": "7973b15100ade9c7d40fb424638fde48",
    },
)


def find_cifar(root: Path, cifar: Cifar) -> Path | None:
    """The folder with files of a data set: `root`, or `[cifar/ | cifar10/]FOLDER` in it; None if there is none."""
    files = [name for names in cifar.parts.values() for name in names]
    return next((place for place in _places(root, cifar) if any((place / name).is_file() for name in files)), None)


def _places(root: Path, cifar: Cifar) -> list[Path]:
    root = root.absolute()
    return [root / place / cifar.folder for place in ("", "cifar", "cifar10")] + [root]


def read_cifar(root: Path, cifar: Cifar, *, strict: bool = False) -> Release:
    """Read a data set.

    Args:
        root: Where its files are; see `find_cifar`.
        cifar: Which data set.
        strict: A file that is not the published one is an error; otherwise a warning, if it is of the same size.

    Raises:
        DataNotFoundError: A file is missing.
        DataError: A file is not what the data set has.
    """
    parts = {part: read_part(root, cifar, part, strict=strict) for part in cifar.parts}
    (path,) = _files(root, cifar, [cifar.meta])
    content = path.read_bytes()
    names = read_pickle(content, path, f"list of classes of {cifar.title}").get(cifar.names)
    names = [as_text(name) for name in names] if isinstance(names, list) else []
    if len(names) != cifar.num_classes or not all(isinstance(name, str) for name in names):
        raise DataError(f"{path}: `{cifar.names}` must be a list of the names of {cifar.num_classes} classes")
    if strict or len(parts["train"]) == cifar.size["train"] * len(cifar.parts["train"]):
        _check_md5(content, path, cifar, strict)
    return Release(cifar.title, names, dict(parts), cifar.mean, cifar.std)


def read_part(root: Path, cifar: Cifar, part: str, *, strict: bool = False) -> ImageArrays:
    """Read the images of a part, `train` or `test`; see `read_cifar`."""
    if part not in cifar.parts:
        raise ValueError(f"no part {part!r}; there are: {', '.join(cifar.parts)}")
    files = _files(root, cifar, cifar.parts[part])
    batches = [_read_batch(path, cifar, cifar.size[part], strict) for path in files]
    images, labels = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
    return ImageArrays(images, labels)


def _files(root: Path, cifar: Cifar, names: list[str] | tuple[str, ...]) -> list[Path]:
    folder = find_cifar(root, cifar)
    files = [place / name for place in ([folder] if folder else _places(root, cifar)) for name in names]
    if missing := [path for path in files if not path.is_file()]:
        expected = [*(name for part in cifar.parts.values() for name in part), cifar.meta]
        raise DataNotFoundError(
            f"{cifar.title} is not whole: expected {', '.join(expected)} in {cifar.folder}; "
            f"lacking {', '.join(map(str, missing))}"
        )
    return files


def _read_batch(path: Path, cifar: Cifar, size: int, strict: bool) -> tuple[np.ndarray, np.ndarray]:
    """Images `(num_images, 3, 32, 32)` uint8 and their classes, int64."""
    content = path.read_bytes()
    batch = read_pickle(content, path, f"batch of {cifar.title}")
    data, labels = batch.get("data"), batch.get(cifar.labels)
    if not isinstance(data, PickledArray) or not isinstance(labels, list):
        raise DataError(
            f"{path}: expected an array `data` and a list `{cifar.labels}`, got the keys {', '.join(map(str, batch))}"
        )
    pixels = data.uint8()
    if pixels is None or pixels.ndim != 2 or pixels.shape[1] != PIXELS or not len(pixels):
        raise DataError(f"{path}: `data` must be uint8 of the shape ({size}, {PIXELS}), got {data}")
    last = cifar.num_classes - 1
    if len(labels) != len(pixels) or not all(type(label) is int and 0 <= label <= last for label in labels):
        raise DataError(
            f"{path}: `{cifar.labels}` must be a whole number from 0 to {last} for each of {len(pixels)} images"
        )
    # Batches of another size are no copies of the published ones, and are told by their size.
    if strict or len(pixels) == size:
        _check_md5(content, path, cifar, strict)
    return pixels.reshape(-1, 3, 32, 32), np.array(labels, dtype=np.int64)


def _check_md5(content: bytes, path: Path, cifar: Cifar, strict: bool) -> None:
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != cifar.md5[path.name]:
        message = f"{path}: not the published file, whose MD5 is {cifar.md5[path.name]}"
        if strict:
            raise DataError(message)
        warnings.warn(message, stacklevel=2)
