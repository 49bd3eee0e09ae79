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


def main(names: list[str]) -> None:
    """Train each recipe for a few updates and look at what it wrote."""
    warnings.filterwarnings("ignore", message="Long Range Arena .* the published data has")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SUBQUAD_CACHE"] = str(Path(folder) / "cache")
        from subquad.training.recipe import load_recipe
        from subquad.training.train import train

        text, lra = Path(folder) / "text.txt", Path(folder) / "lra"
        text.write_text(TEXT)
        write_lra(lra)
        glue = write_glue(Path(folder) / "glue")
        kinds = {
            "sequence-classification": (lra, ()),
            "image-classification": (write_shapes(Path(folder) / "shapes"), ()),
        }
        masked = train("tnn-mlm-tiny", data=text, output=Path(folder) / "masked", overrides=(*SHRUNK, *SHRUNK_TEXT))
        for name in names or shipped():
            start = time.perf_counter()
            recipe = load_recipe(name)
            output = Path(folder) / name
            if recipe.task == "glue":
                run = train(name, data=glue, output=output, overrides=SHRUNK_TRAINING, init=masked)
            elif "family" in recipe.model:
                wanted = [
                    override
                    for override in SHRUNK_PUBLISHED
                    if "adaptive" not in override or "adaptive_input" in recipe.model["options"]
                ]
                run = train(name, data=text, output=output, overrides=(*wanted, *SHRUNK_TEXT))
            else:
                mixers = recipe.model["mixers"]
                ends = f"model.mixers={json.dumps([mixers[0], mixers[-1]])}"
                data, overrides = kinds.get(recipe.task, (text, SHRUNK_TEXT))
                run = train(name, data=data, output=output, overrides=(*SHRUNK, *overrides, ends))
            metrics = json.loads((run / "metrics.json").read_text())
            if metrics["steps"] != 2 or not math.isfinite(metrics["loss"]):
                raise SystemExit(f"{name}: {metrics}")
            print(f"{name}: {time.perf_counter() - start:.1f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
