"""Tokenizers: bytes, byte-level BPE, fairseq's word level and GPT-2 BPE, and any of Hugging Face.

All are fast tokenizers of transformers, so a run folder can be used without this library. A `Tokenizer` adds what they
do not know: what a token is called, whether lines or documents are the items of a corpus, and how corpus text is
encoded. There, a literal `</s>` is ordinary text (in the word level: a word), and this module puts the symbol between
items.

Every vocabulary made here begins with fairseq's four special symbols: `<s>` 0, `<pad>` 1, `</s>` 2, `<unk>` 3. Causal
models are never fed `<s>`: `</s>` ends one item and begins the next, so it is the `bos_token` as well. Masked models
have `<s>` before each block, and one more symbol, `<mask>`, behind all others (`Tokenizer.add_mask`).
"""

import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import tokenizers as hf
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from subquad.data.dictionary import EOS, SPECIALS, UNK, Dictionary, count_words
from subquad.data.errors import DataError
from subquad.data.sources import DataValue, Source, Text, is_databin, open_source

_SPECIAL_TOKENS: dict[str, Any] = {
    "bos_token": "</s>",
    "eos_token": "</s>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "cls_token": "<s>",
    "clean_up_tokenization_spaces": False,
}
# What `str.split()` splits at; the regular expressions of tokenizers mean other characters by white space.
_WHITE_SPACE = "".join(f"\\x{{{ord(c):x}}}" for c in map(chr, range(0x3001)) if c.isspace())


@dataclass(frozen=True)
class Vocabulary:
    """What token ids mean.

    A `<mask>` behind all other ids is not counted: text never holds it.

    Args:
        unit: What a token is: `byte`, `bpe:8192`, `word`, `gpt2-bpe`, or the name of a tokenizer.
        size: Number of ids.
        hash: Equal for vocabularies that give the same ids the same meaning.
        eos_id: The id that ends an item and stands before the stream.
        pad_id: The id that fills up short rows.
    """

    unit: str
    size: int
    hash: str
    eos_id: int
    pad_id: int

    def as_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return asdict(self)


