"""A run that starts from the model of another run, and goes on with the same task."""

import pytest
import torch
from test_masked_lm import masked_run
from test_masked_lm import write_recipe as write_masked_recipe
from training_runs import assert_same, tiny_run, weights, write_recipe

from subquad.evaluation import Run
from subquad.training.train import train

NO_RATE = "training.schedule={type: constant, peak: 0}"
SHORT = ("training.steps=2", "training.eval_steps=2")


@pytest.fixture
def start(tmp_path):
    return tiny_run(tmp_path, "start", *SHORT)


def test_the_model_is_that_of_the_run(start, tmp_path):
    """Another recipe brings the data and the training."""
    other = ("tnn-tiny", start.parent / "text", tmp_path / "more")
    changes = ["data.block_size=32", "training.batch_size=2", "training.device_batch_size=2", *SHORT, NO_RATE]
    run = Run(train(*other, init=start, overrides=changes))
    assert_same(weights(run.folder), weights(start))
    assert (run.recipe["init"], run.recipe["model"]) == (str(start), {})
    assert (run.folder / "tokenizer.json").read_text() == (start / "tokenizer.json").read_text()
    assert run.config["mixers"] == Run(start).config["mixers"]


def test_options_of_the_model_may_change(start, tmp_path):
    recipe = write_recipe(tmp_path)
    changes = (*SHORT, "model.dropout=0.25")
    run = train(recipe, output=tmp_path / "more", init=start, overrides=changes)
    assert (Run(start).config["dropout"], Run(run).config["dropout"]) == (0.1, 0.25)
    train(None, resume=run, overrides=["training.steps=3"])
    assert Run(run).metrics["steps"] == 3
    assert Run(run).recipe["model"] == {"dropout": 0.25}
    for changes, message in (
        (["model.hidden_size=32"], "its weights do not fit the model options: .*size mismatch"),
        (["model.dropuot=0"], "Did you mean 'dropout'"),
        (["model.mixers.0.num_heads=1"], "unknown key 'mixers'"),
    ):
        with pytest.raises(ValueError, match=message):
            train(recipe, output=tmp_path / "wrong", init=start, overrides=changes)
    assert not (tmp_path / "wrong").exists()


def test_masked_models(tmp_path):
    start = masked_run(tmp_path, "start", *SHORT)
    run = train(write_masked_recipe(tmp_path), output=tmp_path / "more", init=start, overrides=[*SHORT, NO_RATE])
    assert_same(weights(run), weights(start))
    assert Run(run).load_tokenizer().mask_id == Run(start).load_tokenizer().mask_id
    with pytest.raises(ValueError, match="needs a model of the task causal-lm, this one is of masked-lm"):
        train("tnn-tiny", data=tmp_path, output=tmp_path / "wrong", init=start)


def test_half_precision_is_trained_in_full(start, tmp_path):
    model = Run(start).load_model("cpu").to(torch.bfloat16)
    model.save_pretrained(start)
    run = train(write_recipe(tmp_path), output=tmp_path / "more", init=start, overrides=SHORT)
    assert {tensor.dtype for tensor in weights(run).values()} == {torch.float32}
