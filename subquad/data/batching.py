"""The order and the batches of fairseq, example for example.

Blocks are grouped by length, batches are formed once, and an epoch only shuffles the list of batches. A modern run
reshuffles blocks instead; this order is for reproducing published runs.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from torch.utils.data import Sampler

Version = Literal["evo", "0.12"]


def ordered_indices(lengths: np.ndarray, seed: int) -> np.ndarray:
    """Indices by rising length, ties in the order of a random permutation, `(num_blocks,)` int64."""
    order = np.random.RandomState(seed).permutation(len(lengths))
    return np.lexsort((order, lengths))


def batch_by_size(
    indices: Sequence[int] | np.ndarray,
    lengths: np.ndarray,
    *,
    max_tokens: int | None = None,
    batch_size: int | None = None,
    multiple: int = 1,
    version: Version = "evo",
) -> list[list[int]]:
    """Cut an order into batches.

    A batch is as large as the limits allow, but has fewer than `multiple` examples or a multiple of it.

    Args:
        indices: Examples in order.
        lengths: Length of each example, by its index.
        max_tokens: Limit on examples × longest example; None for no limit.
        batch_size: Limit on examples; None for no limit.
        multiple: fairseq's `required_batch_size_multiple`.
        version: "0.12" loses the last batch if it is not a multiple; "evo" keeps it.

    Raises:
        ValueError: An example alone exceeds `max_tokens`, or a limit is below 1.
    """
    for name, value in (("max_tokens", max_tokens), ("batch_size", batch_size), ("multiple", multiple)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if version not in ("evo", "0.12"):
        raise ValueError(f"version must be 'evo' or '0.12', got {version!r}")
    ordered = [int(index) for index in indices]
    sizes = [int(lengths[index]) for index in ordered]
    token_limit, size_limit = max_tokens or float("inf"), batch_size or float("inf")
    batches: list[list[int]] = []
    start = 0
    while start < len(ordered):
        stop, longest = start, 0
        while stop < len(ordered) and stop - start < size_limit:
            longest = max(longest, sizes[stop])
            if (stop + 1 - start) * longest > token_limit:
                break
            stop += 1
        if stop == start:
            raise ValueError(f"example {ordered[start]} has {sizes[start]} tokens, over max_tokens={max_tokens}")
        if stop - start >= multiple:
            stop -= (stop - start) % multiple
        batches.append(ordered[start:stop])
        start = stop
    if version == "0.12" and batches and len(batches[-1]) % multiple:
        batches.pop()
    return batches


def epoch_batches(
    batches: Sequence[list[int]], seed: int, epoch: int, *, num_shards: int = 1, shard_id: int = 0
) -> list[list[int]]:
    """The batches of one worker in one epoch; an empty batch where there is none left for it.

    Args:
        batches: From `batch_by_size`.
        seed: Seed of the run.
        epoch: Counted from 1.
        num_shards: Number of workers.
        shard_id: Which worker.
    """
    shuffled = list(batches)
    np.random.RandomState(seed + epoch).shuffle(shuffled)
    shuffled += [[]] * (-len(shuffled) % num_shards)
    return shuffled[shard_id::num_shards]


class CompatBatches(Sampler[list[int]]):
    """fairseq's batches of one worker, as the `batch_sampler` of a `DataLoader`; call `set_epoch` before each epoch.

    Args:
        lengths: Length of each block (`Blocks.lengths`).
        seed: Seed of the run.
        max_tokens: See `batch_by_size`.
        batch_size: See `batch_by_size`.
        multiple: See `batch_by_size`; fairseq trains with 8 and evaluates with 1.
        version: See `batch_by_size`.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        seed: int,
        *,
        max_tokens: int | None = None,
        batch_size: int | None = None,
        multiple: int = 8,
        version: Version = "evo",
    ) -> None:
        self.batches = batch_by_size(
            ordered_indices(lengths, seed),
            lengths,
            max_tokens=max_tokens,
            batch_size=batch_size,
            multiple=multiple,
            version=version,
        )
        self.seed = seed
        self.epoch = 1

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration, counted from 1."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(epoch_batches(self.batches, self.seed, self.epoch))
