"""The trainer: Hugging Face's, with exact normalisation, evaluation, order of data and checkpoints.

What differs from `transformers.Trainer`, and why:

- The loss of an update is the sum over its targets divided by their number, over all devices and accumulation steps.
- The order of the data does not depend on the number of devices (`UpdateBatches`).
- Evaluation divides sums over the whole data; the mean of batch means is another number.
- A checkpoint is written under a temporary name and renamed; the last two and the best are kept.
- A loss or gradient that is not finite stops the run before it reaches the weights.
"""

import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainingArguments

from subquad.evaluation.files import written
from subquad.training import ema
from subquad.training.callbacks import (
    LogFile,
    ProgressBar,
    SaveEvaluated,
    ScheduleBeta1,
    SeedUpdates,
    Stop,
    TakeIntervals,
)
from subquad.training.checkpoints import PREFIX, remove_old
from subquad.training.optimizer import build_optimizer
from subquad.training.recipe import TrainingRecipe
from subquad.training.sampler import Epochs, UpdateBatches, fitting_batch_size, num_devices
from subquad.training.schedules import build_schedule
from subquad.training.tasks import Task


class DivergedError(ValueError):
    """The loss or its gradient is not a finite number."""


def training_arguments(recipe: TrainingRecipe, folder: Path, selected_by: str = "loss") -> TrainingArguments:
    """The arguments of `transformers.Trainer` for a recipe.

    Args:
        recipe: The training.
        folder: Run folder; checkpoints go to `folder`/checkpoints.
        selected_by: See `Task`.
    """
    size = fitting_batch_size(recipe.batch_size, recipe.device_batch_size, num_devices())
    args = TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        seed=recipe.seed,
        max_steps=recipe.steps,
        per_device_train_batch_size=size,
        per_device_eval_batch_size=size,
        gradient_accumulation_steps=recipe.batch_size // (size * num_devices()),
        max_grad_norm=recipe.max_grad_norm,
        use_cpu=not torch.accelerator.is_available(),
        bf16=recipe.precision == "bf16",
        fp16=recipe.precision == "fp16",
        logging_steps=recipe.log_steps,
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=recipe.eval_steps,
        save_strategy="steps",
        save_steps=recipe.save_steps or recipe.eval_steps,
        metric_for_best_model=f"eval_{selected_by}",
        greater_is_better=selected_by != "loss",
        dataloader_num_workers=recipe.num_workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,
        use_cache=True,  # the trainer writes it into the configuration of the saved model
        disable_tqdm=True,
        log_level="error",
        report_to=[],  # `subquad.training.loggers` has its own callbacks
    )
    args._n_gpu = min(args.n_gpu, 1)  # one process uses one device: `DataParallel` is slow, and normalises otherwise
    return args


