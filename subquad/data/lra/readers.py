"""The files of the Long Range Arena's tasks, found in every arrangement that users have, and read as they are.

`subquad.data.lra.cifar` reads the images of CIFAR-10. What is missing raises `DataNotFoundError`, and what a file
should not hold `DataError`, with the file and the line.
"""

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from subquad.data.errors import DataError, DataNotFoundError
from subquad.data.lra import listops
from subquad.data.pillow import pillow

SIZES: dict[str, dict[str, int]] = {
    "listops": {"train": 96_000, "valid": 2_000, "test": 2_000},
    "text": {"train": 25_000, "test": 25_000},
    "retrieval": {"train": 147_086, "valid": 18_090, "test": 17_437},
    "image": {"train": 50_000, "test": 10_000},
    "pathfinder": {"all": 200_000},
    "pathx": {"all": 200_000},
}
"""Examples in the published files. Those of the images are divided by `subquad.data.splits`."""

RETRIEVAL_FILES = {
    "train": "new_aan_pairs.train.tsv",
    "valid": "new_aan_pairs.eval.tsv",
    "test": "new_aan_pairs.test.tsv",
}
DIFFICULTIES = {
    "easy": "curv_baseline",
    "intermediate": "curv_contour_length_9",
    "hard": "curv_contour_length_14",
}
RESOLUTIONS = (32, 64, 128, 256)

_RELEASE = ("", "lra_release", "lra_release/lra_release")
_REVIEW = re.compile(r"(\d+)_(\d+)\.txt")
_NUMPY_MAGIC = b"\x93NUMPY"
# The one image that is damaged in the release.
_KNOWN_EMPTY = (32, "easy", "imgs/0/sample_172.png")


class TextExample(NamedTuple):
    """The text of an example, or the two of a pair, and its class."""

    texts: tuple[str, ...]
    label: int


def check_size(task: str, split: str, size: int, *, strict: bool) -> None:
    """Warn of another number of examples than was published.

    Raises:
        DataError: The number differs, and `strict`.
    """
    expected = SIZES[task][split]
    if size != expected:
        part = "" if split == "all" else f", split {split}"
        message = f"Long Range Arena {task}{part}: {size:,} examples; the published data has {expected:,}"
        if strict:
            raise DataError(message)
        warnings.warn(message, stacklevel=2)


# ListOps, retrieval


def listops_file(root: str | Path, split: str) -> Path:
    """The table of a split: `ROOT[/lra_release[/lra_release]][/listops-1000 | /listops]/basic_SPLIT.tsv`.

    Raises:
        DataNotFoundError: There is none.
    """
    return _find_file(root, ("listops-1000", "listops", ""), listops.FILES, split)


def retrieval_file(root: str | Path, split: str) -> Path:
    """The table of a split: `ROOT[/lra_release[/lra_release]][/tsv_data | /aan | /retrieval]/new_aan_pairs.SPLIT.tsv`.

    Raises:
        DataNotFoundError: There is none.
        DataError: There are only the numbers of the papers.
    """
    try:
        return _find_file(root, ("tsv_data", "aan", "retrieval", ""), RETRIEVAL_FILES, split)
    except DataNotFoundError:
        ids_only = {name: file.replace(".tsv", ".only_ids.tsv") for name, file in RETRIEVAL_FILES.items()}
        try:
            path = _find_file(root, ("tsv_data", "aan", "retrieval", ""), ids_only, split)
        except DataNotFoundError:
            path = None
        if path is None:
            raise
    raise DataError(f"{path}: ids only, no text; expected {RETRIEVAL_FILES[split]} with five columns beside it")


