"""Small made-up data for Text, Retrieval and Image, whose real files must be downloaded: to try a recipe with.

Files, names and formats are those of the releases. The classes can be learned, so that a model which learns nothing
shows that something is wrong: words of a review, words that two documents share, the bright part of a picture.
"""

import pickle
import shutil
from pathlib import Path

import numpy as np

from subquad.data.errors import DataError

COMMON = [
    "the",
    "a",
    "film",
    "it",
    "was",
    "and",
    "of",
    "with",
    "story",
    "scene",
    "plot",
    "music",
    "end",
    "never",
    "quite",
]
OPINIONS = {"neg": ["awful", "boring", "weak", "dull"], "pos": ["superb", "moving", "sharp", "lovely"]}
TOPICS = ["stars", "rivers", "grammar", "insects", "bridges", "poetry", "protein", "glaciers"]


def make_stand_ins(output: Path, *, train: int = 200, test: int = 50, seed: int = 0) -> list[Path]:
    """Write `aclImdb/`, `tsv_data/` and `cifar-10-batches-py/`.

    Args:
        output: Folder to write them to, where `--data` of the recipes finds them.
        train: Examples for training; of Image rounded up to its five files.
        test: Examples for the test, and of Retrieval for validation.
        seed: The files depend on it alone.

    Returns:
        The three folders.

    Raises:
        DataError: If one of the folders exists: it may be the real data.
        ValueError: If `train` or `test` is less than 2, the number of classes of Text.
    """
    if train < 2 or test < 2:
        raise ValueError(f"`train` and `test` must be 2 at least, got {train} and {test}")
    makers = {"aclImdb": _write_text, "tsv_data": _write_retrieval, "cifar-10-batches-py": _write_image}
    folders = [output / name for name in makers]
    for folder in folders:
        if folder.exists():
            raise DataError(f"{folder}: exists already, and may be the real data; take another `output`")
    for index, (folder, write) in enumerate(zip(folders, makers.values(), strict=True)):
        unfinished = folder.with_name(folder.name + ".tmp")
        shutil.rmtree(unfinished, ignore_errors=True)
        write(unfinished, {"train": train, "test": test}, np.random.default_rng([seed, index]))
        unfinished.rename(folder)
    return folders


def _sentence(rng: np.random.Generator, words: list[str], length: int = 60) -> str:
    """Common words, every fourth of them one of `words`."""
    text = rng.choice(COMMON, length).tolist()
    text[::4] = rng.choice(words, len(text[::4])).tolist()
    return " ".join(text)


def _write_text(folder: Path, sizes: dict[str, int], rng: np.random.Generator) -> None:
    for split, size in sizes.items():
        for index in range(size):
            sentiment, rating = (("neg", 1), ("pos", 10))[index % 2]
            path = folder / split / sentiment / f"{index // 2}_{rating}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_sentence(rng, OPINIONS[sentiment]), encoding="utf-8")


def _write_retrieval(folder: Path, sizes: dict[str, int], rng: np.random.Generator) -> None:
    folder.mkdir(parents=True)
    for split, size in {"train": sizes["train"], "eval": sizes["test"], "test": sizes["test"]}.items():
        lines = []
        for index in range(size):
            first, second = rng.choice(TOPICS, 2, replace=False)
            other = first if index % 2 else second
            lines.append(
                f"{index % 2:.1f}\t{2 * index}\t{2 * index + 1}\t{_sentence(rng, [first])}\t{_sentence(rng, [other])}\n"
            )
        (folder / f"new_aan_pairs.{split}.tsv").write_text("".join(lines), encoding="utf-8")


def _write_image(folder: Path, sizes: dict[str, int], rng: np.random.Generator) -> None:
    folder.mkdir(parents=True)
    batches = {f"data_batch_{number}": -(-sizes["train"] // 5) for number in range(1, 6)}
    for name, size in {**batches, "test_batch": sizes["test"]}.items():
        labels = np.arange(size) % 10
        images = rng.integers(0, 100, (size, 3, 32, 32))
        for image, label in zip(images, labels, strict=True):
            row, column = 6 * (label // 2), 16 * (label % 2)
            image[:, row : row + 6, column : column + 16] += 150
        content = {
            b"batch_label": name.encode(),
            b"labels": labels.tolist(),
            b"data": images.reshape(size, -1).astype(np.uint8),
        }
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
