"""A run of a second, a tiny model on a tiny text; and what runs are compared by."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
import yaml
from run_folders import write_text
from safetensors.torch import load_file

from subquad.training.train import train

RECIPE = {
    "task": "causal-lm",
    "model": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "mixers": [{"type": "softmax", "num_heads": 2, "rotary": True}],
        "channel_mixer": {"type": "ffn", "hidden_size": 16},
        "dropout": 0.1,
    },
    "data": {"source": "", "tokenizer": "bytes", "block_size": 64},
    "training": {
        "seed": 1,
        "steps": 20,
        "batch_size": 4,
        "device_batch_size": 4,
        "optimizer": "fairseq-adam",
        "betas": [0.9, 0.98],
        "eps": 1e-8,
        "weight_decay": 0.1,
        "decay": "all",
        "max_grad_norm": 1.0,
        "schedule": {"type": "inverse_sqrt", "peak": 1e-2, "warmup": 5},
        "eval_steps": 10,
        "save_steps": 5,
        "log_steps": 1,
    },
}


def write_recipe(folder: Path) -> Path:
    """A recipe file beside its text; 30 short lines make 27 blocks, so 20 updates are about 3 epochs."""
    recipe = RECIPE | {"data": RECIPE["data"] | {"source": str(write_text(folder / "text"))}}
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def tiny_run(folder: Path, name: str = "run", *overrides: str) -> Path:
    return train(write_recipe(folder), output=folder / name, overrides=overrides)


def train_in_two_processes(recipe: Path, output: Path, *overrides: str) -> Path:
    """The command under `torchrun`, with two processes on the CPU."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "subquad"]
    command += ["train", str(recipe), "--output", str(output)]
    command += [word for override in overrides for word in ("--set", override)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    return output


def log_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def losses(run: Path) -> torch.Tensor:
    return torch.tensor([line["loss"] for line in log_of(run) if "loss" in line], dtype=torch.float64)


def numbers(run: Path) -> list[tuple]:
    """All that the log says but times."""
    names = ("step", "loss", "grad_norm", "learning_rate", "tokens", "epoch", "eval_loss")
    return [tuple(line.get(name) for name in names) for line in log_of(run)]


def state(run: Path, step: int) -> dict[str, torch.Tensor]:
    folder = run / "checkpoints" / f"checkpoint-{step}"
    optimizer = torch.load(folder / "optimizer.pt", weights_only=True)["state"]
    moments = {f"{i}.{name}": value for i, entry in optimizer.items() for name, value in entry.items()}
    return weights(folder) | moments


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name
