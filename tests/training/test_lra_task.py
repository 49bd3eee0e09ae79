"""The Long Range Arena from generated files to an accuracy, and its recipes."""

import csv
import json
import math
import re
import shutil

import pytest
import torch
from data.lra import lra_files
from support import assert_close
from training_runs import assert_same, log_of, numbers, state
from transformers import AutoModelForSequenceClassification
from typer.testing import CliRunner

from subquad import SubquadForSequenceClassification, cli
from subquad.data import DataError
from subquad.data.lra import ListOpsLimits, generate_listops
from subquad.evaluation import Run, compare, evaluate_accuracy, evaluate_run
from subquad.evaluation.accuracy import open_arena
from subquad.training.recipe import list_recipes, load_recipe, recipe_text
from subquad.training.schedules import build_schedule
from subquad.training.tasks.lra import SequenceClassification, classifier_config
from subquad.training.train import _check, train

pytestmark = pytest.mark.filterwarnings("ignore:Long Range Arena .* the published data has:UserWarning")

SMALL = (
    "model.hidden_size=16",
    "model.num_hidden_layers=1",
    "model.channel_mixer.hidden_size=16",
    "training.steps=20",
    "training.batch_size=8",
    "training.device_batch_size=4",
    "training.schedule={type: cosine, peak: 1e-2, warmup: 5}",
    "training.eval_steps=10",
    "training.save_steps=5",
    "training.log_steps=1",
    "training.num_workers=0",
)
FAMILIES = (
    "tnn", "ski-tnn", "fd-tnn", "transnormer-t1", "transnormer-t2", "hgrn", "transformer", "primal", "primal-trans",
)  # fmt: skip
TASKS = ("listops", "text", "retrieval", "image", "pathfinder", "pathx")
VOCABULARIES = {
    "s4": {"listops": 18, "text": 135, "retrieval": 98},
    "byte": {"listops": 17, "text": 257, "retrieval": 257, "image": 256, "pathfinder": 256},
}
# Of the published models, with norms and rows of embeddings that nothing uses.
PARAMETERS = {
    "tnn": (429_066, 640_642, 89_474, 3_097_610, 459_650, 459_650),
    "ski-tnn": (485_642, 697_218, 106_690, 3_476_234, 599_810),
    "fd-tnn": (449_930, 661_506, 92_130, 3_188_234, 491_906),
    "transnormer-t1": (797_962, 811_906, 872_834, 1_594_634, 400_130),
    "transnormer-t2": (797_962, 811_906, 872_834, 1_594_634, 400_130),
    "hgrn": (66_250, 683_394, 132_290, 15_798_282, 999_170, 253_826),
    "transformer": (798_730, 142_786, 223_810, 12_623_882, 530_690),
    "primal": (236_186, 396_946, 462_842, 242_690, 241_658),
    "primal-trans": (243_654, 404_414, 408_330, 208_838, 187_146),
}
CELLS = [(family, task) for family in FAMILIES for task, _ in zip(TASKS, PARAMETERS[family], strict=False)]


