"""data-bin folders of fairseq: every id as the reference reads it, and damaged files refused."""

import hashlib
import itertools
import json
import shutil
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import shared

from subquad.data import Blocks, DataError, build_tokenizer, prepare
from subquad.data.dictionary import BOS, EOS, PAD, UNK, Dictionary
from subquad.data.fairseq import open_databin, read_indexed
from subquad.data.sources import is_databin


@pytest.fixture(scope="module")
def golden():
    return shared("golden", "fairseq-data-bin")


@pytest.fixture(scope="module")
def expected(golden):
    return json.loads((golden / "expected.json").read_text())


@pytest.fixture(scope="module")
def gpt2():
    return build_tokenizer(f"gpt2-bpe:{shared('data', 'gpt2-bpe')}")


def items_of(stream):
    return [stream.read(start, stop).tolist() for start, stop in itertools.pairwise(stream.item_offsets)]


@pytest.mark.parametrize("name", ["u1", "i2", "i4", "i8", "u2", "u4"])
def test_element_types(golden, expected, name):
    data, case = read_indexed(golden / "dtypes" / name), expected["dtypes"][name]
    assert data.values.dtype.name == case["numpy_dtype"]
    items = np.split(data.values, data.item_offsets[1:-1])
    assert [item.tolist() for item in items] == case["items"]


