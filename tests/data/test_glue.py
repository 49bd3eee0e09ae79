"""The files of GLUE as examples: columns, classes, input, what is cut, and what is wrong in them."""

import gzip
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from glue_files import CLASSES, HEADERS, write_glue
from support import shared

from subquad.data import DataError, build_tokenizer
from subquad.data.glue import (
    GLUE_TASKS,
    GlueExamples,
    GlueRows,
    classes_by_frequency,
    collate_examples,
    open_glue,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_glue(tmp_path_factory.mktemp("data") / "glue")


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer("bytes")


@pytest.mark.parametrize("task", GLUE_TASKS)
def test_every_task_is_read_from_its_columns(folder, task):
    kind = GLUE_TASKS[task]
    for source in (open_glue(folder, task), open_glue(folder / kind.title, task)):
        for split, size in (("train", 24), ("valid", 12)):
            rows = source.read(split)
            assert len(rows) == size
            assert rows.sentences[0][0] == 'He said "aaaa'
            assert [texts[4] for texts in rows.sentences[1:]] == ["no 1"] * (len(kind.columns) - 1)
        expected = [0.0, 5.0] if kind.is_regression else list(CLASSES[kind.title])
        labels = open_glue(folder, task).read("valid").labels
        assert labels is not None
        assert labels[: len(expected)] == expected
        assert all(isinstance(label, float if kind.is_regression else str) for label in labels)


@pytest.mark.parametrize("task", [name for name, kind in GLUE_TASKS.items() if not kind.is_regression])
def test_classes_are_numbered_by_falling_frequency(folder, task):
    labels = open_glue(folder, task).read("train").labels
    counts = Counter(labels)
    classes = classes_by_frequency(labels)
    assert sorted(classes, key=lambda label: (-counts[label], label)) == classes
    assert classes_by_frequency(["b", "a", "c", "c"]) == ["c", "a", "b"]


def test_mnli_has_two_validation_splits(folder):
    assert list(open_glue(folder, "mnli").readers) == ["train", "valid", "valid_mismatched"]


@pytest.mark.parametrize(
    ("task", "sizes", "classes"),
    [
        ("cola", (8551, 1043, 1063), [("1", 6023), ("0", 2528)]),
        ("rte", (2490, 277, 3000), [("entailment", 1249), ("not_entailment", 1241)]),
        ("sst2", (67349, 872, 1821), [("1", 37569), ("0", 29780)]),
    ],
)
def test_the_official_files(task, sizes, classes):
    source = open_glue(shared("data", "glue"), task)
    splits = {split: source.read(split) for split in ("train", "valid", "test")}
    assert tuple(map(len, splits.values())) == sizes
    labels = splits["train"].labels
    assert [(label, Counter(labels)[label]) for label in classes_by_frequency(labels)] == classes
    assert splits["test"].labels is None


def test_input_of_one_sentence_and_of_a_pair(tokenizer):
    def ids(text):
        return [i + 4 for i in text.encode()]

    one = GlueExamples(GlueRows([["ab", ""]], ["1", "0"]), tokenizer, 64, ["1", "0"])
    assert one[0]["input_ids"].tolist() == [0, *ids("ab"), 2]
    assert one[1]["input_ids"].tolist() == [0, 2]
    assert [one[i]["labels"].item() for i in range(2)] == [0, 1]
    pair = GlueExamples(GlueRows([["ab"], ["cde"]], [2.5]), tokenizer, 64)
    assert pair[0]["input_ids"].tolist() == [0, *ids("ab"), 2, 2, *ids("cde"), 2]
    assert pair[0]["labels"] == 0.5
    assert pair[0]["labels"].dtype == torch.float32


@pytest.mark.parametrize("first", [0, 1, 5, 6, 7, 30])
@pytest.mark.parametrize("second", [0, 1, 5, 6, 7, 30])
@pytest.mark.parametrize("max_length", [6, 15, 16])
def test_the_longer_sentence_is_cut(tokenizer, first, second, max_length):
    examples = GlueExamples(GlueRows([["a" * first], ["b" * second]], [1.0]), tokenizer, max_length)
    ids = examples[0]["input_ids"].tolist()
    a, b = ids.count(ord("a") + 4), ids.count(ord("b") + 4)
    # One by one from the end of the longer sentence; of two that are equally long, from the second.
    kept = [first, second]
    while sum(kept) + 4 > max_length:
        kept[0 if kept[0] > kept[1] else 1] -= 1
    assert [a, b] == kept
    assert ids == [0, *[ord("a") + 4] * a, 2, 2, *[ord("b") + 4] * b, 2]
    assert examples.num_cut == (first + second + 4 > max_length)


def test_one_long_sentence_is_cut(tokenizer):
    examples = GlueExamples(GlueRows([["a" * 9, "a" * 4]], ["1", "1"]), tokenizer, 6, ["1", "0"])
    assert [len(examples[i]["input_ids"]) for i in range(2)] == [6, 6]
    assert examples[0]["input_ids"][-1] == 2
    assert examples.num_cut == 1


def test_a_sentence_is_one_line(tokenizer):
    words = build_tokenizer("bytes")
    words.line_wise = True
    rows = GlueRows([["one\ntwo", "x"]], ["1", "0"])
    assert len(GlueExamples(rows, words, 64, ["1", "0"])) == 2
    assert GlueExamples(rows, words, 64, ["1", "0"])[1]["input_ids"].tolist() == [0, ord("x") + 4, 2]


def test_batches_are_filled_up_on_the_right(tokenizer):
    examples = GlueExamples(GlueRows([["abc", "d"]], ["1", "0"]), tokenizer, 64, ["1", "0"])
    batch = collate_examples([examples[0], examples[1]], pad_id=1)
    assert batch["input_ids"][1].tolist() == [0, ord("d") + 4, 2, 1, 1]
    assert batch["attention_mask"].tolist() == [[1] * 5, [1, 1, 1, 0, 0]]
    assert batch["labels"].tolist() == [0, 1]


def test_quotes_byte_order_mark_line_ends_and_gzip(tmp_path):
    place = tmp_path / "RTE"
    place.mkdir()
    text = '\ufeffindex\tsentence1\tsentence2\tlabel\r\n0\t"a\t b\u00a0c \tentailment\r\n1\tx\t\tnot_entailment'
    for name in ("train", "dev"):
        (place / f"{name}.tsv.gz").write_bytes(gzip.compress(text.encode()))
    rows = open_glue(tmp_path, "rte").read("train")
    assert rows.sentences == [['"a', "x"], ["b\u00a0c", ""]]
    assert rows.labels == ["entailment", "not_entailment"]


def test_lines_of_qqp_with_other_columns_are_left_out(folder, tmp_path):
    place = tmp_path / "QQP"
    place.mkdir()
    content = (folder / "QQP" / "train.tsv").read_text()
    for name in ("train", "dev"):
        (place / f"{name}.tsv").write_text(content + "1\t2\t3\tonly a question\n9\t1\t1\ta\tb\t0\t7\n")
    assert len(open_glue(tmp_path, "qqp").read("train")) == 24


@pytest.mark.parametrize(
    ("task", "bad", "message"),
    [
        ("rte", "7\tone\ttwo", r"train\.tsv: line 3 has 3 columns, RTE has 4"),
        ("rte", "7\tone\ttwo\tmaybe", r"train\.tsv: line 3: the label 'maybe' is none of entailment, not_entailment"),
        ("rte", "7\tone\t\udcff\tentailment", r"train\.tsv: line 3 is not UTF-8"),
        ("stsb", "\t".join(["x"] * 9 + ["5.1"]), r"train\.tsv: line 3: the score '5.1' is no number from 0 to 5"),
        ("stsb", "\t".join(["x"] * 9 + ["nan"]), r"the score 'nan' is no number"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_line(folder, tmp_path, task, bad, message):
    title = GLUE_TASKS[task].title
    place = tmp_path / title
    place.mkdir()
    good = (folder / title / "train.tsv").read_text().splitlines()[1]
    text = "\n".join([HEADERS[title], good, bad]) + "\n"
    for name in ("train", "dev"):
        (place / f"{name}.tsv").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=message):
        open_glue(tmp_path, task).read("train")


def test_what_is_not_there_is_named(folder, tmp_path, tokenizer):
    with pytest.raises(ValueError, match=r"unknown GLUE task 'mprc'.*mean 'mrpc'"):
        open_glue(folder, "mprc")
    with pytest.raises(DataError, match="no such folder"):
        open_glue(tmp_path / "none", "rte")
    with pytest.raises(DataError, match=r"no train\.tsv"):
        open_glue(tmp_path, "rte")
    with pytest.raises(DataError, match="no split 'test'; there are: train, valid"):
        open_glue(folder, "rte").read("test")
    with pytest.raises(DataError, match="not public"):
        GlueExamples(GlueRows([["a"]], None), tokenizer, 64, ["1", "0"])
    with pytest.raises(DataError, match="'2' is no class of the model"):
        GlueExamples(GlueRows([["a"]], ["2"]), tokenizer, 64, ["1", "0"])
    with pytest.raises(ValueError, match="room for 6 tokens"):
        GlueExamples(GlueRows([["a"]], ["1"]), tokenizer, 5, ["1", "0"])


def test_a_saved_dataset_gives_what_the_files_give(folder, tmp_path):
    rows = open_glue(folder, "rte").read("train")
    names = datasets.ClassLabel(names=["entailment", "not_entailment"])
    features = datasets.Features(
        {"sentence1": datasets.Value("string"), "sentence2": datasets.Value("string"), "label": names}
    )
    first, second = rows.sentences
    part = datasets.Dataset.from_dict(
        {"sentence1": first, "sentence2": second, "label": [names.str2int(label) for label in rows.labels]}, features
    )
    hidden = part.map(lambda row: {"label": -1})
    datasets.DatasetDict({"train": part, "validation": part, "test": hidden}).save_to_disk(tmp_path / "rte")
    for name in (tmp_path, tmp_path / "rte"):
        source = open_glue(f"hf:{name}", "rte")
        assert source.read("train") == source.read("valid") == rows
        assert source.read("test").labels is None
    with pytest.raises(DataError, match="no column 'question'"):
        open_glue(f"hf:{tmp_path / 'rte'}", "qnli")


def test_equal_words_have_equal_numbers_in_every_split(folder, tokenizer):
    source = open_glue(folder, "mrpc")
    classes = classes_by_frequency(source.read("train").labels)
    train, valid = (GlueExamples(source.read(split), tokenizer, 64, classes) for split in ("train", "valid"))
    assert np.array_equal(train[0]["input_ids"], valid[0]["input_ids"])
    assert train[0]["labels"] == valid[0]["labels"] == 0
