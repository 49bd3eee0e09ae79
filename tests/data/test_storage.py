"""Prepared corpora: the numbers of fairseq on WikiText, the cache, and independence of how the work is divided."""

import dataclasses
import hashlib
import json
import pickle
import struct

import numpy as np
import pytest
from support import shared

from subquad.data import Blocks, DataError, block_slices, build_tokenizer, open_source, prepare, storage


def write_splits(folder, text="some text of {split}\n\nand more\n"):
    folder.mkdir(exist_ok=True)
    for split in ("train", "valid", "test"):
        (folder / f"{split}.txt").write_text(text.format(split=split) * 40, encoding="utf-8")
    return folder


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def fairseq_index(stream):
    """The `.idx` that fairseq writes for 16-bit ids."""
    lengths = np.diff(stream.item_offsets)
    header = b"MMIDIDX\0\0" + struct.pack("<QBQ", 1, 8, len(lengths))
    return header + lengths.astype("<i4").tobytes() + (2 * stream.item_offsets[:-1]).astype("<i8").tobytes()


@pytest.fixture(scope="module")
def wikitext(tmp_path_factory):
    folder = shared("data", "wikitext-2")
    tokenizer = build_tokenizer("word", folder)
    return prepare(folder, tokenizer, cache_dir=tmp_path_factory.mktemp("cache"), progress=False), tokenizer


@pytest.fixture(scope="module")
def wikitext_bpe(tmp_path_factory):
    folder, vocabulary = shared("data", "wikitext-raw"), shared("data", "gpt2-bpe")
    tokenizer = build_tokenizer(f"gpt2-bpe:{vocabulary}")
    return prepare(folder, tokenizer, cache_dir=tmp_path_factory.mktemp("cache"), progress=False)


def test_wikitext_dictionary(wikitext):
    _, tokenizer = wikitext
    content = tokenizer.dictionary.to_text()
    assert content.startswith("the 113161\n, 99913\n. 73388\n")
    assert sha256(content.encode()) == "b25b44615f556073981675a623bb5b7705c9e91d313d5acef920bdf06d3f60c0"
    assert tokenizer.vocabulary.size == 33_280


@pytest.mark.parametrize(
    ("split", "words", "tokens", "lines", "data", "index"),
    [
        (
            "train",
            2_051_910,
            2_088_628,
            36_718,
            "a1f570cb299ec3be52dccdd1a25b96633d203cd19f6c948e1f4f4f53506e9e9d",
            None,
        ),
        (
            *("valid", 213_886, 217_646, 3_760),
            "5694edb799703678825712703fa36f676e2048db1b6d1241072715d13e969596",
            "a0854d6bf85b008b5e31ab1e877df640d0471d03e01d28c01580f6865d4590b7",
        ),
        (
            *("test", 241_211, 245_569, 4_358),
            "a920fd0bb2800e2cc16a847311d6963e9af1a468efb5181cf7816de1806e75ec",
            "38c6fe8b8ee89b94760efcaa13b73e943957618f19ee807b26b3d7f0643d3755",
        ),
    ],
)
def test_wikitext_words(wikitext, split, words, tokens, lines, data, index):
    stream = wikitext[0].splits[split]
    assert (stream.num_words, stream.num_tokens, stream.num_lines, stream.num_items) == (words, tokens, lines, lines)
    assert stream.num_words_and_line_ends == tokens
    assert sha256(stream.tokens.tobytes()) == data
    if index:
        assert sha256(fairseq_index(stream)) == index


@pytest.mark.parametrize(
    ("split", "tokens", "size", "blocks", "last", "data", "index"),
    [
        (
            *("valid", 246_403, 1_146_846, 482, 131),
            "c590981bafb9ee39836011daf94fa23e429d3de88dd1c7a7d6c1699aa8147828",
            "69c730179c16607e30876530e1886e62ef9cdd0daf228f8b86de8d5eb752a91c",
        ),
        (
            *("test", 282_211, 1_290_590, 552, 99),
            "e4d8bd14111da00d0099ad2ea52529bbc682575833e82586f94f1cb5cf745a99",
            "10b0d8b749a36ff56312d780c50bb3673bd4cebde0bbc37d658b88fef35ce2ba",
        ),
    ],
)
def test_wikitext_bpe(wikitext_bpe, split, tokens, size, blocks, last, data, index):
    stream = wikitext_bpe.splits[split]
    assert (stream.num_tokens, stream.num_bytes) == (tokens, size)
    assert sha256(stream.tokens.tobytes()) == data
    assert sha256(fairseq_index(stream)) == index
    lengths = Blocks(stream, 512).lengths
    assert (len(lengths), lengths[-1]) == (blocks, last)


