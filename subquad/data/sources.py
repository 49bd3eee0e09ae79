"""What a `--data` value names: texts on disk, a dataset, or the built-in corpus, as documents of each split.

A split is read piece by piece, so a corpus may be larger than memory. Splits that the data does not name are made by a
fixed rule.
"""

import glob
import gzip
import hashlib
import io
import itertools
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from subquad.data import python_docs
from subquad.data.errors import DataError

SPLITS = ("train", "valid", "test")
TEXT_SUFFIXES = (".txt", ".text", ".raw", ".tokens", ".md", ".rst")
ROW_SUFFIXES = (".jsonl", ".ndjson", ".parquet")
PIECE_BYTES = 1 << 20
SPLIT_PERIOD = 20  # one document of 20 for valid, one for test

_SPLIT_NAME = re.compile(r"(?:wiki\.)?(train|valid|validation|val|dev|test)(?:[-_.]?\d+(?:-of-\d+)?)?(?:\.[a-z]+)*")
_ALIASES = {"validation": "valid", "val": "valid", "dev": "valid"}

DataValue = str | Path | Sequence[str | Path]


class Text(NamedTuple):
    """A piece of a document; `final` where the document ends with it."""

    text: str
    final: bool


Reader = Callable[[bool], Iterator[Text]]


@dataclass(frozen=True)
class Source:
    """A corpus before tokenization.

    Args:
        name: What the user wrote.
        fingerprint: Changes when the data does.
        split_rule: How the splits came about, in words.
        num_bytes: Size of the text, as far as it is known without reading.
        readers: For each split, a function from `whole_lines` to the texts.
    """

    name: str
    fingerprint: str
    split_rule: str
    num_bytes: int | None
    readers: dict[str, Reader]

    def read(self, split: str, *, whole_lines: bool = False) -> Iterator[Text]:
        """The texts of a split, in order.

        Args:
            split: Name of the split.
            whole_lines: Cut long documents at line ends only; otherwise a very long line is cut before a word.

        Raises:
            DataError: There is no such split, or a file turns out to be unreadable.
        """
        if split not in self.readers:
            raise missing_split(self.name, split, self.readers)
        return self.readers[split](whole_lines)


def missing_split(name: str, split: str, present: Iterable[str]) -> DataError:
    """The error for a split that is not there."""
    return DataError(f"{name}: no split '{split}'; there are: {', '.join(present)}")


def is_databin(path: str | Path) -> bool:
    """Whether a folder holds ids that fairseq's preprocessing made (`subquad.data.fairseq` reads them)."""
    return any((Path(path) / f"{split}.idx").is_file() for split in SPLITS)


def open_source(data: DataValue, *, text_column: str = "text") -> Source:
    """Find out what a `--data` value names.

    Args:
        data: `python-docs`, `hf:NAME[:CONFIGURATION]` (Hugging Face datasets; NAME may be a local folder), a text
            file, a `.jsonl` or `.parquet` file (text and JSON lines may be gzipped), a folder, a glob, or several
            files.
        text_column: The column of `.jsonl`, `.parquet` and datasets that holds the text.

    Raises:
        DataError: Nothing is there, it is empty or not text, or the column is missing.
    """
    if isinstance(data, str | Path):
        name, values = str(data), [str(data)]
    else:
        name, values = " ".join(map(str, data)), [str(value) for value in data]
    if not values:
        raise DataError("no data: give a file, a folder or python-docs")
    if values == ["python-docs"]:
        return _python_docs_source()
    if len(values) == 1 and values[0].startswith("hf:"):
        return _dataset_source(name, text_column)
    if len(values) == 1 and _is_saved_dataset(Path(values[0])):
        return _dataset_source(f"hf:{values[0]}", text_column)
    if is_databin(values[0]):
        raise DataError(f"{name}: a data-bin folder of fairseq holds ids, not text; give it to the tokenizer 'word'")
    folder = Path(values[0]) if len(values) == 1 and Path(values[0]).is_dir() else None
    files = _files_in(folder) if folder else list(itertools.chain.from_iterable(map(_expand, values)))
    return _file_source(name, files, folder, text_column)


