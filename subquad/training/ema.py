"""The exponential moving average of the weights: often the better model, and never part of the training itself."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

FILE = "ema.safetensors"
FOLDER = "ema"


class MovingAverage(TrainerCallback):
    """θ̄ ← β θ̄ + (1 − β) θ after each update, from the initial weights (as in DeiT, arXiv 2012.12877).

    The statistics of batch norms are averaged too. The average is float32, on the device of the model.

    Args:
        decay: β, in [0, 1).
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.average: dict[str, Tensor] = {}

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Begin with the initial weights, unless the run is resumed."""
        assert model is not None
        if not self.average:
            self.average = {name: value.clone() for name, value in _weights(model)}

    @torch.no_grad()
    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Take in the weights after an update."""
        assert model is not None
        for name, value in _weights(model):
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - self.decay)
            else:
                self.average[name].copy_(value)

    def save(self, checkpoint: Path) -> None:
        """Write the average beside the weights of a checkpoint, in the same form."""
        save_file(self.average, checkpoint / FILE, metadata={"format": "pt"})

    def load(self, checkpoint: Path, device: torch.device) -> None:
        """Go on from a checkpoint."""
        self.average = load_file(checkpoint / FILE, device=str(device))


def _weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and the buffers that are saved, by name; tied ones once."""
    saved = model.state_dict().keys()
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if name in saved:
            yield name, value.detach()
