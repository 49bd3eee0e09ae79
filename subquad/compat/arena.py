"""Which task of the Long Range Arena a published classifier is of, as far as its checkpoint tells.

The programs of S4's descendants store what they call their data, and how they read it. Without that, the sizes tell:
the number of classes, whether pairs are compared, whether inputs are tokens or values.
"""

from collections.abc import Mapping
from typing import Any

from subquad.compat.glue import OTHER
from subquad.compat.recognize import Recognized
from subquad.data import DataError
from subquad.data.lra.datasets import NUM_LABELS, RULES, SIDE, TASKS, TRANSPOSE
from subquad.registry import unknown_name

PREFIX = "lra-"

PIPELINES = {
    "tnn.lra_model": "s4",
    "hgrn.lra": "s4",
    "transnormer.lra_classifier": "s4",
    "primal.lra_former": "byte",
    "primal.lra_trans": "byte",
}
"""Whose tokens and pixels the models of a family take; see `subquad.data.lra.open_lra`."""

# What the programs call their data, and their orders of pixels.
DATASETS = {"listops": "listops", "imdb": "text", "aan": "retrieval", "cifar": "image", "pathfinder": "pathfinder"}
ORDERS = {"br": "bit_reversal", "snake": "snake", "hilbert": "hilbert", "transpose": TRANSPOSE}
PATHX_SIDE = 128


def data_options(found: Recognized, config: Any, said: str | None = None) -> dict[str, Any]:
    """The data of a recipe for a converted classifier: options of `open_lra`.

    Args:
        found: What `recognize` found.
        config: Configuration of the model that was made of it.
        said: What the person who converts it says: "lra-" and the name of the task, or "sequence-classification",
            none of the Long Range Arena.

    Returns:
        The options; empty for a classifier of something else.

    Raises:
        DataError: What is said is no task, or contradicts the classifier, or its inputs are none that we make.
    """
    if found.family not in PIPELINES or said == OTHER:
        return {}
    fitting = [task for task in TASKS if _fits(task, config)]
    dataset = found.config.get("dataset")
    dataset = dataset if isinstance(dataset, dict) else {}
    if said is not None:
        names = [PREFIX + task for task in TASKS]
        if said not in names:
            raise DataError(unknown_name("task of a model of the Long Range Arena", said, [*names, OTHER]))
        task = said.removeprefix(PREFIX)
        if task not in fitting:
            inputs = "tokens" if config.input_features is None else f"{config.input_features} values at each position"
            raise DataError(
                f"--task {said}: does not fit a classifier of {config.num_labels} classes, of "
                f"{'pairs' if config.is_of_pairs else 'single sequences'}, whose inputs are {inputs}"
            )
    else:
        task = _told(dataset, fitting) if "_name_" in dataset else _likely(found, config, dataset, fitting)
    if task is None or not _is_read_by_us(config, dataset):
        if said is not None:
            raise DataError(
                f"--task {said}: its pixels are read in a way that is not known here, by dataset: {dataset}"
            )
        return {}
    return {"task": task, "pipeline": PIPELINES[found.family], **_reading(found, config, dataset, task)}


def published_model(found: Recognized) -> str | None:
    """The name that a whole model has in the tables of papers; None for all but those of the Long Range Arena."""
    if found.family == "transnormer.lra_classifier":
        local = next(layer for layer in found.config["model"]["layer"] if layer["_name_"] == "localattn")
        return f"TransNormer T{2 if local.get('use_softmax') else 1}"
    if found.family == "primal.lra_former" and found.config.get("attn_type") == "softmax":
        return "Transformer"
    names = {"tnn.lra_model": "TNN", "hgrn.lra": "HGRN"}
    return (names | {"primal.lra_former": "PrimalFormer", "primal.lra_trans": "Primal.+Trans."}).get(found.family)


def _fits(task: str, config: Any) -> bool:
    """Whether a classifier may be of a task."""
    is_text = ("s4", task) in RULES
    is_possible = config.num_labels == NUM_LABELS[task] and config.is_of_pairs == (task == "retrieval")
    return is_possible and not (is_text and config.input_features is not None)


def _is_read_by_us(config: Any, dataset: Mapping[str, Any]) -> bool:
    """Whether we make the inputs: no pixels that are averaged, not centred, or of an order or a size of their own."""
    order = dataset.get("permute")
    return (
        dataset.get("pool") in (None, 1)
        and dataset.get("center") is not False
        and dataset.get("resolution") in (None, SIDE, PATHX_SIDE)
        and (order is None or (str(order) in ORDERS and config.input_features is not None))
    )


def _told(dataset: Mapping[str, Any], fitting: list[str]) -> str | None:
    """The task that the program's own name of its data means."""
    task = DATASETS.get(str(dataset["_name_"]))
    if task == "pathfinder" and dataset.get("resolution") == PATHX_SIDE:
        task = "pathx"
    return task if task in fitting else None


def _likely(found: Recognized, config: Any, dataset: Mapping[str, Any], fitting: list[str]) -> str | None:
    """The task that the sizes speak for."""
    if PIPELINES[found.family] == "byte":
        length = found.config["max_seq_len"]
        has_pixels = isinstance(length, int) and length <= SIDE * SIDE
    else:
        has_pixels = config.input_features is not None or bool(dataset.get("tokenize"))
    likely = [task for task in fitting if (("s4", task) not in RULES) == has_pixels or task == "retrieval"]
    if "pathx" in likely:
        likely = ["pathx" if dataset.get("resolution") == PATHX_SIDE else "pathfinder"]
    return likely[0] if likely else None


def _reading(found: Recognized, config: Any, dataset: Mapping[str, Any], task: str) -> dict[str, Any]:
    """How the inputs are made, where it is not in the usual way."""
    if PIPELINES[found.family] == "byte":
        return {}
    if ("s4", task) in RULES:
        options = {"max_length": dataset.get("l_max"), "append_bos": dataset.get("append_bos") or None}
        options["append_eos"] = False if dataset.get("append_eos") is False else None
    else:
        options = {"tokenize": config.input_features is None or None}
        if task == "image" and config.input_features is not None:
            # The pixels column after column are features of their own.
            order = TRANSPOSE if config.input_features % 2 == 0 else ORDERS.get(str(dataset.get("permute")))
            options |= {"colour": config.input_features % 3 == 0 or None, "permute": order}
    return {name: value for name, value in options.items() if value is not None}
