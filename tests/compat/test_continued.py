"""Published models trained on from the command line: their own task, or a new classifier on their body."""

import json
from argparse import Namespace

import pytest
import torch
import yaml
from glue_files import write_glue
from safetensors.torch import load_file
from support import assert_close
from test_pretrained import arena, lightning
from training_runs import RECIPE
from typer.testing import CliRunner

from subquad import cli
from subquad.compat import from_reference
from subquad.compat.convert import convert
from subquad.data.lra import open_lra
from subquad.evaluation import Run

SHRUNK = [
    *("training.steps=2", "training.batch_size=2", "training.device_batch_size=2", "training.eval_steps=1"),
    *("training.log_steps=1", "training.num_workers=0", "training.schedule={type: constant, peak: 1e-3}"),
]
NO_RATE = "training.schedule={type: constant, peak: 0}"


def call(command, *arguments, changes=()):
    words = [word for change in changes for word in ("--set", change)]
    return CliRunner().invoke(cli.app, [command, *map(str, arguments), *words])


def train(*arguments, changes=()):
    result = call("train", *arguments, changes=[*SHRUNK, *changes])
    assert result.exit_code == 0, result.output
    return Run(result.stdout.strip().splitlines()[-1])


def weights(folder):
    return load_file(folder / "model.safetensors")


def assert_weights_are_kept(before, after, dtype=torch.float32):
    for name, tensor in before.items():
        assert after[name].dtype == dtype
        assert torch.equal(after[name], tensor.to(dtype)), name


@pytest.fixture
def published(load, tmp_path):
    """From the name of a fixture to a run folder with a vocabulary of words, and to a text of them."""

    def published(name):
        family, config, state, *_ = load(name)
        words = [f"word{number}" for number in range(config["vocab_size"] - 4 - ("roberta" in family))]
        (tmp_path / "dict.txt").write_text("".join(f"{word} 1\n" for word in words))
        (tmp_path / "text").mkdir()
        for split, lines in (("train", 9), ("valid", 4), ("test", 4)):
            (tmp_path / "text" / f"{split}.txt").write_text((" ".join(words[:7]) + "\n") * lines)
        torch.save({"model": state, "args": Namespace(**config)}, tmp_path / "checkpoint.pt")
        run = convert(tmp_path / "checkpoint.pt", tmp_path / "run", dictionary=tmp_path / "dict.txt").folder
        return run, tmp_path / "text"

    return published


@pytest.fixture
def recipe(tmp_path):
    """A recipe of a language model of another form, which the model of the run replaces."""

    def recipe(task):
        content = {**RECIPE, "task": task, "data": {**RECIPE["data"], "block_size": 8}}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
        return tmp_path / "recipe.yaml"

    return recipe


@pytest.mark.parametrize("name", ["tnn-fairseq_lm-v1-decay", "tnn-fairseq_lm-v2-ada", "fd-fairseq_lm-norpe-untied"])
def test_language_models(published, recipe, tmp_path, name):
    start, text = published(name)
    options = (recipe("causal-lm"), "--init", start, "--data", text, "--output", tmp_path / "more")
    run = train(*options)
    assert run.config["architectures"] == ["ReferenceForCausalLM"]
    assert (run.config["options"], run.recipe["model"]) == (Run(start).config["options"], {})
    assert run.metrics["steps"] == 2
    assert Run(start).load_model("cpu").dtype == torch.float64, "as the file"
    assert any(not torch.equal(tensor.double(), weights(start)[name]) for name, tensor in weights(run.folder).items())
    assert (run.folder / "dict.txt").read_bytes() == (start / "dict.txt").read_bytes()
    result = call("evaluate", run.folder, "--json", tmp_path / "figures.json")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "figures.json").read_text())["loss"] == pytest.approx(run.metrics["loss"], rel=1e-6)
    result = call("train", "--resume", run.folder, changes=["training.steps=3"])
    assert result.exit_code == 0, result.output
    assert Run(run.folder).metrics["steps"] == 3
    result = call("generate", run.folder, "--prompt", "word1", "--max-new-tokens", 2, "--seed", 1)
    assert result.exit_code == 0, result.output
    assert_weights_are_kept(weights(start), weights(train(*options[:-1], tmp_path / "same", changes=[NO_RATE]).folder))


