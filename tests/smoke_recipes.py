"""Run every recipe of the package, shrunk to seconds: the same code path, a small model, a little text.

python tests/smoke_recipes.py [RECIPE ...]
"""

import json
import math
import os
import sys
import tempfile
import time
from pathlib import Path

SHRUNK = (
    "model.hidden_size=48",
    "model.channel_mixer.hidden_size=48",
    "model.num_hidden_layers=2",
    "data.tokenizer=bytes",
    "data.block_size=64",
    "training.steps=4",
    "training.batch_size=4",
    "training.device_batch_size=2",
    "training.eval_steps=2",
    "training.log_steps=1",
)
TEXT = "A recipe that is shipped must run: the smallest model, the shortest text, every part of the way.\n" * 200


def main(names: list[str]) -> None:
    """Train each recipe for a few updates and look at what it wrote."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SUBQUAD_CACHE"] = str(Path(folder) / "cache")
        from subquad.training.recipe import list_recipes, load_recipe
        from subquad.training.train import train

        text = Path(folder) / "text.txt"
        text.write_text(TEXT)
        for name in names or list_recipes():
            start = time.perf_counter()
            mixers = load_recipe(name).model["mixers"]
            ends = f"model.mixers={json.dumps([mixers[0], mixers[-1]])}"
            run = train(name, data=text, output=Path(folder) / name, overrides=(*SHRUNK, ends))
            metrics = json.loads((run / "metrics.json").read_text())
            if metrics["steps"] != 4 or not math.isfinite(metrics["loss"]):
                raise SystemExit(f"{name}: {metrics}")
            print(f"{name}: {time.perf_counter() - start:.1f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
