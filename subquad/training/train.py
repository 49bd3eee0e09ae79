"""Train a model from a recipe into a run folder: what `subquad train` does."""

import dataclasses
import json
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import uuid
from collections.abc import Iterable
from contextlib import AbstractContextManager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import transformers

from subquad._version import __version__
from subquad.data import load_tokenizer
from subquad.data.sources import DataValue
from subquad.evaluation.files import written
from subquad.evaluation.runs import quiet_transformers
from subquad.registry import unknown_name
from subquad.training.checkpoints import KEPT, last_complete, step_of
from subquad.training.ema import FOLDER as EMA_FOLDER
from subquad.training.loggers import check_loggers, log_in, reports
from subquad.training.optimizer import OPTIMIZERS
from subquad.training.recipe import Recipe, load_recipe
from subquad.training.sampler import fitting_batch_size, num_devices
from subquad.training.schedules import build_schedule
from subquad.training.tasks import Task, task_class
from subquad.training.trainer import SubquadTrainer, training_arguments

# What may change when a run is resumed: nothing that its earlier updates depend on.
RESUMABLE = frozenset(
    ["steps", "max_seconds", "eval_steps", "save_steps", "log_steps", "device_batch_size", "num_workers", "report_to"]
)


def train(
    recipe: str | Path | None,
    data: DataValue | None = None,
    output: Path | str | None = None,
    overrides: Iterable[str] = (),
    resume: Path | str | None = None,
    init: Path | str | None = None,
) -> Path:
    """Train a model.

    Under `torchrun` or `accelerate launch` every process calls this; the numbers do not depend on how many they are.

    Args:
        recipe: Name of a recipe of the package, or a YAML file; None to resume.
        data: What to train on instead of the recipe's data; see `subquad.data.open_source`.
        output: Run folder; default: `runs/` and the name of the recipe.
        overrides: Changes of the recipe, `section.key=value`.
        resume: A run folder to continue, exactly as if it had never stopped; it needs nothing else (a finetuned one
            the run that it began with).
        init: A run folder whose model and tokenizer are trained on, in place of the recipe's; `overrides` of `model`
            change its configuration.

    Returns:
        The run folder.

    Raises:
        ValueError: Something in the recipe, the data or the folder does not fit; raised before long work. Also
            `DivergedError`, when the loss is no longer finite.
        OSError: The disk is full.
    """
    if (recipe is None) == (resume is None):
        raise ValueError("give either a recipe, or a run folder to resume")
    if resume is not None:
        if output is not None:
            raise ValueError(f"a resumed run stays in its folder, {resume}: leave `output` out")
        if init is not None:
            raise ValueError(f"a resumed run goes on with its own weights, {resume}: leave `init` out")
        folder = Path(resume)
        resolved = _recipe_of_run(folder, overrides)
    else:
        assert recipe is not None
        resolved = load_recipe(recipe, overrides)
        if init is not None and not task_class(resolved.task).starts_from_run:
            # The run brings a model, and the recipe's own gives way: what is set here changes that of the run.
            resolved = load_recipe(recipe, ["model={}", *overrides])
        folder = Path(output) if output is not None else Path("runs") / Path(recipe).stem
    section: Any = resolved.data
    if data is not None:
        section.source = [str(value) for value in data] if isinstance(data, list | tuple) else str(data)
    section.source = _absolute(section.source)
    if init is not None:
        resolved.init = str(init)
    if resolved.init is not None:
        resolved.init = str(Path(resolved.init).resolve())
    _check(resolved)

    try:
        with quiet_transformers():
            return _Run(folder, resolved, is_resumed=resume is not None).train()
    finally:
        if torch.distributed.is_initialized() and num_devices() > 1:
            torch.distributed.destroy_process_group()


