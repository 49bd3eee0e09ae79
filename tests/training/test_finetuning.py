"""Finetuning from end to end: a masked run, then a task of GLUE on top of it, then its evaluation."""

import csv
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from glue_files import write_glue
from test_masked_lm import masked_run
from training_runs import assert_same, log_of, numbers, state, weights
from transformers import AutoModelForSequenceClassification
from typer.testing import CliRunner

from subquad import SubquadForSequenceClassification, cli
from subquad.data import DataError
from subquad.data.glue import GLUE_TASKS
from subquad.evaluation import Run, compare, evaluate_run
from subquad.evaluation.glue import evaluate_glue, glue_note, glue_table
from subquad.training.glue import finetune_suite
from subquad.training.recipe import load_recipe
from subquad.training.tasks import Glue
from subquad.training.train import _check, train

SHRUNK = (
    "data.max_length=32",
    "training.steps=8",
    "training.batch_size=4",
    "training.device_batch_size=4",
    "training.eval_steps=4",
    "training.log_steps=1",
    "training.schedule={type: constant, peak: 1e-2}",
)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    return masked_run(tmp_path_factory.mktemp("pretrained"), "run", "training.steps=2", "training.eval_steps=2")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_glue(tmp_path_factory.mktemp("data") / "glue")


def finetuned(task: str, pretrained: Path, data: Path, folder: Path, *overrides: str) -> Path:
    return train(f"glue-{task}", data=data, output=folder, init=pretrained, overrides=(*SHRUNK, *overrides))


