import json
import pickle

import pytest
import torch
from run_folders import TRAINING_LENGTH, write_run, write_text

from subquad.data import DataError
from subquad.evaluation import Run


@pytest.fixture
def folder(tmp_path):
    return write_run(tmp_path / "run", write_text(tmp_path / "text"))


def test_reads_what_training_wrote(folder):
    run = Run(folder)
    assert (run.name, run.training_length) == ("run", TRAINING_LENGTH)
    assert (run.data_name, run.data_fingerprint) == ("sparrows", "f00d")
    assert (run.hardware, run.date) == ("a test machine", "2026-11-20")
    assert run.metrics["vocabulary"] == "byte"
    assert ("data fingerprint", "f00d") in run.provenance()
    assert len(run.log) == 33
    assert not run.load_model("cpu").training
    assert run.load_tokenizer().decode(run.load_tokenizer().encode("né")) == "né"
    assert run.open_data(split="valid", progress=False).num_lines == 6


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_devices_that_are_not_there(folder, device):
    with pytest.raises(ValueError, match=f"device '{device}' cannot be used") as caught:
        Run(folder).load_model(device)
    assert "\n" not in str(caught.value)


def test_optional_files_may_be_missing(folder):
    for name in ("run.json", "metrics.json", "log.jsonl", "recipe.yaml"):
        (folder / name).unlink()
    run = Run(folder)
    assert (run.info, run.metrics, run.log, run.recipe, run.training_length) == ({}, {}, [], {}, None)
    with pytest.raises(DataError, match="give the data"):
        run.open_data()


def test_not_a_run_folder(tmp_path):
    with pytest.raises(DataError, match="no such run folder"):
        Run(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"not a run folder \(no config.json\)"):
        Run(tmp_path)
    (tmp_path / "run.json").write_text('{"status": "running"}')
    with pytest.raises(DataError, match=r"no model yet.*running"):
        Run(tmp_path)


def damage(folder, name, content):
    (folder / name).write_bytes(content)
    return folder


def test_weights_cut_off(folder):
    weights = (folder / "model.safetensors").read_bytes()
    with pytest.raises(DataError, match="corrupt or cut off") as caught:
        Run(damage(folder, "model.safetensors", weights[: len(weights) // 2])).load_model()
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="corrupt or cut off"):
        Run(damage(folder, "model.safetensors", b"")).load_model()


def test_weights_are_never_unpickled(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": torch.zeros(1)}))
    with pytest.raises(DataError, match=r"no model.safetensors"):
        Run(folder).load_model()


def test_weights_of_another_model(folder, tmp_path):
    other = write_run(tmp_path / "other", tmp_path / "text", mixer="softmax")
    with pytest.raises(DataError, match=r"not the weights of config.json"):
        Run(damage(folder, "model.safetensors", (other / "model.safetensors").read_bytes())).load_model()
    wide = write_run(tmp_path / "wide", tmp_path / "text", hidden_size=24)
    with pytest.raises(DataError, match=r"cannot be loaded|not the weights"):
        Run(damage(folder, "model.safetensors", (wide / "model.safetensors").read_bytes())).load_model()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.json", b'{"data": {', "not JSON, or cut off"),
        ("metrics.json", b"[1]", "not a JSON object"),
        ("metrics.json", b"[" * 100_000, "not JSON, or cut off"),
        ("recipe.yaml", b"a: [", "not YAML"),
        ("recipe.yaml", b"[" * 2_000, "not YAML"),
        ("recipe.yaml", b"!!python/object/apply:os.getcwd []", "not YAML"),
        ("recipe.yaml", b"a", "not a recipe"),
        ("log.jsonl", b'{"step": 1}\nnonsense\n{"step": 2}\n', "line 2 is not a JSON object"),
        ("log.jsonl", b"\xff\xfe\n", "not UTF-8"),
    ],
)
def test_damaged_files(folder, name, content, message):
    run = Run(damage(folder, name, content))
    attribute = {"run.json": "info", "metrics.json": "metrics", "recipe.yaml": "recipe", "log.jsonl": "log"}[name]
    with pytest.raises(DataError, match=message) as caught:
        getattr(run, attribute)
    assert name in str(caught.value)


def test_config_damaged(folder):
    with pytest.raises(DataError, match="cannot be loaded"):
        Run(damage(folder, "config.json", b"{")).load_model()
    content = json.dumps({"model_type": "subquad", "mixers": [{"type": "unheard"}]})
    with pytest.raises(DataError, match="unknown mixer"):
        Run(damage(folder, "config.json", content.encode())).load_model()


def test_log_of_a_run_that_was_killed(folder):
    with open(folder / "log.jsonl", "a") as file:
        file.write('{"step": 31, "lo')
    assert len(Run(folder).log) == 33


def test_tokenizer_missing_or_damaged(folder):
    with pytest.raises(DataError, match="tokenizer"):
        Run(damage(folder, "tokenizer_config.json", b"{")).load_tokenizer()
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(DataError, match=r"tokenizer_config.json is missing"):
        Run(folder).load_tokenizer()
