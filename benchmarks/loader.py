"""How fast data becomes batches, in one process, against how fast a tiny model learns from them.

python benchmarks/loader.py [CASE ...] [--batches 4] [--repeats 5] [--json FILE]

The data is made up, in the files and with the lengths of the real one. The model is as small as one that learns: two
layers of a real recurrence, 32 features. Where the loader is three times as fast, it never keeps a model waiting.
"""

import argparse
import itertools
import json
import os
import pickle
import statistics
import struct
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from side_by_side import processor, time_side_by_side
from torch import Tensor
from torch.utils.data import DataLoader

from subquad import SubquadConfig, SubquadForMaskedLM
from subquad.data import build_tokenizer
from subquad.data.lra import ListOpsLimits, generate_listops
from subquad.data.pillow import pillow
from subquad.training.recipe import Recipe, load_recipe
from subquad.training.sampler import Epochs, UpdateBatches
from subquad.training.tasks import Task, task_class

SEED = 0
BATCH = 8
EXAMPLES = 64
TINY = (
    "model.hidden_size=32",
    "model.num_hidden_layers=2",
    "model.mixers=[{type: hgru}]",
    "model.auxiliary_loss_weights=null",
    "model.channel_mixer={type: glu, hidden_size: 32}",
)
# Recipe and the changes that a case needs.
CASES = {
    "listops": ("tnn-lra-listops", ()),
    "listops, bytes": ("primal-lra-listops", ()),
    "text": ("tnn-lra-text", ()),
    "text, bytes": ("primal-lra-text", ()),
    "retrieval": ("tnn-lra-retrieval", ()),
    "retrieval, bytes": ("primal-lra-retrieval", ()),
    "image": ("tnn-lra-image", ()),
    "image, augmented": ("hgrn-lra-image", ()),
    "image, bytes": ("primal-lra-image", ()),
    "pathfinder": ("tnn-lra-pathfinder", ()),
    "path-x": ("tnn-lra-pathx", ()),
    "causal": ("tnn-tiny", ("data.tokenizer=bytes",)),
    "masked": ("tnn-mlm-tiny", ("data.tokenizer=bytes",)),
    "glue, a sentence": ("glue-cola", ()),
    "glue, a pair": ("glue-rte", ()),
    "patches": ("tnn-image-tiny", ()),
    "patches, augmented": (
        "tnn-image-tiny",
        (
            "data.augmentation.crop=random-resized",
            "data.augmentation.flip=0.5",
            "data.augmentation.erasing=0.25",
            "data.augmentation.mixup=0.8",
        ),
    ),
}


# Files


def words(rng: np.random.Generator, length: int) -> str:
    """About `length` characters of words that do not mean anything."""
    letters = rng.choice(list("etaoin shrdlu cmfwyp "), length)
    return " ".join("".join(letters).split())


def write_data(folder: Path) -> None:
    """Small copies of all data sets."""
    rng = np.random.default_rng(SEED)
    limits = ListOpsLimits()
    generate_listops(folder, train=EXAMPLES, valid=2, test=2, limits=limits, seed=SEED, num_workers=1, progress=False)
    for split, sentiment in itertools.product(("train", "test"), ("neg", "pos")):
        place = folder / "aclImdb" / split / sentiment
        place.mkdir(parents=True)
        for number in range(EXAMPLES // 2):
            (place / f"{number}_1.txt").write_text(words(rng, int(rng.exponential(1300)) + 100))
    for split, count in (("train", EXAMPLES), ("eval", 2), ("test", 2)):
        lines = (f"{row % 2}.0\t1\t2\t{words(rng, 8000)}\t{words(rng, 8000)}\n" for row in range(count))
        (folder / f"new_aan_pairs.{split}.tsv").write_text("".join(lines))
    write_cifar(folder / "cifar-10-batches-py", rng)
    for resolution in (32, 128):
        write_pathfinder(folder / f"pathfinder{resolution}" / "curv_contour_length_14", resolution, rng)
    (folder / "text.txt").write_text("\n".join(words(rng, 200) for _ in range(1000)))
    write_glue(folder, rng)
    write_mnist(folder / "mnist", rng)


def write_cifar(folder: Path, rng: np.random.Generator) -> None:
    folder.mkdir()
    for name in (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"):
        data = rng.integers(256, size=(EXAMPLES, 3072), dtype=np.uint8)
        batch = {b"data": data, b"labels": (np.arange(EXAMPLES) % 10).tolist()}
        (folder / name).write_bytes(pickle.dumps(batch, 2))


def write_mnist(folder: Path, rng: np.random.Generator) -> None:
    folder.mkdir()
    for part in ("train", "t10k"):
        pixels = rng.integers(256, size=(EXAMPLES, 28, 28)).astype(np.uint8)
        head = struct.pack(">4I", 0x803, *pixels.shape)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        labels = rng.permutation(np.arange(EXAMPLES) % 10).astype(np.uint8)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, EXAMPLES) + labels.tobytes())


