"""Blocks: no token is lost, every input is the token before its target, and the slices are those of fairseq."""

import json
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import shared

from subquad.data import Blocks, TokenStream, Vocabulary, block_slices, collate

VOCABULARY = Vocabulary("word", 80, "", 2, 1)


def make_stream(items):
    tokens = np.array([i for item in items for i in item], dtype=np.uint16)
    return TokenStream(tokens, np.cumsum([0, *map(len, items)]), VOCABULARY)


@pytest.fixture(scope="module")
def expected():
    return json.loads(shared("golden", "fairseq-data-bin", "expected.json").read_text())


@pytest.fixture(scope="module")
def word_stream(expected):
    return make_stream(expected["word"]["splits"]["train"]["tokens"])


ITEMS = st.lists(st.lists(st.integers(3, 79), max_size=12).map(lambda item: [*item, 2]), min_size=1, max_size=12)


@given(items=ITEMS, size=st.integers(1, 20), mode=st.sampled_from(["none", "complete", "eos"]))
def test_targets_are_the_stream_and_inputs_are_one_behind(items, size, mode):
    stream = make_stream(items)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about divided items
        blocks = Blocks(stream, size, mode)
    inputs = torch.cat([block["input_ids"] for block in blocks]).tolist()
    labels = torch.cat([block["shift_labels"] for block in blocks]).tolist()
    assert labels == stream.tokens.tolist()
    assert inputs == [2, *stream.tokens.tolist()[:-1]]
    assert max(blocks.lengths) <= size
    assert [len(block["input_ids"]) for block in blocks] == blocks.lengths.tolist()


@given(items=ITEMS, size=st.integers(2, 20), window=st.integers(1, 12))
def test_context_is_read_but_not_scored(items, size, window):
    stream = make_stream(items)
    blocks = Blocks(stream, size + window, context_window=window)
    plain = Blocks(stream, size)
    assert len(blocks) == len(plain)
    before = [2, *stream.tokens.tolist()]
    for block, bare, (start, stop) in zip(blocks, plain, blocks.slices, strict=True):
        context = min(window, start)
        assert block["input_ids"].tolist() == before[start - context : stop]
        assert block["shift_labels"].tolist() == [-100] * context + bare["shift_labels"].tolist()


@given(items=ITEMS, size=st.integers(1, 20))
def test_complete_doc_leaves_out_only_empty_lines(items, size):
    slices = block_slices(make_stream(items).item_offsets, "complete_doc", size)
    kept = [i for start, stop in slices for i in range(start, stop)]
    stream = make_stream(items)
    empty = stream.item_offsets[:-1][np.diff(stream.item_offsets) == 1]
    assert sorted({*range(stream.num_tokens)} - set(kept)) == empty.tolist()


def test_blocks_of_fairseq(expected, word_stream):
    for case in expected["blocks_of_word_train"]:
        mode, size = case["break_mode"], case["block_size"]
        slices = block_slices(word_stream.item_offsets, mode, size)
        assert slices.tolist() == case["slices"], (mode, size)
        blocks = Blocks(word_stream, size, mode, compat="fairseq")
        fitting = [i for i, (start, stop) in enumerate(slices) if size is None or stop - start <= size]
        assert [block["input_ids"].tolist() for block in blocks] == [case["input"][i] for i in fitting]
        # A literal <pad> of the text is a target of the reference, and ignored by its loss.
        targets = [[-100 if target == 1 else target for target in case["target"][i]] for i in fitting]
        assert [block["shift_labels"].tolist() for block in blocks] == targets
        masked = [[0, *word_stream.read(start, stop)] for start, stop in slices]
        assert masked == case["masked_lm_block_with_bos"]


def test_context_windows_of_fairseq(expected, word_stream):
    for case in expected["context_window"]:
        window = case["context_window"]
        blocks = Blocks(word_stream, case["tokens_per_sample_after_subtraction"] + window, context_window=window)
        rows = [row for batch in case["batches"] for row in zip(*batch.values(), strict=True)]
        for block, (inputs, targets, start) in zip(blocks, rows, strict=False):
            length = len(block["input_ids"])
            assert block["input_ids"].tolist() == inputs[:length]
            assert [1 if label == -100 else label for label in block["shift_labels"].tolist()] == targets[:length]
            assert {*inputs[length:], *targets[length:]} <= {1}  # the reference fills its first block up
            assert (block["shift_labels"] == -100).sum() == start


def test_a_literal_pad_is_scored_by_default():
    stream = make_stream([[5, 1, 2]])
    assert Blocks(stream, 8)[0]["shift_labels"].tolist() == [5, 1, 2]
    assert Blocks(stream, 8, compat="fairseq")[0]["shift_labels"].tolist() == [5, -100, 2]


def test_long_items_are_divided_with_a_warning():
    stream = make_stream([[5, 2], [5, 6, 7, 8, 2], [9, 2]])
    with pytest.warns(UserWarning, match="1 of 3 blocks exceed 3 tokens and are divided"):
        blocks = Blocks(stream, 3, "complete")
    assert blocks.slices.tolist() == [[0, 2], [2, 5], [5, 7], [7, 9]]
    assert blocks[2]["input_ids"].tolist() == [7, 8]


def test_items_without_tokens():
    stream = make_stream([[], [5, 2], [], [], [6, 7, 2], []])
    for mode in ("none", "complete", "complete_doc", "eos"):
        labels = [i for block in Blocks(stream, 8, mode) for i in block["shift_labels"].tolist()]
        assert labels == [5, 2, 6, 7, 2]


def test_collate():
    stream = make_stream([[5, 6, 2], [7, 2], [8, 9, 2]])
    blocks = Blocks(stream, None, "eos")
    assert all(block[name].dtype == torch.int64 for block in blocks for name in block)
    batch = collate([blocks[0], blocks[1]])
    assert batch["input_ids"].tolist() == [[2, 5, 6], [2, 7, 1]]
    assert batch["shift_labels"].tolist() == [[5, 6, 2], [7, 2, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    even = collate([blocks[0], blocks[2]])
    assert set(even) == {"input_ids", "shift_labels"}
    assert collate([blocks[1], blocks[0]], pad_id=0)["input_ids"].tolist() == [[2, 7, 0], [2, 5, 6]]
    loader = torch.utils.data.DataLoader(blocks, batch_size=2, collate_fn=collate)
    assert [len(batch["input_ids"]) for batch in loader] == [2, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"block_size": 0}, "block_size must be at least 1, got 0"),
        ({"block_size": None}, "block_size=None needs mode 'eos', got mode 'none': give the number of tokens"),
        ({"block_size": 8, "mode": "lines"}, "mode must be 'none', 'complete', 'complete_doc' or 'eos', got 'lines'"),
        ({"block_size": 8, "context_window": 8}, r"context_window must be in 0 … block_size - 1 = 7, got 8"),
        (
            {"block_size": 8, "mode": "complete", "context_window": 2},
            "context_window=2 needs mode 'none', got 'complete'",
        ),
        ({"block_size": 8, "compat": "gpt"}, "compat must be None or 'fairseq', got 'gpt'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Blocks(make_stream([[5, 2]]), **arguments)
