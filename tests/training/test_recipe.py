import re
from pathlib import Path

import pytest
import torch
import yaml
from training_runs import write_recipe
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedModel

from subquad.data import Vocabulary
from subquad.mixers import MIXERS
from subquad.training.recipe import (
    DATA_RECIPES,
    DataRecipe,
    Recipe,
    TrainingRecipe,
    list_recipes,
    load_recipe,
    recipe_text,
)
from subquad.training.sampler import fitting_batch_size
from subquad.training.tasks import model_config
from subquad.training.train import _check

FROZEN_DECAYS, MASKED_DECAYS = 10_752, 27_648  # 7 layers of 1536 channels, and 12 of 2304
REFLECTIONS = 64  # in each layer of a TransNormer
SIZES = {
    "tnn-alm-wikitext103": (48_677_376, FROZEN_DECAYS),
    "tnn-alm-wikitext103-no-decay": (48_666_624, 0),
    "tnn-alm-wikitext103-post": (48_676_352, FROZEN_DECAYS),
    "tnn-alm-wikitext103-norm": (48_677_376, FROZEN_DECAYS),
    "tnn-alm-wikitext103-post-norm": (48_676_352, FROZEN_DECAYS),
    "tnn-alm-wikitext103-l6": (45_400_064, 6 * 1536),
    "tnn-alm-wikitext103-l12": (64_814_336, 12 * 1536),
    "tnn-alm-wikitext103-rpe1": (48_531_776, FROZEN_DECAYS),
    "tnn-alm-wikitext103-e768": (70_448_320, 6 * 2304),
    "tnn-alm-wikitext103-gluv2": (48_675_584, FROZEN_DECAYS),
    "tnn-alm-wikitext103-gluv2-gtuv3": (48_670_208, FROZEN_DECAYS),
    "tnn-alm-wikitext103-gluv2-gtuv3-l6": (45_393_920, 6 * 1536),
    "tnn-alm-wikitext103-words": (250_529_792, 16 * 3072),
    "tnn-alm-wikitext103-words-rpe128": (253_542_400, 16 * 3072),
    "tnn-alm-wikitext103-words-rpe128-d768": (152_217_088, 16 * 2304),
    "tnn-alm-wikitext103-words-rpe128-d512": (76_229_632, 16 * 1536),
    "tnn-rpe3-alm-wikitext103": (48_590_016, FROZEN_DECAYS),
    "fd-tnn-alm-wikitext103": (48_666_624, 0),
    "fd-tnn-rpe3-alm-wikitext103": (48_579_264, 0),
    "fd-tnn-rpe0-alm-wikitext103": (48_491_904, 0),
    "fd-tnn-free-alm-wikitext103": (49_179_136, 0),
    "hgrn-alm-wikitext103": (46_247_936, 0),
    "transformer-alm-wikitext103": (44_649_472, 0),
    "transformer-alm-wikitext103-words": (155_999_232, 0),
    "transnormer-t1-alm-wikitext103": (155_988_540, 6 * REFLECTIONS),
    "transnormer-t2-alm-wikitext103": (155_988_540, 6 * REFLECTIONS),
    "primal-alm-wikitext103": (155_771_440, 0),
    "tnn-mlm-wikitext103": (126_400_089, MASKED_DECAYS),
    "tnn-rpe3-mlm-wikitext103": (126_250_329, MASKED_DECAYS),
    "fd-tnn-mlm-wikitext103": (128_169_561, 0),
    "fd-tnn-rpe3-mlm-wikitext103": (128_019_801, 0),
    "fd-tnn-free-mlm-wikitext103": (131_379_801 - 12 * 2304, 0),
    "ski-tnn-mlm-wikitext103": (126_513_753, 0),
    "transnormer-t1-mlm-wikitext103": (124_673_241, 12 * REFLECTIONS),
    "transnormer-t2-mlm-wikitext103": (124_673_241, 12 * REFLECTIONS),
}
"""Parameters of the published models, and how many of them are not trained."""
SELDOM = {"beta1_schedule", "ema_decay"}
"""Entries of the training that few recipes have: without them nothing is done."""


def built(name: str) -> PreTrainedModel:
    recipe = load_recipe(name)
    masked = recipe.task == "masked-lm"
    size = {"gpt2-bpe": 50_265 if masked else 50_264, "word": 267_744, "bytes": 260}[recipe.data.tokenizer]
    vocabulary = Vocabulary(unit="", size=size, hash="", eos_id=2, pad_id=1)
    with torch.device("meta"):
        auto = AutoModelForMaskedLM if masked else AutoModelForCausalLM
        return auto.from_config(model_config(recipe, vocabulary))


