"""The whole of GLUE: every task and seed is a run, and one table says the median of each."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from subquad.data.glue import GLUE_TASKS, glue_task, open_glue
from subquad.evaluation.files import csv_text, written
from subquad.evaluation.glue import glue_table
from subquad.evaluation.runs import Run
from subquad.training.train import train


def finetune_suite(
    init: Path | str,
    output: Path | str,
    *,
    data: str | Path | None = None,
    tasks: Sequence[str] | None = None,
    seeds: Sequence[int] = (1, 2, 3, 4, 5),
    overrides: Iterable[str] = (),
) -> tuple[list[str], list[list[str]]]:
    """Finetune a model on the tasks of GLUE with their recipes, `glue-TASK`.

    Args:
        init: Run folder of the model.
        output: Folder for a run of each task and seed, `TASK-seedN`, and for `glue.json` and `glue.csv`. Runs in it
            that are finished are taken as they are, others are continued.
        data: See `subquad.data.glue.open_glue`; default: that of the recipes.
        tasks: Names of tasks; default: all.
        seeds: Seeds of the runs of a task.
        overrides: Changes of every recipe, `section.key=value`.

    Returns:
        The names of the columns and the rows of the table; see `subquad.evaluation.glue.glue_table`.

    Raises:
        DataError: The data of a task is not there; raised before the first run.
        ValueError: See `train`; or there are no tasks or seeds, one is given twice, a run was interrupted, or the
            folder holds runs that were finetuned from another.
    """
    tasks = list(GLUE_TASKS) if tasks is None else list(tasks)
    for task in tasks:
        glue_task(task)
        if data is not None:
            open_glue(data, task)  # what is not there is named before the first run, not hours later
    for name, values in (("tasks", tasks), ("seeds", seeds)):
        if not values or len(set(values)) < len(values):
            raise ValueError(f"{name} must be one or more, each once, got {list(values)}")
    scores = {}
    for task in tasks:
        runs = [_finished(init, Path(output) / f"{task}-seed{seed}", task, seed, data, overrides) for seed in seeds]
        scores[task] = [run.metrics for run in runs]
    head, rows = glue_table(scores)
    content = {
        "init": str(init),
        "seeds": list(seeds),
        "table": dict(zip(head, rows[0], strict=True)),
        "scores": {task: [_figures(task, metrics) for metrics in scores[task]] for task in tasks},
    }
    with written(Path(output) / "glue.json") as path:
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    with written(Path(output) / "glue.csv") as path:
        path.write_text(csv_text(head, rows), encoding="utf-8")
    return head, rows


def _finished(
    init: Path | str, folder: Path, task: str, seed: int, data: str | Path | None, overrides: Iterable[str]
) -> Run:
    """The run of a task and a seed, trained to its end."""
    if not (folder / "run.json").is_file():
        changes = (*overrides, f"training.seed={seed}")
        train(f"glue-{task}", data=data, output=folder, init=init, overrides=changes)
    elif not (folder / "metrics.json").is_file():
        train(None, resume=folder)
    run = Run(folder)
    if run.recipe.get("init") != str(Path(init).resolve()):
        raise ValueError(f"{folder}: was finetuned from {run.recipe.get('init')}: choose another output")
    if not run.metrics:
        raise ValueError(f"{folder}: was interrupted; the same command continues it")
    return run


def _figures(task: str, metrics: dict[str, float]) -> dict[str, float]:
    """The official metrics among all figures of a run."""
    return {name: value for name, value in metrics.items() if name.split("_")[0] in GLUE_TASKS[task].metrics}
