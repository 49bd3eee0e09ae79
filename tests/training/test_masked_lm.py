"""Masked models from training to evaluation: new masks in every epoch, fixed ones where figures are compared."""

import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from run_folders import write_text
from support import assert_close
from training_runs import RECIPE, assert_same, log_of, losses, numbers, state, train_in_two_processes
from transformers import AutoModelForMaskedLM, AutoTokenizer
from typer.testing import CliRunner

from subquad import SubquadForMaskedLM, cli
from subquad.data import DataError
from subquad.evaluation import Run, evaluate_run
from subquad.training.recipe import load_recipe
from subquad.training.sampler import Epochs
from subquad.training.tasks import MaskedLM
from subquad.training.train import _check, train

MASKED = {
    "task": "masked-lm",
    "model": RECIPE["model"] | {"causal": False},
    "data": RECIPE["data"],
    "training": RECIPE["training"] | {"schedule": {"type": "polynomial", "peak": 1e-2, "warmup": 5}},
}


def write_recipe(folder: Path) -> Path:
    """A recipe file beside its text; 20 updates are about 3 epochs."""
    recipe = MASKED | {"data": MASKED["data"] | {"source": str(write_text(folder / "text"))}}
    path = folder / "masked.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def masked_run(folder: Path, name: str = "run", *overrides: str) -> Path:
    return train(write_recipe(folder), output=folder / name, overrides=overrides)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory) -> Path:
    return masked_run(tmp_path_factory.mktemp("whole"))


def test_a_masked_run_says_what_it_is(whole_run):
    run = Run(whole_run)
    assert run.task == run.metrics["task"] == "masked-lm"
    assert run.metrics["perplexity"] == pytest.approx(math.exp(run.metrics["loss"]))
    assert all(run.metrics[name] is None for name in ("bits_per_byte", "word_perplexity", "words", "bytes"))
    text = (whole_run.parent / "text" / "test.txt").read_bytes()
    assert 0.14 * len(text) < run.metrics["tokens"] < 0.17 * len(text)
    assert run.metrics["tokens_trained"] > 5 * sum(line["tokens"] for line in log_of(whole_run)[:1])
    evaluations = [line["eval_loss"] for line in log_of(whole_run) if "eval_loss" in line]
    assert evaluations[1] < evaluations[0] < math.log(261)


def test_speed_counts_all_tokens_and_the_loss_masked_ones(whole_run):
    task = MaskedLM(load_recipe(whole_run / "recipe.yaml"))
    batch = task.collate([task.train_data[0], task.train_data[1]])
    total = sum(task.train_data.lengths[:2])
    assert task.num_units(batch) == total
    assert 0.1 * total < task.num_targets(batch) < 0.2 * total


def test_the_model_is_one_of_transformers(whole_run):
    model = AutoModelForMaskedLM.from_pretrained(whole_run)
    assert isinstance(model, SubquadForMaskedLM)
    assert (model.config.vocab_size, model.config.bos_token_id, model.config.eos_token_id) == (261, 0, 2)
    tokenizer = AutoTokenizer.from_pretrained(whole_run)
    assert tokenizer.mask_token_id == 260
    ids = torch.tensor([[0, *tokenizer.encode("The caf<mask>", add_special_tokens=False)]])
    assert model(ids).logits.shape == (1, 9, 261)


def test_evaluation_has_the_masks_of_the_validation_in_training(whole_run):
    best = min(line["eval_loss"] for line in log_of(whole_run) if "eval_loss" in line)
    result = evaluate_run(whole_run, split="valid", progress=False)
    assert result.loss == pytest.approx(best, rel=1e-5)
    assert result.task == "masked-lm"
    assert evaluate_run(whole_run, progress=False).loss == pytest.approx(Run(whole_run).metrics["loss"], rel=1e-6)
    other = evaluate_run(whole_run, whole_run.parent / "text" / "train.txt", split="train", length=32, progress=False)
    assert (other.length, other.words, other.bits_per_byte) == (32, None, None)