@pytest.mark.parametrize("name", SIZES)
def test_published_recipes_have_the_published_size(name):
    model = built(name)
    frozen = model.num_parameters() - model.num_parameters(only_trainable=True)
    assert (model.num_parameters(), frozen) == SIZES[name]
    assert f"{SIZES[name][0]:,}" in recipe_text(name) or f"{SIZES[name][0] / 1e6:.2f} M" in recipe_text(name)


def test_every_published_recipe_has_a_known_size():
    published = {name for name in list_recipes() if not name.endswith("-tiny")}
    assert set(SIZES) == {name for name in published if load_recipe(name).task in ("causal-lm", "masked-lm")}


def test_tiny_recipes_differ_in_the_model_only_and_are_equally_large():
    recipes = {name: load_recipe(name) for name in list_recipes() if name.endswith("-tiny")}
    recipes = {name: recipe for name, recipe in recipes.items() if recipe.task == "causal-lm"}
    mixers = {mixer["type"] for recipe in recipes.values() for mixer in recipe.model["mixers"]}
    assert mixers == {name for name, mixer in MIXERS.items() if True in mixer.directions}, "one for every causal mixer"
    sizes = [built(name).num_parameters() for name in recipes]
    assert max(sizes) / min(sizes) < 1.02
    assert len({str((recipe.data, recipe.training)) for recipe in recipes.values()}) == 1


@pytest.mark.parametrize("name", list_recipes())
def test_shipped_recipes_are_valid_and_complete(name):
    text = recipe_text(name)
    assert text.startswith("# ")
    content = yaml.safe_load(text)
    while "extends" in content:
        content = yaml.safe_load(recipe_text(content["extends"]))
    assert set(content) == set(Recipe.__annotations__) - ({"init"} if content["task"] != "glue" else set())
    assert set(content["data"]) == set(DATA_RECIPES.get(content["task"], DataRecipe).__annotations__) - (
        {"masking"} if content["task"] == "causal-lm" else set()
    )
    assert set(TrainingRecipe.__annotations__) - set(content["training"]) <= SELDOM
    if content["task"] != "glue":  # needs a run to finetune: see test_finetuning.py
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
        ("training.decay=none", "'none'.*Valid: all, maps, matrices"),
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


def test_an_alias_is_a_copy(tmp_path):
    text = recipe_text("tnn-tiny").replace(
        "  mixers:", "  mixers:\n    - &one {type: tno, decay: 0.5}\n    - *one\n", 1
    )
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    mixers = load_recipe(path, ["model.mixers.0.decay=0.25"]).model["mixers"]
    assert [mixer["decay"] for mixer in mixers[:2]] == [0.25, 0.5]


def test_a_recipe_extends_another(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("extends: tnn-alm-wikitext103\nset: {model.mixers.0.rpe_layers: 3, training.seed: 7}\n")
    recipe, base = load_recipe(path), load_recipe("tnn-alm-wikitext103")
    assert (recipe.model["mixers"][0].pop("rpe_layers"), base.model["mixers"][0].pop("rpe_layers")) == (3, 6)
    assert (recipe.training.seed, recipe.model, recipe.data) == (7, base.model, base.data)
    assert load_recipe(path, ["model.mixers.0.rpe_layers=1"]).model["mixers"][0]["rpe_layers"] == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: tnn-alm-wikitext13", "Did you mean 'tnn-alm-wikitext103'"),
        ("extends: tnn-tiny\nmodel: {}", "has `extends` and `set`, got 'model'"),
        ("extends: tnn-tiny\nset: [1]", "must be a mapping of section.key to value"),
        ("extends: tnn-tiny\nset: {model.mixer.0.decay: 1}", "unknown key 'mixer'. Did you mean 'mixers'"),
        ("extends: tnn-tiny\nset: {training.step: 1}", "unknown key 'step'. Did you mean 'steps'"),
    ],
)
def test_mistakes_in_what_a_recipe_extends(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        load_recipe(path)


def test_a_misspelt_name_is_answered_with_the_nearest_ones_not_with_all():
    with pytest.raises(ValueError, match=r"Did you mean 'hgrn-tiny'\? \d+ are valid, such as hgrn-tiny") as error:
        load_recipe("hgrn-tini")
    assert len(str(error.value)) < 300
