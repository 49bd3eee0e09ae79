"""The tasks of the Long Range Arena as examples and batches of a model.

A *pipeline* is a code base that published numbers come from; they differ in what a token is, and are never mixed:

    s4      characters in a vocabulary sorted by frequency, `<eos>` behind; grey values in [−1, 1] or normalised
            (TNN, SKI-TNN, FD-TNN, TransNormer, HGRN)
    byte    bytes + 1 and grey values as tokens, of a fixed length, 0 being padding: so is every black pixel
            (PrimalFormer, Primal.+Trans.)
    google  the tokens of byte without a fixed length, and images divided in the order of the files
            (the original code of the Long Range Arena)
"""

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from subquad.data.errors import DataError, DataNotFoundError
from subquad.data.lra import listops, readers
from subquad.data.lra.cifar import CifarImages, read_cifar10
from subquad.data.lra.orders import ORDERS
from subquad.data.lra.readers import TextExample
from subquad.data.lra.vocabulary import FrequencyVocabulary
from subquad.data.splits import SEED, random_split
from subquad.registry import unknown_name

Pipeline = Literal["s4", "byte", "google"]
PIPELINES = ("s4", "byte", "google")
TASKS = ("listops", "text", "retrieval", "image", "pathfinder", "pathx")
NUM_LABELS = {"listops": 10, "text": 2, "retrieval": 2, "image": 10, "pathfinder": 2, "pathx": 2}
SIDE = 32
"""Height and width of the images of `image`."""
TRANSPOSE = "transpose"
FORMAT = 1


@dataclass(frozen=True)
class TokenRules:
    """How a pipeline makes tokens of the texts of a task.

    Args:
        max_length: Largest number of tokens, special ones included.
        padded_length: Length of every batch; None: that of its longest text.
        min_frequency: Of a token of the vocabulary (s4).
    """

    max_length: int
    padded_length: int | None = None
    min_frequency: int = 1


RULES: dict[tuple[str, str], TokenRules] = {
    ("s4", "listops"): TokenRules(2048),
    ("s4", "text"): TokenRules(4096, min_frequency=15),
    ("s4", "retrieval"): TokenRules(4000),
    ("byte", "listops"): TokenRules(2000, padded_length=2048),
    ("byte", "text"): TokenRules(4000, padded_length=4096),
    ("byte", "retrieval"): TokenRules(4000, padded_length=4096),
    ("google", "listops"): TokenRules(2000),
    ("google", "text"): TokenRules(4000),
    ("google", "retrieval"): TokenRules(4000),
}


def listops_tokens(expression: str) -> list[str]:
    """The tokens that a model sees: no parentheses, and `X` for `]`."""
    tokens = expression.split()
    return ["X" if token == "]" else token for token in tokens if token not in listops.PARENTHESES]


LISTOPS_BYTE_IDS = {token: id for id, token in enumerate(sorted((*listops.OPERATORS, *listops.DIGITS, "X")), start=1)}
"""Ids of byte and google. The published ones came from an unordered set; these are sorted by code point."""


def encode_bytes(text: str, max_length: int) -> np.ndarray:
    """The first bytes of a text in UTF-8, plus 1: `(length,)` int64."""
    return np.frombuffer(text.encode("utf-8")[:max_length], np.uint8).astype(np.int64) + 1


def encode_listops(expression: str, max_length: int) -> np.ndarray:
    """The first tokens of an expression as byte and google number them: `(length,)` int64."""
    unknown = len(LISTOPS_BYTE_IDS) + 1
    return np.array(
        [LISTOPS_BYTE_IDS.get(token, unknown) for token in listops_tokens(expression)[:max_length]], dtype=np.int64
    )


# Examples


