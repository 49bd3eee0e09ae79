"""Corpora of token ids on disk: one flat array for each split, mapped into memory.

`prepare` encodes a corpus once and keeps it in a cache folder:

    header.json      what it was made from, with which vocabulary, and the counts
    SPLIT.tokens     the ids, little-endian uint16 (below 65 500 symbols) or uint32, without header or separators
    SPLIT.items      where each item (line or document) begins, and the end of the last: little-endian int64

The folder is written under a temporary name and renamed, so a corpus is there as a whole or not at all.
"""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from subquad.data.errors import DataError
from subquad.data.sources import PIECE_BYTES, DataValue, Source, Text, is_databin, missing_split, open_source
from subquad.data.tokenizers import Tokenizer, Vocabulary, split_lines

FORMAT = 1
# Below this many bytes of text, starting processes takes longer than encoding.
PARALLEL_BYTES = 64 << 20


class _MappedFile(NamedTuple):
    """How to map a file again."""

    path: str
    dtype: np.dtype

    @classmethod
    def of(cls, value: Any) -> Any:
        """The file of an array that maps all of one; any other value as it is."""
        if isinstance(value, np.memmap) and value.filename and value.nbytes == Path(value.filename).stat().st_size:
            return cls(str(value.filename), value.dtype)
        return value

    def open(self) -> np.memmap:
        return np.memmap(self.path, dtype=self.dtype, mode="r")


@dataclass(frozen=True, eq=False)
class TokenStream:
    """All ids of one split, in order, with an end symbol behind each item.

    Args:
        tokens: The ids as they are stored, `(num_tokens,)`, mapped into memory. `read` gives them as int64.
        item_offsets: Where each item begins, and the end of the last, `(num_items + 1,)` int64.
        vocabulary: What the ids mean.
        num_words: Words of the text, split at white space; None where the text is not known.
        num_lines: Lines of the text; None where the text is not known.
        num_bytes: Bytes of the text in UTF-8; None where the text is not known.
        id_shift: What `read` adds to stored ids (fairseq's legacy format stores them plus one).
    """

    tokens: np.ndarray = field(repr=False)
    item_offsets: np.ndarray = field(repr=False)
    vocabulary: Vocabulary
    num_words: int | None = None
    num_lines: int | None = None
    num_bytes: int | None = None
    id_shift: int = 0

    @property
    def num_tokens(self) -> int:
        """Number of ids, end symbols included."""
        return len(self.tokens)

    @property
    def num_items(self) -> int:
        """Number of lines or documents."""
        return len(self.item_offsets) - 1

    @property
    def num_words_and_line_ends(self) -> int | None:
        """The denominator of word perplexity: words, and one end for each line, as word-level models predict them."""
        return None if self.num_words is None or self.num_lines is None else self.num_words + self.num_lines

    def read(self, start: int, stop: int) -> np.ndarray:
        """The ids at `start … stop − 1`, int64."""
        return self.tokens[start:stop].astype(np.int64) + self.id_shift

    def __getstate__(self) -> dict[str, Any]:
        # NumPy would write the content of a mapped file; other processes map the file themselves.
        return {name: _MappedFile.of(value) for name, value in self.__dict__.items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, value.open() if isinstance(value, _MappedFile) else value)


class Splits(dict[str, TokenStream]):
    """The streams of a corpus by the name of their split; a missing one is a `DataError`."""

    def __init__(self, name: str, streams: dict[str, TokenStream]) -> None:
        super().__init__(streams)
        self.name = name

    def __missing__(self, split: str) -> TokenStream:
        raise missing_split(self.name, split, self)


@dataclass(frozen=True)
class Corpus:
    """Encoded text.

    Args:
        name: The `--data` value.
        splits: A stream for each of `train`, `valid`, `test` that the data has.
        vocabulary: What the ids mean.
        split_rule: How the splits came about, in words.
        fingerprint: Equal for equal ids in equal splits, on any machine.
        folder: Where it is stored.
    """

    name: str
    splits: Splits
    vocabulary: Vocabulary
    split_rule: str
    fingerprint: str
    folder: Path

    def record(self) -> dict[str, str]:
        """Name, fingerprint and split rule."""
        return {"name": self.name, "fingerprint": self.fingerprint, "split_rule": self.split_rule}


