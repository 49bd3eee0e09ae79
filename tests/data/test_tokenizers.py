"""Tokenizers: ids by definition, the same after saving, and literal special symbols as the text they are."""

import gzip
import hashlib
import json

import numpy as np
import pytest
from support import shared
from transformers import AutoTokenizer

from subquad.data import DataError, build_tokenizer, check_vocabulary, load_tokenizer
from subquad.data.dictionary import Dictionary, count_words
from subquad.data.sources import Text

TEXT = "The lamp , a <s> in café 灯台 😀\n\n  two  spaces\tand a tab \n</s> <unk> <pad>\u00a0wide\u3000end\x1clast"


@pytest.fixture
def text_folder(tmp_path):
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.txt").write_text(f"{TEXT}\nsome more words of {split} , some more\n", encoding="utf-8")
    return tmp_path


@pytest.fixture(scope="module")
def gpt2():
    return build_tokenizer(f"gpt2-bpe:{shared('data', 'gpt2-bpe')}")


def corpus_ids(tokenizer, text):
    ids, lengths, is_open = tokenizer.encode_corpus([Text(text, True)])
    assert lengths.sum() == len(ids)
    assert not is_open
    return ids.tolist()


def test_bytes_are_bytes():
    tokenizer = build_tokenizer("bytes")
    expected = [byte + 4 for byte in TEXT.encode()]
    assert corpus_ids(tokenizer, TEXT) == [*expected, 2]
    every_byte = "".join(map(chr, range(0x80))) + "".join(map(chr, range(0x80, 0x900, 7)))
    assert tokenizer.fast.encode(every_byte, add_special_tokens=False) == [byte + 4 for byte in every_byte.encode()]
    assert tokenizer.decode(tokenizer.encode(every_byte)) == every_byte
    assert tokenizer.vocabulary.size == 260
    assert (tokenizer.vocabulary.unit, tokenizer.vocabulary.eos_id, tokenizer.vocabulary.pad_id) == ("byte", 2, 1)


def test_trained_bpe(text_folder):
    tokenizer = build_tokenizer("bpe:280", text_folder)
    assert tokenizer.vocabulary.size == 280
    assert tokenizer.vocabulary.unit == "bpe:280"
    ids = corpus_ids(tokenizer, TEXT)
    assert ids[-1] == 2
    assert not {0, 1, 2, 3} & set(ids[:-1])  # literal symbols are text
    assert tokenizer.decode(ids[:-1]) == TEXT
    assert len(ids) < len(TEXT.encode())
    again = build_tokenizer("bpe:280", text_folder)
    assert again.vocabulary == tokenizer.vocabulary


def test_word_ids_are_those_of_str_split(text_folder):
    tokenizer = build_tokenizer("word", text_folder)
    ids = corpus_ids(tokenizer, "a tab\r\n\r\nunheard and\rlast")
    index = tokenizer.dictionary.index()
    assert ids == [index["a"], index["tab"], 2, 2, 3, index["and"], 2, index["last"], 2]
    assert corpus_ids(tokenizer, TEXT) == [*tokenizer.encode(TEXT), 2]
    assert tokenizer.encode("a tab\nand") == [index["a"], index["tab"], 2, index["and"]]
    assert tokenizer.encode("a tab\n") == [index["a"], index["tab"], 2]
    assert tokenizer.decode([index["a"], index["tab"], 2, index["and"]]) == "a tab\nand"
    assert tokenizer.vocabulary.size % 8 == 0


def test_parts_of_one_document_make_one_item():
    tokenizer = build_tokenizer("bytes")
    ids, lengths, is_open = tokenizer.encode_corpus(
        [Text("ab", True), Text("cd", False), Text("ef", True), Text("g", False)]
    )
    assert lengths.tolist() == [3, 5, 1]
    assert is_open
    assert ids.tolist() == [101, 102, 2, 103, 104, 105, 106, 2, 107]