def test_wikitext_blocks(wikitext, wikitext_bpe):
    counts = {split: Blocks(wikitext[0].splits[split], 512).lengths for split in ("valid", "test")}
    assert {split: (len(lengths), lengths[-1]) for split, lengths in counts.items()} == {
        "valid": (426, 46),
        "test": (480, 321),
    }
    for split, blocks, too_long in (("valid", 580, 0), ("test", 670, 1)):
        stream = wikitext_bpe.splits[split]
        slices = block_slices(stream.item_offsets, "complete", 511)
        assert (len(slices), (np.diff(slices) > 511).sum()) == (blocks, too_long)
        assert len(Blocks(stream, 511, "complete", compat="fairseq")) == blocks - too_long
    with pytest.warns(UserWarning, match="1 of 670 blocks exceed 511 tokens and are divided"):
        assert len(Blocks(wikitext_bpe.splits["test"], 511, "complete")) == 671
    for length, expected in {1024: (276, 611), 2048: (138, 1635), 4096: (69, 3683), 14_336: (20, 9827)}.items():
        lengths = Blocks(wikitext_bpe.splits["test"], length).lengths
        assert (len(lengths), lengths[-1]) == expected


@pytest.mark.parametrize("spec", ["bytes", "bpe:300", "word"])
def test_pieces_and_processes_change_nothing(tmp_path, monkeypatch, spec):
    folder = write_splits(tmp_path / "data", "The lamp of {split} , unseen\n\n灯台 and café\r\nlast  one\n")
    tokenizer = build_tokenizer(spec, folder)
    whole = prepare(folder, tokenizer, cache_dir=tmp_path / "whole", progress=False)
    monkeypatch.setattr("subquad.data.sources.PIECE_BYTES", 100)
    monkeypatch.setattr("subquad.data.storage.PIECE_BYTES", 1)
    for name, num_workers in (("pieces", 1), ("processes", 2)):
        if name == "processes" and spec != "word":
            continue
        other = prepare(folder, tokenizer, cache_dir=tmp_path / name, num_workers=num_workers, progress=False)
        assert other.fingerprint == whole.fingerprint
        for split, stream in whole.splits.items():
            assert np.array_equal(stream.item_offsets, other.splits[split].item_offsets)
            counts = (stream.num_words, stream.num_lines, stream.num_bytes)
            assert counts == (
                other.splits[split].num_words,
                other.splits[split].num_lines,
                other.splits[split].num_bytes,
            )


def test_documents_end_with_the_end_symbol(tmp_path):
    rows = "".join(json.dumps({"text": text}) + "\n" for text in ("one", "", "two\nlines", "three"))
    (tmp_path / "test.jsonl").write_text(rows)
    stream = prepare(tmp_path / "test.jsonl", build_tokenizer("bytes"), progress=False).splits["test"]
    text = "".join("|" if i == 2 else chr(i - 4) for i in stream.read(0, stream.num_tokens))
    assert text == "one||two\nlines|three|"
    assert stream.item_offsets.tolist() == [0, 4, 5, 15, 21]
    assert (stream.num_words, stream.num_bytes) == (4, 17)


def test_the_cache_is_used_once_made(tmp_path, monkeypatch):
    folder = write_splits(tmp_path / "data")
    tokenizer = build_tokenizer("bytes")
    first = prepare(folder, tokenizer, progress=False)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "_build", lambda *arguments: pytest.fail("built again"))
        again = prepare(folder, tokenizer, progress=False)
    assert again.folder == first.folder
    assert again.fingerprint == first.fingerprint
    assert again.splits["test"].num_words == first.splits["test"].num_words
    assert prepare(folder, build_tokenizer("bpe:270", folder), progress=False).folder != first.folder
    write_splits(folder, "other text of {split}\n")
    assert prepare(folder, tokenizer, progress=False).fingerprint != first.fingerprint