class Tokenizer:
    """A fast tokenizer of transformers, and how a corpus is encoded with it.

    Args:
        fast: The tokenizer for prompts and for the run folder.
        unit: What a token is called beside a perplexity.
        line_wise: The items of a corpus are its stripped lines (fairseq's rule) instead of whole documents.
        dictionary: fairseq's dictionary, where there is one; its symbols then define the vocabulary.

    Example:
        >>> tokenizer = build_tokenizer("bytes")
        >>> tokenizer.decode(tokenizer.encode("one for all"))
        'one for all'
    """

    def __init__(
        self,
        fast: PreTrainedTokenizerFast,
        *,
        unit: str,
        line_wise: bool = False,
        dictionary: Dictionary | None = None,
    ) -> None:
        if fast.eos_token_id is None:
            raise DataError(f"tokenizer {unit}: it has no end symbol (eos_token), which separates documents")
        self.fast = fast
        self.unit = unit
        self.line_wise = line_wise
        self.dictionary = dictionary
        fast.init_kwargs["unit"] = unit  # written to tokenizer_config.json

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Size, hash and special ids."""
        if self.dictionary:
            size, content = len(self.dictionary), cast(Any, self.dictionary.symbols)
        else:
            state = json.loads(self.fast.backend_tokenizer.to_str())
            # A mask that is no part of the model was put behind it.
            size = len(self.fast) - (self.mask_id is not None and self.mask_id >= _num_model_ids(self.fast))
            added = {token: i for token, i in self.fast.get_added_vocab().items() if i < size}
            content = [state["model"], state["normalizer"], state["pre_tokenizer"], sorted(added.items())]
        eos_id = cast(int, self.fast.eos_token_id)
        pad_id = self.fast.pad_token_id
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return Vocabulary(self.unit, size, digest, eos_id, eos_id if pad_id is None else cast(int, pad_id))

    @property
    def mask_id(self) -> int | None:
        """The id of `<mask>`; None where there is none."""
        return cast(int | None, self.fast.mask_token_id)

    @property
    def num_ids(self) -> int:
        """Number of ids a model needs: those of the vocabulary, and `<mask>` where it stands behind them."""
        return max(self.vocabulary.size, (self.mask_id or 0) + 1)

    @property
    def cls_id(self) -> int:
        """The id that stands before a block of a masked model; the end symbol where there is none for it."""
        ids = (self.fast.cls_token_id, self.fast.bos_token_id, self.fast.eos_token_id)
        return cast(int, next(i for i in ids if i is not None))

    @property
    def special_ids(self) -> list[int]:
        """The ids of all symbols that are no text, but for `<mask>`."""
        return sorted({*self.fast.all_special_ids} - {self.mask_id})

    def add_mask(self) -> None:
        """Put `<mask>` behind all other ids, as fairseq's task does, where there is no mask yet.

        Raises:
            DataError: The dictionary gives a symbol twice, so the ids have gaps.
        """
        if self.mask_id is not None:
            return
        if self.dictionary and _num_model_ids(self.fast) < len(self.dictionary):
            raise DataError(f"tokenizer {self.unit}: its dict.txt overwrites symbols: no <mask> can be put behind them")
        self.fast.add_special_tokens({"mask_token": "<mask>"})

    def encode(self, text: str) -> list[int]:
        """Ids of a prompt: without an end symbol, except where a line ends in a line-wise vocabulary."""
        if not self.line_wise:
            return self.fast.encode(text, add_special_tokens=False)
        ids: list[int] = []
        for line in split_lines(text):
            ids += [*self.fast.encode(line.strip(), add_special_tokens=False), EOS]
        return ids if text.endswith(("\n", "\r")) else ids[:-1]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; the end symbol of a line-wise vocabulary is a line end."""
        if not self.line_wise:
            return cast(str, self.fast.decode(list(ids)))
        lines: list[list[int]] = [[]]
        for i in ids:
            if i == EOS:
                lines.append([])
            else:
                lines[-1].append(i)
        return "\n".join(cast(str, self.fast.decode(line)) for line in lines)

    def encode_corpus(self, texts: list[Text]) -> tuple[np.ndarray, np.ndarray, bool]:
        """Encode a part of a corpus.

        Args:
            texts: Pieces of documents in order.

        Returns:
            ids: All ids, int64, with an end symbol behind each item.
            lengths: Ids of each item, int64.
            open: Whether the last item goes on with the next part.
        """
        if self.line_wise:
            items = self._encode_all([line.strip() for text in texts for line in split_lines(text.text)])
            ends = [True] * len(items)
        else:
            items = self._encode_all([text.text for text in texts])
            ends = [text.final for text in texts]
        lengths, pieces, continued = [], [], False
        for item, end in zip(items, ends, strict=True):
            size = len(item) + end
            if continued:
                lengths[-1] += size
            else:
                lengths.append(size)
            pieces.append(item)
            if end:
                pieces.append([self.vocabulary.eos_id])
            continued = not end
        ids = (
            np.concatenate([np.asarray(piece, dtype=np.int64) for piece in pieces]) if pieces else np.empty(0, np.int64)
        )
        return ids, np.array(lengths, dtype=np.int64), continued

    def _encode_all(self, texts: list[str]) -> list[Any]:
        if self.unit == "byte":
            return [np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64) + len(SPECIALS) for text in texts]
        if self.unit == "word":
            return [[self._word_ids.get(word, UNK) for word in text.split()] for text in texts]
        encodings = self._corpus_backend.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    @cached_property
    def _word_ids(self) -> dict[str, int]:
        assert self.dictionary
        return self.dictionary.index()

    @cached_property
    def _corpus_backend(self) -> hf.Tokenizer:
        backend = hf.Tokenizer.from_str(self.fast.backend_tokenizer.to_str())
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True
        return backend

    def save(self, folder: Path | str) -> None:
        """Write the files of the tokenizer, in the format of transformers, and `dict.txt` where there is one."""
        self.fast.save_pretrained(folder)
        if self.dictionary:
            (Path(folder) / "dict.txt").write_text(self.dictionary.to_text(), encoding="utf-8", newline="\n")


def load_tokenizer(name: Path | str) -> Tokenizer:
    """Read the tokenizer of a run folder, or any tokenizer of Hugging Face by its folder or name.

    Raises:
        DataError: There is none.
    """
    try:
        fast = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # the many kinds that network, hub and file formats raise
        raise DataError(
            f"tokenizer {name}: not bytes, bpe:SIZE, word, gpt2-bpe[:FOLDER], nor of Hugging Face ({_reason(error)})"
        ) from error
    if not isinstance(fast, PreTrainedTokenizerFast):
        raise DataError(f"tokenizer {name}: {type(fast).__name__} is not a fast tokenizer")
    unit = fast.init_kwargs.get("unit")
    if unit == "byte":
        tokenizer = _byte_tokenizer()
        if fast.mask_token_id is not None:
            tokenizer.add_mask()
        return tokenizer
    if unit not in ("word", "gpt2-bpe"):
        return Tokenizer(fast, unit=unit if isinstance(unit, str) else f"hf:{Path(name).name}")
    dictionary = Dictionary.load(Path(name) / "dict.txt")
    if _num_model_ids(fast) != len(dictionary.index()):
        raise DataError(f"tokenizer {name}: dict.txt and tokenizer.json do not belong together")
    return Tokenizer(fast, unit=unit, line_wise=True, dictionary=dictionary)