def prepare(
    data: DataValue | Source,
    tokenizer: Tokenizer,
    *,
    text_column: str = "text",
    cache_dir: Path | str | None = None,
    num_workers: int | None = None,
    progress: bool = True,
) -> Corpus:
    """Encode a corpus, or find it in the cache.

    The result does not depend on the number of processes. Memory stays bounded for corpora of any size. Folders of
    fairseq's preprocessing (data-bin) are mapped as they are.

    Args:
        data: See `open_source`; also a data-bin folder.
        tokenizer: See `build_tokenizer`.
        text_column: Column of the text in datasets, Parquet and JSON lines.
        cache_dir: Where encoded corpora are kept; default the environment's `SUBQUAD_CACHE`, else `~/.cache/subquad`.
        num_workers: Processes that encode; default all cores for large corpora, else 1 (this process).
        progress: Show a progress bar.

    Returns:
        The corpus, mapped into memory.

    Raises:
        DataError: The data cannot be read, is empty, does not match the tokenizer, or the disk is full.
    """
    if isinstance(data, str | Path) and is_databin(data):
        from subquad.data.fairseq import open_databin

        return open_databin(data, tokenizer)
    source = data if isinstance(data, Source) else open_source(data, text_column=text_column)
    root = Path(cache_dir or os.environ.get("SUBQUAD_CACHE") or Path.home() / ".cache" / "subquad") / "corpora"
    identity = json.dumps([FORMAT, source.fingerprint, tokenizer.vocabulary.as_dict()])
    folder = root / hashlib.sha256(identity.encode()).hexdigest()[:16]
    if (corpus := _open(folder, source.name, tokenizer.vocabulary)) is not None:
        return corpus
    if num_workers is None:
        num_workers = (os.cpu_count() or 1) if (source.num_bytes or 0) > PARALLEL_BYTES else 1
    try:
        root.mkdir(parents=True, exist_ok=True)
        _check_space(root, source, tokenizer.vocabulary)
        with tempfile.TemporaryDirectory(dir=root, prefix=".") as temporary:
            _build(Path(temporary), source, tokenizer, num_workers, progress)
            if _open(folder, source.name, tokenizer.vocabulary) is None:  # no other process was faster
                _publish(Path(temporary), folder)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise DataError(f"{root}: the disk is full; set SUBQUAD_CACHE to a folder with more space") from None
        raise
    except BrokenProcessPool:
        raise DataError(
            f"{source.name}: a process that encodes ended early (out of memory, or a script without "
            "`if __name__ == '__main__':`); num_workers=1 needs no processes"
        ) from None
    corpus = _open(folder, source.name, tokenizer.vocabulary)
    assert corpus is not None
    return corpus


def combined_fingerprint(hashes: dict[str, str]) -> str:
    """The fingerprint of a corpus from the SHA-256 of the ids of each split, written with `token_dtype`."""
    return hashlib.sha256(json.dumps(sorted(hashes.items())).encode()).hexdigest()


def token_dtype(vocabulary: Vocabulary) -> np.dtype:
    """The type that ids are stored with."""
    return np.dtype("<u2" if vocabulary.size < 65_500 else "<u4")


def _check_space(root: Path, source: Source, vocabulary: Vocabulary) -> None:
    bytes_per_token = 1 if vocabulary.unit == "byte" else 3
    needed = (source.num_bytes or 0) // bytes_per_token * token_dtype(vocabulary).itemsize
    free = shutil.disk_usage(root).free
    if needed > free:
        raise DataError(
            f"{root}: {source.name} needs about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; "
            "set SUBQUAD_CACHE to a folder with more space"
        )