# Files


def _expand(value: str) -> list[Path]:
    path = Path(value)
    if path.is_file():
        return [path]
    if path.is_dir():
        return _files_in(path)
    if glob.has_magic(value):
        if found := sorted(Path(match) for match in glob.glob(value, recursive=True) if Path(match).is_file()):
            return found
        raise DataError(f"{value}: no file matches")
    raise DataError(
        f"{value}: no such file or folder (python-docs is the built-in corpus, hf:{value} a dataset of Hugging Face)"
    )


def _files_in(folder: Path) -> list[Path]:
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and _suffix(path) in TEXT_SUFFIXES + ROW_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    if not files:
        raise DataError(f"{folder}: no text in this folder (looked for {' '.join(TEXT_SUFFIXES + ROW_SUFFIXES)})")
    return files


def _suffix(path: Path) -> str:
    name = path.name.removesuffix(".gz")
    return Path(name).suffix.lower()


def _file_source(name: str, files: list[Path], folder: Path | None, text_column: str) -> Source:
    for path in files:
        _check_file(path, text_column)
    if not sum(path.stat().st_size for path in files):
        raise DataError(f"{name}: empty")
    stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    groups = _split_by_name(files, folder)
    if groups:
        readers = {split: _whole_files(paths, text_column) for split, paths in groups.items()}
        rule = "as named"
    else:
        readers, rule = _split_by_rule(files, text_column)
    size = sum(size * (4 if path.name.endswith(".gz") else 1) for path, (_, size, _) in zip(files, stats, strict=True))
    return Source(name, _hash([stats, text_column, rule]), rule, size, readers)


def _split_by_name(files: list[Path], folder: Path | None) -> dict[str, list[Path]] | None:
    """Files whose name (or whose folder below `folder`) is that of a split; None if that is no division."""
    groups: dict[str, list[Path]] = {}
    others = False
    for path in files:
        part = path.relative_to(folder).parts[0] if folder else path.name
        if match := _SPLIT_NAME.fullmatch(part.lower()):
            groups.setdefault(_ALIASES.get(match[1], match[1]), []).append(path)
        else:
            others = True
    # A train part alone is divided like any other text. A README may lie beside the splits of a folder.
    if set(groups) <= {"train"} or (others and (folder is None or "train" not in groups)):
        return None
    return {split: groups[split] for split in SPLITS if split in groups}


def _split_by_rule(files: list[Path], text_column: str) -> tuple[dict[str, Reader], str]:
    if len(files) < SPLIT_PERIOD and all(_suffix(path) not in ROW_SUFFIXES for path in files):
        cuts = {path: _positions(path) for path in files}
        return {
            split: _text_ranges([(path, cut[i], cut[i + 1]) for path, cut in cuts.items()])
            for i, split in enumerate(SPLITS)
        }, "last 10 % of each file, cut at line ends: 5 % valid, 5 % test"
    reader = _whole_files(files, text_column)
    return _split_documents(reader, _period(reader, str(files[0])))


def _period(reader: Reader, name: str) -> int:
    finals = (text for text in reader(False) if text.final)
    documents = sum(1 for _ in itertools.islice(finals, SPLIT_PERIOD))
    if documents < 3:
        raise DataError(
            f"{name}: {documents} documents cannot be divided into train, valid and test; give each its own file"
        )
    return documents


def _split_documents(reader: Reader, period: int = SPLIT_PERIOD) -> tuple[dict[str, Reader], str]:
    """Of every `period` documents, the last but one is valid and the last is test."""

    def select(split: str) -> Reader:
        def read(whole_lines: bool) -> Iterator[Text]:
            index = 0
            for text in reader(whole_lines):
                place = index % period
                if split == ("valid" if place == period - 2 else "test" if place == period - 1 else "train"):
                    yield text
                index += text.final

        return read

    return {split: select(split) for split in SPLITS}, f"of every {period} documents the last two: valid, test"


