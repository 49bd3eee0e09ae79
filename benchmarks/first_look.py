"""A model of each kind, trained for a few hundred updates in float32 and under bfloat16 autocast, beside a unigram.

python benchmarks/first_look.py [RECIPE ...] [--steps 300] [--output FOLDER]

The models are the tiny causal recipes, made smaller still: many CPUs have no fast product of bfloat16 matrices.
The unigram predicts every byte of the test split from the frequencies of the train split (add-one smoothing): a model
below it has learned from context.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np

from subquad.data import build_tokenizer, prepare
from subquad.training.recipe import list_recipes, load_recipe
from subquad.training.train import train

PRECISIONS = ("fp32", "bf16")
SMALLER = (
    "model.hidden_size=64",
    "model.channel_mixer.hidden_size=128",
    "data.block_size=128",
    "training.batch_size=2",
    "training.device_batch_size=2",
)


def unigram() -> float:
    """Nats per byte on the test split."""
    tokenizer = build_tokenizer("bytes")
    corpus = prepare("python-docs", tokenizer)
    size = tokenizer.vocabulary.size
    counts = {
        name: np.bincount(corpus.splits[name].read(0, corpus.splits[name].num_tokens), minlength=size)
        for name in ("train", "test")
    }
    shares = (counts["train"] + 1) / (counts["train"] + 1).sum()
    return float(-(counts["test"] * np.log(shares)).sum() / counts["test"].sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--output", type=Path, default=Path("first-look"))
    args = parser.parse_args()
    baseline = unigram()
    tiny = [n for n in list_recipes() if n.endswith("-tiny") and load_recipe(n).task == "causal-lm"]
    lines = []
    for name in args.recipes or tiny:
        row: list[str] = []
        for precision in PRECISIONS:
            folder = args.output / f"{name}-{precision}"
            if not (folder / "metrics.json").exists():
                changes = {"steps": args.steps, "eval_steps": args.steps, "precision": precision}
                overrides = [*SMALLER, *(f"training.{key}={value}" for key, value in changes.items())]
                train(name, output=folder, overrides=overrides)
            metrics = json.loads((folder / "metrics.json").read_text())
            row += [
                f"{metrics['loss']:.3f}",
                f"{math.exp(metrics['loss']):.2f}",
                f"{metrics['tokens_per_second']:,.0f}",
            ]
        lines.append(f"| `{name}` | {metrics['parameters']:,} | " + " | ".join(row) + " |")
    print("| recipe | parameters |" + "".join(f" {p}: nats/byte | ppl |" for p in PRECISIONS))
    print("| --- |" + " --- |" * (1 + 2 * len(PRECISIONS)))
    print("\n".join(lines))
    print(f"| unigram | | {baseline:.3f} | {math.exp(baseline):.2f} | | |")


if __name__ == "__main__":
    main()
