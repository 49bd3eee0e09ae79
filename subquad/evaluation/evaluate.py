"""Evaluation of a run folder, whatever the model was trained for."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from subquad.data import DataError, MaskedBlocks, build_masking
from subquad.data.sources import DataValue
from subquad.evaluation.accuracy import AccuracyResult, evaluate_accuracy, open_examples
from subquad.evaluation.confusion import save_confusion
from subquad.evaluation.glue import GlueResult, evaluate_glue_run
from subquad.evaluation.images import ImageResult, evaluate_image_run
from subquad.evaluation.perplexity import PerplexityResult, evaluate_masked_perplexity, evaluate_perplexity
from subquad.evaluation.runs import Run

Examined = AccuracyResult | ImageResult | GlueResult
Result = PerplexityResult | Examined


def evaluate_run(
    folder: Path | str,
    data: DataValue | None = None,
    *,
    split: str | None = None,
    length: int | None = None,
    context_window: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Result:
    """Evaluate the model of a run folder, by its task.

    Which classes a classifier takes for which others is written into the folder: `confusion.json`, `.csv` and `.png`.

    Args:
        folder: The run folder.
        data: See `subquad.data.open_source`; of a classifier the folder with its data. Default: as in the recipe.
        split: Part of the data; default: "test", of GLUE "valid".
        length: Largest number of inputs in a block; default: the training length. Not for classifiers.
        context_window: See `evaluate_perplexity`; for causal models alone.
        device: Where to compute; default: a GPU where there is one.
        progress: Show progress bars.

    Raises:
        DataError: The run or the data cannot be read, or nothing is evaluated for its task.
        ValueError: See `evaluate_perplexity`, `evaluate_masked_perplexity` and `evaluate_accuracy`.
    """
    run = Run(folder)
    if run.task not in EVALUATIONS:
        raise DataError(f"{folder}: nothing is evaluated for the task {run.task}, only for {', '.join(EVALUATIONS)}")
    return EVALUATIONS[run.task](
        run,
        data,
        split or run.evaluated_split,
        length=length,
        context_window=context_window,
        device=device,
        progress=progress,
    )


def _evaluate_text(
    run: Run,
    data: DataValue | None,
    split: str,
    *,
    length: int | None,
    context_window: int,
    device: Any,
    progress: bool,
) -> PerplexityResult:
    length = _length(run, length)
    stream = run.open_data(data, split, progress=progress)
    model = run.load_model(device)
    return evaluate_perplexity(model, stream, length=length, context_window=context_window, progress=progress)


def _evaluate_masked_text(
    run: Run,
    data: DataValue | None,
    split: str,
    *,
    length: int | None,
    context_window: int,
    device: Any,
    progress: bool,
) -> PerplexityResult:
    length = _length(run, length)
    if context_window:
        raise ValueError(f"context_window={context_window}: a masked model sees both sides, it has no such window")
    tokenizer = run.tokenizer_for(data)
    tokenizer.add_mask()  # a converted model may come without it
    masking = build_masking(run.masking, tokenizer)
    stream = run.open_data(data, split, progress=progress)
    blocks = MaskedBlocks(stream, length, run.block_mode, cls_id=tokenizer.cls_id, masking=masking, seed=run.seed)
    return evaluate_masked_perplexity(run.load_model(device), blocks, progress=progress)


def _length(run: Run, length: int | None) -> int:
    """The length that is asked for, or that of the training."""
    if length is None:
        length = run.training_length
    if length is None:
        raise DataError(f"{run.folder}: its training length is not known (no recipe.yaml): give a length")
    if length < 1:
        raise ValueError(f"length must be at least 1, got {length}")
    return length


def _evaluate_examples(run: Run, data: str | Path | None, split: str, *, device: Any, progress: bool) -> AccuracyResult:
    examples = open_examples(run, data, split, progress=progress)
    return evaluate_accuracy(run.load_model(device), examples, batch_size=run.device_batch_size, progress=progress)


def _of_examples(evaluate: Callable[..., Examined]) -> Callable[..., Examined]:
    """The evaluation of a classifier, whose examples lie in one folder and are as long as they are."""

    def checked(
        run: Run, data: DataValue | None, split: str, *, length: int | None, context_window: int, **options: Any
    ) -> Examined:
        if length is not None or context_window:
            raise ValueError("a classifier sees whole sequences: leave length and context_window out")
        if data is not None and not isinstance(data, str | Path):
            raise ValueError(f"the data of the task {run.task} is one folder (of GLUE also hf:NAME), got {data}")
        result = evaluate(run, data, split, **options)
        if result.confusion is not None:
            source = run.recipe["data"]["source"] if data is None else data
            about = {"run": run.name, "data": str(source), "split": split}
            save_confusion(run.folder, result.confusion, result.classes, about)
        return result

    return checked


EVALUATIONS: dict[str, Callable[..., Result]] = {
    "causal-lm": _evaluate_text,
    "masked-lm": _evaluate_masked_text,
    "sequence-classification": _of_examples(_evaluate_examples),
    "glue": _of_examples(evaluate_glue_run),
    "image-classification": _of_examples(evaluate_image_run),
}
"""What is done for each task, as functions of (run, data, split) and the options of `evaluate_run`."""