@pytest.mark.parametrize("step", [8, 10])
def test_a_resumed_run_has_the_same_masks_to_the_bit(whole_run, tmp_path, stop_after, step):
    stop_after(step)
    run = masked_run(tmp_path)
    assert json.loads((run / "run.json").read_text())["status"] == "interrupted"
    torch.manual_seed(99)
    train(None, resume=run)
    assert_same(state(run, 20), state(whole_run, 20))
    assert numbers(run) == numbers(whole_run)


def test_every_epoch_has_other_masks(whole_run):
    task = MaskedLM(load_recipe(whole_run / "recipe.yaml"))
    first, second = (Epochs(task.train_data)[epoch, 0] for epoch in (0, 1))
    assert not torch.equal(first["labels"], second["labels"])
    assert torch.equal(task.valid_data[0]["labels"], task.valid_data[0]["labels"])


def test_how_an_update_is_divided_changes_nothing(tmp_path):
    options = ("data.tokenizer=word", "data.block_mode=complete", "model.dropout=0", "training.steps=6")
    one = masked_run(tmp_path, "one", *options)
    four = masked_run(tmp_path, "four", *options, "training.device_batch_size=1", "training.num_workers=1")
    assert_close(losses(four), losses(one), torch.float32)


def test_two_processes_see_the_masks_of_one(tmp_path):
    options = ("model.dropout=0", "training.steps=4", "training.eval_steps=2", "training.device_batch_size=2")
    one = masked_run(tmp_path, "one", *options)
    two = train_in_two_processes(tmp_path / "masked.yaml", tmp_path / "two", *options)
    assert_close(losses(two), losses(one), torch.float32)
    evaluations = [[line["eval_loss"] for line in log_of(run) if "eval_loss" in line] for run in (two, one)]
    assert evaluations[0] == pytest.approx(evaluations[1], rel=1e-5)


def test_updates_without_any_mask_do_no_harm(tmp_path):
    masking = "data.masking={type: fairseq, probability: 0.01}"
    run = masked_run(tmp_path, "run", masking, "training.steps=8", "training.batch_size=1")
    assert 0 < (losses(run) == 0).sum() < 8
    assert losses(run).isfinite().all()


def test_text_of_which_nothing_is_masked_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"nothing in the split '(valid|test)' is masked"):
        masked_run(tmp_path, "run", "data.masking={type: fairseq, probability: 1e-9}")
    assert not (tmp_path / "run").exists()


def test_commands_know_the_task(whole_run, tmp_path):
    def call(*arguments):
        return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])

    result = call("evaluate", whole_run, "--json", tmp_path / "result.json")
    assert result.exit_code == 0, result.output
    assert "perplexity per masked token" in result.stdout
    assert "perplexity per word" not in result.stdout
    content = json.loads((tmp_path / "result.json").read_text())
    assert (content["task"], content["bits_per_byte"]) == ("masked-lm", None)
    for refused in (("generate", whole_run), ("extrapolate", whole_run, "--lengths", "32,64")):
        result = call(*refused)
        assert result.exit_code == 2
        assert "needs a model of the task causal-lm, this one is of masked-lm" in " ".join(result.output.split())
    result = call("evaluate", whole_run, "--context-window", "8")
    assert "a masked model sees both sides" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.masking={type: fairsec}", "Did you mean 'fairseq'"),
        ("data.masking={type: fairseq, probability: 2}", "probability must be in"),
        ("model.causal=true", "needs `causal: false`"),
        ("task=causal-lm", "needs `causal: true`"),
        ("data.maskin=1", "Did you mean 'masking'"),
    ],
)
def test_mistakes_are_named(tmp_path, override, message):
    with pytest.raises(ValueError, match=message):
        _check(load_recipe(write_recipe(tmp_path), [override]))


def test_a_causal_recipe_has_no_masking(tmp_path):
    overrides = ["task=causal-lm", "model.causal=true", "data.masking={type: fairseq}"]
    with pytest.raises(ValueError, match=r"data\.masking belongs to the task masked-lm"):
        _check(load_recipe(write_recipe(tmp_path), overrides))