@pytest.fixture(scope="module")
def listops(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lra")
    limits = ListOpsLimits(min_length=4, max_length=24, max_depth=4, max_args=4)
    generate_listops(folder / "listops-1000", train=60, valid=13, test=17, limits=limits, num_workers=1, progress=False)
    return folder


def tiny_run(data, output, *overrides, recipe="tnn-lra-listops"):
    return train(recipe, data=data, output=output, overrides=(*SMALL, *overrides))


@pytest.fixture(scope="module")
def run(listops, tmp_path_factory):
    return tiny_run(listops, tmp_path_factory.mktemp("whole") / "run")


def call(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def test_from_generator_to_accuracy_by_commands(tmp_path):
    result = call("data", "listops", "--output", tmp_path / "lra", "--train", 30, "--valid", 8, "--test", 9,
                  "--min-length", 4, "--max-length", 24, "--max-depth", 4, "--max-args", 4, "--workers", 1)  # fmt: skip
    assert result.exit_code == 0, result.output
    options = [part for override in SMALL for part in ("--set", override)]
    result = call("train", "hgrn-lra-listops", "--data", tmp_path / "lra", "--output", tmp_path / "run", *options)
    assert result.exit_code == 0, result.output
    result = call("evaluate", tmp_path / "run", "--json", tmp_path / "result.json")
    assert result.exit_code == 0, result.output
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert re.search(rf"accuracy +{100 * metrics['accuracy']:.2f}% .*\d of 9 examples, none skipped", result.stdout)
    found = json.loads((tmp_path / "result.json").read_text())
    assert (found["correct"], found["examples"]) == (metrics["correct"], 9)
    confusion = json.loads((tmp_path / "run" / "confusion.json").read_text())
    assert confusion["data"] == str(tmp_path / "lra")
    assert confusion["classes"] == [str(digit) for digit in range(10)]
    assert sum(map(sum, confusion["matrix"])) == 9
    assert sum(confusion["matrix"][digit][digit] for digit in range(10)) == metrics["correct"]
    assert (tmp_path / "run" / "confusion.csv").read_text().startswith("class,0,1,")
    assert found["loss"] == pytest.approx(metrics["loss"], rel=1e-6)


def test_a_run_says_what_it_is(run, listops):
    opened = Run(run)
    assert opened.task == opened.metrics["task"] == "sequence-classification"
    assert opened.metrics["accuracy"] == opened.metrics["correct"] / 17
    assert opened.data_name == "Long Range Arena listops (s4)"
    assert opened.metrics["validation"] == "as in the files"
    rows = [row for table in (listops / "listops-1000").glob("*.tsv") for row in table.read_text().splitlines()[1:]]
    lengths = [len(re.sub("[()]", "", row.partition("\t")[0]).split()) for row in rows]
    record = opened.info["data"]
    assert record["examples"] == {"train": 60, "valid": 13, "test": 17}
    assert record["longest_input"] == max(lengths) + 1  # the end symbol
    last = evaluate_accuracy(
        AutoModelForSequenceClassification.from_pretrained(run / "checkpoints" / "checkpoint-20"),
        open_arena(opened, progress=False).test,
        batch_size=4,
        progress=False,
    )
    assert opened.metrics["last_accuracy"] == last.accuracy
    model = AutoModelForSequenceClassification.from_pretrained(run)
    assert isinstance(model, SubquadForSequenceClassification)
    assert (model.config.num_labels, model.config.vocab_size, model.config.padding) == (10, 18, "ordinary")
    with pytest.raises(ValueError, match="leave length and context_window out"):
        evaluate_run(run, length=16)
    assert "needs a model of the task causal-lm" in " ".join(call("generate", run).output.split())


def test_runs_are_compared_by_accuracy(run, tmp_path):
    compare([run], tmp_path, measure=False)
    with (tmp_path / "comparison.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["accuracy"]) == Run(run).metrics["accuracy"]
    page = (tmp_path / "comparison.html").read_text()
    assert f"{Run(run).metrics['accuracy']:.2%}" in page
    assert "nats per example" in page


def test_the_best_model_has_the_best_validation_accuracy(run):
    lines = [line for line in log_of(run) if "eval_accuracy" in line]
    best = max(lines, key=lambda line: line["eval_accuracy"])
    assert Run(run).metrics["best_step"] == best["step"]
    result = evaluate_run(run, split="valid", progress=False)
    assert (result.examples, result.accuracy) == (13, pytest.approx(best["eval_accuracy"]))
    assert result.loss == pytest.approx(best["eval_loss"], rel=1e-5)


def test_other_data_is_not_evaluated(run, listops, tmp_path):
    moved = shutil.copytree(listops, tmp_path / "moved")
    assert evaluate_run(run, moved, progress=False).to_dict() == evaluate_run(run, progress=False).to_dict()
    table = moved / "listops-1000" / "basic_test.tsv"
    table.write_bytes(table.read_bytes().replace(b"[MIN", b"[MAX"))
    with pytest.raises(DataError, match="not the data that"):
        evaluate_run(run, moved, progress=False)


def test_a_resumed_run_is_the_same_to_the_bit(run, listops, tmp_path, stop_after):
    stop_after(8)
    resumed = tiny_run(listops, tmp_path / "run")
    train(None, resume=resumed)
    assert_same(state(resumed, 20), state(run, 20))
    assert numbers(resumed) == numbers(run)


@pytest.mark.parametrize("task", ["listops", "text", "retrieval"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_depend_on_padding_as_the_recipe_says(family, task):
    changes = ["model.hidden_size=16", "model.pooling=mean"]
    recipe = load_recipe(f"{family}-lra-{task}", changes)
    torch.manual_seed(0)
    model = SubquadForSequenceClassification(classifier_config(recipe, vocab_size=18, input_features=None))
    shape = (2, 2) if task == "retrieval" else (2,)
    ids = torch.randint(3, 18, (*shape, 9))
    model.train()
    for _ in range(2):
        model(ids)  # so that the statistics of batch norms are not the initial ones
    model.double().eval()
    padded = torch.cat([ids, torch.zeros(*shape, 5, dtype=torch.long)], dim=-1)
    mask = (padded != 0).long()
    expected = model(ids).logits
    for model.config.padding in ("masked", "ordinary"):
        found = model(padded, mask).logits
        # The transformer is causal: its real tokens never see padding behind them.
        if model.config.padding == "masked" or family == "transformer":
            assert_close(found, expected, torch.float64)
        else:
            assert (found - expected).abs().max() > 1e-6


def test_the_recipes_of_a_pipeline_treat_padding_alike():
    """As docs/lra.md says of the legacy of the three; an open default would drift."""
    recipes = [load_recipe(name) for name in list_recipes() if "-lra-" in name]
    paddings = {(recipe.data.pipeline, recipe.model["padding"]) for recipe in recipes}
    assert paddings == {("s4", "ordinary"), ("byte", "masked"), ("google", "masked")}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A few examples of every task but ListOps, in one folder."""
    folder = tmp_path_factory.mktemp("files")
    lra_files.text(folder / "aclImdb")
    lra_files.retrieval(folder / "tsv_data")
    lra_files.cifar(folder / "cifar-10-batches-py")
    lra_files.pathfinder(folder / "pathfinder32")
    lra_files.pathfinder(folder / "pathfinder128", resolution=128)
    return folder


@pytest.mark.parametrize(
    ("recipe", "overrides", "expected"),
    [
        ("tnn-lra-text", (), (6, 2, None)),
        ("hgrn-lra-text", ("data.valid_fraction=0.34",), (6, 2, None)),
        ("transnormer-t1-lra-retrieval", ("model.num_hidden_layers=4",), (2, 2, None)),
        ("tnn-lra-image", (), (4, 10, 1)),
        ("hgrn-lra-image", (), (4, 10, 3)),
        ("tnn-lra-image", ("data.permute=hilbert",), (4, 10, 1)),
        ("fd-tnn-lra-pathfinder", (), (1, 2, 1)),
        ("tnn-lra-pathx", (), (1, 2, 1)),
        ("tnn-lra-retrieval", ("data.pipeline=byte", "model.padding=masked"), (2, 2, None)),
        ("primal-lra-image", ("training.precision=fp32",), (4, 10, None)),
        ("primal-trans-lra-pathfinder", ("model.num_hidden_layers=2",), (1, 2, None)),
        ("transformer-lra-text-google", (), (6, 2, None)),
        ("transformer-lra-retrieval-google", (), (2, 2, None)),
        ("transformer-lra-image-google", (), (4, 10, None)),
        ("transformer-lra-pathfinder-google", (), (1, 2, None)),
    ],
)
def test_every_kind_of_input_is_learned_from(files, tmp_path, recipe, overrides, expected):
    short = ("training.steps=2", "training.eval_steps=2", "training.batch_size=2", "training.device_batch_size=2")
    folder = tiny_run(files, tmp_path / "run", *short, *overrides, recipe=recipe)
    result = evaluate_run(folder, progress=False)
    config = Run(folder).load_model().config
    assert (result.examples, config.num_labels, config.input_features) == expected
    assert result.correct == Run(folder).metrics["correct"]
    heads = {"s4": ("linear", "pair"), "byte": ("mlp", "pair"), "google": ("mlp", "deep_pair")}
    assert config.classifier == heads[Run(folder).recipe["data"]["pipeline"]]["retrieval" in recipe]


def test_images_are_changed_by_the_seed_of_the_run(files):
    first, again, other = (
        SequenceClassification(load_recipe("hgrn-lra-image", [f"data.source={files}", f"training.seed={seed}"])).data
        for seed in (1, 1, 2)
    )
    inputs = [
        torch.stack([data.train.example(i, 0)["input_values"] for i in range(8)]) for data in (first, again, other)
    ]
    assert torch.equal(inputs[0], inputs[1])
    assert not torch.equal(inputs[0], inputs[2])
    assert first.fingerprint == other.fingerprint


@pytest.mark.parametrize(("fraction", "expected"), [(0.0, "chosen on the test set"), (0.34, "held out with seed 42")])
def test_a_result_says_what_text_was_validated_on(files, tmp_path, fraction, expected):
    short = ("training.steps=1", "training.eval_steps=1", f"data.valid_fraction={fraction}")
    folder = tiny_run(files, tmp_path / "run", *short, recipe="transformer-lra-text")
    assert expected in Run(folder).metrics["validation"]
    assert expected in Run(folder).info["data"]["split_rule"]


def unused(family, task, config):
    """Parameters of the published models that have no use, without those that ours has beyond them."""
    dim, layers = config.hidden_size, config.num_hidden_layers
    if family.startswith("primal"):
        return ((32 if task == "listops" else 512) - config.vocab_size) * dim
    if family in ("tnn", "ski-tnn", "fd-tnn"):
        encoders = {"tnn": 1 if task in VOCABULARIES["s4"] else 2}.get(family, 0)
        rank = config.mixers[0].get("rpe_hidden_size") or 0
        # Our encoder has a norm before each activation, the published one before the last.
        return 2 * dim * layers - encoders * layers * 2 * (2 * rank)
    return 2 * dim * (layers // 2) if family == "transnormer-t2" else 0


@pytest.mark.filterwarnings("ignore:`decay` 1 makes:UserWarning")
@pytest.mark.parametrize(("family", "task"), CELLS)
def test_every_recipe_is_the_published_model(family, task):
    name = f"{family}-lra-{task}"
    recipe = load_recipe(name)
    _check(recipe)
    vocab_size = VOCABULARIES[recipe.data.pipeline].get(task)
    features = None if vocab_size else 3 if recipe.data.colour else 1
    config = classifier_config(recipe, vocab_size=vocab_size, input_features=features)
    with torch.device("meta"):
        model = SubquadForSequenceClassification(config)
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    published = PARAMETERS[family][TASKS.index(task)]
    assert parameters == published - unused(family, task, config)
    assert f"{parameters:,} parameters." in recipe_text(name).splitlines()[0]
    assert recipe.training.steps % recipe.training.eval_steps == 0


# Of the original code: features, layers, features of the queries, width of all hidden layers, learned positions.
GOOGLE = {
    "listops": (512, 4, 512, 1024, 0),
    "text": (256, 4, 256, 1024, 0),
    "retrieval": (128, 4, 128, 512, 0),
    "image": (128, 1, 64, 128, 1025),
    "pathfinder": (32, 4, 16, 32, 0),
}


@pytest.mark.parametrize("task", GOOGLE)
def test_recipes_of_the_original_code_have_its_size(task):
    dim, layers, width, hidden, positions = GOOGLE[task]
    name = f"transformer-lra-{task}-google"
    recipe = load_recipe(name)
    _check(recipe)
    rows = {"listops": 17, "image": 256, "pathfinder": 256}.get(task, 257)
    config = classifier_config(recipe, vocab_size=rows, input_features=None)
    with torch.device("meta"):
        model = SubquadForSequenceClassification(config)
    labels = config.num_labels
    block = 4 * dim * width + (2 * dim * hidden + hidden + dim) + 2 * 2 * dim
    if task == "retrieval":
        half = hidden // 2
        head = (2 * dim * hidden + hidden) + (hidden * half + half) + (half * labels + labels)
    else:
        head = (dim * hidden + hidden) + (hidden * labels + labels)
    token = dim if task in ("listops", "text", "image") else 0
    expected = rows * dim + positions * dim + token + layers * block + 2 * dim + head
    assert model.num_parameters() == expected
    assert f"{expected:,} parameters." in recipe_text(name).splitlines()[0]
    assert recipe.training.steps % recipe.training.eval_steps == 0


@pytest.mark.parametrize("task", GOOGLE)
def test_rates_of_the_original_code(task):
    training = load_recipe(f"transformer-lra-{task}-google").training
    rate, warmup = build_schedule(training.schedule, training.steps), training.schedule["warmup"]
    base = {"image": 5e-4, "pathfinder": 1e-3}.get(task)
    for step in (0, 1, warmup // 2, warmup, warmup + 1, 2 * warmup, training.steps):
        rise = min(1.0, step / warmup)
        if base is None:
            expected = 0.05 * rise / max(step, warmup) ** 0.5
        else:
            expected = base * rise * (1 + math.cos(math.pi * max(0, step - warmup) / training.steps)) / 2
        assert rate(step) == pytest.approx(expected, rel=1e-12), step


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("tnn", (0.36, 0.55, 0.06, 0.15, 0.41, 0.00)),
        ("hgrn", (0.18, 0.69, 0.02, 0.00, 0.59, 0.61)),
        ("transnormer-t1", (0.81, 0.99, 0.58, 0.58, 0.15)),
    ],
)
def test_the_rate_of_published_runs_ends_where_theirs_did(family, expected):
    for task, share in zip(TASKS, expected, strict=False):
        training = load_recipe(f"{family}-lra-{task}").training
        last = build_schedule(training.schedule, training.steps)(training.steps)
        assert last / training.schedule["peak"] == pytest.approx(share, abs=0.006), task


def test_initial_values_are_the_published_ones():
    recipe = load_recipe("tnn-lra-listops")
    model = SubquadForSequenceClassification(classifier_config(recipe, vocab_size=18, input_features=None))
    unit = model.model.layers[0].token_mixer
    for proj in (unit.gate_proj, unit.input_proj, unit.output_proj):
        assert proj.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert proj.bias.std().item() == pytest.approx(0.02, rel=0.3)
    assert model.model.embed_tokens.weight.std().item() == pytest.approx(1.0, rel=0.1)
    gates = model.model.layers[0].channel_mixer.gate_proj.weight
    assert gates.abs().max().item() == pytest.approx(128**-0.5, rel=0.01)


def test_every_cell_of_the_published_tables_has_a_recipe():
    found = [name for name in list_recipes() if "-lra-" in name]
    google = [f"transformer-lra-{task}-google" for task in GOOGLE]
    assert sorted(found) == sorted([*google, *(f"{family}-lra-{task}" for family, task in CELLS)])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.task=listop", "Did you mean 'listops'"),
        ("data.pipeline=s5", "Did you mean 's4'"),
        ("data.source=[a, b]", "must be a text"),
        ("data.block_size=512", "unknown key 'block_size'"),
        ("model.vocab_size=18", "it follows from data.task"),
        ("model.poolin=mean", "Did you mean 'pooling'"),
        ("data.colour=true", "colour is not for the task 'listops'"),
    ],
)
def test_mistakes_are_named(listops, tmp_path, override, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        tiny_run(listops, tmp_path / "run", override)
    assert not (tmp_path / "run").exists()


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"basic_train\.tsv"):
        tiny_run(tmp_path, tmp_path / "run")