@pytest.mark.parametrize("name", ["ski-fairseq_roberta-ski_inv_time", "tnn-fairseq_roberta-v2-pad"])
def test_masked_models(published, recipe, tmp_path, name):
    """The second is one of ours once converted."""
    start, text = published(name)
    changes = ["data.masking={type: bernoulli}"]
    run = train(recipe("masked-lm"), "--init", start, "--data", text, "--output", tmp_path / "more", changes=changes)
    assert run.config["architectures"] == Run(start).config["architectures"]
    assert run.metrics["tokens"] > 0
    result = call("evaluate", run.folder)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("name", "task", "pooling"),
    [
        ("tnn-fairseq_roberta-v1", "rte", "mean"),
        ("transnormer-fairseq_roberta-t2-pads", "stsb", "first"),
        ("tnn-fairseq_roberta-v2-head", "mnli", "mean"),
        ("tnn-fairseq_lm-v2-gluv2-gtuv3", "cola", "last"),
    ],
)
def test_finetuning_on_glue(load, tmp_path, name, task, pooling):
    family, config, state, *_ = load(name)
    rows = config["vocab_size"] - 4 - ("roberta" in family)
    words = ["He", "said", "no", *(f"word{number}" for number in range(rows - 3))]
    (tmp_path / "dict.txt").write_text("".join(f"{word} 1\n" for word in words))
    torch.save({"model": state, "args": Namespace(**config)}, tmp_path / "checkpoint.pt")
    start = convert(tmp_path / "checkpoint.pt", tmp_path / "start", dictionary=tmp_path / "dict.txt").folder
    options = (f"glue-{task}", "--init", start, "--data", write_glue(tmp_path / "glue", train=6, valid=4))
    changes = ["data.max_length=24", f"model.pooling={pooling}"]
    run = train(*options, "--output", tmp_path / "run", changes=changes)
    assert run.config["architectures"] == ["ReferenceForSequenceClassification"]
    assert run.config["family"] == family
    assert run.config["head"]["pooling"] == pooling
    result = call("evaluate", run.folder, "--json", tmp_path / "figures.json")
    assert result.exit_code == 0, result.output
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["loss"] == pytest.approx(run.metrics["loss"], rel=1e-5)
    result = call("train", "--resume", run.folder, changes=["training.steps=3"])
    assert result.exit_code == 0, result.output

    # The body is that of the published model, and its classes do not depend on the padding of a batch.
    kept = train(*options, "--output", tmp_path / "kept", changes=[*changes, NO_RATE])
    published = from_reference(family, config, state).model.state_dict()
    published = {f"reference.model.{name}": tensor for name, tensor in published.items()}
    assert_weights_are_kept(published, weights(kept.folder))
    model = kept.load_model("cpu")
    assert not [name for name, _ in model.named_parameters() if "lm_head" in name]
    if task != "stsb":
        assert set(model.config.label2id) == set(model.config.id2label.values()) != {"LABEL_0", "LABEL_1"}
    tokens = torch.randint(4, config["vocab_size"], (1, 9))
    padded = torch.nn.functional.pad(tokens, (0, 4), value=1)
    assert_close(model(padded, attention_mask=(padded != 1).long()).logits, model(tokens).logits)


