"""Loggers beside `log.jsonl`: TensorBoard, Trackio, Weights & Biases.

Each gets the lines of the log, at the update that they are of: `loss` as `train/loss`, `eval_loss` as `eval/loss`.
transformers has callbacks for the same; they name runs and folders as they like, count lines in place of updates, and
begin a new curve when a run is resumed.
"""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, redirect_stdout
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import yaml
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from subquad.registry import unknown_name

PROJECT = "subquad"
Log = Callable[[dict[str, float], int], Any]


class Report(TrainerCallback):
    """Hands the lines of the log to a logger.

    Args:
        log: Takes figures and the number of the update.
        after: The last update that the logger has seen: a resumed run repeats some, and they are the same.
    """

    def __init__(self, log: Log, after: int) -> None:
        self.log = log
        self.after = after

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Hand a line on."""
        if state.global_step > self.after:
            self.log({_curve(name): value for name, value in (logs or {}).items()}, state.global_step)


def check_loggers(names: Sequence[str]) -> None:
    """Hold that loggers are known and installed.

    Raises:
        ValueError: One is not; the message names the nearest name, or what to install.
    """
    for name in names:
        if name not in LOGGERS:
            raise ValueError(unknown_name("logger", name, LOGGERS))
        try:
            distribution(name)  # a folder `wandb`, of its runs, would pass for a module
        except PackageNotFoundError:
            raise ValueError(
                f"training.report_to: {name} is not installed: pip install {name}, or all loggers, 'subquad[loggers]'"
            ) from None


def log_in(names: Sequence[str]) -> None:
    """Ask for what a logger needs to know before anything is written: the key of Weights & Biases.

    Raises:
        ValueError: There is no key, and no terminal to ask at.
    """
    if "wandb" not in names or os.environ.get("WANDB_MODE", "online") != "online":
        return
    import wandb  # pyright: ignore[reportMissingImports]

    try:
        wandb.login()
    except wandb.Error as error:
        raise ValueError(f"training.report_to: wandb: {error} Or set WANDB_MODE=offline") from None


@contextmanager
def reports(
    names: Sequence[str], folder: Path, recipe: Mapping[str, Any], *, run_id: str, after: int = 0
) -> Iterator[list[TrainerCallback]]:
    """Open loggers for a training, and close them behind it.

    Args:
        names: Of the loggers.
        folder: Run folder.
        recipe: All entries of the recipe, which the loggers show beside the curves.
        run_id: What is the same when the run is resumed, and of no other run.
        after: See `Report`.

    Raises:
        ValueError: Weights & Biases cannot be reached.
    """
    with ExitStack() as stack:
        logs = [stack.enter_context(LOGGERS[name](folder, recipe, run_id)) for name in names]
        yield [Report(log, after) for log in logs]


def _curve(name: str) -> str:
    """What a figure is called by loggers, which draw curves with a slash in groups."""
    return f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"


@contextmanager
def _tensorboard(folder: Path, recipe: Mapping[str, Any], run_id: str) -> Iterator[Log]:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder / "tensorboard")) as writer:
        writer.add_text("recipe", f"```yaml\n{yaml.safe_dump(dict(recipe), sort_keys=False)}```")

        def log(figures: dict[str, float], step: int) -> None:
            for name, value in figures.items():
                writer.add_scalar(name, value, step)
            writer.flush()

        yield log


@contextmanager
def _trackio(folder: Path, recipe: Mapping[str, Any], run_id: str) -> Iterator[Log]:
    import trackio  # pyright: ignore[reportMissingImports]

    with redirect_stdout(sys.stderr):  # where the command prints nothing but the run folder
        run = trackio.init(PROJECT, name=f"{folder.name}-{run_id}", config=dict(recipe), resume="allow")
    try:
        yield run.log
    finally:
        with redirect_stdout(sys.stderr):
            trackio.finish()


@contextmanager
def _wandb(folder: Path, recipe: Mapping[str, Any], run_id: str) -> Iterator[Log]:
    import wandb  # pyright: ignore[reportMissingImports]

    project = os.environ.get("WANDB_PROJECT", PROJECT)
    try:
        run = wandb.init(
            project=project, name=folder.name, id=run_id, dir=str(folder), config=dict(recipe), resume="allow"
        )
    except wandb.Error as error:
        raise ValueError(f"training.report_to: wandb: {error}") from None
    with run:
        yield run.log


LOGGERS: dict[str, Callable[[Path, Mapping[str, Any], str], AbstractContextManager[Log]]] = {
    "tensorboard": _tensorboard,
    "trackio": _trackio,
    "wandb": _wandb,
}
"""What opens each logger: a function of run folder, recipe and identity of the run."""
