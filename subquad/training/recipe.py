"""Recipes: one YAML file says everything about a run.

The recipes of the package reproduce one published result each; any YAML file of the same form is one, too. Values are
taken from the file, then from overrides. Nothing is guessed: an unknown key is an error that names the nearest valid
one. A recipe that differs from another in a few entries says so:

    extends: tnn-alm-wikitext103
    set: {model.mixers.0.rpe_layers: 3}
"""

import dataclasses
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml

from subquad.data.images.augmentation import Augmentation
from subquad.registry import unknown_name


@dataclass
class DataRecipe:
    """Which text, and how it is cut into blocks.

    Args:
        source: See `subquad.data.open_source`.
        tokenizer: See `subquad.data.build_tokenizer`.
        block_size: Tokens in a block.
        block_mode: See `subquad.data.Blocks`.
        text_column: Column of the text, in data that has columns.
        masking: Of the task "masked-lm"; see `subquad.data.build_masking`.
    """

    source: str | list[str]
    tokenizer: str
    block_size: int
    block_mode: str = "none"
    text_column: str = "text"
    masking: dict[str, Any] | None = None


@dataclass
class LongRangeArenaRecipe:
    """Which task of the Long Range Arena, in place of a text: the data of the task "sequence-classification".

    Args:
        source: Folder with the files; see `subquad.data.lra.open_lra`, also for what follows.
        task: "listops", "text", "retrieval", "image", "pathfinder" or "pathx".
        pipeline: The code base whose tokens and pixels these are: "s4", "byte" or "google".
        max_length: Largest number of tokens; None: the published one.
        valid_fraction: Share of the training examples of "text" that are held out for validation; with 0 the test set
            is the validation set, as published.
        colour: Whether images of "image" keep their colours.
        augment: Whether training images of "image" are cropped and mirrored.
        permute: Another order of the pixels of "image": "bit_reversal", "snake", "hilbert", or "transpose" for both
            column after column and row after row.
    """

    source: str
    task: str
    pipeline: str
    max_length: int | None = None
    valid_fraction: float = 0.0
    colour: bool = False
    augment: bool = False
    permute: str | None = None


@dataclass
class GlueRecipe:
    """Which task of GLUE, in place of a text: the data of the task "glue".

    Args:
        source: See `subquad.data.glue.open_glue`.
        task: "mnli", "qnli", "qqp", "sst2", "mrpc", "cola", "rte" or "stsb".
        max_length: Most tokens of an example; the longer sentence of one that has more is cut.
    """

    source: str
    task: str
    max_length: int


@dataclass
class ImageRecipe:
    """Which images, in place of a text: the data of the task "image-classification".

    Args:
        source: Folder with the images; see `subquad.data.images.open_images`.
        image_size: Height and width of what the model sees.
        layout: What the model sees: "patches" of an image, which its patch embedding cuts out, or "pixels", a sequence
            of them, row after row.
        augmentation: How training images are changed.
        valid_fraction: Share of the training images that are held out for validation; with 0 the test images are those
            of validation, as published, where there are no others.
    """

    source: str
    image_size: int
    layout: Literal["patches", "pixels"]
    augmentation: Augmentation
    valid_fraction: float = 0.0

    def __post_init__(self) -> None:
        if self.image_size < 2:  # torch cannot shrink an image to a single pixel
            raise ValueError(f"data.image_size must be at least 2, got {self.image_size}")


# What the section `data` is, for tasks that do not learn from one stream of text.
DATA_RECIPES: dict[str, type] = {
    "sequence-classification": LongRangeArenaRecipe,
    "glue": GlueRecipe,
    "image-classification": ImageRecipe,
}