def read_listops(root: str | Path, split: str, *, strict: bool = False) -> Iterator[TextExample]:
    """The expressions of a split, with all of their parentheses, and their values.

    Args:
        root: Where the data is; see `listops_file`.
        split: train, valid or test.
        strict: Also compute every value and compare.

    Raises:
        DataNotFoundError: There is no such file.
        DataError: A line is not as in the release, or the file holds no example.
    """
    path = listops_file(root, split)
    lines = _read_lines(path)
    number, header = next(lines, (1, ""))
    if header != listops.HEADER:
        raise DataError(f"{path}, line {number}: expected the header Source<tab>Target, got {_quoted(header)}")
    number = 1
    for number, line in lines:
        columns = line.split("\t")
        if len(columns) != 2:
            raise DataError(f"{path}, line {number}: expected 2 columns with a tab between them, got {_quoted(line)}")
        source, target = columns
        if target not in listops.DIGITS:
            raise DataError(f"{path}, line {number}: expected a target from 0 to 9, got {_quoted(target)}")
        if unknown := set(source.split()) - listops.TOKENS:
            raise DataError(f"{path}, line {number}: {_quoted(min(unknown))} is no token of ListOps")
        if strict:
            _check_value(source, int(target), path, number)
        yield TextExample((source,), int(target))
    if number == 1:
        raise DataError(f"{path}: no example behind the header")


def _check_value(source: str, target: int, path: Path, number: int) -> None:
    try:
        value = listops.evaluate_listops(source)
    except ValueError as error:
        raise DataError(f"{path}, line {number}: {error}") from None
    if value != target:
        raise DataError(f"{path}, line {number}: the target is {target}, the value of the expression {value}")


def read_retrieval(root: str | Path, split: str) -> Iterator[TextExample]:
    """The pairs of papers of a split, and whether one cites the other.

    Args:
        root: Where the data is; see `retrieval_file`.
        split: train, valid or test.

    Raises:
        DataNotFoundError: There is no such file.
        DataError: A line is not as in the release, or the file holds no example.
    """
    path = retrieval_file(root, split)
    number = 0
    for number, line in _read_lines(path):
        columns = line.split("\t")
        if len(columns) == 3:
            raise DataError(f"{path}, line {number}: ids only, no text; expected 5 columns, with the two texts")
        if len(columns) != 5:
            raise DataError(
                f"{path}, line {number}: expected 5 columns (label, two ids, two texts) with tabs between them, "
                f"got {len(columns)}"
            )
        yield TextExample((columns[3], columns[4]), _label(columns[0], path, number))
    if not number:
        raise DataError(f"{path}: empty")


# Text


def text_files(root: str | Path, split: str) -> list[tuple[Path, int]]:
    """The reviews of a split and their classes, the negative ones first, each in the order of its number.

    Args:
        root: Folder with aclImdb, imdb/aclImdb or text/aclImdb in it.
        split: train or test.

    Raises:
        DataNotFoundError: A folder is missing, or holds no review.
        DataError: A file is not named as a review.
    """
    _known_split(split, SIZES["text"])
    folders = [Path(root).absolute() / name for name in ("aclImdb", "imdb/aclImdb", "text/aclImdb")]
    folder = next((folder for folder in folders if folder.is_dir()), None)
    layout = "aclImdb/{train,test}/{pos,neg}/<id>_<rating>.txt"
    if folder is None:
        raise _not_found("no folder of reviews", layout, folders)
    files = []
    for label, sentiment in enumerate(("neg", "pos")):
        part = folder / split / sentiment
        if not part.is_dir():
            raise _not_found("no folder of reviews", layout, [part])
        reviews = []
        for path in part.glob("*.txt"):
            if not (match := _REVIEW.fullmatch(path.name)):
                raise DataError(f"{path}: not the name of a review; expected <id>_<rating>.txt")
            reviews.append((int(match[1]), path.name, path))
        if not reviews:
            raise _not_found("no review in the folder", layout, [part])
        files += [(path, label) for *_, path in sorted(reviews)]
    return files


