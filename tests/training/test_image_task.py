"""Image classification from a folder to an accuracy: every family, layouts, mistakes, resumed runs."""

import json
import re
import shutil

import pytest
import torch
from image_shapes import CLASSES, write_shapes
from support import assert_close
from training_runs import assert_same, log_of, numbers, state, weights
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification
from typer.testing import CliRunner

from subquad import cli
from subquad.data import DataError
from subquad.data.images import open_images
from subquad.evaluation import Run, compare, evaluate_run
from subquad.training.optimizer import parameter_groups
from subquad.training.recipe import list_recipes, load_recipe, recipe_text
from subquad.training.schedules import build_schedule
from subquad.training.tasks.images import image_classifier
from subquad.training.train import train

SMALL = (
    "data.image_size=32",
    "data.valid_fraction=0",
    "model.hidden_size=32",
    "training.batch_size=16",
    "training.device_batch_size=8",
    "training.steps=60",
    "training.schedule={type: cosine, peak: 5e-3, warmup: 5}",
    "training.eval_steps=60",
    "training.log_steps=1",
)
GRID = ("model.mixers.0.height=8", "model.mixers.0.width=8")
FAMILIES = {
    "tnn": GRID,
    "fd-tnn": GRID,
    "hgrn": (),
    "transnormer-t2": (*GRID, "model.mixers.1.height=8", "model.mixers.1.width=8"),
    "primal": (),
    "transformer": (),
}
CHANGED = (
    "data.augmentation={crop: padded, flip: 0.5, randaugment: {magnitude: 9, deviation: 0.5, operations: 2}, "
    "erasing: 0.25, mixup: 0.8, cutmix: 1.0, label_smoothing: 0.1, repeats: 3}",
    "model.num_hidden_layers=1",
    "model.drop_path=0.1",
    "training.ema_decay=0.9",
    "training.steps=20",
    "training.eval_steps=10",
    "training.save_steps=5",
)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("shapes"))


def tiny_run(data, output, *overrides, recipe="transformer-image-tiny"):
    return train(recipe, data=data, output=output, overrides=(*SMALL, *overrides))


@pytest.fixture(scope="module")
def changed_run(shapes, tmp_path_factory):
    """Images that are changed in every way, and an average of the weights."""
    return tiny_run(shapes, tmp_path_factory.mktemp("changed") / "run", *CHANGED)