@dataclass
class TrainingRecipe:
    """How the model is trained. An update sees `batch_size` blocks, or other examples, however many devices share them.

    Args:
        seed: Of initial values, order of the blocks, and dropout.
        steps: Number of updates.
        batch_size: Blocks in an update, over all devices and accumulation steps.
        device_batch_size: Most blocks on a device at once; accumulation follows from it and from the number of devices.
        optimizer: "fairseq-adam" or "adamw".
        betas: β₁ and β₂ of the optimiser.
        eps: ε of the optimiser.
        weight_decay: Decoupled weight decay.
        decay: What decays: "all" parameters, "matrices" without norms, biases, lower bounds and phases, or "maps", the
            matrices without embeddings and learned positions.
        max_grad_norm: Largest norm of the gradient; 0 does not limit it.
        schedule: Of the learning rate; see `subquad.training.schedules`.
        beta1_schedule: Of β₁, in the same form; None: β₁ does not change.
        eval_steps: Updates from one evaluation on the validation split to the next; each is followed by a checkpoint.
        save_steps: Updates from one checkpoint to the next; None: only after evaluations.
        log_steps: Updates from one line of the log to the next.
        precision: "fp32", "bf16" or "fp16"; parameters and the optimiser's state are always float32.
        max_seconds: The run ends with the update during which so much time has passed; None: no limit.
        gradient_checkpointing: Whether activations are computed twice to save memory.
        num_workers: Processes that read data; 0: none but this one.
        report_to: Loggers that get the log as well: "tensorboard", "trackio", "wandb".
        ema_decay: β of a moving average of the weights, which is kept beside them and becomes a second model of the
            run, see `subquad.training.ema`; None: no average.
    """

    seed: int
    steps: int
    batch_size: int
    device_batch_size: int
    optimizer: str
    betas: list[float]
    eps: float
    weight_decay: float
    decay: Literal["all", "matrices", "maps"]
    max_grad_norm: float
    schedule: dict[str, Any]
    eval_steps: int
    beta1_schedule: dict[str, Any] | None = None
    save_steps: int | None = None
    log_steps: int = 100
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    max_seconds: float | None = None
    gradient_checkpointing: bool = False
    num_workers: int = 0
    report_to: list[str] = dataclasses.field(default_factory=list)
    ema_decay: float | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "device_batch_size", "eval_steps", "log_steps", "save_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"training.{name} must be at least 1, got {value}")
        for name in ("eps", "weight_decay", "max_grad_norm", "num_workers", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"training.{name} must not be negative, got {getattr(self, name)}")
        if self.max_seconds is not None and self.max_seconds <= 0:
            raise ValueError(f"training.max_seconds must be positive, got {self.max_seconds}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"training.betas must be two numbers in [0, 1), got {self.betas}")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(f"training.ema_decay must be in [0, 1), or null, got {self.ema_decay}")


@dataclass
class Recipe:
    """A run.

    Args:
        task: What is learned; see `subquad.training.tasks`.
        model: Keyword arguments of `SubquadConfig`; vocabulary and special tokens come from the tokenizer.
        data: The text, or what the task learns from in its place.
        training: The training.
        init: Run folder whose model is trained on, or for the task "glue" finetuned: its weights, tokenizer and
            configuration, in which `model` names the changes.
    """

    task: str
    model: dict[str, Any]
    data: DataRecipe | LongRangeArenaRecipe | GlueRecipe | ImageRecipe
    training: TrainingRecipe
    init: str | None = None

    def to_yaml(self) -> str:
        """The recipe with every value, for `load_recipe`."""
        return yaml.dump(dataclasses.asdict(self), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def load_recipe(name_or_path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        name_or_path: Name of a recipe of the package, or a YAML file.
        overrides: `section.key=value`, the value in YAML; in lists the key is an index, `model.mixers.0.decay=0.9`.

    Raises:
        ValueError: There is no such recipe, or something in it is unknown, missing or of the wrong kind.
    """
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ValueError(f"{path}: no such file")
        text = path.read_text(encoding="utf-8")
    else:
        text = recipe_text(str(name_or_path))
    content = _content(text, str(name_or_path))
    for override in overrides:
        key, sign, value = override.partition("=")
        if not sign:
            raise ValueError(f"an override has the form section.key=value, got {override!r}")
        try:
            parsed = yaml.load(value, Loader=_Loader)
        except yaml.YAMLError:
            raise ValueError(f"{override!r}: the value is not YAML") from None
        _set(content, key, parsed, override)
    task = content.get("task") if isinstance(content, dict) else None
    return _build(Recipe, content, str(name_or_path), data=DATA_RECIPES.get(str(task), DataRecipe))


def _content(text: str, where: str) -> Any:
    """The entries of a recipe, with those of the recipe of the package that it extends."""
    try:
        content = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{where}: not YAML ({' '.join(str(error).split())})") from None
    content = _copied(content)
    if not isinstance(content, dict) or "extends" not in content:
        return content
    for key in content:
        if key not in ("extends", "set"):
            raise ValueError(f"{where}: a recipe that extends another has `extends` and `set`, got {key!r}")
    changes = content.get("set") or {}
    if not isinstance(changes, dict):
        raise ValueError(f"{where}: `set` must be a mapping of section.key to value, got {changes!r}")
    base = _content(recipe_text(str(content["extends"])), str(content["extends"]))
    for key, value in changes.items():
        _set(base, str(key), value, f"{where}: set: {key}")
    return base


def list_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    files = (resources.files("subquad") / "recipes").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def recipe_text(name: str) -> str:
    """The file of a recipe of the package, as it is.

    Raises:
        ValueError: There is none of this name.
    """
    known = list_recipes()
    if name not in known:
        raise ValueError(
            f"{unknown_name('recipe', name, known)} (`subquad recipes` lists them); or give a YAML file, FILE.yaml"
        )
    return (resources.files("subquad") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")


class _Loader(yaml.SafeLoader):
    """YAML without code, in which 1e-8 is a number (in YAML 1.1 it is a text)."""


_FLOAT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789"))


class _Dumper(yaml.SafeDumper):
    """Lists of plain values on one line, as in `betas: [0.9, 0.98]`."""


def _represent_list(dumper: yaml.SafeDumper, values: list[Any]) -> yaml.Node:
    is_flat = not any(isinstance(value, dict | list) for value in values)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=is_flat)


_Dumper.add_representer(list, _represent_list)


def _copied(node: Any) -> Any:
    """A tree of its own for every alias of YAML, which makes one object stand in several places."""
    if isinstance(node, dict):
        return {key: _copied(value) for key, value in node.items()}
    return [_copied(value) for value in node] if isinstance(node, list) else node


def _set(content: Any, key: str, value: Any, where: str) -> None:
    """Change the entry `section.key` of a recipe; where there was none, the recipe's fields say what may be there."""
    *parents, last = key.split(".")
    node = content
    for depth, part in enumerate(parents):
        node = node[_entry(node, part, ".".join(parents[:depth]) or "the recipe")]
        if not isinstance(node, dict | list):
            raise ValueError(f"{where}: {'.'.join(parents[: depth + 1])} has no entries")
    if isinstance(node, list):
        node[_entry(node, last, ".".join(parents))] = value
    else:
        node[last] = value


def _entry(node: Any, part: str, where: str) -> Any:
    if isinstance(node, list):
        if not part.isdecimal() or int(part) >= len(node):
            raise ValueError(f"{where} has the entries 0 … {len(node) - 1}, got {part!r}")
        return int(part)
    if not isinstance(node, dict) or part not in node:
        raise ValueError(f"in {where}: {unknown_name('key', part, map(str, node or ()))}")
    return part


def _build(cls: type, content: Any, where: str, **kinds: type) -> Any:
    """Make a dataclass of a mapping, with the types it declares, or for some fields those in `kinds`."""
    if not isinstance(content, Mapping):
        raise ValueError(f"{where} must be a mapping of keys to values, got {content!r}")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in content:
        if key not in fields:
            raise ValueError(f"in {where}: {unknown_name('key', key, fields)}")
    hints = typing.get_type_hints(cls) | kinds
    values = {}
    for name, field in fields.items():
        if name in content:
            values[name] = _value(hints[name], content[name], f"{where}: {name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{where}: {name} is missing")
    return cls(**values)


def _value(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _build(typing.cast(type, kind), value, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{where}: {unknown_name('value', value, arguments)}")
        return value
    if origin in (types.UnionType, typing.Union):
        fitting = [option for option in arguments if _fits(option, value)]
        return _value(fitting[0] if fitting else arguments[0], value, where)
    if not _fits(kind, value):
        raise ValueError(f"{where} must be {_NAMES[origin or kind]}, got {value!r}")
    if origin is list:
        return [_value(arguments[0], entry, where) for entry in value]
    return float(value) if kind is float else value


def _fits(kind: Any, value: Any) -> bool:
    kind = typing.get_origin(kind) or kind
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float) if kind is float else isinstance(value, kind)


_NAMES = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "a mapping",
}
