"""Run the recipes of the package, shrunk to seconds: the same code path, a small model, a little text.

python tests/smoke_recipes.py [RECIPE ...]

Without names: all recipes of texts, and of the Long Range Arena one for each family and one for each kind of input; the
others of it differ in sizes alone; of images one for each family; and all of GLUE, which finetune a masked model of
seconds.
"""

import json
import math
import os
import sys
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from data.lra import lra_files
from glue_files import write_glue
from image_shapes import write_shapes

SHRUNK_TRAINING = (
    "training.steps=2",
    "training.batch_size=4",
    "training.device_batch_size=2",
    "training.eval_steps=2",
    "training.log_steps=1",
    "training.num_workers=0",
    "training.precision=fp32",  # half precision is slow on CPUs
)
SHRUNK = (
    "model.hidden_size=96",
    "model.channel_mixer.hidden_size=96",
    "model.num_hidden_layers=2",
    *SHRUNK_TRAINING,
)
# Of published models that are no configuration of ours.
SHRUNK_PUBLISHED = (
    *(f"model.options.decoder_{size}_dim=96" for size in ("embed", "input", "output")),
    "model.options.decoder_layers=2",
    "model.options.glu_dim=96",
    *(f"model.options.adaptive_{side}_cutoff=20,100" for side in ("input", "softmax")),
    *SHRUNK_TRAINING,
)
SHRUNK_TEXT = ("data.tokenizer=bytes", "data.block_size=64")
KINDS_OF_INPUT = (
    *("hgrn-lra-text", "tnn-lra-retrieval", "hgrn-lra-image", "fd-tnn-lra-pathfinder"),
    *(f"transformer-lra-{task}-google" for task in ("listops", "text", "retrieval", "image", "pathfinder")),
)
IMAGES = (
    "tnn-im1k-tiny",
    "hgrn-im1k-tiny",
    "transnormer-t1-im1k-tiny",
    "transnormer-t2-im1k-small-conv-no-block",
    "deit-im1k-tiny",
    "primal-im1k-small",
    "fd-tnn-image-tiny",
    "hgrn-pixels-tiny",
)
TEXT = "A recipe that is shipped must run: the smallest model, the shortest text, every part of the way.\n" * 200


def shipped() -> list[str]:
    """The recipes that are run when none is named."""
    from subquad.training.recipe import list_recipes, load_recipe

    tasks = {name: load_recipe(name).task for name in list_recipes()}
    texts = [name for name, task in tasks.items() if task in ("causal-lm", "masked-lm")]
    glue = [name for name, task in tasks.items() if task == "glue"]
    return [*texts, *(name for name in tasks if name.endswith("-lra-listops")), *KINDS_OF_INPUT, *IMAGES, *glue]


def write_lra(folder: Path) -> None:
    """A few examples of each task of the Long Range Arena."""
    from subquad.data.lra import ListOpsLimits, generate_listops

    limits = ListOpsLimits(min_length=4, max_length=64, max_depth=4, max_args=4)
    generate_listops(folder, train=30, valid=10, test=10, limits=limits, num_workers=1, progress=False)
    lra_files.text(folder / "aclImdb")
    lra_files.retrieval(folder / "tsv_data")
    lra_files.cifar(folder / "cifar-10-batches-py")
    lra_files.pathfinder(folder / "pathfinder32")


def run(name: str, folder: Path) -> str:
    """Train a recipe for a few updates, look at what it wrote, and say how long it took."""
    from subquad.training.recipe import load_recipe
    from subquad.training.train import train

    warnings.filterwarnings("ignore", message="Long Range Arena .* the published data has")
    start = time.perf_counter()
    recipe = load_recipe(name)
    data, overrides = {
        "sequence-classification": (folder / "lra", ()),
        "image-classification": (folder / "shapes", ()),
    }.get(recipe.task, (folder / "text.txt", SHRUNK_TEXT))
    if recipe.task == "glue":
        output = train(
            name, data=folder / "glue", output=folder / name, overrides=SHRUNK_TRAINING, init=folder / "masked"
        )
    elif "family" in recipe.model:
        wanted = [
            override
            for override in SHRUNK_PUBLISHED
            if "adaptive" not in override or "adaptive_input" in recipe.model["options"]
        ]
        output = train(name, data=data, output=folder / name, overrides=(*wanted, *overrides))
    else:
        mixers = recipe.model["mixers"]
        ends = f"model.mixers={json.dumps([mixers[0], mixers[-1]])}"
        output = train(name, data=data, output=folder / name, overrides=(*SHRUNK, *overrides, ends))
    metrics = json.loads((output / "metrics.json").read_text())
    if metrics["steps"] != 2 or not math.isfinite(metrics["loss"]):
        raise SystemExit(f"{name}: {metrics}")
    return f"{name}: {time.perf_counter() - start:.1f} s"


def main(names: list[str]) -> None:
    """Run each recipe, two at a time."""
    # On 2 cores one thread a process and two processes is faster than the reverse.
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["SUBQUAD_CACHE"] = str(folder / "cache")
        from subquad.training.train import train

        (folder / "text.txt").write_text(TEXT)
        write_lra(folder / "lra")
        write_glue(folder / "glue")
        write_shapes(folder / "shapes")
        train("tnn-mlm-tiny", data=folder / "text.txt", output=folder / "masked", overrides=(*SHRUNK, *SHRUNK_TEXT))
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
            for line in pool.map(partial(run, folder=folder), names or shipped()):
                print(line, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
