"""The eight tasks of GLUE (arXiv 1804.07461): official TSV files, or a dataset of Hugging Face, as encoded examples.

Inputs and classes are those of fairseq's RoBERTa recipe: `<s> A </s>` or `<s> A </s> </s> B </s>`, and classes numbered
by falling frequency in the training data, so published classifiers can be used.
"""

import gzip
import hashlib
import itertools
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from subquad.data.errors import DataError
from subquad.data.sources import Text, missing_split
from subquad.data.tokenizers import Tokenizer, split_lines
from subquad.registry import unknown_name

MAX_SCORE = 5.0
"""STS-B's scores are from 0 to 5; a model predicts them divided by this."""
# `<s> A </s> </s> B </s>` with one token in each sentence.
SHORTEST = 6


@dataclass(frozen=True)
class GlueTask:
    """One task.

    Args:
        title: Its name in papers, and of its folder.
        columns: Columns of its TSV files with the sentences, counted from 1.
        label: The column with the label.
        fields: The columns of a dataset of Hugging Face with the sentences.
        labels: Labels as they stand in the TSV files, in the order in which datasets of Hugging Face number them;
            empty: a score.
        metrics: The official metrics, the one that a table shows first; see `subquad.evaluation.glue`.
        test_columns: `columns` of the test file, where they differ.
        dev_label: `label` of the dev files, where it differs.
        has_header: Whether the train and dev files have one; test files always do.
        num_columns: Lines of the train and dev files with another number of columns are left out; None: all are read.
        valid_splits: File names of the validation splits; the first one chooses the best model.
    """

    title: str
    columns: tuple[int, ...]
    label: int
    fields: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)
    test_columns: tuple[int, ...] | None = None
    dev_label: int | None = None
    has_header: bool = True
    num_columns: int | None = None
    valid_splits: tuple[str, ...] = ("dev",)

    @property
    def is_regression(self) -> bool:
        """Whether a number is predicted."""
        return not self.labels


_BINARY = ("0", "1")
_ENTAILMENT = ("entailment", "not_entailment")
_PAIR = ("sentence1", "sentence2")
GLUE_TASKS = {
    "mnli": GlueTask(
        "MNLI",
        (9, 10),
        12,
        ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
        dev_label=16,
        valid_splits=("dev_matched", "dev_mismatched"),
    ),
    "qnli": GlueTask("QNLI", (2, 3), 4, ("question", "sentence"), _ENTAILMENT),
    "qqp": GlueTask(
        "QQP",
        (4, 5),
        6,
        ("question1", "question2"),
        _BINARY,
        metrics=("accuracy", "f1"),
        test_columns=(2, 3),
        num_columns=6,
    ),
    "sst2": GlueTask("SST-2", (1,), 2, ("sentence",), _BINARY, test_columns=(2,)),
    "mrpc": GlueTask("MRPC", (4, 5), 1, _PAIR, _BINARY, metrics=("f1", "accuracy")),
    "cola": GlueTask(
        "CoLA", (4,), 2, ("sentence",), _BINARY, metrics=("matthews",), test_columns=(2,), has_header=False
    ),
    "rte": GlueTask("RTE", (2, 3), 4, _PAIR, _ENTAILMENT),
    "stsb": GlueTask("STS-B", (8, 9), 10, _PAIR, (), metrics=("pearson", "spearman")),
}
"""The tasks by the names that datasets of Hugging Face have, in the order of the tables of papers."""


def glue_task(name: str | None) -> GlueTask:
    """The task called `name`.

    Raises:
        ValueError: There is no such task; the message names the nearest one.
    """
    if name not in GLUE_TASKS:
        raise ValueError(unknown_name("GLUE task", name, GLUE_TASKS))
    return GLUE_TASKS[name]


@dataclass(frozen=True)
class GlueRows:
    """One split as it is written.

    Args:
        sentences: For each sentence of an example (one or two) those of all examples, without white space around them.
        labels: The label of each example, for scores a number; None where the split has none (test).
    """

    sentences: list[list[str]]
    labels: list[str] | list[float] | None

    def __len__(self) -> int:
        return len(self.sentences[0])


