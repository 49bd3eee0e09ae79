"""Every reader of outside files, on damaged files: the data, `DataError` or `FileNotFoundError`, and nothing else.

SUBQUAD_FUZZ is the number of damaged files for each reader; a failure names the seed that makes its file again.
"""

import gzip
import json
import os
import pickle
import random
import shutil
import signal
import struct
import warnings
from contextlib import contextmanager

import numpy as np
import pytest
from data.lra import lra_files
from glue_files import write_glue
from support import shared

from subquad.data import DataError, build_tokenizer, load_tokenizer, open_source
from subquad.data.dictionary import Dictionary
from subquad.data.fairseq import open_databin
from subquad.data.glue import GLUE_TASKS, open_glue
from subquad.data.images import open_images
from subquad.data.lra import read_cifar10, read_listops, read_pathfinder, read_retrieval, read_text

COUNT = int(os.environ.get("SUBQUAD_FUZZ", "5"))
SECONDS = 60
ROWS = [{"text": f'row {i}, é and "quotes"', "id": i} for i in range(20)]
JSON_LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
# What stands for something in one of the formats.
PIECES = (
    b"", b"\0", b"\t", b"\n", b"\r\n", b" ", b"\"", b"{", b"]", b"(", b"-1", b"0", b"9" * 30, b"1e999", b"nan", b"..",
    b"/", b"\xff", b"\xed\xa0\x80", "\ufeff".encode(), b"\xff" * 8, b"\x7f\xff\xff\xff", b"\x80\x04", b"null",
)  # fmt: skip

READERS = {}


def reader(write):
    """Register a reader: the function writes whole files into a folder, and returns the function that reads them."""
    READERS[write.__name__] = write
    return write


@reader
def listops(folder):
    lra_files.listops(folder)
    return lambda: list(read_listops(folder, "train", strict=True))


@reader
def retrieval(folder):
    lra_files.retrieval(folder)
    return lambda: list(read_retrieval(folder, "train"))


@reader
def imdb(folder):
    lra_files.text(folder / "aclImdb")
    return lambda: list(read_text(folder, "train"))


@reader
def lra_cifar(folder):
    lra_files.cifar(folder / "cifar-10-batches-py")
    return lambda: [read_cifar10(folder, part) for part in ("train", "test")]


@reader
def pathfinder(folder):
    lra_files.pathfinder(folder / "pathfinder32", files=(0,))
    return lambda: pathfinder_images(folder)


@reader
def pathfinder_arrays(folder):
    """Metadata as arrays of NumPy, the generator's own form."""
    lra_files.pathfinder(folder / "pathfinder32", files=(0,))
    path = folder / "pathfinder32/curv_contour_length_14/metadata/0.npy"
    rows = np.array([line.split() for line in path.read_text().splitlines()])
    np.save(path, rows)
    return lambda: pathfinder_images(folder)


def pathfinder_images(folder):
    images = read_pathfinder(folder)
    return [images.pixels(index) for index in range(len(images))]


@reader
def cifar(folder):
    lra_files.cifar(folder / "cifar-10-batches-py")
    meta = {"label_names": [f"class {label}" for label in range(10)]}
    (folder / "cifar-10-batches-py" / "batches.meta").write_bytes(pickle.dumps(meta, 2))
    return lambda: all_images(folder)


@reader
def idx(folder):
    for part, count in (("train", 6), ("t10k", 3)):
        pixels = struct.pack(">IIII", 0x803, count, 4, 4) + bytes(range(16)) * count
        (folder / f"{part}-images-idx3-ubyte").write_bytes(pixels)
        labels = struct.pack(">II", 0x801, count) + bytes(range(count))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    return lambda: all_images(folder)


@reader
def image_lists(folder):
    for part in ("train", "val"):
        for label in range(3):
            lra_files.image(folder / f"{part}{label}.png", 8, "RGB", (label, 2, 3))
        (folder / f"{part}.txt").write_text("".join(f"{part}{label}.png {label}\n" for label in range(3)))
    return lambda: all_images(folder)


@reader
def image_folders(folder):
    for part in ("train", "val"):
        for name, suffix in (("cat", "jpg"), ("dog", "png")):
            lra_files.image(folder / part / name / f"0.{suffix}", 8, "RGB", (1, 2, 3))
    return lambda: all_images(folder)


def all_images(folder):
    return [split[index] for split in open_images(folder).splits.values() for index in range(len(split))]