class SubquadTrainer(Trainer):
    """Trains the model of a task.

    Args:
        task: Data, model and figures.
        model: The model.
        recipe: The training.
        args: From `training_arguments`.
        folder: Run folder; gets the log and the best model.
        seconds_before: Time that earlier parts of a resumed run have taken.
    """

    def __init__(
        self,
        task: Task,
        model: PreTrainedModel,
        recipe: TrainingRecipe,
        args: TrainingArguments,
        folder: Path,
        seconds_before: float = 0.0,
    ) -> None:
        self.task = task
        self.recipe = recipe
        self.folder = folder
        self._start = time.perf_counter() - seconds_before
        self._last_log: tuple[float, int] | None = None
        self._seconds_aside = 0.0
        self.stop = Stop(recipe.max_seconds, self.elapsed)
        self.ema = None if recipe.ema_decay is None else ema.MovingAverage(recipe.ema_decay)
        super().__init__(
            model=model,
            args=args,
            data_collator=task.collate,
            train_dataset=task.train_data,
            eval_dataset=task.valid_data,
            callbacks=[
                TakeIntervals(),
                SeedUpdates(),
                self.stop,
                SaveEvaluated(),
                LogFile(folder / "log.jsonl"),
                ProgressBar(task.selected_by, task.unit),
                *([self.ema] if self.ema else []),
            ],
        )
        if self.ema and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise ValueError("training.ema_decay needs all weights on every device: set it to null to shard the model")
        self.remove_callback(PrinterCallback)
        if recipe.beta1_schedule is not None:
            self.add_callback(ScheduleBeta1(build_schedule(recipe.beta1_schedule, recipe.steps)))
        if recipe.gradient_checkpointing:
            # transformers 5.2x has a new name for it, and warns of the old one.
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable()

    def elapsed(self) -> float:
        """Seconds since the run began, resumed parts included."""
        return time.perf_counter() - self._start

    # Data

    def get_train_dataloader(self) -> DataLoader:
        """The batches of this device."""
        args = self.args
        sampler = UpdateBatches(
            len(self.train_dataset),  # pyright: ignore[reportArgumentType]
            args.seed,
            steps=args.max_steps,
            batch_size=self.recipe.batch_size,
            device_batch_size=args.per_device_train_batch_size,
            device=args.process_index,
            num_devices=args.world_size,
            repeats=self.task.repeats,
        )
        return self._dataloader(Epochs(self.train_dataset), sampler, self.task.collate)

    def _dataloader(self, data: Any, batches: Any, collate: Callable[[Sequence[Any]], dict[str, Tensor]]) -> DataLoader:
        return DataLoader(
            data,
            batch_sampler=batches,
            collate_fn=collate,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            generator=torch.Generator(),  # so that reading data draws nothing from torch's own
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor]:
        """The batches of one update, and the number of targets in it over all devices."""
        if self._last_log is None:
            self._last_log = time.perf_counter(), self.state.num_input_tokens_seen
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        counts = torch.tensor([[self.task.num_targets(batch), self.task.num_units(batch)] for batch in batches]).sum(0)
        if self.args.world_size > 1:
            counts = self.accelerator.reduce(counts.to(device))
        assert isinstance(counts, Tensor)
        num_targets, num_units = counts.tolist()
        self.state.num_input_tokens_seen += num_units  # the field that transformers saves
        # Where nothing is to be predicted, the loss and its gradient are zero.
        return batches, torch.tensor(max(num_targets, 1), device=device)

    # Optimisation

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimiser of the recipe; the learning rate is a factor of 1, which the schedule multiplies."""
        recipe = self.recipe
        if self.optimizer is None:
            self.optimizer = build_optimizer(
                model or self.model,  # pyright: ignore[reportArgumentType]
                recipe.optimizer,
                lr=1.0,
                betas=(recipe.betas[0], recipe.betas[1]),
                eps=recipe.eps,
                weight_decay=recipe.weight_decay,
                decay=recipe.decay,
            )
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """The schedule of the recipe."""
        if self.lr_scheduler is None:
            schedule = build_schedule(self.recipe.schedule, num_training_steps)
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, schedule)  # pyright: ignore
        return self.lr_scheduler

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        # The last thing before the weights change, and equal on all devices. In fp16 the loss scaler looks for overflow
        # and leaves the update out.
        norm: Any = super()._get_grad_norm(model, grad_norm)
        if self.recipe.precision != "fp16" and not math.isfinite(float(norm)):
            self._diverge("the gradient of the loss", float(norm))
        return norm

    def _diverge(self, what: str, value: float) -> None:
        raise DivergedError(
            f"{what} is {value} at update {self.state.global_step + 1}: a smaller training.schedule.peak, a longer "
            f"warmup or training.max_grad_norm may help; the checkpoints in {self.args.output_dir} are from before"
        )

    # Figures

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Complete a line of the log with time and speed, and hand it to the callbacks."""
        if "train_runtime" in logs:
            return  # a summary that metrics.json replaces
        for name in ("loss", "eval_loss"):
            if name in logs and not math.isfinite(logs[name]):
                self._diverge(name, logs[name])
        seen, unit = self.state.num_input_tokens_seen, self.task.unit
        line = {"time": round(self.elapsed(), 3), **logs}
        if "loss" in logs:
            assert self._last_log is not None
            now = time.perf_counter()
            then, seen_then = self._last_log
            line[unit] = seen
            line[f"{unit}_per_second"] = (seen - seen_then) / (now - then - self._seconds_aside)
            line["epoch"] = self.state.global_step * self.recipe.batch_size / len(self.train_dataset)  # pyright: ignore
            self._last_log, self._seconds_aside = (now, seen), 0.0
        self.state.log_history.append({"step": self.state.global_step, **line})
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, line)

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Time that is not counted as training."""
        start = time.perf_counter()
        yield
        self._seconds_aside += time.perf_counter() - start

    @torch.no_grad()
    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Figures of the validation data, from sums over all of it."""
        with self._aside():
            data: Any = self.eval_dataset if eval_dataset is None else eval_dataset
            size, devices = self.args.per_device_eval_batch_size, self.args.world_size
            batches = [range(start, min(start + size, len(data))) for start in range(0, len(data), size)]
            # Sharded models need equally many batches on all devices: surplus ones are scored, and not counted.
            mine = range(self.args.process_index, math.ceil(len(batches) / devices) * devices, devices)
            padded = [batches[index % len(batches)] for index in mine]
            loader = self._dataloader(data, padded, self.task.collate_valid)
            sums = torch.zeros(len(self.task.score_names), dtype=torch.float64)
            assert isinstance(self.model, nn.Module)
            self.model.eval()
            for index, batch in zip(mine, loader, strict=True):
                scores = self.task.score(self.model, self._prepare_inputs(batch))
                if index < len(batches):
                    sums += scores
            if devices > 1:
                sums = self.accelerator.reduce(sums.to(self.args.device))
            assert isinstance(sums, Tensor)
            summary = self.task.summary(dict(zip(self.task.score_names, sums.tolist(), strict=True)))
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in summary.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # Checkpoints

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        with self._aside():
            folder = self.folder / "checkpoints"
            temporary = folder / ".saving"
            if self.args.should_save:
                shutil.rmtree(temporary, ignore_errors=True)
            self.accelerator.wait_for_everyone()
            self.args.output_dir = str(temporary)
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self.args.output_dir = str(folder)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                name = f"{PREFIX}{self.state.global_step}"
                (temporary / name / "training_args.bin").unlink(missing_ok=True)  # a pickle that nothing reads
                if self.ema:
                    self.ema.save(temporary / name)
                shutil.rmtree(folder / name, ignore_errors=True)
                (temporary / name).replace(folder / name)
                shutil.rmtree(temporary)
                if self.state.best_global_step in (None, self.state.global_step):
                    self._publish(folder / name)
                remove_old(folder, self.state.best_global_step)
            self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.ema:
            self.ema.load(Path(resume_from_checkpoint), self.args.device)

    def _publish(self, checkpoint: Path) -> None:
        """Make a checkpoint the model of the run folder, and its moving average that of a folder in it."""
        configs = {path.name: path for path in checkpoint.glob("*config.json")}
        weights = {path.name: path for path in checkpoint.glob("model*.safetensors*")}
        published = {self.folder: weights | configs}
        if self.ema:
            published[self.folder / ema.FOLDER] = {"model.safetensors": checkpoint / ema.FILE} | configs
        for folder, files in published.items():
            folder.mkdir(exist_ok=True)
            for name, path in files.items():
                with written(folder / name) as copy:
                    shutil.copyfile(path, copy)