def check_vocabulary(found: Vocabulary, expected: Vocabulary, *, name: str = "the data") -> None:
    """Hold data to the vocabulary of a model.

    Args:
        found: Vocabulary of the data.
        expected: Vocabulary of the run.
        name: What the data is called in the message.

    Raises:
        DataError: The ids do not mean the same.
    """
    if found.hash != expected.hash:
        raise DataError(
            f"{name}: its tokens are {_describe(found)}, those of the model {_describe(expected)}; "
            "prepare the data with the tokenizer of the run folder"
        )


def _describe(vocabulary: Vocabulary) -> str:
    return f"{vocabulary.unit} (size {vocabulary.size}, hash {vocabulary.hash[:8]})"


def build_tokenizer(
    spec: str,
    data: DataValue | Source | None = None,
    *,
    text_column: str = "text",
    min_count: int = 0,
    max_size: int | None = None,
    dictionary: Dictionary | None = None,
) -> Tokenizer:
    """Make a tokenizer.

    Args:
        spec: `bytes`; `bpe:SIZE`, trained on the train split; `word`, the words of the train split (or of a data-bin
            folder); `gpt2-bpe[:FOLDER]`, GPT-2's BPE with fairseq's ids, from `vocab.bpe` or `merges.txt` and
            `dict.txt` or RoBERTa's `vocab.json`; or the name or folder of a Hugging Face tokenizer.
        data: Where `bpe` and `word` learn.
        text_column: Column of the text in `data`.
        min_count: `word`: rarer words become `<unk>`.
        max_size: `word`: largest vocabulary.
        dictionary: `word` and `gpt2-bpe`: fairseq's dictionary, instead of one that is learned or found.

    Raises:
        DataError: The spec is not understood, or what it needs is missing.
    """
    if spec == "bytes":
        return _byte_tokenizer()
    if spec == "gpt2-bpe" or spec.startswith("gpt2-bpe:"):
        return _gpt2_tokenizer(spec.partition(":")[2], dictionary)
    if spec == "word" and dictionary is not None:
        return _word_tokenizer(dictionary)
    if spec != "word" and not spec.startswith("bpe:"):
        return load_tokenizer(spec)
    if data is None:
        raise DataError(f"tokenizer {spec}: it is learned from text; give the data")
    if spec == "word" and isinstance(data, str | Path) and is_databin(data):
        return _word_tokenizer(Dictionary.load(Path(data) / "dict.txt"))
    source = data if isinstance(data, Source) else open_source(data, text_column=text_column)
    if spec == "word":
        counts = count_words(text.text for text in source.read("train", whole_lines=True))
        return _word_tokenizer(Dictionary.from_counts(counts, min_count=min_count, max_size=max_size))
    return _train_bpe(spec, source)


def split_lines(text: str) -> list[str]:
    """Lines as a file in text mode gives them, without their ends; no text is one empty line."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines[:-1] if len(lines) > 1 and lines[-1] == "" else lines


def _num_model_ids(fast: PreTrainedTokenizerFast) -> int:
    """Number of ids without those that were added behind the model's."""
    return fast.backend_tokenizer.get_vocab_size(with_added_tokens=False)


def _wrap(backend: hf.Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=backend, **_SPECIAL_TOKENS)