def read_text(root: str | Path, split: str) -> Iterator[TextExample]:
    """The reviews of a split, and whether each is positive; see `text_files`.

    Raises:
        DataNotFoundError: A folder is missing, or holds no review.
        DataError: A file is not named as a review, or is not UTF-8.
    """
    for path, label in text_files(root, split):
        try:
            yield TextExample((path.read_bytes().decode("utf-8"),), label)
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8 text at byte {error.start}") from None


# Pathfinder


@dataclass(frozen=True, eq=False)
class PathfinderImages:
    """The images of one difficulty, decoded when they are asked for.

    Args:
        folder: The folder of the difficulty.
        files: Their places in it, in the order of the metadata.
        labels: Whether the two discs are on one path, `(num_images,)` int64.
        resolution: Their height and width.
    """

    folder: Path
    files: Sequence[str]
    labels: np.ndarray
    resolution: int

    def __len__(self) -> int:
        return len(self.files)

    def pixels(self, index: int) -> np.ndarray:
        """Grey values of an image, `(resolution, resolution)` uint8.

        Raises:
            DataError: The file is no image of that size.
        """
        return _read_image(self.folder / self.files[index], self.resolution)


def check_pathfinder(resolution: int, difficulty: str) -> None:
    """Raise a ValueError unless Pathfinder has images of that resolution and difficulty."""
    if resolution not in RESOLUTIONS:
        raise ValueError(f"Pathfinder has the resolutions {', '.join(map(str, RESOLUTIONS))}, got {resolution}")
    if difficulty not in DIFFICULTIES:
        raise ValueError(f"Pathfinder has the difficulties {', '.join(DIFFICULTIES)}, got {difficulty!r}")


def pathfinder_folder(root: str | Path, resolution: int = 32, difficulty: str = "hard") -> Path:
    """`ROOT[/lra_release[/lra_release]][/pathfinder]/pathfinderRESOLUTION/DIFFICULTY`.

    Raises:
        DataNotFoundError: There is none.
        ValueError: There is no such resolution or difficulty.
    """
    check_pathfinder(resolution, difficulty)
    places = (f"pathfinder{resolution}", f"pathfinder/pathfinder{resolution}")
    folders = [
        Path(root).absolute() / prefix / place / DIFFICULTIES[difficulty] for prefix in _RELEASE for place in places
    ]
    for folder in folders:
        if folder.is_dir():
            return folder
    layout = f"pathfinder{resolution}/{DIFFICULTIES[difficulty]}/{{metadata/<k>.npy,imgs/<k>/sample_<j>.png}}"
    raise _not_found("no Pathfinder images", layout, folders)


def read_pathfinder(root: str | Path, resolution: int = 32, difficulty: str = "hard") -> PathfinderImages:
    """The images of a difficulty in the order of their metadata: by the number of the file, then by line.

    Args:
        root: Where the data is; see `pathfinder_folder`.
        resolution: 32, 64, 128 (Path-X) or 256.
        difficulty: easy, intermediate or hard; the Long Range Arena's is hard.

    Raises:
        DataNotFoundError: There is no such folder, or it has no metadata or no images.
        DataError: A line of the metadata is not as in the release, or an image that it names is missing or empty.
        ValueError: There is no such resolution or difficulty.
    """
    folder = pathfinder_folder(root, resolution, difficulty)
    metadata = [path for path in (folder / "metadata").glob("*.npy") if path.stem.isdecimal()]
    if not metadata:
        raise _not_found("no metadata of Pathfinder images", "metadata/<k>.npy", [folder / "metadata"])
    if next(folder.glob("imgs/*/*.png"), None) is None:
        raise _not_found("no Pathfinder images", "imgs/<k>/sample_<j>.png", [folder / "imgs"])
    files, labels = [], []
    for path in sorted(metadata, key=lambda path: (int(path.stem), path.name)):
        for number, fields in _read_metadata(path):
            if len(fields) < 4:
                raise DataError(
                    f"{path}, line {number}: expected at least 4 fields (folder, file, index, label), got {len(fields)}"
                )
            name, label = f"{fields[0]}/{fields[1]}", _label(fields[3], path, number)
            if _holds_image(folder, name, path, number, resolution, difficulty):
                files.append(name)
                labels.append(label)
    if not files:
        raise DataError(f"{(folder / 'metadata')}: the metadata names no image")
    return PathfinderImages(folder, files, np.array(labels, dtype=np.int64), resolution)


