from pathlib import Path

import pytest
import torch
import yaml
from training_runs import write_recipe

from subquad import SubquadForCausalLM
from subquad.data import Vocabulary
from subquad.training.recipe import DataRecipe, Recipe, TrainingRecipe, list_recipes, load_recipe, recipe_text
from subquad.training.sampler import fitting_batch_size
from subquad.training.tasks import model_config
from subquad.training.train import _check

SIZES = {
    "tnn-alm-wikitext103": (48_677_376, 48_666_624),
    "hgrn-alm-wikitext103": (46_247_936, 46_247_936),
    "transformer-alm-wikitext103": (44_649_472, 44_649_472),
}


def built(name: str) -> SubquadForCausalLM:
    size = 50_264 if name.endswith("wikitext103") else 260
    vocabulary = Vocabulary(unit="", size=size, hash="", eos_id=2, pad_id=1)
    with torch.device("meta"):
        return SubquadForCausalLM(model_config(load_recipe(name), vocabulary))


@pytest.mark.parametrize("name", SIZES)
def test_published_recipes_have_the_published_size(name):
    model = built(name)
    assert (model.num_parameters(), model.num_parameters(only_trainable=True)) == SIZES[name]


def test_tiny_recipes_differ_in_the_model_only_and_are_equally_large():
    recipes = {name: load_recipe(name) for name in list_recipes() if name.endswith("-tiny")}
    assert set(recipes) == {"tnn-tiny", "hgrn-tiny", "transformer-tiny"}
    sizes = [built(name).num_parameters() for name in recipes]
    assert max(sizes) / min(sizes) < 1.02
    assert len({str((recipe.data, recipe.training)) for recipe in recipes.values()}) == 1


@pytest.mark.parametrize("name", list_recipes())
def test_shipped_recipes_are_valid_and_complete(name):
    text = recipe_text(name)
    assert text.startswith("# ")
    content = yaml.safe_load(text)
    assert set(content) == set(Recipe.__annotations__)
    assert set(content["data"]) == set(DataRecipe.__annotations__)
    assert set(content["training"]) == set(TrainingRecipe.__annotations__)
    _check(load_recipe(name))


@pytest.mark.parametrize("name", list_recipes())
def test_a_resolved_recipe_is_the_same_recipe(name, tmp_path):
    recipe = load_recipe(name, ["training.steps=7"])
    assert recipe.training.steps == 7
    path = tmp_path / "resolved.yaml"
    path.write_text(recipe.to_yaml())
    assert load_recipe(path) == recipe


def test_overrides(tmp_path):
    recipe = load_recipe(
        write_recipe(tmp_path),
        ["model.mixers.0.num_heads=4", "training.betas=[0.8, 0.9]", "training.eps=1e-6", "model.norm=layernorm"],
    )
    assert recipe.model["mixers"] == [{"type": "softmax", "num_heads": 4, "rotary": True}]
    assert recipe.model["norm"] == "layernorm"
    assert recipe.training.betas == [0.8, 0.9]
    assert recipe.training.eps == 1e-6


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.stepps=3", "training: unknown key 'stepps'.*mean 'steps'"),
        ("trainin.steps=3", "unknown key 'trainin'.*mean 'training'"),
        ("training.steps", "section.key=value"),
        ("training.steps=many", "steps must be a whole number, got 'many'"),
        ("training.steps=true", "steps must be a whole number, got True"),
        ("training.steps=0", "at least 1, got 0"),
        ("training.steps=[", "not YAML"),
        ("training.steps.x=1", "training.steps has no entries"),
        ("training.betas=[0.9]", "two numbers"),
        ("training.decay=none", "'none'.*Valid: all, matrices"),
        ("training.max_seconds=soon", "max_seconds must be a number, got 'soon'"),
        ("training.weight_decay=-1", "must not be negative"),
        ("training.schedule.peek=1", "mean 'peak'"),
        ("training.optimizer=adam", "unknown optimizer 'adam'"),
        ("training.report_to=[tensorbord]", "mean 'tensorboard'"),
        ("task=causal_lm", "mean 'causal-lm'"),
        ("model.mixers.1.type=tno", "entries 0 … 0, got '1'"),
        ("model.mixers.0.num_head=2", "mean 'num_heads'"),
        ("model.hidden_sizes=3", "mean 'hidden_size'"),
        ("model.vocab_size=3", "follows from data.tokenizer"),
        ("data=text", "data must be a mapping"),
    ],
)
def test_mistakes_are_named(tmp_path, override, message):
    with pytest.raises(ValueError, match=message):
        _check(load_recipe(write_recipe(tmp_path), [override]))


def test_files_that_are_no_recipe(tmp_path):
    with pytest.raises(ValueError, match=r"'tnn-tinny'.*mean 'tnn-tiny'.*FILE\.yaml"):
        load_recipe("tnn-tinny")
    with pytest.raises(ValueError, match="no such file"):
        load_recipe(tmp_path / "none.yaml")
    path = tmp_path / "recipe.yaml"
    for text, message in (("a: [", "not YAML"), ("- 1", "must be a mapping"), ("task: causal-lm", "model is missing")):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_recipe(path)


def test_yaml_runs_no_code(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"task: !!python/object/apply:pathlib.Path.touch ['{tmp_path / 'touched'}']")
    with pytest.raises(ValueError, match="not YAML"):
        load_recipe(path)
    assert not Path(tmp_path / "touched").exists()


def test_devices_share_an_update():
    assert fitting_batch_size(128, 8, 1) == 8
    assert fitting_batch_size(128, 8, 8) == 8
    assert fitting_batch_size(128, 12, 2) == 8
    assert fitting_batch_size(6, 4, 1) == 3
    with pytest.raises(ValueError, match=r"batch_size = 6 blocks.*4 devices"):
        fitting_batch_size(6, 4, 4)
