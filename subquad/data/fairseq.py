r"""Folders that fairseq's preprocessing wrote (data-bin), mapped into memory as they are.

A folder holds `dict.txt` and, for each split, `SPLIT.bin` with the ids of all lines back to back and `SPLIT.idx` with
their type and lengths, in one of two formats that are told apart by their first bytes. All integers are little-endian.

    memory-mapped   b"MMIDIDX\0\0"  uint64 version = 1  uint8 type  uint64 N
                    int32 × N lengths  int64 × N byte offsets
    legacy          b"TNTIDX\0\0"   uint64 version = 1  uint64 type  uint64 size of the type  uint64 N  uint64 S
                    int64 × (N + 1) dimension offsets  int64 × (N + 1) element offsets  int64 × S lengths

The legacy format stores every id plus one.
"""

import hashlib
import re
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np

from subquad.data.dictionary import EOS, Dictionary
from subquad.data.errors import DataError
from subquad.data.storage import Corpus, Splits, TokenStream, combined_fingerprint, token_dtype
from subquad.data.tokenizers import Tokenizer

_TYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2", 9: "<u4", 10: "<u8"}
_MAPPED = b"MMIDIDX\0\0"
_LEGACY = b"TNTIDX\0\0"
_CHUNK = 1 << 22


class IndexedTokens(NamedTuple):
    """One `.bin` with its `.idx`.

    Args:
        values: All stored values, `(num_tokens,)`, mapped into memory.
        item_offsets: Where each item begins, and the end of the last, `(num_items + 1,)` int64.
        id_shift: What has to be added to a stored value to get the id.
    """

    values: np.ndarray
    item_offsets: np.ndarray
    id_shift: int


def open_databin(path: str | Path, tokenizer: Tokenizer) -> Corpus:
    """Map a data-bin folder.

    The shards `train1`, `train2`, … continue `train`; `valid1`, … are splits of their own.

    Args:
        path: The folder. Without a `dict.txt` in it, its ids are taken to be those of the tokenizer.
        tokenizer: What the ids mean; `build_tokenizer("word", path)` for a folder of words.

    Returns:
        The corpus. How many words and bytes its text had is not known.

    Raises:
        DataError: The files are damaged, or their ids are not those of the tokenizer.
    """
    folder = Path(path)
    _check_dictionary(folder, tokenizer)
    streams, hashes = {}, {}
    for split, prefixes in _find_splits(folder).items():
        stream = _stream(prefixes, tokenizer)
        hashes[split] = _scan(stream, prefixes[0])
        streams[split] = stream
    splits = Splits(str(path), streams)
    return Corpus(str(path), splits, tokenizer.vocabulary, "as named", combined_fingerprint(hashes), folder)


def read_indexed(prefix: str | Path) -> IndexedTokens:
    """Map `PREFIX.bin` by its `PREFIX.idx`, in either format.

    Raises:
        DataError: A file is missing, or the two are not what one of the formats says.
    """
    index_path, path = Path(f"{prefix}.idx"), Path(f"{prefix}.bin")
    for file in (index_path, path):
        if not file.is_file():
            raise DataError(f"{file}: missing")
    index = np.fromfile(index_path, dtype=np.uint8)
    head = index[:48].tobytes()
    if head.startswith(_MAPPED):
        dtype, lengths, starts, shift = _read_mapped(head, index, index_path)
    elif head.startswith(_LEGACY):
        dtype, lengths, starts, shift = _read_legacy(head, index, index_path)
    else:
        raise DataError(f"{index_path}: not an index of fairseq (it begins with {head[:9]!r})")
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    if (lengths < 0).any() or not np.array_equal(starts, offsets[:-1]):
        raise DataError(f"{index_path}: damaged, its items do not lie one behind the other")
    size, expected = path.stat().st_size, int(offsets[-1]) * dtype.itemsize
    if size != expected:
        raise DataError(f"{path}: {size} bytes, its index says {expected}")
    values = np.memmap(path, dtype=dtype, mode="r") if size else np.empty(0, dtype=dtype)
    return IndexedTokens(values, offsets, shift)


def _read_mapped(head: bytes, index: np.ndarray, path: Path) -> tuple[np.dtype, np.ndarray, np.ndarray, int]:
    if len(head) < 26:
        raise DataError(f"{path}: cut off after {len(head)} bytes")
    version, code, count = struct.unpack_from("<QBQ", head, len(_MAPPED))
    dtype = _type(version, code, path)
    _check_size(path, len(index), 26 + 12 * count)
    lengths = index[26 : 26 + 4 * count].view("<i4").astype(np.int64)
    starts = index[26 + 4 * count :].view("<i8")
    if (starts % dtype.itemsize).any():
        raise DataError(f"{path}: damaged, its items do not lie one behind the other")
    return dtype, lengths, starts // dtype.itemsize, 0


