"""Folders that fairseq's preprocessing wrote (data-bin), read as they are."""

from pathlib import Path

from subquad.data.errors import DataError
from subquad.data.storage import Corpus
from subquad.data.tokenizers import Tokenizer


def is_databin(path: str | Path) -> bool:
    """Whether a folder holds binarised splits of fairseq."""
    return any((Path(path) / f"{split}.idx").is_file() for split in ("train", "valid", "test"))


def open_databin(path: str | Path, tokenizer: Tokenizer) -> Corpus:
    """Map a data-bin folder."""
    raise DataError(f"{path}: data-bin folders are not read yet")
