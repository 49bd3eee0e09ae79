"""fairseq's dictionary: which word has which id, and how often it was seen.

The rules of counting, order and padding are those of fairseq's preprocessing: `dict.txt` comes out byte for byte.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from subquad.data.errors import DataError

SPECIALS: tuple[str, ...] = ("<s>", "<pad>", "</s>", "<unk>")
BOS, PAD, EOS, UNK = range(4)


@dataclass(frozen=True)
class Dictionary:
    """Symbols in the order of their ids, the four special ones first.

    Args:
        symbols: All symbols; `symbols[:4]` is `SPECIALS`.
        counts: How often each was seen; 0 for the special ones, which `dict.txt` does not hold.
    """

    symbols: list[str]
    counts: list[int]

    def __len__(self) -> int:
        return len(self.symbols)

    @classmethod
    def from_counts(
        cls, counts: Mapping[str, int], *, min_count: int = 0, max_size: int | None = None, multiple: int = 8
    ) -> "Dictionary":
        """Words by falling count (ties by code points), padded with `madeupword` entries to a size that is a multiple.

        Args:
            counts: Occurrences of each word in the training text. Words spelled like special symbols are not counted.
            min_count: Rarer words become `<unk>`.
            max_size: Largest number of symbols before padding, special ones included.
            multiple: The size is padded to a multiple of this.
        """
        ranked = sorted((-count, word) for word, count in counts.items() if word not in SPECIALS and count >= min_count)
        if max_size is not None:
            ranked = ranked[: max(0, max_size - len(SPECIALS))]
        symbols = [*SPECIALS, *(word for _, word in ranked)]
        numbers = [0] * len(SPECIALS) + [-count for count, _ in ranked]
        known, filler = set(symbols), 0
        while len(symbols) % multiple:
            word = f"madeupword{filler:04d}"
            if word not in known:
                symbols.append(word)
                numbers.append(0)
            filler += 1
        return cls(symbols, numbers)

    @classmethod
    def parse(cls, text: str, path: Path | str) -> "Dictionary":
        """Read the content of a `dict.txt`: `<symbol> <count>` on each line.

        Raises:
            DataError: A line has no count, or repeats an earlier symbol without the flag `#fairseq:overwrite`.
        """
        symbols, counts = list(SPECIALS), [0] * len(SPECIALS)
        ids = {symbol: i for i, symbol in enumerate(symbols)}
        for number, line in enumerate(_lines(text), start=1):
            symbol, _, count = line.rstrip().rpartition(" ")
            overwrite = count == "#fairseq:overwrite"
            if overwrite:
                symbol, _, count = symbol.rpartition(" ")
            if not re.fullmatch("[0-9]{1,18}", count):
                raise DataError(f"{path}: line {number} is not `<symbol> <count>`: {line[:60]!r}")
            if symbol in ids and not overwrite:
                raise DataError(f"{path}: line {number} repeats the symbol {symbol[:60]!r}")
            ids[symbol] = len(symbols)
            symbols.append(symbol)
            counts.append(int(count))
        return cls(symbols, counts)

    @classmethod
    def load(cls, path: Path | str) -> "Dictionary":
        """Read a `dict.txt`.

        Raises:
            DataError: The file cannot be read or is no dictionary.
        """
        try:
            return cls.parse(Path(path).read_bytes().decode("utf-8"), path)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from None
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8 text (byte {error.start}); expected a fairseq dict.txt") from None

    def to_text(self) -> str:
        """The content of `dict.txt`."""
        entries = zip(self.symbols[len(SPECIALS) :], self.counts[len(SPECIALS) :], strict=True)
        return "".join(f"{symbol} {count}\n" for symbol, count in entries)

    def index(self) -> dict[str, int]:
        """The id of each symbol; of symbols given twice, the later id."""
        return {symbol: i for i, symbol in enumerate(self.symbols)}


def count_words(texts: Iterable[str]) -> Counter[str]:
    """Occurrences of each word, words being what `str.split()` gives."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text.split())
    return counts


def _lines(text: str) -> list[str]:
    lines = text.split("\n")
    return lines[:-1] if lines[-1] == "" else lines