def write_pathfinder(folder: Path, resolution: int, rng: np.random.Generator) -> None:
    (folder / "metadata").mkdir(parents=True)
    (folder / "imgs" / "0").mkdir(parents=True)
    lines = []
    for number in range(EXAMPLES):
        # As dark as the real images: they are mostly background.
        pixels = rng.integers(256, size=(resolution, resolution)) * (rng.random((resolution, resolution)) < 0.1)
        pillow().fromarray(pixels.astype(np.uint8)).save(folder / f"imgs/0/sample_{number}.png")
        lines.append(f"imgs/0 sample_{number}.png {number} {number % 2} 1.0 14 4 2 0.5 1 1\n")
    (folder / "metadata" / "0.npy").write_text("".join(lines))


def write_glue(folder: Path, rng: np.random.Generator) -> None:
    """CoLA and RTE, and the masked model that is finetuned."""
    for name in ("CoLA", "RTE"):
        (folder / name).mkdir()
    for split in ("train", "dev"):
        rows = [f"x\t{row % 2}\t\t{words(rng, 45)}\n" for row in range(EXAMPLES)]
        (folder / "CoLA" / f"{split}.tsv").write_text("".join(rows))
        classes = ("entailment", "not_entailment")
        rows = [f"{row}\t{words(rng, 250)}\t{words(rng, 50)}\t{classes[row % 2]}\n" for row in range(EXAMPLES)]
        (folder / "RTE" / f"{split}.tsv").write_text("index\tsentence1\tsentence2\tlabel\n" + "".join(rows))
    tokenizer = build_tokenizer("bytes")
    tokenizer.add_mask()
    tokenizer.save(folder / "masked")
    options = load_recipe("tnn-mlm-tiny", TINY).model
    SubquadForMaskedLM(SubquadConfig(vocab_size=tokenizer.num_ids, **options)).save_pretrained(folder / "masked")


# Cases


def open_case(folder: Path, name: str) -> Task:
    """The task of a case, with its data."""
    recipe_name, changes = CASES[name]
    glue = recipe_name.startswith("glue-")
    recipe: Recipe = load_recipe(recipe_name, (*(() if glue else TINY), *changes))
    section: Any = recipe.data
    section.source = str(folder / {"causal-lm": "text.txt", "masked-lm": "text.txt"}.get(recipe.task, ""))
    if recipe.task == "image-classification":
        section.source = str(folder / "mnist")
    recipe.init = str(folder / "masked") if glue else None
    return task_class(recipe.task)(recipe)


def batches(task: Task, num_batches: int) -> Iterator[dict[str, Tensor]]:
    """The first batches of training."""
    data: Any = task.train_data
    sampler = UpdateBatches(len(data), SEED, steps=num_batches, batch_size=BATCH, device_batch_size=BATCH)
    yield from DataLoader(Epochs(data), batch_sampler=sampler, collate_fn=task.collate)


def trainer(task: Task, ready: list[dict[str, Tensor]]) -> Callable[[], None]:
    """A function that does an update with each of the batches."""
    model: Any = task.build_model().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def updates() -> None:
        for batch in ready:
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return updates


def consume(items: Iterable[Mapping[str, Tensor]]) -> None:
    """Ask for all of them."""
    for _ in items:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if unknown := set(args.cases) - set(CASES):
        parser.error(f"no case {sorted(unknown)}; there are: {', '.join(CASES)}")
    warnings.filterwarnings("ignore", message="Long Range Arena .* the published data has")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {processor()}; batches of {BATCH}, medians")
    print(f"{'':22s}{'loader':>14s}{'training':>14s}   tokens, pixels or images a second")
    results = {}
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["SUBQUAD_CACHE"] = str(Path(temporary) / "cache")
        folder = Path(temporary) / "data"
        folder.mkdir()
        write_data(folder)
        for name in args.cases or CASES:
            torch.manual_seed(SEED)
            task = open_case(folder, name)
            ready = list(batches(task, args.batches))
            size = sum(int(task.num_units(batch)) for batch in ready)
            candidates = {
                "loader": lambda task=task: consume(batches(task, args.batches)),
                "training": trainer(task, ready),
            }
            times = time_side_by_side(candidates, args.repeats)
            loader, training = (size / statistics.median(times[key]) for key in ("loader", "training"))
            results[name] = {"tokens": size, "seconds": times, "ratio": loader / training}
            print(f"{name:22s}{loader:14,.0f}{training:14,.0f}   {loader / training:6.1f}×", flush=True)
    if args.json is not None:
        content = {"command": sys.argv, "processor": processor(), "torch": torch.__version__, "cases": results}
        args.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
