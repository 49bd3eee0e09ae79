"""Folders of images: one folder for each class, as ImageNet is arranged, or lists of files and classes."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from subquad.data.errors import DataError, DataNotFoundError
from subquad.data.images.splits import ImageFiles, Release

PARTS = {"train": ("train",), "valid": ("val", "valid", "validation"), "test": ("test",)}
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


# A folder for each class


def is_folder(root: Path) -> bool:
    """Whether `root` holds `train/`, or folders with images."""
    return (root / "train").is_dir() or any(next(_images(folder), None) for folder in _subfolders(root))


def read_folder(root: Path) -> Release:
    """Find the images in `PART/CLASS/…`, or in `CLASS/…`, which are all for training.

    Classes are numbered by their sorted names. Only names and sizes of the files are looked at.

    Raises:
        DataNotFoundError: There are other parts, but none for training.
        DataError: A class has no image, or the parts have other classes than the training images.
    """
    if (root / "train").is_dir():
        places = {part: [root / name for name in names] for part, names in PARTS.items()}
        folders = {part: next(filter(Path.is_dir, paths), None) for part, paths in places.items()}
    else:
        folders = {"train": root}
        known = [name for names in PARTS.values() for name in names]
        if parts := [folder.name for folder in _subfolders(root) if folder.name.lower() in known]:
            raise DataNotFoundError(f"{root}: holds {', '.join(parts)}, but no {root / 'train'}")
    # The test images of ImageNet have no classes, and are no folders.
    folders = {part: f for part, f in folders.items() if f is not None and (part != "test" or _subfolders(f))}
    classes = {part: [folder.name for folder in _subfolders(folder)] for part, folder in folders.items()}
    for part, names in classes.items():
        if not names:
            raise DataError(f"{folders[part]}: no folder for a class; images are expected in {folders[part]}/CLASS/")
        if names != classes["train"]:
            raise DataError(
                f"{folders[part]}: other classes than in {folders['train']}; "
                f"lacking {_some(set(classes['train']) - set(names))}, "
                f"more than there {_some(set(names) - set(classes['train']))}"
            )
    return Release("folders", classes["train"], {part: _read_part(folder) for part, folder in folders.items()})


def _some(names: set[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:5]) + (f" and {len(ordered) - 5} more" if len(ordered) > 5 else "") or "none"


def _subfolders(folder: Path) -> list[Path]:
    return sorted((path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")), key=str)


def _images(folder: Path) -> Iterator[os.DirEntry[str]]:
    """The images in a folder and those below it, in the order of their names."""
    with os.scandir(folder) as entries:
        ordered = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    for entry in ordered:
        if entry.is_dir(follow_symlinks=False):
            yield from _images(Path(entry.path))
        elif entry.name.lower().endswith(SUFFIXES):
            yield entry


def _read_part(folder: Path) -> ImageFiles:
    names, sizes, labels = [], [], []
    for label, subfolder in enumerate(_subfolders(folder)):
        before = len(names)
        for entry in _images(subfolder):
            names.append(os.fsencode(subfolder.name + entry.path.removeprefix(str(subfolder))))
            sizes.append(_size(entry.path))
        if len(names) == before:
            raise DataError(f"{subfolder}: no image of this class (looked for {' '.join(SUFFIXES)})")
        labels += [label] * (len(names) - before)
    return ImageFiles(folder, np.array(names), np.array(sizes), np.array(labels, dtype=np.int64))


def _size(path: str | Path, where: str = "") -> int:
    """Bytes of an image."""
    try:
        size = os.stat(path).st_size
    except (OSError, ValueError):
        raise DataNotFoundError(f"{where}{path}: no such image") from None
    if not size:
        raise DataError(f"{where}{path}: an empty file, not an image")
    return size


# Lists


def is_list(root: Path) -> bool:
    """Whether `root` holds `train.txt`."""
    return (root / "train.txt").is_file()


def read_lists(root: Path, image_root: Path | None = None) -> Release:
    """Find the images that `train.txt`, `val.txt` and `test.txt` name, in lines of a path, a blank and a class.

    Args:
        root: Where the lists are.
        image_root: The folder that paths begin at; default `root`.

    Raises:
        DataNotFoundError: `train.txt` or an image is missing; the message names the line.
        DataError: A line is of another form, or its class is outside the range.
    """
    places = {part: [root / f"{name}.txt" for name in names] for part, names in PARTS.items()}
    files = {part: next(filter(Path.is_file, paths), None) for part, paths in places.items()}
    if files["train"] is None:
        raise DataNotFoundError(f"{places['train'][0]}: no such list")
    parts: dict[str, ImageFiles] = {}
    for part, path in files.items():
        if path is not None:
            num_classes = int(parts["train"].labels.max()) + 1 if parts else None
            parts[part] = _read_list(path, image_root or root, num_classes)
    counts = np.bincount(parts["train"].labels)
    if not counts.all():
        raise DataError(f"{files['train']}: no image of class {counts.argmin()}, though one of class {len(counts) - 1}")
    return Release("lists", [str(label) for label in range(len(counts))], parts)


def _read_list(path: Path, image_root: Path, num_classes: int | None) -> ImageFiles:
    names, sizes, labels = [], [], []
    lines = path.read_bytes().splitlines()
    last = (num_classes or len(lines)) - 1
    for number, line in enumerate(lines, start=1):
        where = f"{path}: line {number}"
        if not line.strip():
            continue
        try:
            name, text = line.decode("utf-8").rsplit(maxsplit=1)
            label = int(text)
        except ValueError:
            raise DataError(f"{where} is not a path, a blank and the number of a class: {line[:100]!r}") from None
        if not 0 <= label <= last:
            raise DataError(f"{where}: class {label} is outside 0 … {last}")
        sizes.append(_size(image_root / name, f"{where}: "))
        names.append(os.fsencode(name))
        labels.append(label)
    if not names:
        raise DataError(f"{path}: an empty list")
    return ImageFiles(image_root, np.array(names), np.array(sizes), np.array(labels, dtype=np.int64))