@dataclass(frozen=True)
class GlueSource:
    """The data of one task before it is encoded.

    Args:
        name: What the user wrote, and the task.
        fingerprint: Changes when the data does.
        split_rule: How the splits came about, in words.
        readers: For each split a function that reads it; `valid`, and of MNLI also `valid_mismatched`.
    """

    name: str
    fingerprint: str
    split_rule: str
    readers: dict[str, Callable[[], GlueRows]]

    def record(self) -> dict[str, str]:
        """Name, fingerprint and split rule."""
        return {"name": self.name, "fingerprint": self.fingerprint, "split_rule": self.split_rule}

    def read(self, split: str) -> GlueRows:
        """Read a split.

        Raises:
            DataError: There is no such split, or something in it is wrong; the message has the file and the line.
        """
        if split not in self.readers:
            raise missing_split(self.name, split, self.readers)
        rows = self.readers[split]()
        if not len(rows):
            raise DataError(f"{self.name}: the split '{split}' is empty")
        return rows


def open_glue(data: str | Path, task: str) -> GlueSource:
    """Find the data of a task.

    Args:
        data: The folder of the official files (`FOLDER/MRPC/train.tsv`, gzipped or not) or of this task in it; or
            `hf:NAME`, a dataset of Hugging Face with one configuration for each task, as `hf:nyu-mll/glue`. NAME may be
            a local folder: of a saved dataset, or with one for each task.
        task: A name in `GLUE_TASKS`.

    Raises:
        DataError: The train or validation data is not there.
        ValueError: There is no such task.
    """
    kind = glue_task(task)
    name = f"{data} ({kind.title})"
    if str(data).startswith("hf:"):
        return _open_dataset(str(data).removeprefix("hf:"), task, name)
    folder = Path(data) / kind.title if (Path(data) / kind.title).is_dir() else Path(data)
    if not folder.is_dir():
        raise DataError(f"{data}: no such folder (hf:{data} is a dataset of Hugging Face)")
    tests = [split.replace("dev", "test") for split in kind.valid_splits]
    wanted = {"train": "train", **_valid_names(kind.valid_splits), **_valid_names(tests, "test")}
    found = {split: path for split, stem in wanted.items() if (path := _tsv(folder, stem)) is not None}
    for split in ("train", *_valid_names(kind.valid_splits)):
        if split not in found:
            raise DataError(
                f"{name}: no {wanted[split]}.tsv in {folder}: give the folder with the official files of GLUE"
            )
    stats = [[str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in found.values()]
    readers = {split: _tsv_reader(path, kind, split) for split, path in found.items()}
    return GlueSource(name, _hash([task, stats]), "as published", readers)


def _valid_names(files: Iterable[str], split: str = "valid") -> dict[str, str]:
    """The names of several splits: `valid`, then `valid_mismatched`."""
    return {split if i == 0 else f"{split}_{file.partition('_')[2]}": file for i, file in enumerate(files)}


# The official files


def _tsv(folder: Path, stem: str) -> Path | None:
    paths = (folder / f"{stem}.tsv", folder / f"{stem}.tsv.gz")
    return next((path for path in paths if path.is_file()), None)


def _tsv_reader(path: Path, task: GlueTask, split: str) -> Callable[[], GlueRows]:
    is_test = split.startswith("test")
    columns = (task.test_columns if is_test else None) or task.columns
    label = (task.dev_label if split.startswith("valid") else None) or task.label

    def read() -> GlueRows:
        sentences: list[list[str]] = [[] for _ in columns]
        labels: list[Any] = []
        needed = max(columns if is_test else (*columns, label))
        for number, cells in _lines(path, has_header=is_test or task.has_header):
            if not is_test and task.num_columns not in (None, len(cells)):
                continue
            if len(cells) < needed:
                raise DataError(f"{path}: line {number} has {len(cells)} columns, {task.title} has {needed} or more")
            for texts, column in zip(sentences, columns, strict=True):
                texts.append(cells[column - 1].strip())
            if not is_test:
                labels.append(_label(cells[label - 1].strip(), task, f"{path}: line {number}"))
        return GlueRows(sentences, None if is_test else labels)

    return read


def _lines(path: Path, *, has_header: bool) -> Iterator[tuple[int, list[str]]]:
    """The cells of each line and its number, from 1; quotes are ordinary characters."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.name.endswith(".gz") else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    lines = content.removeprefix(b"\xef\xbb\xbf").removesuffix(b"\n").split(b"\n") if content else []
    for number, line in itertools.islice(enumerate(lines, start=1), int(has_header), None):
        try:
            yield number, line.decode("utf-8").removesuffix("\r").split("\t")
        except UnicodeDecodeError:
            raise DataError(f"{path}: line {number} is not UTF-8 text") from None


def _label(text: str, task: GlueTask, where: str) -> str | float:
    if not task.is_regression:
        if text not in task.labels:
            raise DataError(f"{where}: the label {text!r} is none of {', '.join(task.labels)}")
        return text
    try:
        score = float(text)
    except ValueError:
        score = -1.0
    if not 0 <= score <= MAX_SCORE:
        raise DataError(f"{where}: the score {text!r} is no number from 0 to {MAX_SCORE:g}")
    return score


# Datasets of Hugging Face


def _open_dataset(value: str, task: str, name: str) -> GlueSource:
    try:
        import datasets
    except ImportError:
        raise DataError(
            f"{name}: reading datasets needs the package `datasets`; run `pip install subquad[train]`"
        ) from None
    saved = next((f for f in (Path(value) / task, Path(value)) if (f / "dataset_dict.json").is_file()), None)
    try:
        loaded: Any = datasets.load_from_disk(saved) if saved else datasets.load_dataset(value, task)
    except Exception as error:  # the many kinds that network, hub and file formats raise
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise DataError(f"{name}: cannot be loaded ({reason})") from error
    kind = GLUE_TASKS[task]
    parts = {}
    for split, part in cast(Mapping[str, Any], loaded).items():
        parts[split.replace("validation", "valid").replace("_matched", "")] = part
        for column in (*kind.fields, "label"):
            if column not in part.column_names:
                raise DataError(f"{name}: no column '{column}'; the columns are: {', '.join(part.column_names)}")
    for split in ("train", *_valid_names(kind.valid_splits)):
        if split not in parts:
            raise missing_split(name, split, parts)
    fingerprint = _hash([task, [[split, part._fingerprint] for split, part in parts.items()]])
    return GlueSource(
        name, fingerprint, "as published", {split: _dataset_reader(part, kind, name) for split, part in parts.items()}
    )


def _dataset_reader(part: Any, task: GlueTask, name: str) -> Callable[[], GlueRows]:
    def label(value: Any, row: int) -> Any:
        where = f"{name}: row {row}"
        if task.is_regression or isinstance(value, str):
            return _label(str(value), task, where)
        if not 0 <= value < len(task.labels):
            raise DataError(f"{where}: the label {value} is none of 0 … {len(task.labels) - 1}")
        return task.labels[value]

    def read() -> GlueRows:
        sentences = [[text.strip() for text in part[field]] for field in task.fields]
        values = list(part["label"])
        # Labels that are not public are −1.
        is_hidden = all(value in (None, -1) for value in values)
        return GlueRows(sentences, None if is_hidden else [label(value, row) for row, value in enumerate(values)])

    return read


# Examples


def classes_by_frequency(labels: Iterable[str]) -> list[str]:
    """Numbers of classes as in fairseq: by falling frequency, those of equal frequency by name.

    Args:
        labels: The label of every training example.
    """
    return [label for label, _ in sorted(Counter(labels).items(), key=lambda entry: (-entry[1], entry[0]))]


class GlueExamples(Dataset[dict[str, Tensor]]):
    """Encoded examples of one split: `input_ids` (length,) int64, and `labels` (), int64 or for scores float32.

    Inputs are `<s> A </s>` or `<s> A </s> </s> B </s>`. Of one that is too long, the end of its longer sentence is cut
    away, again and again until it fits.

    Args:
        rows: The examples, with labels.
        tokenizer: The tokenizer of the model.
        max_length: Most tokens of an example.
        classes: The labels in the order of the model's classes; None for scores, which are divided by 5.

    Raises:
        DataError: The examples have no labels, or one that is no class.
        ValueError: `max_length` leaves no room for two sentences.
    """

    def __init__(
        self, rows: GlueRows, tokenizer: Tokenizer, max_length: int, classes: Sequence[str] | None = None
    ) -> None:
        if max_length < SHORTEST:
            raise ValueError(f"an example of GLUE needs room for {SHORTEST} tokens, got max_length={max_length}")
        if rows.labels is None:
            raise DataError("the labels of this split are not public: take the split 'valid'")
        self.labels = _as_numbers(rows.labels, classes)
        self.cls_id, self.eos_id = tokenizer.cls_id, tokenizer.vocabulary.eos_id
        self.sentences = [_encode(texts, tokenizer) for texts in rows.sentences]
        # One symbol before each sentence; the one after it is part of it.
        room = max_length - len(self.sentences)
        lengths = np.stack([np.diff(offsets) for _, offsets in self.sentences], axis=1)
        self.kept = _cut(lengths, room)
        self.num_cut = int((lengths.sum(1) > room).sum())
        """Examples that were too long."""

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids = []
        for number, ((tokens, offsets), kept) in enumerate(zip(self.sentences, self.kept[index], strict=True)):
            start = offsets[index]
            ids += [[self.eos_id if number else self.cls_id], tokens[start : start + kept - 1], [self.eos_id]]
        return {"input_ids": torch.from_numpy(np.concatenate(ids).astype(np.int64)), "labels": self.labels[index]}


def _as_numbers(labels: Sequence[str] | Sequence[float], classes: Sequence[str] | None) -> Tensor:
    if classes is None:
        return torch.tensor(labels, dtype=torch.float32) / MAX_SCORE
    numbers = {label: number for number, label in enumerate(classes)}
    for label in labels:
        if label not in numbers:
            raise DataError(f"the label {label!r} is no class of the model, its classes are {', '.join(classes)}")
    return torch.tensor([numbers[cast(str, label)] for label in labels])


def _encode(texts: list[str], tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """All ids of the sentences, each with an end symbol, and where each sentence begins, and the end of the last."""
    # A sentence is one item, whatever it holds.
    ids, lengths, _ = tokenizer.encode_corpus([Text(" ".join(split_lines(text)), True) for text in texts])
    return ids, np.concatenate([[0], np.cumsum(lengths)])


def _cut(lengths: np.ndarray, room: int) -> np.ndarray:
    """How much of each sentence is kept, `(examples, sentences)`: the longer one loses, then both in turn."""
    if lengths.shape[1] == 1:
        return np.minimum(lengths, room)
    first, second = lengths.T
    # Of two sentences that are both longer than half of the room, the first keeps the odd token.
    kept = np.minimum(first, np.maximum(room - second, (room + 1) // 2))
    return np.stack([kept, np.minimum(second, room - kept)], axis=1)


def collate_examples(examples: Sequence[dict[str, Tensor]], pad_id: int) -> dict[str, Tensor]:
    """Stack examples, filled up on the right.

    Args:
        examples: From `GlueExamples`.
        pad_id: Fills `input_ids`.

    Returns:
        `input_ids` and `attention_mask` (batch, length) int64, 1 for real tokens, and `labels` (batch,).
    """
    ids = [example["input_ids"] for example in examples]
    lengths = torch.tensor([len(row) for row in ids])
    return {
        "input_ids": torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=pad_id),
        "attention_mask": (torch.arange(int(lengths.max())) < lengths[:, None]).long(),
        "labels": torch.stack([example["labels"] for example in examples]),
    }


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