def call(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def meta_model(name):
    classes = [str(label) for label in range(100 if "-im100-" in name else 1000)]
    with torch.device("meta"):
        return image_classifier(load_recipe(name), classes=classes, num_channels=3)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_learns(shapes, tmp_path, family):
    run = tiny_run(shapes, tmp_path / "run", *FAMILIES[family], recipe=f"{family}-image-tiny")
    metrics = Run(run).metrics
    assert metrics["examples"] == 40
    # By chance the loss is ln 4 = 1.39 and the accuracy 0.25, which of 40 images says little.
    assert metrics["loss"] < 1.0
    assert metrics["accuracy"] > 0.35
    assert "top5_accuracy" not in metrics


def test_pixels_as_a_sequence(shapes, tmp_path):
    overrides = ("model.num_hidden_layers=1", "training.steps=2", "training.eval_steps=2")
    with pytest.raises(ValueError, match="a grid of 28 × 28 positions, and the inputs have 1,024"):
        tiny_run(shapes, tmp_path / "run", *overrides, recipe="hgrn-pixels-tiny")
    grid = ("model.mixers.0.height=32", "model.mixers.0.width=32")
    run = tiny_run(shapes, tmp_path / "run", *overrides, *grid, recipe="hgrn-pixels-tiny")
    model = AutoModelForSequenceClassification.from_pretrained(run)
    assert model.config.input_features == 3
    assert log_of(run)[-2]["images"] == Run(run).metrics["images_trained"] == 2 * 16
    assert evaluate_run(run, progress=False).loss == pytest.approx(Run(run).metrics["loss"], rel=1e-5)
    data = open_images(shapes)
    pixels = data.valid[0].flatten(1).T / 255
    values = (pixels - torch.tensor(data.mean)) / torch.tensor(data.std)
    task = load_task(run)
    batch = task.collate_valid([task.valid_data[0]])
    assert_close(batch["input_values"], values[None])


def load_task(run):
    from subquad.training.tasks import task_class

    recipe = load_recipe(run / "recipe.yaml")
    return task_class(recipe.task)(recipe)


def test_a_resumed_run_is_the_same_run_to_the_bit(shapes, changed_run, tmp_path, stop_after):
    stop_after(8)
    run = tiny_run(shapes, tmp_path / "run", *CHANGED)
    assert not (run / "metrics.json").exists()
    train(None, resume=run)
    assert_same(state(run, 20), state(changed_run, 20))
    assert_same(weights(run / "ema"), weights(changed_run / "ema"))
    assert numbers(run) == numbers(changed_run)


def test_changed_images_have_probabilities_and_validation_images_are_not_changed(changed_run):
    task = load_task(changed_run)
    batch = task.collate([task.train_data.example(index, 0) for index in range(4)])
    assert batch["labels"].shape == (4, 4)
    assert_close(batch["labels"].sum(-1), torch.ones(4))
    assert task.repeats == 3
    first, again = (task.train_data.example(0, epoch) for epoch in (0, 1))
    others = [task.train_data.example(index, 0) for index in (1, 2, 3)]
    batches = [task.collate([example, *others])["pixel_values"] for example in (first, again, first)]
    assert torch.equal(batches[0], batches[2])
    assert not torch.equal(batches[0], batches[1])
    assert task.collate_valid([task.valid_data[0]])["labels"].shape == (1,)


def test_a_run_is_a_model_of_transformers(changed_run):
    run = Run(changed_run)
    model = AutoModelForImageClassification.from_pretrained(changed_run).eval()
    assert tuple(model.config.id2label.values()) == CLASSES
    assert (model.config.image_size, model.config.num_channels, model.config.num_labels) == (32, 3, 4)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(pixel_values=images).logits, run.load_model("cpu")(pixel_values=images).logits)
    assert run.task == run.metrics["task"] == "image-classification"
    assert run.metrics["split"] == "test"
    assert run.metrics["ema"]["accuracy"] == Run(changed_run / "ema").metrics["accuracy"]


def test_train_and_evaluate_by_commands(shapes, tmp_path):
    options = [part for override in (*SMALL, "training.steps=2") for part in ("--set", override)]
    run = tmp_path / "run"
    result = call("train", "transformer-image-tiny", "--data", shapes, "--output", run, *options)
    assert result.exit_code == 0, result.output
    assert re.search(r"test: accuracy .* of 40 images \(the images that chose the model\), loss", result.output)
    assert "images/s=" in result.output
    assert "tokens" not in result.output
    result = call("evaluate", run, "--json", tmp_path / "result.json")
    assert result.exit_code == 0, result.output
    metrics = Run(run).metrics
    assert re.search(rf"accuracy +{100 * metrics['accuracy']:.2f}% .*\d of 40 images, none skipped", result.stdout)
    found = json.loads((tmp_path / "result.json").read_text())
    assert (found["correct"], found["examples"]) == (metrics["correct"], 40)
    confusion = json.loads((run / "confusion.json").read_text())
    assert confusion["classes"] == list(CLASSES)
    assert [sum(row) for row in confusion["matrix"]] == [10, 10, 10, 10]
    assert sum(confusion["matrix"][label][label] for label in range(4)) == metrics["correct"]
    assert (run / "confusion.csv").read_text().startswith("class,blue disc,")
    assert evaluate_run(run, split="train", progress=False).examples == 96
    compare([run], tmp_path / "page", measure=False)
    assert "data:image/png;base64," in (tmp_path / "page" / "comparison.html").read_text()


