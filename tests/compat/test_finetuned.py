"""Published models that were finetuned on GLUE: from a checkpoint of fairseq to the official metrics."""

import csv
import json
from argparse import Namespace

import pytest
import torch
from glue_files import write_glue
from typer.testing import CliRunner

from subquad import cli
from subquad.compat import from_reference
from subquad.compat.convert import convert
from subquad.compat.glue import CLASSES, finetuned_on
from subquad.data import DataError
from subquad.data.glue import GLUE_TASKS, classes_by_frequency, open_glue
from subquad.evaluation import Run, evaluate_run
from subquad.evaluation.glue import METRICS

OPTIONS = [f"--task glue-{name}" for name in ("qnli", "qqp", "sst2", "mrpc", "cola", "rte")]


def call(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


@pytest.fixture
def data(tmp_path):
    return write_glue(tmp_path / "glue")


@pytest.fixture
def dictionary(tmp_path):
    """As many words as the golden models have rows for, between fairseq's four symbols and the mask."""
    words = ["He", "said", *(f'"{letter * 4}' for letter in "abcd"), "no", "0", "1", "2"]
    words += [f"word{number}" for number in range(35 - len(words))]
    (tmp_path / "dict.txt").write_text("".join(f"{word} 1\n" for word in words))
    return tmp_path / "dict.txt"


@pytest.fixture
def finetuned(load, tmp_path):
    """A checkpoint of a TNN with a classifier of so many outputs; what it says beside the model's arguments."""

    def finetuned(num_classes, style="evo", **about):
        family, config, state, *_ = load("tnn-fairseq_roberta-v2-head")
        torch.manual_seed(num_classes)
        state = {name.replace(".sst.", ".sentence_classification_head."): tensor for name, tensor in state.items()}
        head = "classification_heads.sentence_classification_head.out_proj."
        state |= {f"{head}weight": torch.randn(num_classes, 16), f"{head}bias": torch.randn(num_classes)}
        config = {key: value for key, value in config.items() if key != "classification_heads"}
        said = {
            "args": {"args": Namespace(**config, **about)},
            "evo": {"cfg": {"model": Namespace(**config, **about), "task": Namespace(**about)}},
            "sections": {"cfg": {"model": config, "task": {"_name": about.pop("task", None), **about}}},
        }
        torch.save({"model": state, **said[style]}, tmp_path / "checkpoint_best.pt")
        return tmp_path / "checkpoint_best.pt", from_reference(family, config, state)

    return finetuned


@pytest.mark.parametrize("task", CLASSES)
def test_from_a_checkpoint_to_the_official_metrics(finetuned, data, dictionary, tmp_path, task):
    kind, run = GLUE_TASKS[task], tmp_path / "run"
    classes = CLASSES[task]
    path, published = finetuned(len(classes) or 1)
    result = call("convert", path, "--output", run, "--dictionary", dictionary, "--task", f"glue-{task}")
    assert result.exit_code == 0, result.output
    assert Run(run).task == "glue"
    assert Run(run).recipe["data"] == {"task": task, "max_length": 64}
    result = call("evaluate", run, "--data", data, "--json", tmp_path / "figures.json")
    assert result.exit_code == 0, result.output
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert (figures["task"], figures["glue_task"], figures["examples"]) == ("glue", task, 12)

    # The same by hand, of all examples at once: the published pooling sees how long the batch is.
    rows, tokenizer = open_glue(data, task).read("valid"), Run(run).load_tokenizer()
    lines = []
    for sentences in zip(*rows.sentences, strict=True):
        first, *second = ([*tokenizer.encode(sentence), 2] for sentence in sentences)
        lines.append(torch.tensor([0, *first, *([2, *second[0]] if second else [])]))
    tokens = torch.nn.utils.rnn.pad_sequence(lines, batch_first=True, padding_value=1)
    logits = published(tokens, classification_head_name="sentence_classification_head").logits.detach()
    labels = [value / 5 if task == "stsb" else classes.index(value) for value in rows.labels]
    answers = logits.flatten() if task == "stsb" else logits.argmax(-1)
    for name in kind.metrics:
        more = {"positive": classes.index("1")} if name == "f1" else {}
        expected = METRICS[name](answers.numpy(), torch.tensor(labels).numpy(), **more)
        assert figures[name] == pytest.approx(expected, abs=1e-6), name
    if task != "stsb":
        assert classes_by_frequency(open_glue(data, task).read("train").labels) == list(classes)
        assert Run(run).load_model("cpu").config.id2label == dict(enumerate(classes))


def test_runs_are_compared(finetuned, data, dictionary, tmp_path):
    path, _ = finetuned(3, data="/corpora/MNLI-bin")
    run = convert(path, tmp_path / "run", dictionary=dictionary).folder
    result = call("compare", run, "--output", tmp_path / "page")
    assert result.exit_code == 0, result.output
    assert "glue" in (tmp_path / "page" / "comparison.csv").read_text()
    accuracy = evaluate_run(run, data, progress=False).figures["accuracy"]
    metrics = Run(run).metrics
    assert (metrics["accuracy"], metrics["split"], metrics["glue_task"]) == (accuracy, "valid", "mnli")
    result = call("compare", run, "--output", tmp_path / "page", "--no-measure")
    assert result.exit_code == 0, result.output
    with (tmp_path / "page" / "comparison.csv").open(newline="") as file:
        assert [float(row["accuracy"]) for row in csv.DictReader(file)] == [accuracy]


@pytest.mark.parametrize("style", ["args", "evo", "sections"])
def test_the_data_of_the_finetuning_names_the_task(finetuned, tmp_path, style):
    path, _ = finetuned(2, style, data="/glue/RTE-bin/", task="sentence_prediction", regression_target=False)
    assert Run(convert(path, tmp_path / "run").folder).recipe["data"]["task"] == "rte"


@pytest.mark.parametrize(
    ("num_classes", "about", "task"),
    [
        (3, {}, "mnli"),
        (1, {}, "stsb"),
        (1, {"regression_target": True, "task": "sentence_prediction"}, "stsb"),
        (1, {"task": "sentence_ranking"}, None),
        (1, {"regression_target": False}, None),
        (7, {"data": "/data/RTE-bin"}, None),
        (2, {"data": "/data/SST-2-bin"}, "sst2"),
        (2, {"data": "glue/CoLA/bin"}, "cola"),
        (2, {"data": "C:\\glue\\mrpc_bin"}, "mrpc"),
        (2, {"data": "/home/rte/QNLI-bin"}, "qnli"),
    ],
)
def test_what_checkpoints_tell(num_classes, about, task):
    assert finetuned_on(num_classes, about) == task


@pytest.mark.parametrize("about", [{}, {"data": "/data/bin"}, {"data": "/data/MNLI-bin"}])
def test_what_they_do_not_tell_is_asked_for(finetuned, tmp_path, about):
    path, _ = finetuned(2, **about)
    result = call("convert", path, "--output", tmp_path / "run")
    assert result.exit_code == 2
    assert "a classifier with 2 outputs, and its file does not tell what for" in result.stderr
    assert all(option in result.stderr for option in OPTIONS)
    assert "--task glue-stsb" not in result.stderr
    assert not (tmp_path / "run").exists()
    run = Run(convert(path, tmp_path / "run", task="sequence-classification").folder)
    assert (run.task, run.recipe["data"]) == ("sequence-classification", {})
    assert run.load_model("cpu").config.num_labels == 2


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("glue-mnli", "MNLI needs a classifier with 3 outputs, not 2"),
        ("glue-stsb", "STS-B needs a classifier with 1 outputs, not 2"),
        ("mrpc", "unknown task of a finetuned model 'mrpc'. Did you mean 'glue-mrpc'?"),
    ],
)
def test_tasks_that_cannot_be(finetuned, tmp_path, task, message):
    with pytest.raises(DataError, match=message.replace("?", r"\?")):
        convert(finetuned(2)[0], tmp_path / "run", task=task)


def test_models_of_other_tasks(load, finetuned, tmp_path):
    _, config, state, *_ = load("hgrn-fairseq_lm-base-tied")
    torch.save({"model": state, "args": Namespace(**config)}, tmp_path / "lm.pt")
    with pytest.raises(DataError, match=r"is for masked language models finetuned .* of the task causal-lm"):
        convert(tmp_path / "lm.pt", tmp_path / "run", task="glue-rte")
    path, _ = finetuned(3)
    content = torch.load(path, weights_only=False)
    names = ("dense.weight", "dense.bias", "out_proj.weight", "out_proj.bias")
    old = "classification_heads.sentence_classification_head."
    content["model"] |= {f"classification_heads.other.{name}": content["model"][old + name] for name in names}
    torch.save(content, path)
    with pytest.raises(DataError, match="has the classifiers sentence_classification_head, other"):
        convert(path, tmp_path / "run")


def test_the_data_must_be_given(finetuned, dictionary, tmp_path):
    path, _ = finetuned(3)
    convert(path, tmp_path / "run", dictionary=dictionary)
    result = call("evaluate", tmp_path / "run")
    assert result.exit_code == 2
    assert "its data is not known: give the folder with the official files of GLUE" in result.stderr