class TokenExamples(Dataset[dict[str, Any]]):
    """Texts, or pairs of texts, as ids: `{"input_ids": [(length,) int64, …], "labels": int}` with one or two texts.

    Args:
        ids: Those of all texts in one row.
        ends: Where each text ends, `(num_examples · texts_per_example,)` int64.
        labels: `(num_examples,)` int64.
        padded_length: Length of every batch; None: that of its longest text.
        indices: Which of them, and in which order; None: all.
    """

    def __init__(
        self,
        ids: np.ndarray,
        ends: np.ndarray,
        labels: np.ndarray,
        padded_length: int | None = None,
        indices: np.ndarray | None = None,
    ) -> None:
        self.ids, self.ends, self.labels, self.padded_length = ids, ends, labels, padded_length
        self.indices = np.arange(len(labels)) if indices is None else indices
        self.texts_per_example = len(ends) // len(labels)

    def subset(self, indices: np.ndarray) -> "TokenExamples":
        """Some of the examples."""
        return TokenExamples(self.ids, self.ends, self.labels, self.padded_length, self.indices[indices])

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = int(self.indices[index])
        first = example * self.texts_per_example
        stops = [int(self.ends[text]) for text in range(first, first + self.texts_per_example)]
        starts = [int(self.ends[first - 1]) if first else 0, *stops]
        texts = [self.ids[start:stop].astype(np.int64) for start, stop in zip(starts, stops, strict=False)]
        return {"input_ids": [torch.from_numpy(text) for text in texts], "labels": int(self.labels[example])}

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        lengths = np.diff(self.ends, prepend=0).reshape(-1, self.texts_per_example)
        return int(lengths[self.indices].max())

    def identity(self) -> list[np.ndarray]:
        """What tells these examples from others."""
        return [self.ids, self.ends, self.labels, self.indices]

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Pad on the right.

        Returns:
            `input_ids` and `attention_mask`, (batch, length) or of pairs (batch, 2, length), the two texts of equal
            length; `labels` (batch,). All int64; the mask is 0 where an id is 0.
        """
        texts = [text for example in examples for text in example["input_ids"]]
        length = self.padded_length or max(1, *map(len, texts))
        ids = torch.zeros(len(texts), length, dtype=torch.long)
        for row, text in zip(ids, texts, strict=True):
            row[: len(text)] = text
        if self.texts_per_example > 1:
            ids = ids.unflatten(0, (-1, self.texts_per_example))
        return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": _labels(examples)}


class Images(Protocol):
    """What image readers return."""

    @property
    def labels(self) -> np.ndarray:
        """The class of each, int64."""
        ...

    def pixels(self, index: int) -> np.ndarray:
        """An image, uint8."""
        ...


class ImageExamples(Dataset[dict[str, Any]]):
    """Images as sequences of pixels, row by row: `{"input_values" or "input_ids": Tensor, "labels": int}`.

    Args:
        images: Where they come from.
        indices: Which of them, and in which order.
        convert: From an image to `input_values` (length, features) float32 or `input_ids` (length,) int64.
        augment: From an image and a source of chance to a changed image.
        seed: Of the chance.
    """

    def __init__(
        self,
        images: Images,
        indices: np.ndarray,
        convert: Callable[[np.ndarray], Tensor],
        augment: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = None,
        seed: int = 0,
    ) -> None:
        self.images, self.indices, self.convert, self.augment, self.seed = images, indices, convert, augment, seed

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.example(index, 0)

    def example(self, index: int, epoch: int) -> dict[str, Any]:
        """The example as it is in an epoch."""
        image = int(self.indices[index])
        pixels = self.images.pixels(image)
        if self.augment is not None:
            pixels = self.augment(pixels, np.random.default_rng((self.seed, epoch, index)))
        converted = self.convert(pixels)
        name = "input_values" if converted.is_floating_point() else "input_ids"
        return {name: converted, "labels": int(self.images.labels[image])}

    @property
    def longest(self) -> int:
        """Pixels of an image."""
        return math.prod(self.images.pixels(int(self.indices[0])).shape[:2])

    def identity(self) -> list[np.ndarray]:
        """What tells these examples from others: their classes, and their places in the release."""
        return [self.images.labels[self.indices], self.indices]

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Stack.

        Returns:
            `input_values` (batch, length, features), or `input_ids` (batch, length) and for byte and google
            `attention_mask`, 0 where an id is 0, and `position_ids`, those of the pixels in the image; `labels`
            (batch,).
        """
        name = next(name for name in examples[0] if name != "labels")
        batch = {name: torch.stack([example[name] for example in examples]), "labels": _labels(examples)}
        if self.convert is byte_pixels:
            ids = batch["input_ids"]
            batch["attention_mask"] = (ids != 0).long()
            # Padding in the midst of an image takes its place; what stands behind it is not moved up.
            batch["position_ids"] = torch.arange(ids.shape[1]).expand_as(ids)
        return batch


def _labels(examples: Sequence[Mapping[str, Any]]) -> Tensor:
    return torch.tensor([example["labels"] for example in examples])


# Pixels