def _holds_image(folder: Path, name: str, metadata: Path, number: int, resolution: int, difficulty: str) -> bool:
    """Whether there is an image of that name; False for the one that the release lacks."""
    where = f"{metadata}, line {number}"
    if Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name:
        raise DataError(f"{where}: {_quoted(name)} is no place inside the folder")
    path = folder / name
    if not path.is_file():
        raise DataError(f"{where}: the image {path} is missing; unpack the data again")
    if path.stat().st_size:
        return True
    if (resolution, difficulty, name) == _KNOWN_EMPTY:
        return False
    raise DataError(f"{where}: the image {path} is an empty file; unpack the data again")


def _read_metadata(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The fields of each line of a metadata file: plain text, or an array of strings as NumPy saves it."""
    content = path.read_bytes()
    if not content.startswith(_NUMPY_MAGIC):
        for number, line in enumerate(_decode(content, path).splitlines(), start=1):
            yield number, line.split()
        return
    try:
        rows = np.load(io.BytesIO(content), allow_pickle=False).astype(str)
        lines = rows.tolist()
    except Exception as error:  # damaged headers and characters raise almost anything
        raise DataError(f"{path}: not a NumPy file of strings ({_first_line(error)})") from None
    if rows.ndim != 2:
        raise DataError(f"{path}: expected an array (images, fields), got the shape {rows.shape}")
    yield from enumerate(lines, start=1)


def _read_image(path: Path, resolution: int) -> np.ndarray:
    image_module = pillow()
    try:
        with image_module.open(path, formats=["PNG"]) as image:
            if image.size != (resolution, resolution):
                width, height = image.size
                raise DataError(f"{path}: expected {resolution}×{resolution} pixels, got {width}×{height}")
            return np.asarray(image.convert("L"))
    except DataError:
        raise
    except Exception as error:  # damaged images raise almost anything
        raise DataError(f"{path}: not a PNG image ({_first_line(error)})") from None


# What they share


def _known_split(split: str, known: dict[str, int] | dict[str, str]) -> None:
    if split not in known:
        raise ValueError(f"no split {split!r}; there are: {', '.join(known)}")


def _find_file(root: str | Path, places: Sequence[str], files: dict[str, str], split: str) -> Path:
    """The file of a split in the first of the places that has a file of any split."""
    _known_split(split, files)
    folders = [Path(root).absolute() / prefix / place for prefix in _RELEASE for place in places]
    for folder in folders:
        if any((folder / file).is_file() for file in files.values()):
            if (folder / files[split]).is_file():
                return folder / files[split]
            raise _not_found(f"no {files[split]}", " ".join(files.values()), [folder / files[split]])
    raise _not_found(f"no {files[split]}", " ".join(files.values()), [folder / files[split] for folder in folders])


def _not_found(what: str, layout: str, tried: Sequence[Path]) -> DataNotFoundError:
    paths = ", ".join(str(path) for path in tried)
    return DataNotFoundError(f"{what}: expected {layout}; looked for {paths}")


def _read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines from 1, that end in CR LF or LF."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            yield number, _decode(line.removesuffix(b"\n").removesuffix(b"\r"), path, f", line {number}")


def _decode(data: bytes, path: Path, where: str = "") -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}{where}: not UTF-8 text at byte {error.start}") from None


def _label(text: str, path: Path, number: int) -> int:
    """0 or 1, also written as 0.0 or 1.0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if value not in (0, 1):
        raise DataError(f"{path}, line {number}: expected the label 0 or 1, got {_quoted(text)}")
    return int(value)


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:60] + "…")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
