"""Training that starts from the model of a run: its configuration, its weights, and what data it must be given."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from subquad.data import DataError
from subquad.evaluation.runs import Run
from subquad.models import SubquadConfig
from subquad.training.recipe import Recipe


def changed_config(run: Run, changes: Mapping[str, Any]) -> SubquadConfig:
    """The configuration of a run's model with other options; the model is one of ours.

    Raises:
        ValueError: An option is unknown (the message names the nearest valid one) or impossible.
    """
    own = {name: value for name, value in run.config.items() if name in SubquadConfig.__annotations__}
    return SubquadConfig.from_options({**own, **changes})


def continued_config(recipe: Recipe) -> PreTrainedConfig:
    """The configuration of the model of the run `init`, trained on as what it is; `model` names what changes.

    Raises:
        DataError: The run cannot be read, or its model is for another task.
        ValueError: An option is unknown or impossible, or the model is a published one, which has no options of ours.
    """
    assert recipe.init is not None
    run = Run(recipe.init)
    run.require_task(recipe.task, f"training on with a recipe of the task {recipe.task}")
    if run.config.get("model_type") == SubquadConfig.model_type:
        classes = {name: run.config[name] for name in ("id2label", "label2id") if name in run.config}
        return changed_config(run, {**classes, **recipe.model})
    if recipe.model:
        changes = ", ".join(f"model.{name}" for name in recipe.model)
        raise ValueError(f"the model of {recipe.init} is a published one and stays what it is: leave {changes} out")
    return run.load_config()


def blank_model(recipe: Recipe) -> PreTrainedModel:
    """The model of the run `init` without its weights; takes no memory.

    Raises:
        ValueError: See `continued_config`.
    """
    config = continued_config(recipe)
    with torch.device("meta"):
        return Run(recipe.init or "").model_class.from_config(config)


def continued_model(recipe: Recipe) -> PreTrainedModel:
    """The model of the run `init` in float32, whatever the precision of the run.

    Raises:
        DataError: See `continued_config`; or the weights do not fit the options of the recipe.
        ValueError: See `continued_config`.
    """
    config = continued_config(recipe)
    run = Run(recipe.init or "")
    pretrained = run.load_model("cpu")
    model = run.model_class.from_config(config, dtype=torch.float32)
    copy_weights(model, pretrained, run.folder)
    return model


def copy_weights(model: nn.Module, pretrained: nn.Module, folder: Path) -> None:
    """Give a model the weights of another.

    Args:
        model: The model, changed in place.
        pretrained: The other one.
        folder: Its run folder.

    Raises:
        DataError: The weights do not fit.
    """
    try:
        model.load_state_dict(pretrained.state_dict())
    except RuntimeError as error:
        reason = " ".join(str(error).split()[:40])
        raise DataError(f"{folder}: its weights do not fit the model options: {reason}") from None


def check_length(config: Any, length: int, name: str, init: str) -> None:
    """Hold that a model has positions for all tokens of an example.

    Raises:
        ValueError: It has fewer.
    """
    positions = config.max_position_embeddings
    if config.position_embedding == "learned" and positions is not None and length > positions:
        raise ValueError(f"data.{name} is {length}, the model of {init} has {positions} positions")


def check_data(config: Any, init: str, **expected: Any) -> None:
    """Hold that a model takes and names what the data has.

    Args:
        config: Its configuration.
        init: Its run folder.
        **expected: Fields of a configuration as the data wants them.

    Raises:
        DataError: They differ.
    """
    wrong = [
        f"{name} is {getattr(config, name)}, of the data {value}"
        for name, value in expected.items()
        if getattr(config, name) != value
    ]
    if wrong:
        raise DataError(f"{init}: its model is for other data: {'; '.join(wrong)}")
