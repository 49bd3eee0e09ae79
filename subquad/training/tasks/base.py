"""The contract of a task, and the registry."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedModel

from subquad.data import Tokenizer
from subquad.registry import unknown_name
from subquad.training.recipe import Recipe


class Task:
    """Base of all tasks. Attributes are computed when they are asked for.

    Args:
        recipe: The recipe of the run.
        tokenizer: The tokenizer of a run that is resumed; default: made as the recipe says.
    """

    train_data: Dataset[Any]
    """Examples to train on; `len` is known. Where they change from epoch to epoch it has `example(index, epoch)`."""
    valid_data: Dataset[Any]
    """Examples that choose the best checkpoint; `len` is known."""
    tokenizer: Tokenizer | None
    """What makes tokens of text, for the run folder; None where there is none."""
    example_name: str
    """What an example is, in the plural."""
    unit: ClassVar[str] = "tokens"
    """What speed and length of the training are counted in, in the plural; see `num_units`."""
    score_names: ClassVar[tuple[str, ...]]
    """What `score` sums."""
    selected_by: ClassVar[str] = "loss"
    """The figure of `summary` that chooses the best checkpoint; all but "loss" are better when they are greater."""
    reports_last: ClassVar[bool] = False
    """Whether that figure of the last weights, `last_...`, stands beside that of the best ones in `metrics.json`."""
    repeats: int = 1
    """How often an epoch shows each of the training examples that it shows; see `UpdateBatches`."""
    starts_from_run: ClassVar[bool] = False
    """Whether there is no training from nothing: the model is always that of a run, `init` in the recipe."""

    def __init__(self, recipe: Recipe, tokenizer: Tokenizer | None = None) -> None:
        raise NotImplementedError

    @classmethod
    def check(cls, recipe: Recipe) -> None:
        """Find the mistakes of a recipe that can be found without its data.

        Raises:
            ValueError: There is one.
        """

    def data_record(self) -> dict[str, Any]:
        """What `run.json` says of the data: "name", "fingerprint", "split_rule". Other content, another fingerprint."""
        raise NotImplementedError

    def build_model(self) -> PreTrainedModel:
        """The model with its initial values; its loss must accept `num_items_in_batch`."""
        raise NotImplementedError

    def collate(self, examples: Sequence[Any]) -> dict[str, Tensor]:
        """Make a batch of examples: the keyword arguments of the model."""
        raise NotImplementedError

    def collate_valid(self, examples: Sequence[Any]) -> dict[str, Tensor]:
        """As `collate`, of validation data; by default the same."""
        return self.collate(examples)

    def num_targets(self, batch: Mapping[str, Tensor]) -> Tensor:
        """What the summed loss of a batch is divided by, a scalar: its number of targets."""
        raise NotImplementedError

    def num_units(self, batch: Mapping[str, Tensor]) -> Tensor:
        """How much a batch is, a scalar: how many of `unit`, for speed and for what a run has seen."""
        raise NotImplementedError

    def score(self, model: Callable[..., Any], batch: Mapping[str, Tensor]) -> Tensor:
        """Sums over one batch of the validation data, `(len(score_names),)` float64 on the CPU."""
        raise NotImplementedError

    def summary(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Figures of the whole validation data from the sums over all batches; one of them is `selected_by`."""
        raise NotImplementedError

    def final_metrics(self, model: PreTrainedModel, *, progress: bool) -> dict[str, Any]:
        """Figures of the best model for `metrics.json`."""
        raise NotImplementedError

    def describe(self, metrics: Mapping[str, Any]) -> str:
        """One line about the final figures, for the terminal."""
        raise NotImplementedError


TASKS: dict[str, type[Task]] = {}


def register_task(name: str) -> Callable[[type[Task]], type[Task]]:
    """Class decorator: make a task available to recipes under `name`."""

    def register(cls: type[Task]) -> type[Task]:
        if name in TASKS:
            raise ValueError(f"task {name!r} is registered already, as {TASKS[name].__name__}")
        TASKS[name] = cls
        return cls

    return register


def task_class(name: str) -> type[Task]:
    """The task called `name`.

    Raises:
        ValueError: There is no such task; the message names the nearest one.
    """
    if name not in TASKS:
        raise ValueError(unknown_name("task", name, TASKS))
    return TASKS[name]