@pytest.mark.parametrize("name", ["word", "word-limited", "word-legacy", "bpe"])
def test_folders(golden, expected, name, gpt2):
    folder = golden / name / "data-bin"
    tokenizer = gpt2 if name == "bpe" else build_tokenizer("word", folder)
    corpus = prepare(folder, tokenizer)
    assert list(corpus.splits) == ["train", "valid", "test"]
    for split, case in expected[name]["splits"].items():
        stream = corpus.splits[split]
        assert items_of(stream) == case["tokens"]
        assert (stream.num_items, stream.num_tokens) == (case["n_items"], case["n_tokens"])
        assert isinstance(stream.tokens, np.memmap)
        assert (stream.num_words, stream.num_bytes, stream.num_words_and_line_ends) == (None, None, None)
        magic = (folder / f"{split}.idx").read_bytes()[: len(case["index_magic_hex"]) // 2]
        assert magic.hex() == case["index_magic_hex"]
        block = Blocks(stream, 5)[1]
        assert block["shift_labels"].tolist() == stream.read(5, 10).tolist()
        assert block["input_ids"].tolist() == stream.read(4, 9).tolist()


@pytest.mark.parametrize("name", ["word", "word-limited", "word-legacy"])
def test_dictionaries(golden, expected, name):
    dictionary, case = Dictionary.load(golden / name / "data-bin" / "dict.txt"), expected[name]["dictionary"]
    assert dictionary.symbols == case["symbols"]
    assert dictionary.counts[case["nspecial"] :] == case["counts_from_file"]
    assert [case[name] for name in ("bos", "pad", "eos", "unk")] == [BOS, PAD, EOS, UNK]
    assert len(dictionary) == case["size"] == case["mask_id_when_added"]


@pytest.mark.parametrize(("name", "min_count"), [("word", 0), ("word-limited", 2), ("bpe", 0)])
def test_our_own_preprocessing_is_the_same(golden, expected, name, min_count, gpt2):
    text = golden / ("bpe" if name == "bpe" else "word") / "text"
    tokenizer = gpt2 if name == "bpe" else build_tokenizer("word", text, min_count=min_count)
    corpus = prepare(text, tokenizer, progress=False)
    for split, case in expected[name]["splits"].items():
        assert items_of(corpus.splits[split]) == case["tokens"]
    folder = golden / name / "data-bin"
    if name != "bpe":
        assert tokenizer.dictionary is not None
        assert tokenizer.dictionary.to_text().encode() == (folder / "dict.txt").read_bytes()
    assert prepare(folder, tokenizer).fingerprint == corpus.fingerprint
    assert all(
        hashlib.sha256(corpus.splits[split].tokens.tobytes()).digest()
        == hashlib.sha256((folder / f"{split}.bin").read_bytes()).digest()
        for split in corpus.splits
    )


def test_the_ids_of_the_reference_encoder(golden, gpt2):
    """The `.bpe` files hold GPT-2's own ids, which the dictionary maps to fairseq's."""
    ids = gpt2.dictionary.index()
    for split in ("train", "valid", "test"):
        lines = (golden / "bpe" / "text" / f"{split}.bpe").read_text().split("\n")[:-1]
        texts = (golden / "bpe" / "text" / f"{split}.raw").read_text(encoding="utf-8").split("\n")[:-1]
        for line, text in zip(lines, texts, strict=True):
            backend = gpt2._corpus_backend
            assert backend.encode(text.strip(), add_special_tokens=False).ids == [
                ids[symbol] for symbol in line.split()
            ]


# Files made here


def write_mapped(prefix, items, dtype="<u2", code=8):
    lengths = np.array([len(item) for item in items], dtype="<i4")
    starts = (np.cumsum(lengths, dtype="<i8") - lengths) * np.dtype(dtype).itemsize
    header = b"MMIDIDX\0\0" + struct.pack("<QBQ", 1, code, len(items))
    prefix.with_suffix(".idx").write_bytes(header + lengths.tobytes() + starts.astype("<i8").tobytes())
    prefix.with_suffix(".bin").write_bytes(b"".join(np.array(item, dtype=dtype).tobytes() for item in items))


def write_legacy(prefix, items, dtype="<i4", code=4):
    lengths = np.array([len(item) for item in items], dtype="<i8")
    numbers = [np.arange(len(items) + 1), np.concatenate([[0], np.cumsum(lengths)]), lengths]
    header = b"TNTIDX\0\0" + struct.pack("<QQQQQ", 1, code, np.dtype(dtype).itemsize, len(items), len(items))
    prefix.with_suffix(".idx").write_bytes(header + b"".join(number.astype("<i8").tobytes() for number in numbers))
    prefix.with_suffix(".bin").write_bytes(b"".join((np.array(item, dtype=dtype) + 1).tobytes() for item in items))


@pytest.fixture
def folder(tmp_path):
    """A data-bin folder of the words `a` and `b`."""
    (tmp_path / "dict.txt").write_text("a 5\nb 4\n")
    write_mapped(tmp_path / "train", [[4, 5, 2], [], [5, 2]])
    write_mapped(tmp_path / "valid", [[4, 2]])
    return tmp_path


def test_shards_continue_train_and_valid_sets_stand_alone(folder):
    write_mapped(folder / "train2", [[4, 4, 2]])
    write_mapped(folder / "train1", [[5, 5, 2], [2]])
    write_mapped(folder / "train10", [[4, 2]])
    write_mapped(folder / "valid1", [[5, 2]])
    write_mapped(folder / "other", [[5, 2]])
    corpus = open_databin(folder, build_tokenizer("word", folder))
    assert list(corpus.splits) == ["train", "valid", "valid1"]
    assert items_of(corpus.splits["train"]) == [[4, 5, 2], [], [5, 2], [5, 5, 2], [2], [4, 4, 2], [4, 2]]
    assert items_of(corpus.splits["valid1"]) == [[5, 2]]
    write_legacy(folder / "train3", [[4, 2]])
    with pytest.raises(DataError, match="the shards of 'train' have different formats"):
        open_databin(folder, build_tokenizer("word", folder))


def test_legacy_items_may_be_empty(folder):
    write_legacy(folder / "train", [[], [4, 2], [], [5, 5, 2]])
    corpus = open_databin(folder, build_tokenizer("word", folder))
    assert items_of(corpus.splits["train"]) == [[], [4, 2], [], [5, 5, 2]]


def test_the_tokenizer_must_be_that_of_the_folder(folder, tmp_path):
    assert is_databin(folder)
    assert not is_databin(folder / "train.idx")
    with pytest.raises(DataError, match="a data-bin folder of fairseq holds ids, not text"):
        build_tokenizer("bpe:300", folder)
    with pytest.raises(DataError, match="a folder of fairseq needs the tokenizer that made it, got byte: use word"):
        prepare(folder, build_tokenizer("bytes"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "dict.txt").write_text("a 5\nc 4\n")
    write_mapped(tmp_path / "other" / "test", [[4, 2]])
    other = build_tokenizer("word", tmp_path / "other")
    with pytest.raises(
        DataError, match=r"its dict.txt \(6 symbols\) is not the dictionary of the tokenizer word \(6 symbols"
    ):
        prepare(folder, other)
    (folder / "dict.txt").unlink()
    assert prepare(folder, other).splits["valid"].num_tokens == 2


@pytest.mark.parametrize(
    ("dtype", "code", "bad"), [("<u2", 8, 6), ("<i4", 4, -1), ("<i8", 5, 1 << 40), ("<u8", 10, 1 << 63)]
)
def test_ids_outside_the_dictionary(folder, dtype, code, bad):
    write_mapped(folder / "valid", [[4, bad, 2]], dtype, code)
    with pytest.raises(DataError, match=r"valid.bin: id -?\d+ is outside the vocabulary of 6 symbols$"):
        prepare(folder, build_tokenizer("word", folder))


def test_splits_without_tokens(folder):
    write_mapped(folder / "valid", [[], []])
    with pytest.raises(DataError, match=r"valid.bin: holds no tokens$"):
        prepare(folder, build_tokenizer("word", folder))


@pytest.mark.parametrize("write", [write_mapped, write_legacy])
def test_damaged_files(tmp_path, write):
    prefix = tmp_path / "train"
    index, data = tmp_path / "train.idx", tmp_path / "train.bin"

    def complaint(change):
        write(prefix, [[4, 5, 2], [5, 2]])
        content = bytearray(index.read_bytes())
        change(content)
        index.write_bytes(content)
        with pytest.raises(DataError) as caught:
            read_indexed(prefix)
        return str(caught.value)

    def set_bytes(start, value):
        return lambda content: content.__setitem__(slice(start, start + len(value)), value)

    mapped = write is write_mapped
    assert complaint(lambda content: content.clear()) == f"{index}: not an index of fairseq (it begins with b'')"
    assert "not an index of fairseq" in complaint(set_bytes(0, b"ZIP"))
    assert "cut off after 20 bytes" in complaint(lambda content: content.__delitem__(slice(20, None)))
    assert "version 2 of the format, known is 1" in complaint(set_bytes(9 if mapped else 8, b"\2"))
    assert "type 7 is not one of token ids" in complaint(set_bytes(17 if mapped else 16, b"\7"))
    assert "its header says" in complaint(set_bytes(18 if mapped else 32, b"\xff" * 8))
    assert "its header says" in complaint(lambda content: content.append(0))
    assert "do not lie one behind the other" in complaint(set_bytes(26 if mapped else 72, b"\4"))
    for change in (lambda: data.write_bytes(data.read_bytes()[:-1]), lambda: data.write_bytes(b"")):
        write(prefix, [[4, 5, 2], [5, 2]])
        change()
        with pytest.raises(DataError, match=r"train.bin: \d+ bytes, its index says \d+$"):
            read_indexed(prefix)
    data.unlink()
    with pytest.raises(DataError, match=r"train.bin: missing$"):
        read_indexed(prefix)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), legacy=st.booleans())
