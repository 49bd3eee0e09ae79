"""What happens beside the updates: the log, the progress bar, stopping early."""

import json
import math
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from subquad.training.schedules import Schedule


class SeedUpdates(TrainerCallback):
    """Random numbers (dropout) are a function of the seed, the update and the device: the same after a resume."""

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Seed torch for the update that begins."""
        sequence = np.random.SeedSequence((args.seed, state.global_step, args.process_index))
        torch.manual_seed(int(sequence.generate_state(1)[0]))


class ScheduleBeta1(TrainerCallback):
    """β₁ of the optimiser is a function of the update, as in one-cycle training (arXiv 1708.07120).

    Args:
        schedule: From the number of updates done to the β₁ of the next one.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set β₁ for the update that begins."""
        for group in kwargs["optimizer"].param_groups:
            group["betas"] = (self.schedule(state.global_step), group["betas"][1])


class TakeIntervals(TrainerCallback):
    """Evaluations, log lines and checkpoints come as often as the recipe says, of a run that is resumed too."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Replace the intervals that a checkpoint brought."""
        state.compute_steps(args, state.max_steps)


class SaveEvaluated(TrainerCallback):
    """Every evaluated model is logged and saved, so the best one is there."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask for a log line and a checkpoint with each evaluation."""
        if control.should_evaluate:
            control.should_save = True
        if control.should_save:
            control.should_log = True


class LogFile(TrainerCallback):
    """`log.jsonl`: one JSON object a line, written through at once.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Append a line."""
        if state.is_world_process_zero:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **(logs or {})}) + "\n")


class ProgressBar(TrainerCallback):
    """Updates, time left, loss and speed, on the terminal of the first process.

    Args:
        selected_by: "loss", shown with the perplexity, or another figure of the validation data.
        unit: What speed is counted in.
    """

    def __init__(self, selected_by: str = "loss", unit: str = "tokens") -> None:
        self.selected_by = selected_by
        self.unit = unit
        self.bar: tqdm | None = None
        self.figures: dict[str, str] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Show the bar."""
        if state.is_world_process_zero:
            interval = 0.2 if sys.stderr.isatty() else 30
            self.bar = tqdm(
                total=state.max_steps, initial=state.global_step, unit="update", desc="train", mininterval=interval
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Advance."""
        if self.bar is not None:
            self.bar.update()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the last figures."""
        if self.bar is None or logs is None:
            return
        for name, prefix in (("loss", ""), ("eval_loss", "valid ")):
            if name in logs:
                self.figures[f"{prefix}loss"] = f"{logs[name]:.3f}"
                if self.selected_by == "loss":
                    self.figures[f"{prefix}ppl"] = f"{perplexity(logs[name]):.1f}"
        if self.selected_by != "loss" and f"eval_{self.selected_by}" in logs:
            self.figures[f"valid {self.selected_by}"] = f"{logs[f'eval_{self.selected_by}']:.3f}"
        if f"{self.unit}_per_second" in logs:
            self.figures[f"{self.unit}/s"] = f"{logs[f'{self.unit}_per_second']:,.0f}"
        self.bar.set_postfix(self.figures, refresh=False)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the bar as it is."""
        if self.bar is not None:
            self.bar.close()


class Stop(TrainerCallback):
    """End a run between two updates, on all devices at once: after a signal, or when its time is over.

    Args:
        max_seconds: Time of the run, None for no limit.
        elapsed: The time so far, resumed parts included.
    """

    def __init__(self, max_seconds: float | None, elapsed: Callable[[], float]) -> None:
        self.max_seconds = max_seconds
        self.elapsed = elapsed
        self.signalled = False
        self.reason: Literal["signal", "time"] | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Wait for SIGTERM and Ctrl-C; a second one ends the program at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

        def restore() -> None:
            for number, handler in previous.items():
                signal.signal(number, handler)

        def handle(number: int, _: Any) -> None:
            self.signalled = True
            restore()
            print(f"\n{signal.Signals(number).name}: saving after this update", file=sys.stderr)

        for number in previous:
            signal.signal(number, handle)
        try:
            yield
        finally:
            restore()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop with a checkpoint; when time is over also with an evaluation."""
        is_over = self.max_seconds is not None and self.elapsed() >= self.max_seconds
        code = torch.tensor(2 if self.signalled else int(is_over), device=args.device)
        if args.world_size > 1:
            torch.distributed.all_reduce(code, torch.distributed.ReduceOp.MAX)
        if code > 0 and not control.should_training_stop:
            self.reason = "signal" if code == 2 else "time"
            control.should_training_stop = control.should_save = True
            if self.reason == "time":
                control.should_evaluate = True


def perplexity(loss: float) -> float:
    """The perplexity of a loss in nats, at most what a float can hold."""
    return math.exp(min(loss, 700.0))
