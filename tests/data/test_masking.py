"""Masking: the statistics of both rules, masks that depend on seed, epoch and block alone, and fairseq's blocks."""

import json

import numpy as np
import pytest
import torch
from support import shared

from subquad.data import (
    DataError,
    MaskedBlocks,
    TokenStream,
    Vocabulary,
    build_masking,
    build_tokenizer,
    collate,
    load_tokenizer,
)
from subquad.data.dictionary import Dictionary
from subquad.data.sources import Text

VOCABULARY = Vocabulary("word", 80, "", 2, 1)
MASK = 80


class Ids:
    """What a masking asks of a tokenizer."""

    mask_id, num_ids, special_ids = MASK, 81, range(4)


def make_stream(items):
    tokens = np.array([i for item in items for i in item], dtype=np.uint16)
    return TokenStream(tokens, np.cumsum([0, *map(len, items)]), VOCABULARY)


def masked(tokens, draws, **options):
    """Inputs and labels of many draws, (draws, length) each."""
    masking = build_masking({"type": "fairseq"} | options, Ids())
    pairs = [masking(tokens, np.random.default_rng(draw)) for draw in range(draws)]
    return tuple(np.stack(arrays) for arrays in zip(*pairs, strict=True))


# A block of 50 tokens: the start symbol, four lines, text of one id that nothing else has.
BLOCK = np.array([0] + ([9] * 11 + [2]) * 4 + [9])


def test_labels_are_the_tokens_that_were_chosen_and_nothing_else_changes():
    for options in ({}, {"type": "bernoulli"}):
        inputs, labels = masked(BLOCK, 50, **options)
        chosen = labels != -100
        tokens = np.broadcast_to(BLOCK, labels.shape)
        assert (labels[chosen] == tokens[chosen]).all()
        assert (inputs[~chosen] == tokens[~chosen]).all()
        assert inputs.dtype == labels.dtype == np.int64


def test_fairseq_chooses_a_number_of_positions_that_varies_by_one():
    _, labels = masked(BLOCK, 4000)
    counts = (labels != -100).sum(1)
    assert set(counts) == {7, 8}
    assert (counts == 8).mean() == pytest.approx(0.5, abs=0.04)  # 0.15 · 50 = 7.5
    assert {*(masked(BLOCK[:40], 200)[1] != -100).sum(1)} == {6}
    per_position = (labels != -100).mean(0)
    assert per_position == pytest.approx(0.15, abs=0.03)  # the start symbol and line ends like any other


def test_of_the_chosen_80_per_cent_are_masks_10_random_10_unchanged():
    for rule, num_random in (("fairseq", 77), ("bernoulli", 81)):
        inputs, labels = masked(np.full(400, 9), 500, type=rule)
        seen = inputs[labels != -100]
        shares = np.bincount(seen, minlength=81) / len(seen)
        # A random token may be the mask, or the token itself.
        assert shares[MASK] == pytest.approx(0.8 + 0.1 / num_random, abs=0.01)
        assert shares[9] == pytest.approx(0.1 + 0.1 / num_random, abs=0.01)
        others = np.delete(shares[81 - num_random : MASK], 9 - (81 - num_random))
        assert others == pytest.approx(0.1 / num_random, abs=7e-4)
        assert (shares[: 81 - num_random] == 0).all()  # fairseq's rule never inserts a special symbol


def test_bernoulli_leaves_special_tokens_alone():
    _, labels = masked(BLOCK, 2000, type="bernoulli")
    share = (labels != -100).mean(0)
    assert (share[BLOCK < 4] == 0).all()
    assert share[BLOCK == 9] == pytest.approx(0.15, abs=0.04)
    assert len({*(labels != -100).sum(1)}) > 2


def test_other_shares():
    inputs, labels = masked(BLOCK, 300, probability=0.4, random=0.0, unchanged=1.0)
    assert (labels != -100).mean() == pytest.approx(0.4, abs=0.01)
    assert (inputs == BLOCK).all()
    inputs, labels = masked(BLOCK, 20, probability=1, random=0, unchanged=0)
    assert (inputs == MASK).all()
    assert (labels == BLOCK).all()


@pytest.fixture
def stream():
    return make_stream([[*range(10, 10 + size), 2] for size in (7, 9, 3, 12, 6, 8)])


def blocks_of(stream, size=16, **options):
    masking = build_masking(options.pop("masking", None), Ids())
    return MaskedBlocks(stream, size, cls_id=0, masking=masking, **options)


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in ("input_ids", "labels"))


def test_blocks_begin_with_the_start_symbol_and_hold_whole_lines(stream):
    blocks = blocks_of(stream, masking={"type": "fairseq", "probability": 1, "unchanged": 1, "random": 0})
    texts = [blocks[index]["labels"].tolist() for index in range(len(blocks))]
    assert texts[0] == [0, *range(10, 17), 2]
    assert texts[1] == [0, *range(10, 19), 2, *range(10, 13), 2]
    assert [i for text in texts for i in text[1:]] == stream.tokens.tolist()
    assert blocks.lengths.tolist() == [len(text) for text in texts]
    assert blocks.lengths.max() <= 16
    assert all(block["input_ids"].dtype == block["labels"].dtype == torch.int64 for block in (blocks[0], blocks[1]))


def test_masks_are_a_function_of_seed_epoch_and_block(stream):
    long = make_stream([[*range(4, 70), 2]] * 4)
    blocks, again, other = (blocks_of(long, 68, seed=seed) for seed in (1, 1, 2))
    for index in range(4):
        assert same(blocks[index], again[index])
        assert same(blocks[index], blocks.example(index, 0))
        assert same(blocks.example(index, 3), again.example(index, 3))
        assert not same(blocks.example(index, 1), blocks.example(index, 0))
        assert not same(blocks[index], other[index])
    assert not same(blocks[0], blocks[1])  # the text is equal