def test_other_classes_are_no_data_of_the_run(changed_run, shapes, tmp_path):
    other = write_shapes(tmp_path / "other", train=8, test=8)
    for part in ("train", "val"):
        (other / part / "red disc").rename(other / part / "green disc")
    with pytest.raises(DataError, match=r"other classes \(blue disc, blue square, green disc … 4 in all\) than"):
        evaluate_run(changed_run, other, progress=False)
    with pytest.raises(ValueError, match="leave length and context_window out"):
        evaluate_run(changed_run, length=16)
    with pytest.raises(ValueError, match="one folder"):
        evaluate_run(changed_run, [str(shapes)])


def test_other_images_are_normalised_as_those_of_the_training(changed_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(changed_run, run)
    before = evaluate_run(run, progress=False)
    info = json.loads((run / "run.json").read_text())
    for mean, message in (([0.5], "images of 3 channels, those of .* have 1"), ("grey", "must be a list of numbers")):
        (run / "run.json").write_text(json.dumps(info | {"data": info["data"] | {"mean": mean}}))
        with pytest.raises(DataError, match=message):
            evaluate_run(run, progress=False)
    (run / "run.json").write_text(json.dumps(info | {"data": info["data"] | {"std": [9.0, 9.0, 9.0]}}))
    assert evaluate_run(run, progress=False).loss != before.loss


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.layout=patch", "Did you mean 'patches'"),
        ("data.image_size=30", "cannot be cut into patches of 4 × 4"),
        ("data.image_size=0", "data.image_size must be at least 2"),
        ("data.augmentation.crop=paded", "Did you mean 'padded'"),
        ("data.augmentation.mixupp=1", "Did you mean 'mixup'"),
        ("data.augmentation.flip=2", "flip is a probability, got 2"),
        ("data.source=[a, b]", "must be a text"),
        ("model.num_labels=4", "model.num_labels is not set in a recipe"),
        ("model.image_size=32", "model.image_size is not set in a recipe"),
        ("model.poolin=mean", "Did you mean 'pooling'"),
        ("data.valid_fraction=1", "valid_fraction must be in [0, 1)"),
    ],
)
def test_mistakes_are_named(shapes, tmp_path, override, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        tiny_run(shapes, tmp_path / "run", override)
    assert not (tmp_path / "run").exists()


def test_mixed_batches_of_odd_size_are_refused_before_training(shapes, tmp_path):
    odd = ("data.augmentation.mixup=0.8", "training.batch_size=15", "training.device_batch_size=5")
    with pytest.raises(ValueError, match="batches of a device hold 5: choose an even"):
        tiny_run(shapes, tmp_path / "run", *odd)


def test_missing_images_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no images; looked for CIFAR-10"):
        tiny_run(tmp_path, tmp_path / "run")


# Recipes

CLASS_TOKEN, OUTPUT_BIASES = 2, 12
"""Vectors of the published models that ours have not: a class token and its position; biases of the output maps."""
TNN = {
    "tiny": 6_408_232,
    "tiny-95": 6_408_232,
    "tiny-95-post": 6_408_232,
    "small": 23_373_544,
    "small-95": 23_373_544,
    "small-rpe64": 23_860_072,
    "large": 40_581_992,
    "large-patch14": 40_489_832,
    "big": 89_154_664,
}
TRANSNORMER = {
    "tiny": 5_700_904,
    "tiny-no-lrpe": 5_700_712,
    "tiny-glu": 5_703_976,
    "tiny-glu-no-block": 5_703_976,
    "tiny-glu-nopos": 5_666_152,
    "tiny-glu-maxhead": 5_666_056,
    "tiny-glu-h3": 5_704_168,
    "tiny-glu-h1": 5_704_936,
    "tiny-glu-patch14": 5_680_936,
    "tiny-glu-patch7": 5_743_720,
    "tiny-glu-overlap": 5_721_832,
    "small": 22_023_592,
    "small-h6": 22_023_784,
    "small-no-block": 22_023_592,
    "small-patch14": 21_977_704,
    "small-conv-no-block": 22_602_664,
}
PUBLISHED = {
    **{f"tnn-im1k-{size}": (count, 0) for size, count in TNN.items()},
    "hgrn-im1k-tiny": (6_107_560, 0),
    "hgrn-im1k-small": (23_715_688, 0),
    **{
        f"transnormer-{kind}-im1k-{size}": (count, OUTPUT_BIASES * (192 if size.startswith("tiny") else 384))
        for kind in ("t1", "t2")
        for size, count in TRANSNORMER.items()
    },
    "deit-im1k-tiny": (5_717_416, CLASS_TOKEN * 192),
    "deit-im1k-small": (22_050_664, CLASS_TOKEN * 384),
    "deit-im100-small": (21_704_164, CLASS_TOKEN * 384),
    # 6 heads, two maps of rank 96: a row for every position, of which ours have one less.
    "primal-im1k-small": (22_142_696, CLASS_TOKEN * 384 + 6 * 2 * 96),
    "primal-im100-small": (21_796_196, CLASS_TOKEN * 384 + 6 * 2 * 96),
}
"""Trainable parameters of the published models, and how many of them ours have not."""


def test_every_row_of_the_published_tables_has_a_recipe():
    assert set(PUBLISHED) == {name for name in list_recipes() if "-im1k-" in name or "-im100-" in name}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_recipes_have_the_published_size(name):
    count, less = PUBLISHED[name]
    trained = meta_model(name).num_parameters(only_trainable=True)
    assert trained == count - less
    assert f"{trained:,} parameters" in recipe_text(name).splitlines()[0]


def test_rates_of_the_published_runs():
    expected = {
        "tnn-im1k-tiny": {0: 1e-6, 1: 1e-6, 2: 2.009e-4, 10: 1.8001e-3, 11: 1.99454929e-3, 299: 1.02182199e-5},
        "primal-im1k-small": {0: 1e-6, 1: 1e-6, 2: 2.008e-4, 5: 8.002e-4, 6: 9.99321555e-4, 299: 1.010856168e-5},
    }
    for name, rates in expected.items():
        training = load_recipe(name).training
        rate = build_schedule(training.schedule, training.steps)
        epoch = training.schedule["epoch"]
        assert training.steps == 300 * epoch
        assert epoch == training.eval_steps == 1_281_167 // training.batch_size
        assert {e: rate(e * epoch) for e in rates} == pytest.approx(rates, rel=1e-7)


def test_what_decays_in_the_published_runs():
    """Tensors of two dimensions: with the table of positions in TransNormer, without it in DeiT."""
    names = {}
    for recipe in ("transnormer-t1-im1k-tiny", "deit-im1k-tiny"):
        model = meta_model(recipe)
        decayed = {id(p) for p in parameter_groups(model, 0.05, load_recipe(recipe).training.decay)[0]["params"]}
        names[recipe] = {name for name, p in model.named_parameters() if id(p) in decayed}
        spared = {name for name, p in model.named_parameters() if id(p) not in decayed and p.ndim > 1}
        assert spared == ({"model.positions.weight"} if recipe.startswith("deit") else set())
        assert not any(name.endswith("bias") for name in names[recipe])
    assert "model.positions.weight" in names["transnormer-t1-im1k-tiny"]


def test_tiny_recipes_differ_in_the_model_only():
    for layout in ("image", "pixels"):
        recipes = [load_recipe(name) for name in list_recipes() if name.endswith(f"-{layout}-tiny")]
        assert len(recipes) == {"image": 6, "pixels": 4}[layout]
        assert len({str((recipe.data, recipe.training)) for recipe in recipes}) == 1