@pytest.mark.filterwarnings("ignore:Long Range Arena .* the published data has:UserWarning")
def test_the_long_range_arena(listops, tmp_path):
    vocabulary = open_lra("listops", listops, pipeline="s4").vocab_size
    path = lightning(tmp_path / "last.ckpt", "hgrn.lra", arena({"_name_": "hgru1d"}, vocabulary))
    start = convert(path, tmp_path / "start").folder
    run = train("hgrn-lra-listops", "--init", start, "--data", listops, "--output", tmp_path / "run")
    assert run.config["architectures"] == ["ReferenceForSequenceClassification"]
    result = call("evaluate", run.folder, "--json", tmp_path / "figures.json")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "figures.json").read_text())["accuracy"] == run.metrics["accuracy"]
    result = call("lra", run.folder, "--output", tmp_path / "table")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[2].startswith("hgrn.lra")
    for content in ("[]", "{", "[" * 100_000):
        (tmp_path / "damaged").mkdir(exist_ok=True)
        (tmp_path / "damaged" / "recipe.yaml").write_text("{}")
        (tmp_path / "damaged" / "run.json").write_text(content)
        result = call("train", "--resume", tmp_path / "damaged")
        assert result.exit_code == 2
        assert "damaged, not a JSON object" in " ".join(result.stderr.split())
    result = call("train", "--resume", start)
    assert result.exit_code == 2
    assert "a converted checkpoint, there is no training to resume; `subquad train RECIPE --init" in result.stderr
    result = call("train", "hgrn-lra-image", "--init", start, "--data", listops, "--output", tmp_path / "wrong")
    assert result.exit_code == 2
    wrong = convert(lightning(path, "hgrn.lra", arena({"_name_": "hgru1d"}, 99)), tmp_path / "large").folder
    result = call("train", "hgrn-lra-listops", "--init", wrong, "--data", listops, "--output", tmp_path / "wrong")
    assert result.exit_code == 2
    assert "its model is for other data: vocab_size is 99" in result.stderr
    result = call("train", "glue-rte", "--init", start, "--output", tmp_path / "wrong")
    assert result.exit_code == 2
    assert "no backbone that a classifier can be put on" in result.stderr
    assert not (tmp_path / "wrong").exists()


@pytest.mark.parametrize("name", ["primal-cv_vit-base", "tnn-im_vit-tiny-prenorm"])
def test_images(load, tmp_path, name):
    """The second is one of ours once converted."""
    image = pytest.importorskip("PIL.Image")
    _, config, state, *_ = load(name)
    torch.save({"model": {name: tensor.float() for name, tensor in state.items()}}, tmp_path / "best.pth")
    (tmp_path / "options.json").write_text(json.dumps(config))
    start = convert(tmp_path / "best.pth", tmp_path / "start", config=tmp_path / "options.json").folder
    size = Run(start).recipe["data"]["image_size"]
    for split in ("train", "val"):
        for label in range(config["num_classes"]):
            folder = tmp_path / "images" / split / f"n{label}"
            folder.mkdir(parents=True)
            pixels = torch.randint(256, (size, size, 3), dtype=torch.uint8).numpy()
            image.fromarray(pixels).save(folder / "x.png")
    options = ("tnn-image-tiny", "--init", start, "--data", tmp_path / "images", "--output")
    changes = [f"data.image_size={size}", "data.valid_fraction=0"]
    run = train(*options, tmp_path / "run", changes=changes)
    assert run.config["architectures"] == Run(start).config["architectures"]
    assert run.config["id2label"]["0"] == "n0"
    assert run.info["data"]["mean"] == Run(start).info["data"]["mean"] == [0.485, 0.456, 0.406]
    result = call("train", *options, tmp_path / "wrong", changes=[*SHRUNK, *changes, "data.image_size=32"])
    assert result.exit_code == 2
    assert "its model is for other data: image_size is" in result.stderr


def test_what_makes_no_sense(published, recipe, tmp_path):
    start, text = published("tnn-fairseq_lm-v1-decay")
    options = ("--init", start, "--data", text, "--output", tmp_path / "more")
    for task, changes, message in (
        ("masked-lm", [], "needs a model of the task masked-lm, this one is of causal-lm"),
        ("causal-lm", ["model.dropout=0.5"], "is a published one and stays what it is: leave model.dropout out"),
    ):
        result = call("train", recipe(task), *options, changes=[*SHRUNK, *changes])
        assert result.exit_code == 2
        assert message in result.stderr
    result = call("train", "glue-rte", *options, changes=[*SHRUNK, "model.hidden_size=8"])
    assert result.exit_code == 2
    assert "unknown option of a classifier on a published model 'hidden_size'" in result.stderr
    assert not (tmp_path / "more").exists()
