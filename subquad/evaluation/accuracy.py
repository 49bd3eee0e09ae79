"""Accuracy of classifiers: the share of examples whose most likely class is the right one, counted over all of them."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from subquad.data import DataError
from subquad.data.lra import LRAData, open_lra
from subquad.data.lra.datasets import TASKS
from subquad.data.sources import DataValue
from subquad.evaluation.confusion import count_confusions
from subquad.evaluation.runs import Run


@dataclass(frozen=True, eq=False)
class AccuracyResult:
    """How well a model classifies.

    Args:
        nll: Negative log-likelihood of all right classes in nats.
        confusion: (classes, classes) int64: how many examples of a class, the row, were taken for another, the column.
            All examples are scored; a pair of texts is one example.
        classes: Names of the classes.
    """

    task: ClassVar[str] = "sequence-classification"
    example: ClassVar[str] = "example"
    """What an example is called."""
    nll: float
    confusion: Tensor
    classes: tuple[str, ...]

    @property
    def correct(self) -> int:
        """Number of examples whose most likely class is the right one."""
        return int(self.confusion.trace())

    @property
    def examples(self) -> int:
        """Number of examples."""
        return int(self.confusion.sum())

    @property
    def loss(self) -> float:
        """Nats per example."""
        return self.nll / self.examples

    @property
    def accuracy(self) -> float:
        """Share of right answers, from 0 to 1."""
        return self.correct / self.examples

    def to_dict(self) -> dict[str, Any]:
        """All figures, for JSON."""
        return {
            "loss": self.loss,
            "accuracy": self.accuracy,
            "correct": self.correct,
            "examples": self.examples,
            "task": self.task,
        }

    def table(self) -> list[list[str]]:
        """Rows of what is measured, its value, and what it is taken over, for the terminal."""
        all_examples = f"{self.examples:,} {self.example}s"
        return [
            ["accuracy", f"{self.accuracy:.2%}", f"{self.correct:,} of {all_examples}, none skipped"],
            [f"loss (nats per {self.example})", f"{self.loss:.4f}", all_examples],
        ]


def score_batch(model: Any, batch: Mapping[str, Tensor], *, top: int | None = None, confusion: bool = False) -> Tensor:
    """Sums over a batch, float64 on the CPU: nats, right classes among `top` answers, right answers, and examples.

    Args:
        model: A classifier, called with the batch.
        batch: Its keyword arguments, `labels` (batch,) among them.
        top: How many answers; None leaves that sum out.
        confusion: Return the confusion matrix in place of the last two, row after row.
    """
    labels = batch["labels"]
    logits = model(**batch).logits
    wide = logits if logits.dtype == torch.float64 else logits.float()
    classes, answers = wide.shape[-1], wide.argmax(-1)
    sums = [F.cross_entropy(wide, labels, reduction="sum")]
    if top is not None:
        sums.append((wide.topk(min(top, classes)).indices == labels.unsqueeze(-1)).sum())
    if confusion:
        sums.append(count_confusions(labels, answers, classes))
    else:
        sums += [(answers == labels).sum(), torch.tensor(len(labels))]
    return torch.cat([part.flatten().cpu().double() for part in sums])


def evaluate_accuracy(
    model: PreTrainedModel, examples: Any, *, batch_size: int, progress: bool = True
) -> AccuracyResult:
    """Classify every example.

    Args:
        model: A classifier; its mode (training or not) is left as it was.
        examples: A data set with `collate`, as `subquad.data.lra` has them; batches are made in its order.
        batch_size: Examples in a batch. The result depends on it where padding is an ordinary input of the model.
        progress: Show a progress bar on a terminal.

    Raises:
        ValueError: There is no example, or the loss is not finite.
    """
    starts = range(0, len(examples), batch_size)
    batches = (
        examples.collate([examples[i] for i in range(start, min(start + batch_size, len(examples)))])
        for start in starts
    )
    score = partial(score_batch, confusion=True)
    sums = total_scores(model, batches, score, len(examples), progress=progress)
    names: Any = model.config.id2label
    confusion = confusion_matrix(sums[1:])
    classes = tuple(str(names.get(label, label)).removeprefix("LABEL_") for label in range(len(confusion)))
    return AccuracyResult(sums[0].item(), confusion, classes)


def confusion_matrix(confusion: Tensor) -> Tensor:
    """The confusion matrix, (classes, classes) int64, from its rows one after the other."""
    return confusion.long().view(math.isqrt(len(confusion)), -1)


def total_scores(
    model: PreTrainedModel,
    batches: Iterable[Mapping[str, Tensor]],
    score: Callable[[Any, Mapping[str, Tensor]], Tensor],
    num_examples: int,
    *,
    progress: bool,
    what: str = "examples",
) -> Tensor:
    """The sum of a score over batches, float64 on the CPU.

    Args:
        model: A classifier; its mode (training or not) is left as it was.
        batches: Its keyword arguments, `labels` (batch,) among them.
        score: Of the model and a batch; a tensor of sums, the first of which is the negative log-likelihood.
        num_examples: In all batches.
        progress: Show a progress bar on a terminal.
        what: What an example is, in the plural, for the bar.

    Raises:
        ValueError: There is no example, or the loss is not finite.
    """
    if not num_examples:
        raise ValueError("there is no example to evaluate on")
    was_training = model.training
    model.eval()
    sums = torch.zeros((), dtype=torch.float64)
    hidden = None if progress else True  # None: shown on a terminal only
    try:
        with torch.inference_mode(), tqdm(total=num_examples, desc=what, disable=hidden) as bar:
            for batch in batches:
                sums = sums + score(model, {name: tensor.to(model.device) for name, tensor in batch.items()})
                bar.update(len(batch["labels"]))
    finally:
        model.train(was_training)
    if not torch.isfinite(sums[0]):
        raise ValueError(f"the model's loss is {sums[0].item()}")
    return sums


def arena_options(run: Run) -> dict[str, Any]:
    """What the recipe says of the task of the Long Range Arena that a run is of.

    Raises:
        DataError: It says nothing.
    """
    options = run.recipe.get("data")
    if isinstance(options, dict) and options.get("task") in TASKS and isinstance(options.get("pipeline"), str):
        return options
    hint = "convert it with --task lra-NAME" if run.is_converted else "its recipe.yaml does not say"
    raise DataError(f"{run.folder}: which task of the Long Range Arena it is of is not known: {hint}")


def open_arena(run: Run, data: DataValue | None = None, *, progress: bool = True) -> LRAData:
    """The examples of the Long Range Arena, as the run saw them in training.

    Args:
        run: A run of the task "sequence-classification".
        data: Folder with the files; default: that of the recipe.
        progress: Show a progress bar.

    Raises:
        DataError: The recipe is missing, or the data is not what the run was trained on: its tokens would mean
            something else.
    """
    options = arena_options(run)
    root = options.get("source") if data is None else data
    if root is None:
        raise DataError(f"{run.folder}: its data is not known: give the folder")
    if not isinstance(root, str | Path):
        raise DataError(f"the data of the Long Range Arena is one folder, got {root}")
    options = {name: value for name, value in options.items() if name != "source"}
    try:
        # A recipe that names the last two is an error: files of others do not say where ours are written.
        opened = open_lra(root=root, **options, cache_dir=None, progress=progress)
    except TypeError as error:
        raise DataError(f"{run.folder}: not a recipe of the Long Range Arena ({error})") from None
    if run.data_fingerprint not in (None, opened.fingerprint):
        raise DataError(f"{root}: not the data that {run.folder} was trained on: its tokens mean something else")
    rows, size = run.config.get("vocab_size", 0), opened.vocab_size
    # The ids of bytes are fixed, and there are models with more rows.
    if size is not None and (size > rows if opened.pipeline == "byte" else size != rows):
        raise DataError(f"{root}: its texts have {size} tokens, the model of {run.folder} {rows}: other data")
    return opened