@pytest.fixture(scope="module")
def mnli(pretrained, data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "mnli"
    return finetuned("mnli", pretrained, data, folder, "training.steps=24", "model.pooling=first")


@pytest.mark.parametrize("task", GLUE_TASKS)
def test_the_recipe_of_every_task_is_complete(task, pretrained, data):
    recipe = load_recipe(f"glue-{task}")
    recipe.init, recipe.data.source = str(pretrained), str(data)
    _check(recipe)
    model = Glue(recipe).build_model()
    kind = GLUE_TASKS[task]
    assert model.config.num_labels == (len(kind.labels) or 1)
    assert not model.config.causal
    # Ten evaluations, a warm-up of 6 % (of QQP, as published, of 25 %).
    training = recipe.training
    assert training.steps // training.eval_steps == 10
    assert training.schedule["warmup"] == pytest.approx(training.steps * (0.25 if task == "qqp" else 0.06), rel=0.01)


def test_a_finetuned_run_says_what_it_is(mnli):
    run = Run(mnli)
    assert run.task == run.metrics["task"] == "glue"
    assert run.info["status"] == "finished"
    assert run.metrics["accuracy"] == run.metrics["accuracy_mismatched"] > 0.9, "the first word says the class"
    assert (run.metrics["examples"], run.metrics["split"], run.metrics["glue_task"]) == (12, "valid", "mnli")
    scores = [line["eval_score"] for line in log_of(mnli) if "eval_score" in line]
    assert run.metrics["accuracy"] == max(scores)
    assert run.metrics["best_step"] == 4 * (1 + scores.index(max(scores)))


def test_the_model_is_one_of_transformers_and_knows_its_classes(mnli):
    model = AutoModelForSequenceClassification.from_pretrained(mnli)
    assert isinstance(model, SubquadForSequenceClassification)
    assert model.config.id2label == {0: "contradiction", 1: "neutral", 2: "entailment"}
    assert model.config.label2id["neutral"] == 1
    assert (model.config.pooling, model.config.classifier, model.config.padding) == ("first", "roberta", "masked")


def test_training_starts_from_the_weights_of_the_run(pretrained, data, tmp_path):
    run = finetuned("cola", pretrained, data, tmp_path / "run", "training.schedule={type: constant, peak: 0}")
    before, after = weights(pretrained), weights(run)
    shared = [name for name in after if not name.startswith("classifier")]
    assert len(shared) > 5
    for name in shared:
        assert torch.equal(before[name], after[name]), name
    assert (run / "tokenizer.json").read_text() == (pretrained / "tokenizer.json").read_text()


def test_scores_are_predicted_and_the_lowest_loss_is_best(pretrained, data, tmp_path):
    run = finetuned("stsb", pretrained, data, tmp_path / "run", "training.steps=16")
    metrics = Run(run).metrics
    assert metrics["pearson"] > 0.5
    assert metrics["spearman"] > 0.5
    losses = [line["eval_loss"] for line in log_of(run) if "eval_loss" in line]
    assert metrics["loss"] == pytest.approx(min(losses), rel=1e-5)
    assert Run(run).load_model("cpu").config.num_labels == 1
    assert evaluate_run(run, progress=False).figures["pearson"] == pytest.approx(metrics["pearson"])
    assert not list(run.glob("confusion.*")), "there are no classes"


def test_a_resumed_run_is_the_same_to_the_bit(pretrained, data, tmp_path, stop_after):
    whole = finetuned("mrpc", pretrained, data, tmp_path / "whole")
    stop_after(5)
    stopped = finetuned("mrpc", pretrained, data, tmp_path / "stopped")
    assert Run(stopped).info["status"] == "interrupted"
    torch.manual_seed(99)
    train(None, resume=stopped)
    assert_same(state(stopped, 8), state(whole, 8))
    assert numbers(stopped) == numbers(whole)
    assert {"f1", "accuracy"} <= Run(stopped).metrics.keys()


def test_evaluation_is_that_of_training_and_does_not_depend_on_the_batch(mnli, data):
    result = evaluate_run(mnli, progress=False)
    assert result.figures == {"accuracy": Run(mnli).metrics["accuracy"]}
    assert result.loss == pytest.approx(Run(mnli).metrics["loss"], rel=1e-5)
    assert evaluate_run(mnli, data, split="valid_mismatched", progress=False).examples == 12
    task = Glue(load_recipe(mnli / "recipe.yaml"))
    for size in (1, 5):
        other = evaluate_glue(
            Run(mnli).load_model("cpu"),
            task.valid_data,
            "mnli",
            classes=task.classes,
            pad_id=1,
            batch_size=size,
            progress=False,
        )
        assert other.loss == pytest.approx(result.loss, rel=1e-5)
    with pytest.raises(DataError, match="no split 'test'"):
        evaluate_run(mnli, split="test")
    with pytest.raises(ValueError, match="whole sequences"):
        evaluate_run(mnli, length=16)


def test_f1_is_that_of_the_label_1(pretrained, data):
    recipe = load_recipe("glue-qqp")
    recipe.init, recipe.data.source = str(pretrained), str(data)
    task = Glue(recipe)
    assert task.classes == ["0", "1"]
    model = task.build_model()
    with torch.no_grad():
        model.classifier.output_proj.weight.zero_()
        model.classifier.output_proj.bias.copy_(torch.tensor([0.0, 1.0]))
    result = evaluate_glue(model, task.valid_data, "qqp", classes=task.classes, pad_id=1, progress=False)
    # All are found to be "1"; a third of the examples is.
    assert result.figures == {"accuracy": pytest.approx(1 / 3), "f1": pytest.approx(2 / (2 + 2))}
    assert result.confusion.tolist() == [[0, 8], [0, 4]]


def test_finetuned_and_masked_runs_are_measured_and_compared(mnli, pretrained, tmp_path):
    page = compare([mnli, pretrained], tmp_path)
    assert "mnli" in page.read_text()
    with page.with_suffix(".csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["task"] for row in rows] == ["glue", "masked-lm"]
    assert all(float(row["tokens_per_second"]) > 0 for row in rows)
    assert not any(name.startswith("generation_ms") for name in rows[0]), "nothing is generated"


def test_commands(pretrained, data, mnli, tmp_path):
    def call(*arguments):
        return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])

    result = call("evaluate", mnli, "--json", tmp_path / "result.json", "--csv", tmp_path / "result.csv")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "result.csv").read_text().startswith("run,data,split,loss,accuracy,")
    confusion = json.loads((mnli / "confusion.json").read_text())
    assert sorted(confusion["classes"]) == ["contradiction", "entailment", "neutral"]
    assert sum(map(sum, confusion["matrix"])) == json.loads((tmp_path / "result.json").read_text())["examples"]
    assert "accuracy × 100" in result.stdout
    assert json.loads((tmp_path / "result.json").read_text())["split"] == "valid"
    changes = [word for change in SHRUNK for word in ("--set", change)]
    result = call("glue", pretrained, "--output", tmp_path, "--data", data, "--tasks", "rte", "--seeds", "1", *changes)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0].split() == ["RTE", "avg"]
    for arguments, message in (
        (("train", "glue-mrpc"), "--init RUN"),
        (("glue", pretrained, "--output", tmp_path / "suite", "--seeds", "one"), "--seeds must be positive numbers"),
        (("glue", pretrained, "--output", tmp_path / "suite", "--tasks", "mprc"), "Did you mean 'mrpc'?"),
        (("train", "tnn-tiny", "--init", pretrained), "needs a model of the task causal-lm, this one is of masked-lm"),
        (("train", "--resume", mnli, "--init", pretrained), "leave `init` out"),
        (("generate", mnli), "needs a model of the task causal-lm, this one is of glue"),
    ):
        result = call(*arguments)
        assert result.exit_code == 2
        assert message in " ".join(result.output.split())


