"""Vocabularies that are built from the frequencies of tokens."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

PAD, UNK, BOS, EOS = "<pad>", "<unk>", "<bos>", "<eos>"


@dataclass(frozen=True)
class FrequencyVocabulary:
    """Tokens and their ids: the special ones first, `<pad>` being 0, then the others from frequent to rare.

    Args:
        tokens: Every token, at the place of its id.

    Example:
        >>> texts = [text.split() for text in ("[MAX 2 9 X", "[MIN 2 2 X")]
        >>> vocabulary = FrequencyVocabulary.build(texts, append_eos=True)
        >>> vocabulary.tokens
        ('<pad>', '<unk>', '<eos>', '2', 'X', '9', '[MAX', '[MIN')
        >>> vocabulary.encode("[MIN 2 2 X".split())
        array([7, 3, 3, 4, 2])
    """

    tokens: tuple[str, ...]

    @classmethod
    def build(
        cls,
        texts: Iterable[Sequence[str]],
        *,
        min_frequency: int = 1,
        append_bos: bool = False,
        append_eos: bool = False,
    ) -> "FrequencyVocabulary":
        """Count the tokens of texts; those of equal frequency stand in the order of their code points.

        Args:
            texts: Tokens of each text, as it is cut for the model.
            min_frequency: Tokens that are rarer become `<unk>`.
            append_bos: Whether `<bos>` stands before each text.
            append_eos: Whether `<eos>` stands behind each text.
        """
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(text)
        special = [PAD, UNK, *[BOS] * append_bos, *[EOS] * append_eos]
        found = [token for token, count in counts.items() if count >= min_frequency and token not in special]
        return cls((*special, *sorted(found, key=lambda token: (-counts[token], token))))

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def ids(self) -> dict[str, int]:
        """The id of each token."""
        return {token: id for id, token in enumerate(self.tokens)}

    def encode(self, text: Sequence[str], max_length: int | None = None) -> np.ndarray:
        """The ids of a text, with the special tokens that the vocabulary has around it.

        Args:
            text: Its tokens.
            max_length: Largest number of ids, `<bos>` and `<eos>` included; the first tokens are kept.

        Returns:
            `(length,)` int64.
        """
        unknown = self.ids[UNK]
        bos, eos = ([self.ids[token]] if token in self.ids else [] for token in (BOS, EOS))
        kept = len(text) if max_length is None else max(0, max_length - len(bos) - len(eos))
        return np.array([*bos, *(self.ids.get(token, unknown) for token in text[:kept]), *eos], dtype=np.int64)