def _positions(path: Path) -> list[int]:
    """Where the splits of one text file begin, in bytes of its text, and where the last ends."""
    with _open(path) as file:
        size = path.stat().st_size if not isinstance(file, gzip.GzipFile) else sum(map(len, _blocks(file)))
        cuts = [0]
        for share in (0.90, 0.95):
            file.seek(int(size * share))
            cuts.append(int(size * share) + _next_cut(file.readline(PIECE_BYTES)))
        cuts.append(size)
    if len(set(cuts)) < len(cuts):
        raise DataError(f"{path}: too short to be divided into train, valid and test; give each its own file")
    return cuts


def _next_cut(line: bytes) -> int:
    """How far the next place to cut is: behind the line, or in text without line ends before a word or a character."""
    if line.endswith(b"\n"):
        return len(line)
    if (space := line.find(b" ")) >= 0:
        return space
    return next((i for i, byte in enumerate(line) if byte & 0xC0 != 0x80), 0)


def _whole_files(files: list[Path], text_column: str) -> Reader:
    def read(whole_lines: bool) -> Iterator[Text]:
        for path in files:
            suffix = _suffix(path)
            if suffix == ".parquet":
                yield from _read_parquet(path, text_column)
            elif suffix in ROW_SUFFIXES:
                yield from _read_json_lines(path, text_column)
            else:
                yield from _mark_last(_read_text(path, 0, None, whole_lines))

    return read


def _text_ranges(ranges: list[tuple[Path, int, int]]) -> Reader:
    def read(whole_lines: bool) -> Iterator[Text]:
        for path, start, stop in ranges:
            yield from _mark_last(_read_text(path, start, stop, whole_lines))

    return read


def _open(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path)) if path.name.endswith(".gz") else path.open("rb")


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    while block := file.read(PIECE_BYTES):
        yield block


def _read_text(path: Path, start: int, stop: int | None, whole_lines: bool) -> Iterator[str]:
    """Pieces of about `PIECE_BYTES` of a UTF-8 file, cut behind a line end or, in a longer line, before a space."""
    with _reading(path), _open(path) as file:
        file.seek(start)
        position, rest, remaining = start, b"", stop - start if stop is not None else None
        while block := file.read(PIECE_BYTES if remaining is None else min(PIECE_BYTES, remaining)):
            remaining = None if remaining is None else remaining - len(block)
            cut = block.rfind(b"\n") + 1 or (0 if whole_lines else max(0, block.rfind(b" ")))
            if cut:
                yield _decode(rest + block[:cut], path, position)
                position += len(rest) + cut
                rest = block[cut:]
            else:
                rest += block
        if rest:
            yield _decode(rest, path, position)


def _mark_last(pieces: Iterator[str]) -> Iterator[Text]:
    previous = None
    for piece in pieces:
        if previous is not None:
            yield Text(previous, False)
        previous = piece
    if previous is not None:
        yield Text(previous, True)


def _decode(data: bytes, path: Path, position: int) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text at byte {position + error.start}") from None


def _read_json_lines(path: Path, column: str) -> Iterator[Text]:
    with _reading(path), _open(path) as file:
        position = 0
        for number, line in enumerate(file, start=1):
            if line.strip():
                row = _parse_row(_decode(line, path, position), path, number)
                yield Text(_column_of(row, column, path, number), True)
            position += len(line)


def _parse_row(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError):
        raise DataError(f"{path}: line {number} is not JSON") from None
    if not isinstance(row, dict):
        raise DataError(f"{path}: line {number} is not a JSON object")
    return row


def _column_of(row: dict[str, Any], column: str, path: Path, number: int) -> str:
    if column not in row:
        raise _no_column(str(path), column, row)
    if not isinstance(row[column], str):
        raise DataError(f"{path}: line {number}: column '{column}' is {type(row[column]).__name__}, not text")
    return row[column]