def luma(pixels: np.ndarray) -> np.ndarray:
    """Grey values of colours (height, width, 3) by ITU-R 601 in whole numbers, as Pillow computes them: uint8."""
    red, green, blue = np.moveaxis(pixels.astype(np.int64), -1, 0)
    return ((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16).astype(np.uint8)


def byte_luma(pixels: np.ndarray) -> np.ndarray:
    """Grey values as byte and google compute them, 0.2989 R + 0.5870 G + 0.1140 B: uint8."""
    return np.rint(pixels.astype(np.float64) @ [0.2989, 0.5870, 0.1140]).astype(np.uint8)


def grey_tokens(pixels: np.ndarray) -> Tensor:
    """Grey values as tokens 0 … 255: `(length,)` int64."""
    grey = luma(pixels) if pixels.ndim == 3 else pixels
    return torch.from_numpy(grey.reshape(-1).astype(np.int64))


def byte_pixels(pixels: np.ndarray) -> Tensor:
    """Grey values as tokens of byte and google, black being padding: `(length,)` int64."""
    return grey_tokens(byte_luma(pixels) if pixels.ndim == 3 else pixels)


def cifar_grey(pixels: np.ndarray) -> Tensor:
    """Normalised grey values of CIFAR-10: `(1024, 1)` float32."""
    return _normalized(luma(pixels)[..., None], [122.6 / 255], [61.0 / 255])


def cifar_colours(pixels: np.ndarray) -> Tensor:
    """Normalised colours of CIFAR-10: `(1024, 3)` float32."""
    return _normalized(pixels, [0.4914, 0.4822, 0.4465], [0.247, 0.243, 0.261])


def centred_grey(pixels: np.ndarray) -> Tensor:
    """Grey values in [−1, 1]: `(length, 1)` float32."""
    return _normalized(pixels[..., None], [0.5], [0.5])


def _normalized(pixels: np.ndarray, mean: list[float], std: list[float]) -> Tensor:
    values = (pixels.reshape(-1, pixels.shape[-1]) / 255 - mean) / std
    return torch.from_numpy(values.astype(np.float32))


class Reordered:
    """Sequences of pixels in another order.

    Args:
        convert: From an image to its pixels row after row, `(1024, features)`.
        order: Name of the order; "transpose" adds the features of the pixels column after column.

    Raises:
        ValueError: There is no such order.
    """

    def __init__(self, convert: Callable[[np.ndarray], Tensor], order: str) -> None:
        if order not in (*ORDERS, TRANSPOSE):
            raise ValueError(unknown_name("order of pixels", order, (*ORDERS, TRANSPOSE)))
        self.convert = convert
        self.is_added = order == TRANSPOSE
        columns = np.arange(SIDE * SIDE).reshape(SIDE, SIDE).T.reshape(-1)
        self.places = torch.from_numpy(columns if self.is_added else ORDERS[order](SIDE))

    def __call__(self, pixels: np.ndarray) -> Tensor:
        """The sequence of an image, `(1024, features)`."""
        values = self.convert(pixels)
        moved = values[self.places]
        return torch.cat([values, moved], dim=-1) if self.is_added else moved


def num_features(colour: bool, permute: str | None) -> int:
    """Values at each position of images that are not tokens."""
    return (3 if colour else 1) * (2 if permute == TRANSPOSE else 1)


def crop_and_flip(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A crop of the old size after reflecting 4 pixels around the image, then with probability ½ its mirror image."""
    height, width = pixels.shape[:2]
    padded = np.pad(pixels, [(4, 4), (4, 4), (0, 0)], mode="symmetric")
    top, left = rng.integers(9, size=2)
    crop = padded[top : top + height, left : left + width]
    return crop[:, ::-1] if rng.random() < 0.5 else crop


# Tasks


@dataclass(frozen=True, eq=False)
class LRAData:
    """A task: its examples, and what a model of it needs.

    Args:
        task: Its name.
        pipeline: Whose tokens these are.
        train: Examples for training.
        valid: Examples for validation.
        test: Examples for the test.
        num_labels: Number of classes.
        vocab_size: Number of ids; None where the inputs are values.
        input_features: Values at each position; None where the inputs are ids.
        validation: How the validation examples came about, for the record of a result.
    """

    task: str
    pipeline: str
    train: TokenExamples | ImageExamples
    valid: TokenExamples | ImageExamples
    test: TokenExamples | ImageExamples
    num_labels: int
    vocab_size: int | None
    input_features: int | None
    validation: str

    @cached_property
    def fingerprint(self) -> str:
        """Equal for equal examples, wherever their files are."""
        digest = hashlib.sha256(f"{self.task} {self.pipeline}".encode())
        for examples in self.splits.values():
            for array in examples.identity():
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    @property
    def splits(self) -> dict[str, TokenExamples | ImageExamples]:
        """The examples by split."""
        return {"train": self.train, "valid": self.valid, "test": self.test}

    @property
    def longest(self) -> int:
        """Tokens or pixels of the longest input."""
        return max(examples.longest for examples in self.splits.values())

    def record(self) -> dict[str, Any]:
        """Name, content and size of the data, and how validation came about."""
        return {
            "name": f"Long Range Arena {self.task} ({self.pipeline})",
            "fingerprint": self.fingerprint,
            "split_rule": f"validation: {self.validation}",
            "examples": {split: len(examples) for split, examples in self.splits.items()},
            "longest_input": self.longest,
        }


def open_lra(
    task: str,
    root: str | Path,
    pipeline: str = "s4",
    *,
    max_length: int | None = None,
    append_bos: bool = False,
    append_eos: bool = True,
    valid_fraction: float = 0.0,
    colour: bool = False,
    tokenize: bool = False,
    augment: bool = False,
    permute: str | None = None,
    seed: int = SEED,
    augment_seed: int = 0,
    strict: bool = False,
    cache_dir: str | Path | None = None,
    progress: bool = True,
) -> LRAData:
    """Open the data of a task. Texts are encoded once, and kept in a cache folder; images are read as they are needed.

    Args:
        task: listops, text, retrieval, image, pathfinder or pathx.
        root: Folder of the data, in any arrangement that `subquad.data.lra.readers` knows.
        pipeline: s4, byte or google.
        max_length: Largest number of tokens of a text, special ones included (s4, google); default that of the
            published runs.
        append_bos: Put `<bos>` before each text (s4).
        append_eos: Put `<eos>` behind each text (s4).
        valid_fraction: Share of the training examples of `text` that are held out for validation; with 0, as
            published, validation is on the test set.
        colour: Keep the colours of `image`.
        tokenize: Grey values as tokens, in place of numbers (s4).
        augment: Change the training images of `image` by random crops and mirror images.
        permute: Another order of the pixels of `image` (s4): `bit_reversal`, `snake` or `hilbert`; or `transpose`, the
            pixels column after column as further features beside those row after row.
        seed: Of the random division of examples.
        augment_seed: Of the changes of `augment`.
        strict: Compute the value of every expression; other numbers of examples than were published are errors.
        cache_dir: Where encoded texts are kept; default the environment's `SUBQUAD_CACHE`, else `~/.cache/subquad`.
        progress: Show a progress bar.

    Raises:
        DataNotFoundError: Files are missing; the message names where they were looked for.
        DataError: Files hold something else than the task's data.
        ValueError: There is no such task or pipeline, or an option is not for it or impossible.
    """
    if task not in TASKS:
        raise ValueError(f"no task {task!r} in the Long Range Arena; there are: {', '.join(TASKS)}")
    if pipeline not in PIPELINES:
        raise ValueError(f"no pipeline {pipeline!r}; there are: {', '.join(PIPELINES)}")
    if not Path(root).is_dir():
        raise DataNotFoundError(f"{root}: no such folder; name that of the data of the Long Range Arena, with --data")
    is_text, s4 = (pipeline, task) in RULES, pipeline == "s4"
    for option, is_set, fits in (
        ("max_length", max_length is not None, is_text and pipeline != "byte"),
        ("append_bos", append_bos, is_text and s4),
        ("append_eos", not append_eos, is_text and s4),
        ("valid_fraction", valid_fraction != 0, task == "text"),
        ("colour", colour, task == "image" and s4 and not tokenize),
        ("tokenize", tokenize, not is_text and s4),
        ("augment", augment, task == "image"),
        ("permute", permute is not None, task == "image" and s4 and not tokenize),
    ):
        if is_set and not fits:
            raise ValueError(f"option {option} is not for the task {task!r} in the pipeline {pipeline!r} as it is set")
    if not 0 <= valid_fraction < 1:
        raise ValueError(f"valid_fraction must be in [0, 1), got {valid_fraction}")
    if is_text:
        encoding = _Encoding(
            task,
            pipeline,
            RULES[pipeline, task].max_length if max_length is None else max_length,
            append_bos,
            append_eos,
        )
        return _open_texts(encoding, Path(root), valid_fraction, seed, strict, cache_dir, progress)
    if not s4:
        convert = byte_pixels
    elif tokenize:
        convert = grey_tokens
    elif task == "image":
        convert = cifar_colours if colour else cifar_grey
    else:
        convert = centred_grey
    if permute is not None:
        convert = Reordered(convert, permute)
    if task == "image":
        train, valid, test = _open_cifar(Path(root), pipeline, convert, seed, strict)
        if augment:  # but no validation images, which the published code changes too
            train = ImageExamples(train.images, train.indices, convert, crop_and_flip, augment_seed)
    else:
        train, valid, test = _open_pathfinder(task, Path(root), pipeline, convert, seed, strict)
    features = None if convert in (byte_pixels, grey_tokens) else num_features(colour, permute)
    vocab_size = 256 if features is None else None
    how = "held out from the training images" if task == "image" else "a tenth of the images"
    return LRAData(task, pipeline, train, valid, test, NUM_LABELS[task], vocab_size, features, how)


# Images


def _open_cifar(root: Path, pipeline: str, convert: Callable, seed: int, strict: bool) -> list[ImageExamples]:
    parts: dict[str, CifarImages] = {part: read_cifar10(root, part, strict=strict) for part in ("train", "test")}
    for part, images in parts.items():
        readers.check_size("image", part, len(images), strict=strict)
    size = len(parts["train"])
    num_train = size * 9 // 10
    if pipeline == "s4":
        train, valid = random_split([num_train, size - num_train], seed)
    else:
        train, valid = np.split(np.arange(size), [num_train])
    return [
        ImageExamples(parts["train"], train, convert),
        ImageExamples(parts["train"], valid, convert),
        ImageExamples(parts["test"], np.arange(len(parts["test"])), convert),
    ]


def _open_pathfinder(
    task: str, root: Path, pipeline: str, convert: Callable, seed: int, strict: bool
) -> list[ImageExamples]:
    images = readers.read_pathfinder(root, 32 if task == "pathfinder" else 128)
    readers.check_size(task, "all", len(images), strict=strict)
    tenth = len(images) // 10
    counts = [len(images) - 2 * tenth, tenth, tenth]
    if pipeline == "google":
        parts = np.split(np.arange(len(images)), np.cumsum(counts)[:-1])
    else:
        parts = random_split(counts, seed)
    return [ImageExamples(images, part, convert) for part in parts]


# Texts


@dataclass(frozen=True)
class _Encoding:
    """What decides the ids of a text task, beside its files."""

    task: str
    pipeline: str
    max_length: int
    append_bos: bool
    append_eos: bool

    def __post_init__(self) -> None:
        if self.body_length < 1:
            raise ValueError(f"max_length = {self.max_length} leaves no room for text beside the special tokens")

    @property
    def rules(self) -> TokenRules:
        return RULES[self.pipeline, self.task]

    @property
    def body_length(self) -> int:
        """Largest number of tokens that are not special."""
        return self.max_length - (self.append_bos + self.append_eos if self.pipeline == "s4" else 0)

    def encoder(self, training: Iterable[TextExample]) -> tuple[Callable[[str], np.ndarray], int]:
        """The function from a text to its ids, and the number of different ids."""
        if self.pipeline != "s4":
            encode, size = (encode_listops, 17) if self.task == "listops" else (encode_bytes, 257)
            return lambda text: encode(text, self.max_length), size
        tokens: Callable[[str], Sequence[str]] = listops_tokens if self.task == "listops" else str
        vocabulary = FrequencyVocabulary.build(
            (tokens(text)[: self.body_length] for example in training for text in example.texts),
            min_frequency=self.rules.min_frequency,
            append_bos=self.append_bos,
            append_eos=self.append_eos,
        )
        return lambda text: vocabulary.encode(tokens(text), self.max_length), len(vocabulary)


def _open_texts(
    encoding: _Encoding,
    root: Path,
    valid_fraction: float,
    seed: int,
    strict: bool,
    cache_dir: str | Path | None,
    progress: bool,
) -> LRAData:
    task, splits = encoding.task, list(readers.SIZES[encoding.task])
    cache = Path(cache_dir or os.environ.get("SUBQUAD_CACHE") or Path.home() / ".cache" / "subquad") / "lra"
    identity = [FORMAT, *vars(encoding).values(), strict, [_fingerprint(task, root, split) for split in splits]]
    folder = cache / hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    opened = _open_cached(folder, encoding)
    if opened is None:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".") as temporary:
            made = Path(temporary) / folder.name
            _encode_texts(made, encoding, root, strict, progress)
            shutil.rmtree(folder, ignore_errors=True)  # what could not be opened
            try:
                made.rename(folder)
            except OSError:
                if not folder.exists():  # unless another process was faster
                    raise
        opened = _open_cached(folder, encoding)
        assert opened is not None
    examples, vocab_size = opened
    for split in splits:
        readers.check_size(task, split, len(examples[split]), strict=strict)
    train, test = examples["train"], examples["test"]
    if "valid" in examples:
        valid, how = examples["valid"], "as in the files"
    elif valid_fraction:
        num_train = int(len(train) * (1 - valid_fraction))
        parts = random_split([num_train, len(train) - num_train], seed)
        train, valid = (train.subset(part) for part in parts)
        how = f"{valid_fraction:g} of the training examples, held out with seed {seed}"
    else:
        valid, how = test, "the test set, as published: whatever is chosen by it is chosen on the test set"
    return LRAData(task, encoding.pipeline, train, valid, test, NUM_LABELS[task], vocab_size, None, how)


def _read(task: str, root: Path, split: str, strict: bool) -> Iterator[TextExample]:
    if task == "listops":
        return readers.read_listops(root, split, strict=strict)
    return (readers.read_text if task == "text" else readers.read_retrieval)(root, split)


def _fingerprint(task: str, root: Path, split: str) -> str:
    """Changes when the files of a split do."""
    if task == "text":
        files = [path for path, _ in readers.text_files(root, split)]
    else:
        files = [(readers.listops_file if task == "listops" else readers.retrieval_file)(root, split)]
    stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps(stats).encode()).hexdigest()


def _encode_texts(folder: Path, encoding: _Encoding, root: Path, strict: bool, progress: bool) -> None:
    """Write `SPLIT.ids`, `SPLIT.ends` and `SPLIT.labels`, little-endian integers without header, and `header.json`."""
    from tqdm import tqdm

    folder.mkdir()
    task, counts = encoding.task, {}

    def read(split: str, doing: str) -> Iterable[TextExample]:
        desc, total = f"{doing} {task} {split}", readers.SIZES[task][split]
        return tqdm(_read(task, root, split, strict), desc=desc, total=total, disable=not progress)

    encode, vocab_size = encoding.encoder(read("train", "count"))
    for split in readers.SIZES[task]:
        lengths, labels = [], []
        with (folder / f"{split}.ids").open("wb") as file:
            for example in read(split, "encode"):
                for text in example.texts:
                    ids = encode(text)
                    file.write(ids.astype(_dtype(vocab_size)).tobytes())
                    lengths.append(len(ids))
                labels.append(example.label)
        if not any(lengths):
            raise DataError(f"Long Range Arena {task}, split {split}: every text is empty")
        np.cumsum(lengths, dtype=np.int64).astype("<i8").tofile(folder / f"{split}.ends")
        np.array(labels, dtype="<i8").tofile(folder / f"{split}.labels")
        counts[split] = {"ids": sum(lengths), "ends": len(lengths), "labels": len(labels)}
    header = {"splits": counts, "vocab_size": vocab_size}
    (folder / "header.json").write_text(json.dumps(header, indent=2) + "\n", encoding="utf-8")


def _dtype(vocab_size: int) -> str:
    return "<u2" if vocab_size <= 1 << 16 else "<u4"


def _open_cached(folder: Path, encoding: _Encoding) -> tuple[dict[str, TokenExamples], int] | None:
    """The splits in a cache folder and the number of ids; None if there are none, or files are missing or cut off."""
    try:
        header = json.loads((folder / "header.json").read_text(encoding="utf-8"))
        examples = {}
        for split, counts in header["splits"].items():
            arrays = {
                name: np.memmap(
                    folder / f"{split}.{name}", dtype=_dtype(header["vocab_size"]) if name == "ids" else "<i8", mode="r"
                )
                for name in ("ids", "ends", "labels")
            }
            if any(len(array) != counts[name] for name, array in arrays.items()):
                return None
            examples[split] = TokenExamples(**arrays, padded_length=encoding.rules.padded_length)
        return examples, int(header["vocab_size"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