@reader
def glue(folder):
    write_glue(folder, train=6, valid=6)
    return lambda: glue_rows(folder)


def glue_rows(folder):
    """The rows of all tasks that can be read; others must not keep a task from being read."""
    errors = []
    for task in GLUE_TASKS:
        try:
            source = open_glue(folder, task)
            for split in source.readers:
                source.read(split)
        except (DataError, FileNotFoundError) as error:
            errors.append(error)
    assert len(errors) <= 1
    if errors:
        raise errors[0]


def databin(name):
    def write(folder):
        shutil.copytree(shared("golden", "fairseq-data-bin") / name / "data-bin", folder, dirs_exist_ok=True)
        for path in folder.iterdir():
            path.chmod(0o644)

        def read():
            corpus = open_databin(folder, build_tokenizer("word", folder))
            for stream in corpus.splits.values():
                stream.read(0, stream.num_tokens)

        return read

    write.__name__ = f"databin-{name}"
    return write


reader(databin("word"))
reader(databin("word-legacy"))


@reader
def dictionary(folder):
    (folder / "dict.txt").write_text("the 5\nof 3\n#overwrite 2\nmadeupword0000 0\n")
    return lambda: Dictionary.load(folder / "dict.txt")


@reader
def text(folder):
    (folder / "novel.txt").write_text("line é of the text\n" * 30, encoding="utf-8")
    return lambda: all_texts(folder / "novel.txt")


@reader
def packed_text(folder):
    (folder / "novel.txt.gz").write_bytes(gzip.compress("line é of the text\n".encode() * 30))
    return lambda: all_texts(folder / "novel.txt.gz")


@reader
def json_lines(folder):
    (folder / "rows.jsonl").write_bytes(JSON_LINES)
    return lambda: all_texts(folder / "rows.jsonl")


@reader
def packed_json_lines(folder):
    (folder / "rows.jsonl.gz").write_bytes(gzip.compress(JSON_LINES))
    return lambda: all_texts(folder / "rows.jsonl.gz")


@reader
def parquet(folder):
    table = pytest.importorskip("pyarrow").Table.from_pylist(ROWS)
    pytest.importorskip("pyarrow.parquet").write_table(table, folder / "rows.parquet")
    return lambda: all_texts(folder / "rows.parquet")


def all_texts(path):
    source = open_source(path)
    return [list(source.read(split)) for split in ("train", "valid", "test")]


def tokenizer(spec):
    def write(folder):
        (folder.parent / "text.txt").write_text("some words of a text\n" * 200)
        build_tokenizer(spec, folder.parent / "text.txt").save(folder)

        def read():
            loaded = load_tokenizer(folder)
            assert loaded.vocabulary.size > 0

        return read

    write.__name__ = f"tokenizer-{spec.partition(':')[0]}"
    return write


reader(tokenizer("bytes"))
reader(tokenizer("word"))
reader(tokenizer("bpe:260"))


def damaged(content, rng):
    """A file with a few places changed."""
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        start = rng.randrange(len(content) + 1)
        stop = min(len(content), start + rng.choice((0, 1, 4, 16, len(content))))
        change = rng.randrange(5)
        if change == 0:
            content = content[:start] + rng.choice(PIECES) + content[stop:]
        elif change == 1:
            content = content[:start] + rng.randbytes(stop - start) + content[stop:]
        elif change == 2:
            content = content[:stop] + content[start:stop] + content[stop:]
        elif change == 3 and start < len(content):
            content = content[:start] + bytes([content[start] ^ 1 << rng.randrange(8)]) + content[start + 1 :]
        else:
            content = content[:start]
    return content


@contextmanager
def within(seconds):
    """A hang is an error, where the system can say so."""
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def late(*_):
        raise TimeoutError(f"more than {seconds} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("name", READERS)
def test_damaged_files(name, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    read = READERS[name](folder)
    warnings.simplefilter("ignore")
    read()
    whole = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    failures = []
    for seed in range(COUNT):
        rng = random.Random(seed)
        path = rng.choice(list(whole))
        path.unlink()  # a file that is mapped stays as it is
        if rng.random() > 0.02:
            path.write_bytes(damaged(whole[path], rng))
        try:
            with within(SECONDS):
                read()
        except (DataError, FileNotFoundError):
            pass
        except BaseException as error:
            failures.append(f"seed {seed}: {path.name}: {type(error).__name__}: {error}")
        finally:
            path.unlink(missing_ok=True)
            path.write_bytes(whole[path])
    assert failures == []
