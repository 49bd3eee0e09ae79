"""Which task of GLUE a published classifier was finetuned on, as far as its checkpoint tells.

fairseq's checkpoints have no names of tasks or classes. The number of classes says MNLI and STS-B; the others have two
each, and the folder of their data is usually called after them, as in "MRPC-bin".
"""

import re
from collections.abc import Mapping
from typing import Any

from subquad.data import DataError
from subquad.data.glue import GLUE_TASKS
from subquad.registry import unknown_name

CLASSES: dict[str, tuple[str, ...]] = {
    "mnli": ("contradiction", "neutral", "entailment"),
    "qnli": ("not_entailment", "entailment"),
    "qqp": ("0", "1"),
    "sst2": ("1", "0"),
    "mrpc": ("1", "0"),
    "cola": ("1", "0"),
    "rte": ("entailment", "not_entailment"),
    "stsb": (),
}
"""Labels in the order of fairseq's classes, which is their frequency in the training data; of scores none."""

PREFIX = "glue-"
OTHER = "sequence-classification"


def finetuned_on(num_classes: int, about: Mapping[str, Any], said: str | None = None) -> str | None:
    """The task of GLUE that a classifier is for.

    Args:
        num_classes: Its number of outputs.
        about: What its checkpoint says of the task, see `Checkpoint.task`.
        said: What the person who converts it says: "glue-" and the name of the task, or "sequence-classification",
            none of GLUE.

    Returns:
        A name in `GLUE_TASKS`; None for a classifier of something else.

    Raises:
        DataError: It may be of several tasks, the message names them; or what is said contradicts the classifier.
    """
    fitting = [name for name, classes in CLASSES.items() if (len(classes) or 1) == num_classes]
    if said == OTHER:
        return None
    if said is not None:
        names = [PREFIX + name for name in CLASSES]
        if said not in names:
            raise DataError(unknown_name("task of a finetuned model", said, [*names, OTHER]))
        name = said.removeprefix(PREFIX)
        if name not in fitting:
            title, expected = GLUE_TASKS[name].title, len(CLASSES[name]) or 1
            raise DataError(f"--task {said}: {title} needs a classifier with {expected} outputs, not {num_classes}")
        return name
    if not str(about.get("task", "sentence_prediction")).startswith("sentence_prediction"):
        return None
    if num_classes == 1 and about.get("regression_target") is False:
        return None
    named = _named(str(about.get("data", "")))
    if named in fitting:
        return named
    if len(fitting) > 1 or (fitting and named):
        options = ", ".join(f"--task {PREFIX}{name}" for name in fitting)
        raise DataError(
            f"a classifier with {num_classes} outputs, and its file does not tell what for: say it, {options}, or "
            f"--task {OTHER} where it is none of GLUE"
        )
    return fitting[0] if fitting else None


def _named(path: str) -> str | None:
    """The task that a path names; the last part that is one counts."""
    titles = {re.sub(r"\W", "", task.title.lower()): name for name, task in GLUE_TASKS.items()}
    for part in reversed(re.split(r"[/\\]", path.lower())):
        if name := titles.get(re.sub(r"[\W_]", "", re.sub(r"[-_]?bin$", "", part))):
            return name
    return None
