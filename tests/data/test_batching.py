"""fairseq's order and batches, example for example."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import shared

from subquad.data import CompatBatches, batch_by_size, epoch_batches, ordered_indices


@pytest.fixture(scope="module")
def expected():
    return json.loads(shared("golden", "fairseq-data-bin", "expected.json").read_text())


@pytest.mark.parametrize(("key", "version"), [("", "evo"), ("_v0122", "0.12")])
def test_batches_of_fairseq(expected, key, version):
    lengths = np.array([8] * 17 + [1])
    for case in expected[f"batches_of_word_train_none_8{key}"]:
        order = ordered_indices(lengths, case["seed"])
        assert order.tolist() == case["ordered_indices"]
        limits = {
            "max_tokens": case["max_tokens"],
            "batch_size": case["batch_size"],
            "multiple": case["required_batch_size_multiple"],
            "version": version,
        }
        batches = batch_by_size(order, lengths, **limits)
        assert batches == case["batches"]
        for epoch in case["epochs"]:
            shard = {"num_shards": epoch["num_shards"], "shard_id": epoch["shard_id"]}
            assert epoch_batches(batches, case["seed"], epoch["epoch"], **shard) == epoch["batches"]
        sampler = CompatBatches(lengths, case["seed"], **limits)
        for epoch in case["epochs"]:
            if epoch["num_shards"] == 1:
                sampler.set_epoch(epoch["epoch"])
                assert list(sampler) == epoch["batches"]
                assert len(sampler) == len(epoch["batches"])


def test_batch_by_size_of_fairseq(expected):
    for case in expected["batch_by_size"]:
        limits = [value if value > 0 else None for value in (case["max_tokens"], case["max_sentences"])]
        batches = batch_by_size(
            range(len(case["sizes"])),
            np.array(case["sizes"]),
            max_tokens=limits[0],
            batch_size=limits[1],
            multiple=case["required_batch_size_multiple"],
        )
        assert batches == case["batches"]


@given(
    sizes=st.lists(st.integers(1, 10), max_size=40),
    max_tokens=st.none() | st.integers(10, 60),
    batch_size=st.none() | st.integers(1, 9),
    multiple=st.integers(1, 8),
)
def test_batches_hold_every_example_within_the_limits(sizes, max_tokens, batch_size, multiple):
    limits = {"max_tokens": max_tokens, "batch_size": batch_size, "multiple": multiple}
    batches = batch_by_size(range(len(sizes)), np.array(sizes), **limits)
    assert [i for batch in batches for i in batch] == list(range(len(sizes)))
    for batch in batches:
        assert len(batch) < multiple or len(batch) % multiple == 0
        assert batch_size is None or len(batch) <= batch_size
        assert max_tokens is None or len(batch) * max(sizes[i] for i in batch) <= max_tokens
    kept = batch_by_size(range(len(sizes)), np.array(sizes), **limits, version="0.12")
    assert kept == (batches[:-1] if batches and len(batches[-1]) % multiple else batches)


def test_shards_share_an_epoch():
    batches = [[i] for i in range(7)]
    shards = [epoch_batches(batches, 1, 3, num_shards=3, shard_id=shard) for shard in range(3)]
    assert [len(shard) for shard in shards] == [3, 3, 3]
    assert sorted(i for shard in shards for batch in shard for i in batch) == list(range(7))


def test_bad_limits():
    with pytest.raises(ValueError, match="example 1 has 9 tokens, over max_tokens=8"):
        batch_by_size([0, 1], np.array([3, 9]), max_tokens=8)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        batch_by_size([0], np.array([3]), batch_size=0)
    with pytest.raises(ValueError, match=r"version must be 'evo' or '0.12', got '1.0'"):
        batch_by_size([0], np.array([3]), version="1.0")