def test_tiny_blocks_may_have_no_mask():
    blocks = blocks_of(make_stream([[5, 2]] * 200), 3, mode="eos")
    counts = [int((blocks[index]["labels"] != -100).sum()) for index in range(len(blocks))]
    assert set(counts) == {0, 1}
    assert np.mean(counts) == pytest.approx(0.45, abs=0.12)  # three tokens each


def test_batches_of_blocks(stream):
    blocks = blocks_of(stream)
    assert len(blocks[0]["labels"]) < len(blocks[1]["labels"])
    batch = collate([blocks[0], blocks[1]])
    assert set(batch) == {"input_ids", "labels", "attention_mask"}
    short = len(blocks[0]["labels"])
    assert (batch["labels"][0, short:] == -100).all()
    assert (batch["input_ids"][0, short:] == 1).all()
    assert batch["attention_mask"].sum().item() == sum(blocks.lengths[:2])


def test_blocks_of_fairseq():
    expected = json.loads(shared("golden", "fairseq-data-bin", "expected.json").read_text())
    stream = make_stream(expected["word"]["splits"]["train"]["tokens"])
    everything = {"type": "fairseq", "probability": 1, "unchanged": 1, "random": 0}
    checked = 0
    for case in expected["blocks_of_word_train"]:
        size = case["block_size"]
        if size is None:
            continue
        blocks = blocks_of(stream, size + 1, mode=case["break_mode"], masking=everything, compat="fairseq")
        fitting = [block for block in case["masked_lm_block_with_bos"] if len(block) <= size + 1]
        assert [blocks[i]["input_ids"].tolist() for i in range(len(blocks))] == fitting
        checked += 1
    assert checked


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"type": "fairsec"}, "unknown masking 'fairsec'. Did you mean 'fairseq'"),
        ({"type": "fairseq", "probabilty": 0.1}, "Did you mean 'probability'"),
        ({"type": "fairseq", "mask_id": 3}, "unknown option of masking 'fairseq' 'mask_id'"),
        ({"type": "fairseq", "probability": 0}, r"probability must be in \(0, 1\], got 0"),
        ({"type": "bernoulli", "random": 0.6, "unchanged": 0.5}, "at most 1 together, got 0.6 and 0.5"),
        ({"type": "fairseq", "random": -0.1}, "got -0.1 and 0.1"),
        ({"rule": "fairseq"}, "a masking is described by"),
    ],
)
def test_mistakes_in_a_masking(options, message):
    with pytest.raises(ValueError, match=message):
        build_masking(options)


def test_a_block_needs_room_for_a_token(stream):
    with pytest.raises(ValueError, match="block_size must be at least 2, the start symbol and a token, got 1"):
        blocks_of(stream, 1)


# The mask of a tokenizer


@pytest.fixture
def text_folder(tmp_path):
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.txt").write_text(f"some words of {split} , <mask> and more\n" * 4, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("spec", ["bytes", "bpe:270", "word", "gpt2-bpe"])
def test_the_mask_stands_behind_all_other_ids(spec, text_folder):
    if spec == "gpt2-bpe":
        spec = f"gpt2-bpe:{shared('data', 'gpt2-bpe')}"
    if spec == "word":  # where text may hold the symbol, it is that word, as in fairseq
        for split in ("train", "valid", "test"):
            (text_folder / f"{split}.txt").write_text("some words and more\n")
    plain, tokenizer = build_tokenizer(spec, text_folder), build_tokenizer(spec, text_folder)
    assert plain.mask_id is None
    assert plain.num_ids == plain.vocabulary.size
    tokenizer.add_mask()
    tokenizer.add_mask()
    assert tokenizer.mask_id == plain.vocabulary.size
    assert tokenizer.num_ids == plain.vocabulary.size + 1
    assert tokenizer.vocabulary == plain.vocabulary  # the ids of a text are the same
    assert (tokenizer.cls_id, tokenizer.special_ids) == (0, [0, 1, 2, 3])
    if spec.startswith("gpt2-bpe"):
        assert (tokenizer.mask_id, tokenizer.num_ids) == (50_264, 50_265)
    tokenizer.save(text_folder / "run")
    loaded = load_tokenizer(text_folder / "run")
    assert loaded.vocabulary == plain.vocabulary
    assert (loaded.mask_id, loaded.num_ids) == (tokenizer.mask_id, tokenizer.num_ids)
    assert loaded.encode("some <mask> more").count(loaded.mask_id) == 1


@pytest.mark.parametrize("spec", ["bytes", "bpe:270"])
def test_a_literal_mask_in_the_text_is_text(spec, text_folder):
    tokenizer = build_tokenizer(spec, text_folder)
    tokenizer.add_mask()
    ids, _, _ = tokenizer.encode_corpus([Text("a <mask> b", True)])
    assert tokenizer.mask_id not in ids
    assert tokenizer.decode(ids[:-1]) == "a <mask> b"


def test_the_mask_of_other_tokenizers_is_theirs(text_folder):
    tokenizer = build_tokenizer("bpe:270", text_folder)
    tokenizer.fast.add_special_tokens({"mask_token": "[MASK]"})
    tokenizer.add_mask()
    assert tokenizer.fast.mask_token == "[MASK]"
    assert tokenizer.mask_id == 270


def test_a_dictionary_with_gaps_takes_no_mask():
    dictionary = Dictionary.parse("word 3\nword 2 #fairseq:overwrite\n", "dict.txt")
    with pytest.raises(DataError, match="overwrites symbols"):
        build_tokenizer("word", dictionary=dictionary).add_mask()
