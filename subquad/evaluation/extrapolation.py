"""Length extrapolation: one model, trained at one length, evaluated at many.

The protocol is that of the TNN and SKI papers: at each length the whole split is cut into blocks of that length, each
block is scored on its own without context from the one before, and every token counts, those of the short last block
included.
"""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from subquad.data import TokenStream
from subquad.data.sources import DataValue
from subquad.evaluation.files import csv_text, written
from subquad.evaluation.perplexity import PerplexityResult, evaluate_perplexity
from subquad.evaluation.plots import require_matplotlib
from subquad.evaluation.runs import Run


def extrapolate(
    model: PreTrainedModel,
    stream: TokenStream,
    lengths: Sequence[int],
    *,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> list[PerplexityResult]:
    """Evaluate a model at several lengths.

    Args:
        model: A causal language model of transformers.
        stream: The tokens.
        lengths: Tokens in a block; any order, results come by rising length.
        device: Where to compute; default: where the model is.
        progress: Show a progress bar.

    Raises:
        ValueError: There are no lengths, one is not positive or longer than the text, or the model cannot see so many
            positions.
    """
    if not lengths or min(lengths) < 1:
        raise ValueError(f"lengths must be positive numbers, got {list(lengths)}")
    if max(lengths) > stream.num_tokens:
        raise ValueError(f"length {max(lengths)} exceeds the text, which has {stream.num_tokens} tokens: leave it out")
    longest = max_positions(model)
    if longest is not None and max(lengths) > longest:
        raise ValueError(f"length {max(lengths)} exceeds the {longest} learned positions of the model: leave it out")
    return [
        evaluate_perplexity(model, stream, length=length, device=device, progress=progress)
        for length in sorted(set(lengths))
    ]


def extrapolate_run(
    folder: Path | str,
    lengths: Sequence[int],
    data: DataValue | None = None,
    *,
    split: str = "test",
    device: torch.device | str | None = None,
    progress: bool = True,
) -> list[PerplexityResult]:
    """Evaluate the model of a run folder at several lengths, and write what `save_extrapolation` does into the folder.

    Args:
        folder: The run folder.
        lengths: Tokens in a block.
        data: See `subquad.data.open_source`; default: the data of the recipe.
        split: Part of the data.
        device: Where to compute; default: a GPU where there is one.
        progress: Show progress bars.

    Raises:
        DataError: The run or the data cannot be read.
        ValueError: See `extrapolate`.
        ImportError: matplotlib is not installed.
    """
    require_matplotlib()
    run = Run(folder)
    run.require_task("causal-lm", "length extrapolation")
    stream = run.open_data(data, split, progress=progress)
    results = extrapolate(run.load_model(device), stream, lengths, progress=progress)
    about = {"run": run.name, "data": str(data or run.data_name), "split": split}
    save_extrapolation(folder, results, training_length=run.training_length, about=about)
    return results


def max_positions(model: Any) -> int | None:
    """The most positions a model can see; None where its positions are not learned one by one."""
    config = model.config
    return config.max_position_embeddings if getattr(config, "position_embedding", None) == "learned" else None


def save_extrapolation(
    folder: Path | str,
    results: Sequence[PerplexityResult],
    *,
    training_length: int | None = None,
    about: dict[str, Any] | None = None,
) -> None:
    """Write `extrapolation.json`, `extrapolation.csv` and `extrapolation.png`.

    Args:
        folder: Where to.
        results: From `extrapolate`.
        training_length: Marked in the figure.
        about: Further entries of the JSON file, such as the data's name.

    Raises:
        ImportError: matplotlib is not installed.
    """
    rows = [result.to_dict() for result in results]
    content = {**(about or {}), "training_length": training_length, "results": rows}
    table = csv_text(list(rows[0]), (row.values() for row in rows))
    folder = Path(folder)
    picture = _figure(results, training_length, title=str((about or {}).get("run", "")))
    with written(folder / "extrapolation.json") as path:
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    with written(folder / "extrapolation.csv") as path:
        path.write_text(table, encoding="utf-8")
    with written(folder / "extrapolation.png") as path:
        path.write_bytes(picture)


def _figure(results: Sequence[PerplexityResult], training_length: int | None, title: str) -> bytes:
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.add_subplot()
    lengths = [result.length for result in results]
    axes.plot(lengths, [result.perplexity for result in results], marker="o", color="#2563eb", linewidth=2)
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths], rotation=30 if len(lengths) > 7 else 0)
    axes.minorticks_off()
    axes.set_xlabel("evaluation length (tokens)")
    axes.set_ylabel(f"perplexity per token ({results[0].vocabulary})")
    axes.set_title(title, loc="left")
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if training_length is not None:
        axes.axvline(training_length, color="0.4", linestyle="--", linewidth=1)
        axes.annotate(
            f" trained at {training_length:,}",
            (training_length, 1),
            xycoords=("data", "axes fraction"),
            va="top",
            color="0.3",
        )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160)
    return buffer.getvalue()