def _read_legacy(head: bytes, index: np.ndarray, path: Path) -> tuple[np.dtype, np.ndarray, np.ndarray, int]:
    if len(head) < 48:
        raise DataError(f"{path}: cut off after {len(head)} bytes")
    version, code, itemsize, count, dimensions = struct.unpack_from("<QQQQQ", head, len(_LEGACY))
    dtype = _type(version, code, path)
    _check_size(path, len(index), 48 + 16 * (count + 1) + 8 * dimensions)
    numbers = index[48:].view("<i8")
    first_dimension, starts, lengths = np.split(numbers, [count + 1, 2 * (count + 1)])
    if itemsize != dtype.itemsize or not np.array_equal(first_dimension, np.arange(count + 1)) or dimensions != count:
        raise DataError(f"{path}: its items are not rows of {dtype.name}")
    if starts[-1] != lengths.sum():
        raise DataError(f"{path}: damaged, its items do not lie one behind the other")
    return dtype, lengths, starts[:-1], -1


def _type(version: int, code: int, path: Path) -> np.dtype:
    if version != 1:
        raise DataError(f"{path}: version {version} of the format, known is 1")
    if code not in _TYPES:
        raise DataError(f"{path}: type {code} is not one of token ids")
    return np.dtype(_TYPES[code])


def _check_size(path: Path, size: int, expected: int) -> None:
    if size != expected:
        raise DataError(f"{path}: {size} bytes, its header says {expected}")


def _find_splits(folder: Path) -> dict[str, list[Path]]:
    """The prefixes of the files of each split."""
    found: list[tuple[str, int, Path]] = []
    for path in folder.glob("*.idx"):
        if match := re.fullmatch(r"(train|valid|test)([0-9]*)", path.stem):
            found.append((match[1], int(match[2] or 0), path.with_suffix("")))
    splits: dict[str, list[Path]] = {}
    for split, number, prefix in sorted(
        found, key=lambda entry: (["train", "valid", "test"].index(entry[0]), entry[1])
    ):
        splits.setdefault(split if split == "train" or number == 0 else prefix.name, []).append(prefix)
    return splits


def _stream(prefixes: list[Path], tokenizer: Tokenizer) -> TokenStream:
    shards = [read_indexed(prefix) for prefix in prefixes]
    if len({(shard.values.dtype, shard.id_shift) for shard in shards}) > 1:
        raise DataError(f"{prefixes[0].parent}: the shards of '{prefixes[0].name}' have different formats")
    values, offsets, shift = shards[0]
    for shard in shards[1:]:
        offsets = np.concatenate([offsets, shard.item_offsets[1:] + len(values)])
        values = np.concatenate([values, shard.values])
    if not len(values):
        raise DataError(f"{prefixes[0]}.bin: holds no tokens")
    return TokenStream(values, offsets, tokenizer.vocabulary, id_shift=shift)


def _scan(stream: TokenStream, prefix: Path) -> str:
    """Hold the ids to the vocabulary.

    Returns:
        Their hash, equal to that of the same text in a prepared corpus.
    """
    digest = hashlib.sha256()
    for start in range(0, stream.num_tokens, _CHUNK):
        ids = stream.read(start, start + _CHUNK)
        if ids.min() < 0 or ids.max() >= stream.vocabulary.size:
            bad = next(int(i) for i in (ids.min(), ids.max()) if not 0 <= i < stream.vocabulary.size)
            raise DataError(f"{prefix}.bin: id {bad} is outside the vocabulary of {stream.vocabulary.size} symbols")
        digest.update(ids.astype(token_dtype(stream.vocabulary)).tobytes())
    return digest.hexdigest()


def _check_dictionary(folder: Path, tokenizer: Tokenizer) -> None:
    if tokenizer.vocabulary.eos_id != EOS or not tokenizer.dictionary:
        raise DataError(
            f"{folder}: a folder of fairseq needs the tokenizer that made it, got {tokenizer.unit}: "
            "use word (its dict.txt) or gpt2-bpe"
        )
    if (folder / "dict.txt").is_file():
        dictionary = Dictionary.load(folder / "dict.txt")
        if dictionary.symbols != tokenizer.dictionary.symbols:
            raise DataError(
                f"{folder}: its dict.txt ({len(dictionary)} symbols) is not the dictionary of the tokenizer "
                f"{tokenizer.unit} ({len(tokenizer.dictionary)} symbols)"
            )
