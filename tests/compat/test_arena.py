"""Which task of the Long Range Arena a published classifier is of, and how its inputs are read."""

from types import SimpleNamespace

import pytest

from subquad.compat.arena import data_options, published_model
from subquad.compat.recognize import Recognized
from subquad.data import DataError
from subquad.data.lra.datasets import TASKS
from subquad.evaluation.lra import published_results


def classifier(labels=2, pairs=False, features=None):
    return SimpleNamespace(num_labels=labels, is_of_pairs=pairs, input_features=features)


def found(family="hgrn.lra", **config):
    return Recognized(family, "sequence-classification", config)


TEXT, PAIRS, TEN, GREY = classifier(), classifier(pairs=True), classifier(10), classifier(features=1)


@pytest.mark.parametrize(
    ("dataset", "config", "expected"),
    [
        ({}, TEN, {"task": "listops"}),
        ({}, TEXT, {"task": "text"}),
        ({}, PAIRS, {"task": "retrieval"}),
        ({}, classifier(10, features=1), {"task": "image"}),
        ({}, GREY, {"task": "pathfinder"}),
        ({"resolution": 128}, GREY, {"task": "pathx"}),
        ({"tokenize": True}, TEN, {"task": "image", "tokenize": True}),
        ({"tokenize": True}, TEXT, {"task": "pathfinder", "tokenize": True}),
        ({"_name_": "listops", "l_max": 2048, "append_eos": True}, TEN, {"task": "listops", "max_length": 2048}),
        (
            {"_name_": "imdb", "l_max": 1024, "append_bos": True, "append_eos": False},
            TEXT,
            {"task": "text", "max_length": 1024, "append_bos": True, "append_eos": False},
        ),
        ({"_name_": "aan", "l_max": 4000}, PAIRS, {"task": "retrieval", "max_length": 4000}),
        ({"_name_": "cifar"}, classifier(10, features=3), {"task": "image", "colour": True}),
        ({"_name_": "cifar"}, classifier(10, features=6), {"task": "image", "colour": True, "permute": "transpose"}),
        (
            {"_name_": "cifar", "permute": "br"},
            classifier(10, features=1),
            {"task": "image", "permute": "bit_reversal"},
        ),
        ({"_name_": "cifar"}, TEN, {"task": "image", "tokenize": True}),
        ({"_name_": "pathfinder", "resolution": 128, "pool": 1}, GREY, {"task": "pathx"}),
    ],
)
def test_what_a_checkpoint_of_s4_tells(dataset, config, expected):
    assert data_options(found(dataset=dataset), config) == {**expected, "pipeline": "s4"}


@pytest.mark.parametrize(
    ("dataset", "config"),
    [
        ({}, classifier(5)),
        ({"_name_": "sc"}, TEN),
        ({"_name_": "imdb"}, GREY),
        ({"_name_": "pathfinder", "pool": 4}, GREY),
        ({"_name_": "pathfinder", "center": False}, GREY),
        ({"_name_": "pathfinder", "resolution": 64}, GREY),
        ({"_name_": "cifar", "tokenize": True, "permute": "br"}, TEN),
        ({"_name_": "cifar", "permute": "zigzag"}, classifier(10, features=1)),
    ],
)
def test_classifiers_of_something_else(dataset, config):
    assert data_options(found(dataset=dataset), config) == {}


@pytest.mark.parametrize(
    ("length", "config", "task"),
    [
        (4096, TEXT, "text"),
        (2048, TEN, "listops"),
        (4096, PAIRS, "retrieval"),
        (1024, TEN, "image"),
        (1024, TEXT, "pathfinder"),
    ],
)
def test_what_sizes_tell_of_the_byte_pipeline(length, config, task):
    model = found("primal.lra_former", max_seq_len=length)
    assert data_options(model, config) == {"task": task, "pipeline": "byte"}


def test_the_task_can_be_said():
    short = found("primal.lra_trans", max_seq_len=1024)  # as long as the images
    assert data_options(short, TEXT)["task"] == "pathfinder"
    assert data_options(short, TEXT, "lra-text") == {"task": "text", "pipeline": "byte"}
    assert data_options(short, TEXT, "sequence-classification") == {}
    with pytest.raises(DataError, match="Did you mean 'lra-text'"):
        data_options(short, TEXT, "lra-texts")
    with pytest.raises(DataError, match="--task lra-listops: does not fit a classifier of 2 classes, of single"):
        data_options(short, TEXT, "lra-listops")
    with pytest.raises(DataError, match=r"read in a way that is not known here, by dataset: \{'pool': 4\}"):
        data_options(found(dataset={"pool": 4}), GREY, "lra-pathfinder")
    with pytest.raises(DataError, match="whose inputs are 1 values at each position"):
        data_options(found(dataset={}), GREY, "lra-text")


def test_names_are_those_of_the_published_tables():
    layers = [{"_name_": "localattn", "use_softmax": True}, {"_name_": "linearattn"}, {"_name_": "ff"}]
    models = [
        (found("tnn.lra_model"), "s4"),
        (found("hgrn.lra"), "s4"),
        (found("transnormer.lra_classifier", model={"layer": layers}), "s4"),
        (found("transnormer.lra_classifier", model={"layer": [{"_name_": "localattn"}]}), "s4"),
        (found("primal.lra_former", attn_type="primal_cos"), "byte"),
        (found("primal.lra_trans", attn_type="primal_cos"), "byte"),
    ]
    known = {(result.model, result.pipeline) for task in TASKS for result in published_results(task)}
    names = [published_model(model) for model, _ in models]
    assert names[2:4] == ["TransNormer T2", "TransNormer T1"]
    assert {(name, pipeline) for name, (_, pipeline) in zip(names, models, strict=True)} <= known
    assert published_model(found("primal.lra_former", attn_type="softmax")) == "Transformer"
    assert published_model(found("tnn.fairseq_lm")) is None
