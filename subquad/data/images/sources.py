"""What a folder of images holds, whatever its form: images and classes of the parts train, valid and test."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from subquad.data.errors import DataError, DataNotFoundError
from subquad.data.images import cifar, folders, idx
from subquad.data.images.splits import ImageSplit, Release, fingerprint
from subquad.data.splits import SEED, random_split


@dataclass(frozen=True, eq=False)
class ImageData:
    """Images with classes, divided.

    Args:
        name: What the user wrote, and the form of the files.
        classes: Names of the classes, in the order of their numbers.
        num_channels: 3 for colours, 1 for grey values.
        mean: Of each channel, of values in [0, 1]; inputs of a model are normalised with it.
        std: Standard deviation of each channel.
        train: Images for training.
        valid: Images that choose the model.
        test: Images for the test; None if there are no others than for validation.
        split_rule: How the validation images came about, for the record of a result.
    """

    name: str
    classes: tuple[str, ...]
    num_channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train: ImageSplit
    valid: ImageSplit
    test: ImageSplit | None
    split_rule: str

    @cached_property
    def splits(self) -> Mapping[str, ImageSplit]:
        """The splits by name."""
        splits = {"train": self.train, "valid": self.valid, "test": self.test}
        return {name: split for name, split in splits.items() if split is not None}

    @cached_property
    def fingerprint(self) -> str:
        """Equal for equal images and classes, wherever they are; of images in files, names and sizes are compared."""
        return fingerprint(self.splits.values(), self.classes, self.split_rule)

    def record(self) -> dict[str, Any]:
        """Name and content of the data, how validation came about, and what inputs are normalised with."""
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "split_rule": f"validation: {self.split_rule}",
            "mean": list(self.mean),
            "std": list(self.std),
        }


class _Form(NamedTuple):
    """A form of data on disk: what its files are, whether they are there, and how to read them.

    `read` takes the folder, and whether it is strict.
    """

    files: str
    is_there: Callable[[Path], object]
    read: Callable[[Path, bool], Release]


def _cifar_form(release: cifar.Cifar) -> _Form:
    return _Form(
        f"{release.title} ({', '.join(sum(release.parts.values(), ()))}, {release.meta}; also in {release.folder}/)",
        lambda root: cifar.find_cifar(root, release),
        lambda root, strict: cifar.read_cifar(root, release, strict=strict),
    )


_FORMS = (
    _cifar_form(cifar.CIFAR10),
    _cifar_form(cifar.CIFAR100),
    _Form(
        "MNIST and data of its form ({train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz]; also in raw/, MNIST/raw/)",
        idx.find_idx,
        lambda root, strict: idx.read_idx(root),
    ),
    _Form(
        "lists of files and classes ({train,val,test}.txt)",
        folders.is_list,
        lambda root, strict: folders.read_lists(root),
    ),
    _Form(
        "a folder for each class ({train,val,test}/CLASS/*.jpg …, or CLASS/*.jpg …)",
        folders.is_folder,
        lambda root, strict: folders.read_folder(root),
    ),
)


def open_images(
    source: str | Path,
    *,
    image_root: str | Path | None = None,
    valid_fraction: float = 0.0,
    seed: int = SEED,
    strict: bool = False,
) -> ImageData:
    """Open a folder of images; its form is recognised. Images in files are decoded when they are needed.

    Args:
        source: The folder: of CIFAR-10 or CIFAR-100 (pickles of Python), of MNIST or Fashion-MNIST (idx files), of
            lists, or of a folder for each class, as ImageNet.
        image_root: Of lists, the folder that their paths begin at; default the folder itself.
        valid_fraction: Share of the training images that choose the model, in place of the only other part; it is
            the test set then. With 0, as published, that part is both.
        seed: Of the division.
        strict: Files of CIFAR that are not the published ones are errors, not warnings.

    Raises:
        DataNotFoundError: There is no data of a known form, or a file is missing.
        DataError: A file is not what it should be, both CIFAR-10 and CIFAR-100 are there, or nothing says what
            validation is.
        ValueError: `valid_fraction` is impossible.
    """
    root = Path(source)
    if not root.is_dir():
        raise DataNotFoundError(f"{source}: no such folder; name that of the images, with --data")
    _check_is_one_cifar(root)
    form = next((form for form in _FORMS if form.is_there(root)), None)
    if image_root is not None:
        release = folders.read_lists(root, Path(image_root))
    elif form is not None:
        release = form.read(root, strict)
    else:
        raise DataNotFoundError(f"{source}: no images; looked for " + "; ".join(form.files for form in _FORMS))
    if len(release.classes) < 2:
        raise DataError(f"{source}: all images are of one class, '{release.classes[0]}'; two are needed")
    train, valid, test, rule = _divide(release.parts, valid_fraction, seed, str(source))
    name = f"{source} ({release.title})"
    return ImageData(
        name, tuple(release.classes), len(release.mean), release.mean, release.std, train, valid, test, rule
    )


def _check_is_one_cifar(root: Path) -> None:
    """Refuse to choose between two data sets."""
    found = {release.title: cifar.find_cifar(root, release) for release in (cifar.CIFAR10, cifar.CIFAR100)}
    if all(found.values()):
        places = " and ".join(f"{title} in {place}" for title, place in found.items())
        raise DataError(f"{root}: holds two data sets, {places}: give the folder of one of them")


def _divide(
    parts: Mapping[str, ImageSplit], valid_fraction: float, seed: int, name: str
) -> tuple[ImageSplit, ImageSplit, ImageSplit | None, str]:
    """Train, valid, test, and how they came about."""
    if not 0 <= valid_fraction < 1:
        raise ValueError(f"valid_fraction must be in [0, 1), got {valid_fraction}")
    train, others = parts["train"], {part: split for part, split in parts.items() if part != "train"}
    if len(others) == 2:
        if valid_fraction:
            raise ValueError(f"{name} has images for validation and for the test: valid_fraction must be 0")
        return train, others["valid"], others["test"], "as in the files"
    test = next(iter(others.values()), None)
    if valid_fraction:
        num_train = round(len(train) * (1 - valid_fraction))
        kept, held_out = random_split([num_train, len(train) - num_train], seed)
        rule = f"{valid_fraction:g} of the training images, held out with seed {seed}"
        return train.subset(kept), train.subset(held_out), test, rule
    if test is None:
        raise DataError(f"{name} has training images only: hold some out for validation with valid_fraction")
    return train, test, test, "the test set, as published: whatever is chosen by it is chosen on the test set"
