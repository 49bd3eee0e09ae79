"""The order of the data, and which epoch an example is of: a function of the seed alone, whatever the devices."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset, Sampler


class Epochs(Dataset[Any]):
    """Data as `UpdateBatches` asks for it: the item (epoch, index) is an example as it is in that epoch.

    Args:
        data: Where its examples change from epoch to epoch (masks, crops), its method `example(index, epoch)` gives
            them; otherwise they are those of every epoch.
    """

    def __init__(self, data: Any) -> None:
        self.data = data

    def __getitem__(self, item: Sequence[int]) -> Any:
        epoch, index = item
        return self.data.example(index, epoch) if hasattr(self.data, "example") else self.data[index]


class UpdateBatches(Sampler[list[list[int]]]):
    """The batches of one device: lists of [epoch, index].

    The data is shuffled anew for each epoch by (seed, epoch), and the epochs are strung together. Update k takes the
    examples k·batch_size … (k + 1)·batch_size − 1 of that string, so every update is full, and sees the same examples
    on one device as on many. Of each batch of all devices, device r of W takes every W-th example.

    With `repeats` R an epoch is as long, but shows only the first N/R examples of its order, each R times in a row
    (repeated augmentation, Hoffer et al. 2020, arXiv 1901.09335): where examples change from epoch to epoch, every time
    is another epoch, R·epoch, R·epoch + 1, …, and the devices share them.

    Args:
        num_examples: Size of the data.
        seed: Seed of the run.
        steps: Number of updates.
        batch_size: Examples in an update; a multiple of `device_batch_size` · `num_devices`.
        device_batch_size: Examples in a batch.
        device: Which device this is.
        num_devices: How many there are.
        repeats: How often an epoch shows each of its examples.
    """

    def __init__(
        self,
        num_examples: int,
        seed: int,
        *,
        steps: int,
        batch_size: int,
        device_batch_size: int,
        device: int = 0,
        num_devices: int = 1,
        repeats: int = 1,
    ) -> None:
        assert batch_size % (device_batch_size * num_devices) == 0
        self.num_examples = num_examples
        self.seed = seed
        self.steps = steps
        self.batch_size = batch_size
        self.device_batch_size = device_batch_size
        self.device = device
        self.num_devices = num_devices
        self.repeats = repeats

    @property
    def accumulation(self) -> int:
        """Batches of one device in an update."""
        return self.batch_size // (self.device_batch_size * self.num_devices)

    def __len__(self) -> int:
        return self.steps * self.accumulation

    def __iter__(self) -> Iterator[list[list[int]]]:
        waiting = np.empty((0, 2), dtype=np.int64)
        epoch = 0
        for _ in range(self.steps):
            while len(waiting) < self.batch_size:
                waiting = np.concatenate([waiting, self._epoch(epoch)])
                epoch += 1
            update, waiting = waiting[: self.batch_size], waiting[self.batch_size :]
            batches = update.reshape(self.accumulation, self.device_batch_size, self.num_devices, 2)
            yield from batches[:, :, self.device].tolist()

    def _epoch(self, epoch: int) -> np.ndarray:
        """The examples of an epoch in their order, [epoch, index] each: (num_examples, 2) int64."""
        order = np.random.default_rng((self.seed, epoch)).permutation(self.num_examples)
        index = order.repeat(self.repeats)[: self.num_examples]
        return np.stack([epoch * self.repeats + np.arange(len(index)) % self.repeats, index], axis=1)


def num_devices() -> int:
    """How many processes, with one device each, `torchrun` or `accelerate launch` started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def fitting_batch_size(batch_size: int, device_batch_size: int, num_devices: int) -> int:
    """The largest batch of a device, up to `device_batch_size`, with which `num_devices` share an update evenly.

    Raises:
        ValueError: The devices cannot share it.
    """
    if batch_size % num_devices:
        raise ValueError(
            f"training.batch_size = {batch_size} blocks cannot be shared evenly by {num_devices} devices: use a "
            "number of devices that divides it, or change it"
        )
    share = batch_size // num_devices
    return next(size for size in range(min(device_batch_size, share), 0, -1) if share % size == 0)