def test_mutated_files_are_read_or_refused(tmp_path, data, legacy):
    prefix = tmp_path / "train"
    (write_legacy if legacy else write_mapped)(prefix, [[4, 5, 2], [], [5, 2]])
    path = prefix.with_suffix(data.draw(st.sampled_from([".idx", ".bin"])))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(content) - 1)) if content else 0
        action = data.draw(st.sampled_from(["set", "cut", "insert"]))
        if action == "set" and content:
            content[position] = data.draw(st.integers(0, 255))
        elif action == "cut":
            del content[position:]
        else:
            content[position:position] = data.draw(st.binary(max_size=9))
    path.write_bytes(content)
    try:
        values, offsets, _ = read_indexed(prefix)
    except DataError:
        return
    assert offsets[0] == 0
    assert offsets[-1] == len(values)
    assert (np.diff(offsets) >= 0).all()


def test_a_copied_folder_has_the_same_fingerprint(golden, tmp_path):
    original = golden / "word" / "data-bin"
    copy = shutil.copytree(original, tmp_path / "copy")
    tokenizer = build_tokenizer("word", original)
    assert prepare(copy, tokenizer).fingerprint == prepare(original, tokenizer).fingerprint
    legacy = golden / "word-legacy" / "data-bin"
    assert prepare(legacy, tokenizer).fingerprint == prepare(original, tokenizer).fingerprint
