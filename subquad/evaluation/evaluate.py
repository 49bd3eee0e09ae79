"""Evaluation of a run folder, whatever the model was trained for."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch

from subquad.data import Corpus, DataError, MaskedBlocks, build_masking
from subquad.data.lra import LRAData
from subquad.data.sources import DataValue
from subquad.evaluation.accuracy import AccuracyResult, evaluate_accuracy, open_arena
from subquad.evaluation.confusion import save_confusion
from subquad.evaluation.files import written
from subquad.evaluation.glue import GlueResult, evaluate_glue_run
from subquad.evaluation.images import ImageResult, evaluate_image_run
from subquad.evaluation.perplexity import PerplexityResult, evaluate_masked_perplexity, evaluate_perplexity
from subquad.evaluation.runs import Run

Examined = AccuracyResult | ImageResult | GlueResult
Result = PerplexityResult | Examined


class Recorded(Protocol):
    """Data that says what it is."""

    def record(self) -> dict[str, Any]:
        """Name, fingerprint and more."""
        ...


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
    A converted model has no figures of a training: those of its last evaluation, in the usual way, become its
    `metrics.json`, with what the data was.

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
    split = split or run.evaluated_split
    result, used = EVALUATIONS[run.task](
        run, data, split, length=length, context_window=context_window, device=device, progress=progress
    )
    is_usual = split == run.evaluated_split and not context_window
    if run.is_converted and is_usual and (length is None or run.training_length in (None, length)):
        _record(run, result, used, split)
    return result


def _record(run: Run, result: Result, data: Recorded, split: str) -> None:
    """Write `metrics.json`, which a training would have written."""
    figures = result.to_dict() | {"split": split, "parameters": run.info.get("parameters"), "data": data.record()}
    with written(run.folder / "metrics.json") as path:
        path.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _evaluate_text(
    run: Run,
    data: DataValue | None,
    split: str,
    *,
    length: int | None,
    context_window: int,
    device: Any,
    progress: bool,
) -> tuple[PerplexityResult, Corpus]:
    length = _length(run, length)
    corpus = run.open_corpus(data, progress=progress)
    stream, model = corpus.splits[split], run.load_model(device)
    result = evaluate_perplexity(model, stream, length=length, context_window=context_window, progress=progress)
    return result, corpus


def _evaluate_masked_text(
    run: Run,
    data: DataValue | None,
    split: str,
    *,
    length: int | None,
    context_window: int,
    device: Any,
    progress: bool,
) -> tuple[PerplexityResult, Corpus]:
    length = _length(run, length)
    if context_window:
        raise ValueError(f"context_window={context_window}: a masked model sees both sides, it has no such window")
    tokenizer = run.tokenizer_for(data)
    tokenizer.add_mask()  # a converted model may come without it
    masking = build_masking(run.masking, tokenizer)
    corpus = run.open_corpus(data, progress=progress)
    stream = corpus.splits[split]
    blocks = MaskedBlocks(stream, length, run.block_mode, cls_id=tokenizer.cls_id, masking=masking, seed=run.seed)
    return evaluate_masked_perplexity(run.load_model(device), blocks, progress=progress), corpus


def _length(run: Run, length: int | None) -> int:
    """The length that is asked for, or that of the training."""
    if length is None:
        length = run.training_length
    if length is None:
        raise DataError(f"{run.folder}: its training length is not known (no recipe.yaml): give a length")
    if length < 1:
        raise ValueError(f"length must be at least 1, got {length}")
    return length


def _evaluate_arena(
    run: Run, data: str | Path | None, split: str, *, device: Any, progress: bool
) -> tuple[AccuracyResult, LRAData]:
    if split not in ("train", "valid", "test"):
        raise DataError(f"no split {split!r}; there are: train, valid, test")
    opened = open_arena(run, data, progress=progress)
    model, examples = run.load_model(device), opened.splits[split]
    return evaluate_accuracy(model, examples, batch_size=run.device_batch_size, progress=progress), opened


def _of_examples(evaluate: Callable[..., tuple[Examined, Recorded]]) -> Callable[..., tuple[Examined, Recorded]]:
    """The evaluation of a classifier, whose examples lie in one folder and are as long as they are."""

    def checked(
        run: Run, data: DataValue | None, split: str, *, length: int | None, context_window: int, **options: Any
    ) -> tuple[Examined, Recorded]:
        if length is not None or context_window:
            raise ValueError("a classifier sees whole sequences: leave length and context_window out")
        if data is not None and not isinstance(data, str | Path):
            raise ValueError(f"the data of the task {run.task} is one folder (of GLUE also hf:NAME), got {data}")
        result, used = evaluate(run, data, split, **options)
        if result.confusion is not None:
            source = run.recipe["data"]["source"] if data is None else data
            about = {"run": run.name, "data": str(source), "split": split}
            save_confusion(run.folder, result.confusion, result.classes, about)
        return result, used

    return checked


EVALUATIONS: dict[str, Callable[..., tuple[Result, Recorded]]] = {
    "causal-lm": _evaluate_text,
    "masked-lm": _evaluate_masked_text,
    "sequence-classification": _of_examples(_evaluate_arena),
    "glue": _of_examples(evaluate_glue_run),
    "image-classification": _of_examples(evaluate_image_run),
}
"""What is done for each task, as functions of (run, data, split) and the options of `evaluate_run`."""