def test_the_suite_writes_one_table(pretrained, data, tmp_path, stop_after):
    output = tmp_path / "suite"
    options = {"data": data, "tasks": ["rte", "cola"], "seeds": [1, 2, 3], "overrides": SHRUNK}
    stop_after(5)
    with pytest.raises(ValueError, match="rte-seed1: was interrupted; the same command continues it"):
        finetune_suite(pretrained, output, **options)
    table = finetune_suite(pretrained, output, **options)
    assert {path.name for path in output.iterdir()} == {
        *(f"{task}-seed{seed}" for task in ("rte", "cola") for seed in (1, 2, 3)),
        "glue.json",
        "glue.csv",
    }
    content = json.loads((output / "glue.json").read_text())
    seen = [figures["matthews"] for figures in content["scores"]["cola"]]
    assert content["table"]["CoLA"] == f"{100 * sorted(seen)[1]:.2f}"
    assert table == (["CoLA", "RTE", "avg"], [list(content["table"].values())])
    assert (output / "glue.csv").read_text().splitlines()[0] == "CoLA,RTE,avg"
    # What is finished is not done again.
    model = output / "rte-seed1" / "model.safetensors"
    before = model.stat().st_mtime_ns
    assert finetune_suite(pretrained, output, **options) == table
    assert model.stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r"rte-seed1: was finetuned from .*run: choose another output"):
        finetune_suite(output / "rte-seed2", output, **options)
    for wrong in ({"tasks": ["rte", "rte"]}, {"seeds": []}):
        with pytest.raises(ValueError, match="one or more, each once"):
            finetune_suite(pretrained, output, **(options | wrong))


def test_the_suite_misses_data_before_the_first_run(pretrained, data, tmp_path):
    shutil.copytree(data / "RTE", tmp_path / "glue" / "RTE")
    with pytest.raises(DataError, match=r"CoLA.*: no train\.tsv"):
        finetune_suite(pretrained, tmp_path / "suite", data=tmp_path / "glue", tasks=["rte", "cola"], seeds=[1])
    assert not (tmp_path / "suite").exists()


@pytest.mark.parametrize(
    ("tasks", "expected"),
    [
        (["sst2", "rte"], "accuracy"),
        (["stsb"], "STS-B is Pearson's correlation"),
        (["cola", "mrpc", "rte"], "MRPC is F1, CoLA is Matthews' correlation, all else accuracy"),
    ],
)
def test_the_note_below_the_table_is_of_its_tasks(tasks, expected):
    assert glue_note(tasks) == f"median over the seeds, × 100: {expected}"


def test_the_table_of_papers():
    scores = {
        "cola": [{"matthews": 0.5}, {"matthews": 0.1}, {"matthews": 0.3}],
        "mnli": [{"accuracy": 0.8, "accuracy_mismatched": 0.7}],
        "mrpc": [{"f1": 0.9, "accuracy": 0.85}, {"f1": 0.7, "accuracy": 0.6}],
    }
    head, [row] = glue_table(scores)
    assert head == ["MNLI (m/mm)", "MRPC", "CoLA", "avg"]
    assert row == ["80.00/70.00", "80.00", "30.00", "63.33"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.task=mprc", "mean 'mrpc'"),
        ("data.max_lenght=3", "mean 'max_length'"),
        ("data.max_length=5", "at least 6, got 5"),
        ("model.poolin=first", "mean 'pooling'"),
        ("model.num_labels=3", "not set in a recipe"),
        ("model.position_embedding=learned", "learned positions need"),
        ("model={position_embedding: learned, max_position_embeddings: 8}", "max_length is 512, .* has 8 positions"),
    ],
)
def test_mistakes_are_named(pretrained, override, message):
    overrides = [f"init={pretrained}", override]
    with pytest.raises(ValueError, match=message):
        _check(load_recipe("glue-mrpc", overrides))


def test_runs_that_cannot_be_finetuned(pretrained, data, tmp_path):
    with pytest.raises(DataError, match="no such run folder"):
        finetuned("rte", tmp_path / "none", data, tmp_path / "run")
    with pytest.raises(DataError, match=r"weights do not fit the model options: .*size mismatch"):
        finetuned("rte", pretrained, data, tmp_path / "run", "model.channel_mixer={type: ffn, hidden_size: 8}")
    assert not (tmp_path / "run").exists()
    assert math.isfinite(Run(pretrained).metrics["loss"])