def _no_column(name: str, column: str, columns: Iterable[str]) -> DataError:
    return DataError(f"{name}: no column '{column}'; the columns are: {', '.join(columns)}")


def _read_parquet(path: Path, column: str) -> Iterator[Text]:
    import pyarrow as pa

    try:
        with _parquet_file(path) as file:
            for batch in file.iter_batches(batch_size=1024, columns=[column]):
                yield from (Text(text or "", True) for text in batch.column(0).to_pylist())
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from None


def _parquet_file(path: Path) -> Any:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise DataError(f"{path}: reading Parquet needs pyarrow; run `pip install subquad[train]`") from None
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError):
        raise DataError(f"{path}: not a Parquet file") from None


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what the system and gzip raise while a file is read into a `DataError`."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def _check_file(path: Path, column: str) -> None:
    """Find binary files and missing columns before any work is done."""
    suffix = _suffix(path)
    if suffix == ".parquet":
        with _parquet_file(path) as file:
            if column not in file.schema_arrow.names:
                raise _no_column(str(path), column, file.schema_arrow.names)
            if str(file.schema_arrow.field(column).type) not in ("string", "large_string", "string_view"):
                raise DataError(f"{path}: column '{column}' is {file.schema_arrow.field(column).type}, not text")
    elif suffix in ROW_SUFFIXES:
        next(_read_json_lines(path, column), None)
    else:
        with _reading(path), _open(path) as file:
            head = file.read(1 << 16)
        if b"\0" in head:
            raise DataError(f"{path}: binary data, not text (zero at byte {head.index(0)})")
        try:
            io.TextIOWrapper(io.BytesIO(head), "utf-8").read()
        except UnicodeDecodeError as error:
            if error.start < len(head) - 4:  # the last character may be cut
                raise DataError(f"{path}: not UTF-8 text at byte {error.start}") from None


# Datasets


def _is_saved_dataset(path: Path) -> bool:
    return any((path / name).is_file() for name in ("dataset_dict.json", "dataset_info.json"))


def _dataset_source(name: str, column: str) -> Source:
    try:
        import datasets
    except ImportError:
        raise DataError(
            f"{name}: reading datasets needs the package `datasets`; run `pip install subquad[train]`"
        ) from None
    value, _, configuration = name.removeprefix("hf:").partition(":")
    try:
        if _is_saved_dataset(Path(value)):
            loaded = datasets.load_from_disk(value)
        else:
            loaded = datasets.load_dataset(value, configuration or None)
    except Exception as error:  # the many kinds that network, hub and file formats raise
        raise DataError(
            f"{name}: cannot be loaded ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
        ) from error
    named = loaded.items() if isinstance(loaded, dict) else [("train", loaded)]
    parts: dict[str, Any] = {_ALIASES.get(str(split), str(split)): part for split, part in named}
    for part in parts.values():
        if column not in part.column_names:
            raise _no_column(name, column, part.column_names)
    fingerprint = _hash([[split, part._fingerprint] for split, part in parts.items()] + [column])
    size = sum(part.info.dataset_size or 0 for part in parts.values()) or None
    if set(parts) - {"train"}:
        readers, rule = {split: _rows(part, column) for split, part in parts.items()}, "as named"
    else:
        readers, rule = _split_documents(_rows(parts["train"], column), _period(_rows(parts["train"], column), name))
    return Source(name, fingerprint, rule, size, readers)


def _rows(part: Any, column: str) -> Reader:
    def read(whole_lines: bool) -> Iterator[Text]:
        for batch in part.select_columns([column]).iter(batch_size=1024):
            yield from (Text(text or "", True) for text in batch[column])

    return read


def _python_docs_source() -> Source:
    def read(whole_lines: bool) -> Iterator[Text]:
        yield from (Text(document, True) for document in python_docs.python_docs())

    readers, rule = _split_documents(read)
    return Source("python-docs", _hash([python_docs.version()]), rule, None, readers)


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