def _publish(temporary: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # what `_open` refused
    try:
        temporary.rename(folder)
    except OSError:
        if not folder.exists():  # unless another process published between the two lines
            raise
    else:
        temporary.mkdir()  # for the clean-up of the temporary folder


def _open(folder: Path, name: str, vocabulary: Vocabulary) -> Corpus | None:
    """The corpus in a cache folder; None if there is none or files are missing or cut off."""
    try:
        header = json.loads((folder / "header.json").read_text(encoding="utf-8"))
        if header["format"] != FORMAT or header["vocabulary"] != vocabulary.as_dict():
            return None
        streams = {}
        for split, counts in header["splits"].items():
            tokens = np.memmap(folder / f"{split}.tokens", dtype=token_dtype(vocabulary), mode="r")
            items = np.memmap(folder / f"{split}.items", dtype="<i8", mode="r")
            if len(tokens) != counts["tokens"] or len(items) != counts["items"] + 1:
                return None
            streams[split] = TokenStream(tokens, items, vocabulary, counts["words"], counts["lines"], counts["bytes"])
        return Corpus(name, Splits(name, streams), vocabulary, header["split_rule"], header["fingerprint"], folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _build(folder: Path, source: Source, tokenizer: Tokenizer, num_workers: int, progress: bool) -> None:
    from tqdm import tqdm

    splits = {}
    with (
        _map_in_order(tokenizer, num_workers) as encode,
        tqdm(
            total=source.num_bytes, unit="B", unit_scale=True, desc=f"encode {source.name}", disable=not progress
        ) as bar,
    ):
        for split in source.readers:
            pieces = _pieces(source.read(split, whole_lines=tokenizer.line_wise))
            splits[split] = _write_split(folder, split, encode(pieces), token_dtype(tokenizer.vocabulary), bar.update)
            if not splits[split]["tokens"]:
                raise DataError(f"{source.name}: the split '{split}' holds no text")
    header = {
        "format": FORMAT,
        "source": source.name,
        "source_fingerprint": source.fingerprint,
        "split_rule": source.split_rule,
        "fingerprint": combined_fingerprint({split: counts["sha256"] for split, counts in splits.items()}),
        "vocabulary": tokenizer.vocabulary.as_dict(),
        "splits": splits,
    }
    (folder / "header.json").write_text(json.dumps(header, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


class _Encoded(NamedTuple):
    """A piece of a corpus: its ids, the lengths of its items, whether the last goes on, and the counts of its text."""

    ids: np.ndarray
    lengths: np.ndarray
    open: bool
    words: int
    lines: int
    bytes: int


def _pieces(texts: Iterable[Text]) -> Iterator[list[Text]]:
    """Group texts into the work of one call; the groups decide nothing about the result."""
    piece: list[Text] = []
    size = 0
    for text in texts:
        piece.append(text)
        size += len(text.text)
        if size >= PIECE_BYTES or len(piece) >= 1 << 14:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


def _encode(tokenizer: Tokenizer, piece: list[Text]) -> _Encoded:
    ids, lengths, is_open = tokenizer.encode_corpus(piece)
    return _Encoded(
        ids.astype(token_dtype(tokenizer.vocabulary)),
        lengths,
        is_open,
        words=sum(len(text.text.split()) for text in piece),
        lines=sum(_num_lines(text) for text in piece),
        bytes=sum(len(text.text.encode()) for text in piece),
    )


def _num_lines(text: Text) -> int:
    # A piece that ends within a line leaves that line to the next piece.
    is_cut = not text.final and not text.text.endswith(("\n", "\r"))
    return len(split_lines(text.text)) - is_cut


def _write_split(
    folder: Path, split: str, encoded: Iterable[_Encoded], dtype: np.dtype, update: Callable[[int], Any]
) -> dict[str, Any]:
    """Write the two files of a split.

    Returns:
        Its counts, and the hash of its ids.
    """
    counts = {"tokens": 0, "items": 0, "words": 0, "lines": 0, "bytes": 0}
    digest = hashlib.sha256()
    continued = False
    with (folder / f"{split}.tokens").open("wb") as tokens, (folder / f"{split}.items").open("wb") as items:
        for part in encoded:
            data = part.ids.astype(dtype).tobytes()
            digest.update(data)
            tokens.write(data)
            starts = counts["tokens"] + np.cumsum(part.lengths) - part.lengths
            starts = starts[1:] if continued else starts
            items.write(starts.astype("<i8").tobytes())
            continued = part.open
            counts["tokens"] += len(part.ids)
            counts["items"] += len(starts)
            for name in ("words", "lines", "bytes"):
                counts[name] += getattr(part, name)
            update(part.bytes)
        items.write(np.array([counts["tokens"]], dtype="<i8").tobytes())
    return {**counts, "sha256": digest.hexdigest()}


@contextmanager
def _map_in_order(
    tokenizer: Tokenizer, num_workers: int
) -> Iterator[Callable[[Iterable[list[Text]]], Iterator[_Encoded]]]:
    """A function that encodes pieces in their order, in other processes if there are several."""
    if num_workers <= 1:
        yield lambda pieces: (_encode(tokenizer, piece) for piece in pieces)
        return
    with ProcessPoolExecutor(num_workers, get_context("spawn"), _start_worker, (tokenizer,)) as pool:

        def encode(pieces: Iterable[list[Text]]) -> Iterator[_Encoded]:
            # Few pieces under way keep memory bounded; `pool.map` would read the whole corpus first.
            waiting: deque[Future[_Encoded]] = deque()
            for piece in pieces:
                waiting.append(pool.submit(_encode_in_worker, piece))
                if len(waiting) > 2 * num_workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

        yield encode


_worker_tokenizer: Tokenizer


def _start_worker(tokenizer: Tokenizer) -> None:
    global _worker_tokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _worker_tokenizer = tokenizer


def _encode_in_worker(piece: list[Text]) -> _Encoded:
    return _encode(_worker_tokenizer, piece)