@pytest.mark.parametrize("damage", ["cut", "missing", "header", "garbage"])
def test_a_damaged_cache_is_made_anew(tmp_path, damage):
    folder = write_splits(tmp_path / "data")
    tokenizer = build_tokenizer("bytes")
    first = prepare(folder, tokenizer, progress=False)
    path, fingerprint = first.folder, first.fingerprint
    del first
    if damage == "cut":
        (path / "valid.tokens").write_bytes((path / "valid.tokens").read_bytes()[:-2])
    elif damage == "missing":
        (path / "valid.items").unlink()
    else:
        (path / "header.json").write_text("{}" if damage == "header" else "[1, 2")
    again = prepare(folder, tokenizer, progress=False)
    assert again.fingerprint == fingerprint
    assert again.splits["valid"].num_items == 1


def test_nothing_is_left_of_a_failed_preparation(tmp_path):
    path = tmp_path / "test.txt"
    path.write_bytes(b"some text\n" * 200_000 + b"\xff\n")
    with pytest.raises(DataError, match="not UTF-8 text at byte 2000000"):
        prepare(path, build_tokenizer("bytes"), cache_dir=tmp_path / "cache", progress=False)
    assert list((tmp_path / "cache" / "corpora").iterdir()) == []


def test_missing_splits_and_empty_splits(tmp_path):
    (tmp_path / "test.txt").write_text("a text\n")
    corpus = prepare(tmp_path / "test.txt", build_tokenizer("bytes"), progress=False)
    with pytest.raises(DataError, match=r"test.txt: no split 'valid'; there are: test$"):
        corpus.splits["valid"]
    (tmp_path / "valid.txt").write_text("")
    with pytest.raises(DataError, match=r": the split 'valid' holds no text$"):
        prepare(tmp_path, build_tokenizer("bytes"), progress=False)
    with pytest.raises(DataError, match=r"no split 'train'; there are: valid, test$"):
        build_tokenizer("word", tmp_path)


def test_a_full_disk_is_noticed_before_work(tmp_path, monkeypatch):
    folder = write_splits(tmp_path / "data")
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(
        DataError, match=r"needs about 0.0 GB, 0.0 GB are free; set SUBQUAD_CACHE to a folder with more space"
    ):
        prepare(folder, build_tokenizer("bytes"), progress=False)


def test_large_vocabularies_are_stored_in_32_bits(tmp_path):
    words = " ".join(f"w{i}" for i in range(65_600))
    for split in ("train", "valid"):
        (tmp_path / f"{split}.txt").write_text(words + "\n")
    tokenizer = build_tokenizer("word", tmp_path)
    stream = prepare(tmp_path, tokenizer, progress=False).splits["valid"]
    assert stream.tokens.dtype == np.dtype("<u4")
    assert stream.read(0, stream.num_tokens).max() == 65_603


def test_streams_travel_to_other_processes_as_file_names(tmp_path):
    stream = prepare(write_splits(tmp_path / "data"), build_tokenizer("bytes"), progress=False).splits["train"]
    content = pickle.dumps(stream)
    assert len(content) < stream.tokens.nbytes / 2
    copy = pickle.loads(content)
    assert isinstance(copy.tokens, np.memmap)
    assert np.array_equal(copy.tokens, stream.tokens)
    assert np.array_equal(copy.item_offsets, stream.item_offsets)
    assert copy.vocabulary == stream.vocabulary
    part = dataclasses.replace(stream, tokens=stream.tokens[3:7])
    assert np.array_equal(pickle.loads(pickle.dumps(part)).tokens, stream.tokens[3:7])


def test_a_source_may_be_opened_once(tmp_path):
    source = open_source(write_splits(tmp_path / "data"))
    tokenizer = build_tokenizer("word", source)
    assert prepare(source, tokenizer, progress=False).splits["train"].num_items == 120