def _byte_level(model: models.BPE) -> hf.Tokenizer:
    backend = hf.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def _byte_symbols() -> list[str]:
    """The printable stand-in of each byte: GPT-2 keeps printable Latin-1 and moves the other bytes behind 255."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    moved = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(moved)) for byte in range(256)]


def _byte_tokenizer() -> Tokenizer:
    vocab = {symbol: i for i, symbol in enumerate([*SPECIALS, *_byte_symbols()])}
    return Tokenizer(_wrap(_byte_level(models.BPE(vocab=vocab, merges=[]))), unit="byte")


def _train_bpe(spec: str, source: Source) -> Tokenizer:
    size = spec.removeprefix("bpe:")
    if not size.isdecimal() or int(size) < 256 + len(SPECIALS):
        raise DataError(
            f"tokenizer {spec}: the size must be a number of at least {256 + len(SPECIALS)}, as in bpe:8192"
        )
    backend = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=int(size),
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator((text.text for text in source.read("train")), trainer)
    return Tokenizer(_wrap(backend), unit=f"bpe:{int(size)}")


def _word_tokenizer(dictionary: Dictionary) -> Tokenizer:
    backend = hf.Tokenizer(models.WordLevel(vocab=dictionary.index(), unk_token=SPECIALS[UNK]))
    backend.pre_tokenizer = pre_tokenizers.Split(hf.Regex(f"[{_WHITE_SPACE}]+"), "removed")
    return Tokenizer(_wrap(backend), unit="word", line_wise=True, dictionary=dictionary)


def _gpt2_tokenizer(folder: str, dictionary: Dictionary | None) -> Tokenizer:
    """GPT-2's BPE whose ids are 4 + the line of the GPT-2 id in fairseq's `dict.txt`."""
    read = _folder_reader(folder) if folder else _hub_reader("FacebookAI/roberta-base")
    name = f"gpt2-bpe:{folder}" if folder else "gpt2-bpe"
    merge_text = read("vocab.bpe") or read("merges.txt")
    if merge_text is None:
        raise DataError(f"{name}: no vocab.bpe and no merges.txt")
    merges = [tuple(line.split(" ")) for line in merge_text.split("\n") if line and not line.startswith("#version")]
    if any(len(merge) != 2 for merge in merges):
        raise DataError(f"{name}: the merges are not two symbols on each line")
    # The order in which GPT-2 counts its ids: bytes, printable ones first, merges, end of text.
    symbols = _byte_symbols()
    tokens = sorted(symbols) + ["".join(merge) for merge in merges] + ["<|endoftext|>"]
    if dictionary is None:
        dictionary = _gpt2_dictionary(read, tokens, name)
    return _gpt2_from(dictionary, tokens, merges, name)


def _gpt2_dictionary(read: Callable[[str], str | None], tokens: list[str], name: str) -> Dictionary:
    """The dictionary of fairseq beside the merges: `dict.txt`, or in RoBERTa's `vocab.json`."""
    if (text := read("dict.txt")) is not None:
        return Dictionary.parse(text, f"{name}/dict.txt")
    if (text := read("vocab.json")) is not None:
        return _dictionary_of_roberta(text, tokens, name)
    raise DataError(f"{name}: no dict.txt of fairseq, and no vocab.json of RoBERTa")


def _gpt2_from(dictionary: Dictionary, tokens: list[str], merges: list[tuple[str, ...]], name: str) -> Tokenizer:
    vocab = {}
    for i, symbol in enumerate(dictionary.symbols):
        is_id = symbol.isdecimal() and int(symbol) < len(tokens)
        vocab[tokens[int(symbol)] if is_id else symbol] = i
    if missing := len(tokens) - len(vocab.keys() & set(tokens)):
        raise DataError(f"{name}: dict.txt lacks {missing} of the {len(tokens)} ids of GPT-2")
    try:
        model = models.BPE(vocab=vocab, merges=cast(list[tuple[str, str]], merges))
    except Exception as error:  # the only kind that tokenizers raises
        raise DataError(f"{name}: the merges do not fit the vocabulary ({_reason(error)})") from None
    return Tokenizer(_wrap(_byte_level(model)), unit="gpt2-bpe", line_wise=True, dictionary=dictionary)


def _dictionary_of_roberta(text: str, tokens: list[str], name: str) -> Dictionary:
    """RoBERTa's `vocab.json` has fairseq's ids already, and `<mask>` behind them."""
    try:
        vocab = json.loads(text)
        symbols = sorted((symbol for symbol in vocab if symbol != "<mask>"), key=vocab.__getitem__)
    except (ValueError, TypeError, AttributeError):
        symbols = []
    if tuple(symbols[: len(SPECIALS)]) != SPECIALS:
        raise DataError(
            f"{name}: vocab.json is not that of RoBERTa (it must begin with {' '.join(SPECIALS)}), and no dict.txt"
        )
    gpt2_ids = {token: str(i) for i, token in enumerate(tokens)}
    return Dictionary([gpt2_ids.get(symbol) or symbol for symbol in symbols], [0] * len(symbols))


def _folder_reader(folder: str) -> Callable[[str], str | None]:
    if not Path(folder).is_dir():
        raise DataError(f"gpt2-bpe:{folder}: no such folder")

    def read(name: str) -> str | None:
        path, zipped = Path(folder) / name, Path(folder) / f"{name}.gz"
        try:
            if path.is_file():
                return path.read_bytes().decode("utf-8")
            return gzip.decompress(zipped.read_bytes()).decode("utf-8") if zipped.is_file() else None
        except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
            raise DataError(f"{folder}: {name} cannot be read ({_reason(error)})") from None

    return read


def _hub_reader(repository: str) -> Callable[[str], str | None]:
    from huggingface_hub import hf_hub_download

    def read(name: str) -> str | None:
        if name not in ("merges.txt", "vocab.json"):
            return None
        try:
            return Path(hf_hub_download(repository, name)).read_text(encoding="utf-8")
        except Exception as error:  # the many kinds that network and hub raise
            raise DataError(
                f"gpt2-bpe: {repository} cannot be loaded; give a folder, gpt2-bpe:FOLDER ({_reason(error)})"
            ) from error

    return read


def _reason(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