@pytest.mark.parametrize("spec", ["bytes", "bpe:270", "word", "gpt2-bpe"])
def test_saving(text_folder, tmp_path, spec, request):
    tokenizer = request.getfixturevalue("gpt2") if spec == "gpt2-bpe" else build_tokenizer(spec, text_folder)
    tokenizer.save(tmp_path / "run")
    loaded = load_tokenizer(tmp_path / "run")
    assert loaded.vocabulary == tokenizer.vocabulary
    assert loaded.line_wise == tokenizer.line_wise
    assert corpus_ids(loaded, TEXT) == corpus_ids(tokenizer, TEXT)
    plain = AutoTokenizer.from_pretrained(tmp_path / "run")
    assert plain.encode("some words", add_special_tokens=False) == tokenizer.encode("some words")
    assert (plain.pad_token_id, plain.eos_token_id, plain.bos_token_id) == (1, 2, 2)


def test_any_tokenizer_of_hugging_face(text_folder, tmp_path):
    build_tokenizer("bpe:300", text_folder).save(tmp_path / "theirs")
    config = json.loads((tmp_path / "theirs" / "tokenizer_config.json").read_text())
    del config["unit"]
    (tmp_path / "theirs" / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = build_tokenizer(str(tmp_path / "theirs"))
    assert tokenizer.vocabulary.unit == "hf:theirs"
    assert corpus_ids(tokenizer, TEXT) == corpus_ids(build_tokenizer("bpe:300", text_folder), TEXT)
    del config["eos_token"]
    (tmp_path / "theirs" / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="it has no end symbol"):
        build_tokenizer(str(tmp_path / "theirs"))


def test_a_dictionary_of_another_tokenizer(text_folder, tmp_path):
    build_tokenizer("word", text_folder).save(tmp_path / "run")
    (tmp_path / "run" / "dict.txt").write_text("other 1\n")
    with pytest.raises(DataError, match=r"dict.txt and tokenizer.json do not belong together"):
        load_tokenizer(tmp_path / "run")
    (tmp_path / "run" / "dict.txt").unlink()
    with pytest.raises(DataError, match=r"dict.txt: cannot be read"):
        load_tokenizer(tmp_path / "run")


def test_vocabularies_are_compared(text_folder):
    byte, word = build_tokenizer("bytes").vocabulary, build_tokenizer("word", text_folder).vocabulary
    check_vocabulary(byte, byte)
    with pytest.raises(
        DataError, match=r"^corpus: its tokens are word \(size \d+, hash \w{8}\), those of the model byte \(size 260"
    ):
        check_vocabulary(word, byte, name="corpus")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("word", "tokenizer word: it is learned from text; give the data"),
        ("bpe:many", "the size must be a number of at least 260, as in bpe:8192"),
        ("bpe:100", "the size must be a number of at least 260, as in bpe:8192"),
        ("gpt2-bpe:nowhere", "gpt2-bpe:nowhere: no such folder"),
        ("byts", "tokenizer byts: not bytes, bpe:SIZE, word"),
    ],
)
def test_bad_specs(spec, message, text_folder, tmp_path):
    with pytest.raises(DataError, match=message):
        build_tokenizer(spec, None if spec == "word" else text_folder)


def test_incomplete_gpt2_folders(tmp_path):
    def complaint():
        with pytest.raises(DataError) as caught:
            build_tokenizer(f"gpt2-bpe:{tmp_path}")
        return str(caught.value)

    assert complaint().endswith("no vocab.bpe and no merges.txt")
    (tmp_path / "merges.txt").write_text("#version: 0.2\nt h\nth e\n")
    assert complaint().endswith("no dict.txt of fairseq, and no vocab.json of RoBERTa")
    (tmp_path / "vocab.json").write_text('{"!": 0}')
    assert "vocab.json is not that of RoBERTa" in complaint()
    (tmp_path / "dict.txt").write_text("13 5\n200 4\n")
    assert "dict.txt lacks 257 of the 259 ids of GPT-2" in complaint()
    (tmp_path / "dict.txt.gz").write_bytes(b"")
    (tmp_path / "merges.txt").write_text("t h e\n")
    assert "the merges are not two symbols on each line" in complaint()
    (tmp_path / "merges.txt").write_text("t 灯\n")
    (tmp_path / "dict.txt").write_text("".join(f"{i} 1\n" for i in range(258)))
    assert "the merges do not fit the vocabulary" in complaint()