class _Run:
    """One call of `train`: a folder, a recipe, and what `run.json` says."""

    def __init__(self, folder: Path, recipe: Recipe, *, is_resumed: bool) -> None:
        self.folder = folder
        self.recipe = recipe
        self.is_resumed = is_resumed
        self.info: dict[str, Any] = {}
        self.is_main = False

    def train(self) -> Path:
        training = self.recipe.training
        args = training_arguments(training, self.folder, task_class(self.recipe.task).selected_by)
        self.is_main = args.process_index == 0
        # The first process finds mistakes and prepares the data; then the others read what it wrote.
        with args.main_process_first(local=False):
            if self.is_main and not self.is_resumed:
                _check_is_free(self.folder)
            if self.is_main:
                log_in(training.report_to)
            task = self._task()
            torch.manual_seed(training.seed)
            model = task.build_model()
            if self.is_main:
                _check_space(self.folder, model.num_parameters(), 4 if training.ema_decay else 3)
                self._begin(task, model.num_parameters())
        checkpoint = last_complete(self.folder / "checkpoints") if self.is_resumed else None
        seconds = _seconds_at(checkpoint)
        logged = self._cut_log(0 if checkpoint is None else step_of(checkpoint)) if self.is_main else 0
        trainer = SubquadTrainer(task, model, training, args, self.folder, seconds)
        self._say(_description(task, model, trainer, args, checkpoint))
        try:
            with self._reports(logged) as callbacks, trainer.stop.listening():
                for callback in callbacks:
                    trainer.add_callback(callback)
                trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        except BaseException as error:
            self._write_info(status="interrupted" if isinstance(error, KeyboardInterrupt) else "failed")
            raise
        if trainer.stop.reason == "signal":
            self._write_info(status="interrupted")
            self._say(f"saved; continue with: subquad train --resume {self.folder}")
        elif self.is_main:
            self._finish(task, trainer)
        return self.folder

    def _reports(self, logged: int) -> AbstractContextManager[list[Any]]:
        """What hands the log on to loggers, from the first update that they have not seen."""
        names = self.recipe.training.report_to if self.is_main else []
        recipe = dataclasses.asdict(self.recipe)
        return reports(names, self.folder, recipe, run_id=self.info.get("id", ""), after=logged)

    def _task(self) -> Task:
        has_tokenizer = self.is_resumed and (self.folder / "tokenizer_config.json").is_file()
        tokenizer = load_tokenizer(self.folder) if has_tokenizer else None
        task = task_class(self.recipe.task)(self.recipe, tokenizer)
        if self.is_resumed:
            self.info = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
            record, expected = task.data_record(), self.info["data"]["fingerprint"]
            if record["fingerprint"] != expected:
                raise ValueError(
                    f"{record['name']}: not the data that {self.folder} was trained on (fingerprint "
                    f"{record['fingerprint'][:12]}, expected {expected[:12]}): give that data, or start a new run"
                )
        for split in (task.train_data, task.valid_data):
            assert len(split)  # pyright: ignore[reportArgumentType]
        return task

    def _begin(self, task: Task, num_parameters: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with written(self.folder / "recipe.yaml") as path:
            path.write_text(self.recipe.to_yaml(), encoding="utf-8")
        tokenizer = task.tokenizer
        if tokenizer is not None and not self.is_resumed:
            tokenizer.save(self.folder)
        self._write_info(
            **_provenance(),
            id=self.info.get("id", uuid.uuid4().hex[:8]),
            status="running",
            started=self.info.get("started", _now()),
            finished=None,
            data=task.data_record(),
            vocabulary=None if tokenizer is None else tokenizer.vocabulary.as_dict(),
            parameters=num_parameters,
        )

    def _finish(self, task: Task, trainer: SubquadTrainer) -> None:
        state: Any = trainer.state
        model_class: Any = type(trainer.accelerator.unwrap_model(trainer.model))
        speed = f"{task.unit}_per_second"
        run = {
            "task": self.recipe.task,
            "unit": task.unit,
            speed: statistics.median(line[speed] for line in state.log_history if speed in line),
            "peak_memory_bytes": _peak_memory(trainer.args.device),
            "train_seconds": round(trainer.elapsed(), 3),
            "steps": state.global_step,
            "best_step": state.best_global_step,
            f"{task.unit}_trained": state.num_input_tokens_seen,
        }

        def figures(folder: Path, weights: str = "") -> dict[str, Any]:
            model = model_class.from_pretrained(folder).to(trainer.args.device)
            found = task.final_metrics(model, progress=sys.stderr.isatty()) | {"parameters": model.num_parameters()}
            self._say(f"{found['split']}{weights}: {task.describe(found)}")
            return found

        metrics = figures(self.folder) | run
        if task.reports_last:
            last = last_complete(self.folder / "checkpoints")
            if last is None or step_of(last) == state.best_global_step:
                of_last = metrics
            else:
                of_last = figures(last, ", last weights")
            metrics[f"last_{task.selected_by}"] = of_last[task.selected_by]
        if trainer.ema:
            average = figures(self.folder / EMA_FOLDER, ", moving average")
            metrics |= {"weights": "raw", EMA_FOLDER: average}
            self._write_metrics(self.folder / EMA_FOLDER, average | run | {"weights": "moving average"})
        self._write_metrics(self.folder, metrics)
        self._write_info(status="finished", finished=_now())
        if trainer.ema:
            # The average is a run of its own for all commands that read one.
            for path in (self.folder / "run.json", self.folder / "recipe.yaml", *self.folder.glob("tokenizer*")):
                shutil.copyfile(path, self.folder / EMA_FOLDER / path.name)

    @staticmethod
    def _write_metrics(folder: Path, metrics: dict[str, Any]) -> None:
        with written(folder / "metrics.json") as path:
            path.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")

    def _write_info(self, **values: Any) -> None:
        if self.is_main:
            self.info |= values
            with written(self.folder / "run.json") as path:
                path.write_text(json.dumps(self.info, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def _cut_log(self, step: int) -> int:
        """Drop the lines of the log from after the checkpoint; its updates are done again. Returns the last of them."""
        path = self.folder / "log.jsonl"
        if not path.exists():
            return 0
        kept, last = [], 0
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                last = json.loads(line)["step"]
            except ValueError:  # a line that was being written when the run ended
                continue
            if last <= step:
                kept.append(line + "\n")
        with written(path) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")
        return last

    def _say(self, text: str) -> None:
        if self.is_main:
            print(text, file=sys.stderr)


def _status_of_run(folder: Path) -> Any:
    try:
        info = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        info = None
    if not isinstance(info, dict):
        raise ValueError(f"{folder / 'run.json'}: damaged, not a JSON object: it does not say what to resume")
    return info.get("status")


def _recipe_of_run(folder: Path, overrides: Iterable[str]) -> Recipe:
    """The recipe of a run to resume."""
    path = folder / "recipe.yaml"
    if not path.is_file() or not (folder / "run.json").is_file():
        raise ValueError(f"{folder}: not a run folder (no recipe.yaml and run.json): nothing to resume")
    status = _status_of_run(folder)
    if status == "converted":
        raise ValueError(
            f"{folder}: a converted checkpoint, there is no training to resume; `subquad train RECIPE --init {folder}` "
            "goes on with its model"
        )
    overrides = list(overrides)
    for override in overrides:
        section, _, key = override.partition("=")[0].partition(".")
        if section != "training" or key not in RESUMABLE:
            raise ValueError(
                f"{override!r} would make the resumed run another one; what may change is "
                f"{', '.join(f'training.{name}' for name in sorted(RESUMABLE))}"
            )
    recipe = load_recipe(path, overrides)
    last = last_complete(folder / "checkpoints")
    if status == "finished" and not overrides and last is not None:
        raise ValueError(
            f"{folder}: finished after {step_of(last)} updates; to go on, --set training.steps=N (or max_seconds)"
        )
    return recipe


def _check(recipe: Recipe) -> None:
    """Raise an error for everything that is wrong without looking at the data."""
    training = recipe.training
    build_schedule(training.schedule, training.steps)
    if training.beta1_schedule is not None:
        build_schedule(training.beta1_schedule, training.steps)
    if training.optimizer not in OPTIMIZERS:
        raise ValueError(unknown_name("optimizer", training.optimizer, OPTIMIZERS))
    check_loggers(training.report_to)
    fitting_batch_size(training.batch_size, training.device_batch_size, num_devices())
    task = task_class(recipe.task)
    if task.starts_from_run and recipe.init is None:
        raise ValueError(f"the task {recipe.task} finetunes the model of a run: give its folder, --init RUN")
    task.check(recipe)


def _check_is_free(folder: Path) -> None:
    """Never write into what is there."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder}: is a file; choose another output folder")
    if (folder / "run.json").is_file():
        raise ValueError(f"{folder}: holds a run already; continue it with --resume {folder}, or choose another output")
    if any(folder.iterdir()):
        raise ValueError(f"{folder}: is not empty; choose another output folder")


def _check_space(folder: Path, num_parameters: int, copies: int) -> None:
    # A checkpoint is the weights, two moments and perhaps an average: `copies` numbers for each parameter. One is being
    # written while `KEPT` and the best are there, and so is the model of the run folder.
    needed = num_parameters * 4 * (copies * (KEPT + 2) + copies - 2)
    place = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise ValueError(
            f"{folder}: the checkpoints of {num_parameters:,} parameters need {needed / 1e9:.2g} GB, "
            f"{free / 1e9:.2g} GB are free: choose another output folder"
        )


def _absolute(source: str | list[str]) -> str | list[str]:
    """Paths that later commands find from any working folder."""
    if isinstance(source, list):
        return [str(_absolute(value)) for value in source]
    return str(Path(source).resolve()) if Path(source).exists() else source


def _seconds_at(checkpoint: Path | None) -> float:
    if checkpoint is None:
        return 0.0
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    return max((line["time"] for line in state["log_history"]), default=0.0)


def _description(task: Task, model: Any, trainer: SubquadTrainer, args: Any, checkpoint: Path | None) -> str:
    training = trainer.recipe
    groups = [
        f"{sum(p.numel() for p in group['params']):,} with weight decay {group['weight_decay']:g}"
        for group in trainer.create_optimizer().param_groups
    ]
    lines = [
        f"{model.num_parameters():,} parameters, trained: {', '.join(groups)}",
        f"{training.steps:,} updates of {training.batch_size} {task.example_name}: "
        f"{args.world_size} × {args.per_device_train_batch_size} at once, {args.gradient_accumulation_steps} times, "
        f"on {args.device.type}, {training.precision}",
    ]
    if checkpoint is not None:
        lines.append(f"continues after update {step_of(checkpoint):,}")
    return "\n".join(lines)


def _provenance() -> dict[str, Any]:
    return {
        "version": __version__,
        "git": _git_state(),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "hardware": _hardware(),
        "devices": num_devices(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _git_state() -> dict[str, Any] | None:
    """Commit of the library, where it runs from a clone."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "modified": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _hardware() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    return f"{name}, {os.cpu_count()} cores"


def _peak_memory(device: torch.device) -> int | None:
    """Most memory in use at once: what torch allocated on a GPU, the process on a CPU; None where it is not known."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
