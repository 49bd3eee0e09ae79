"""Small run folders, as `train` writes them."""

import json
import math
from pathlib import Path

import torch
import yaml

from subquad import SubquadConfig, SubquadForCausalLM
from subquad.data import build_tokenizer

TRAINING_LENGTH = 16


def write_text(folder: Path) -> Path:
    """A corpus with named splits, and characters of more than one byte."""
    folder.mkdir(parents=True, exist_ok=True)
    line = "The café keeps 12 naïve sparrows – and a 鳥 or two.\n"
    for split, repeats in (("train", 30), ("valid", 6), ("test", 7)):
        (folder / f"{split}.txt").write_text(line * repeats, encoding="utf-8")
    return folder


def write_run(folder: Path, data: Path, *, mixer: str = "hgru", seed: int = 0, tokenizer=None, **config) -> Path:
    """An untrained model with everything that belongs to a run."""
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer or build_tokenizer("bytes")
    tokenizer.save(folder)
    options = {"hidden_size": 16, "num_hidden_layers": 2, "mixers": [{"type": mixer}]} | config
    model = SubquadForCausalLM(SubquadConfig(vocab_size=tokenizer.vocabulary.size, **options))
    model.save_pretrained(folder)
    recipe = {"data": {"source": str(data), "block_size": TRAINING_LENGTH}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    info = {
        "version": "0.1.0",
        "status": "finished",
        "started": "2026-11-20T10:00:00+00:00",
        "hardware": "a test machine",
        "command": "subquad train <tiny>",
        "data": {"name": "sparrows", "fingerprint": "f00d"},
    }
    (folder / "run.json").write_text(json.dumps(info))
    metrics = {
        "loss": 2.0 + seed / 10,
        "perplexity": math.exp(2.0 + seed / 10),
        "bits_per_byte": (2.0 + seed / 10) / math.log(2),
        "word_perplexity": None,
        "tokens": 400,
        "words": 70,
        "bytes": 392,
        "vocabulary": "byte",
        "parameters": model.num_parameters(),
        "tokens_per_second": 1000.0 + seed,
        "peak_memory_bytes": 50_000_000,
        "train_seconds": 60,
        "tokens_trained": 4800,
        "steps": 30,
        "split": "test",
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    log = [{"step": step, "time": step / 10, "loss": 5 - step / 10} for step in range(1, 31)]
    log += [{"step": step, "time": step / 10, "eval_loss": 5 - step / 10} for step in (10, 20, 30)]
    (folder / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in log))
    return folder