# The dictionary


def test_dictionary_order_and_padding():
    counts = count_words(["b a b LAMP lamp Lamp éclair Éclair\n灯台 madeupword0001", "<unk> </s>"])
    dictionary = Dictionary.from_counts(counts)
    assert dictionary.symbols[4:] == [
        *("b", "LAMP", "Lamp", "a", "lamp", "madeupword0001", "Éclair", "éclair", "灯台"),
        *("madeupword0000", "madeupword0002", "madeupword0003"),
    ]
    assert len(dictionary) == 16
    assert Dictionary.from_counts(counts, min_count=2).symbols[4:6] == ["b", "madeupword0000"]
    assert Dictionary.from_counts(counts, max_size=6).symbols[4:7] == [
        "b",
        "LAMP",
        "madeupword0000",
    ]
    assert Dictionary.parse(dictionary.to_text(), "dict.txt") == dictionary


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("the 5\nnothing\n", "dict.txt: line 2 is not `<symbol> <count>`: 'nothing'"),
        ("the five\n", "line 1 is not"),
        ("the 5\nthe 4\n", "line 2 repeats the symbol 'the'"),
        ("<unk> 5\n", "line 1 repeats the symbol '<unk>'"),
        ("the " + "9" * 5000 + "\n", "line 1 is not"),
    ],
)
def test_bad_dictionaries(tmp_path, text, message):
    (tmp_path / "dict.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        Dictionary.load(tmp_path / "dict.txt")


def test_dictionary_overwrite_flag():
    dictionary = Dictionary.parse("the 5\na b 3\n<unk> 2 #fairseq:overwrite\n", "dict.txt")
    assert dictionary.symbols[4:] == ["the", "a b", "<unk>"]
    assert dictionary.index()["<unk>"] == 6


def test_unreadable_dictionary(tmp_path):
    with pytest.raises(DataError, match=r"dict.txt: cannot be read"):
        Dictionary.load(tmp_path / "dict.txt")
    (tmp_path / "dict.txt").write_bytes(b"\xff\xfe 4\n")
    with pytest.raises(DataError, match=r"not UTF-8 text \(byte 0\)"):
        Dictionary.load(tmp_path / "dict.txt")


# GPT-2 BPE with fairseq's ids


def test_gpt2_ids(gpt2):
    assert gpt2.encode("Hello world") == [31414, 232]
    assert gpt2.fast.encode(" world", add_special_tokens=False) == [232]
    assert gpt2.encode("world") == [8331]
    assert gpt2.vocabulary.size == 50264
    assert gpt2.dictionary.symbols[50260:] == ["50256", "madeupword0000", "madeupword0001", "madeupword0002"]
    content = gpt2.dictionary.to_text().encode()
    assert hashlib.sha256(content).hexdigest() == "2c31c5b236661067fe8626775eb995ef5fe808ac87d2ad4a6ddbef68550f5cc6"


def test_gpt2_ids_agree_with_encoder_json(gpt2):
    encoder = json.loads(gzip.decompress(shared("data", "gpt2-bpe", "encoder.json.gz").read_bytes()))
    ids, vocab = gpt2.dictionary.index(), gpt2.fast.get_vocab()
    assert len(encoder) == 50257
    assert all(vocab[token] == ids[str(i)] for token, i in encoder.items())


@pytest.mark.parametrize("hub", [False, True])
def test_gpt2_from_the_files_of_roberta(gpt2, tmp_path, monkeypatch, hub):
    vocab = {**gpt2.fast.get_vocab(), "<mask>": 50264}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_bytes(gzip.decompress(shared("data", "gpt2-bpe", "vocab.bpe.gz").read_bytes()))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repository, name: str(tmp_path / name))
    tokenizer = build_tokenizer("gpt2-bpe" if hub else f"gpt2-bpe:{tmp_path}")
    assert tokenizer.vocabulary == gpt2.vocabulary
    assert np.array_equal(corpus_ids(tokenizer, TEXT), corpus_ids(gpt2, TEXT))
