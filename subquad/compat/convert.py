"""Checkpoints of others become run folders: what `subquad convert` does."""

import dataclasses
import inspect
import json
import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import yaml

from subquad._version import __version__
from subquad.compat import arena, glue
from subquad.compat.checkpoints import Checkpoint, read_checkpoint
from subquad.compat.fairseq import classification_heads
from subquad.compat.language_sizes import preset
from subquad.compat.pretrained import ReferenceConfig, to_pretrained
from subquad.compat.recognize import Recognized, recognize
from subquad.compat.reference import FAMILIES
from subquad.data import DataError, Tokenizer, build_tokenizer, load_tokenizer
from subquad.data.dictionary import Dictionary
from subquad.evaluation.files import written
from subquad.evaluation.runs import quiet_transformers
from subquad.models import SubquadConfig

# What all published image code takes from pixels, whatever the data.
NORMALISATION = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}

# Most tokens of a finetuned model whose arguments do not say it.
FAIRSEQ_POSITIONS = 512

FROM_TOKENIZER = ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")


@dataclass(frozen=True)
class Converted:
    """What `convert` made.

    Args:
        folder: The run folder.
        family: The published family.
        preset: The published name of the configuration, where the checkpoint tells.
        task: What the model is for; of finetuned models with the name of their task, as "glue-mrpc" and "lra-text".
        parameters: Number of parameters.
        vocabulary: Number of tokens; None for images.
        unit: What a token is; None without a tokenizer.
    """

    folder: Path
    family: str
    preset: str | None
    task: str
    parameters: int
    vocabulary: int | None
    unit: str | None


def convert(
    checkpoint: Path | str,
    output: Path | str,
    *,
    family: str | None = None,
    task: str | None = None,
    config: Path | str | None = None,
    overrides: Iterable[str] = (),
    dictionary: Path | str | None = None,
    tokenizer: str | None = None,
) -> Converted:
    """Read a checkpoint of a published code base, and write a run folder that computes the same.

    Args:
        checkpoint: See `read_checkpoint`.
        output: Run folder to write; it must not hold anything.
        family: A family of `from_reference`; default: recognised from the names of the tensors.
        task: What a classifier was trained on: "glue-" or "lra-" and the name of a task of GLUE or of the Long Range
            Arena, or "sequence-classification" for another; default: what the checkpoint tells.
        config: JSON file with published options, for a checkpoint that does not store them.
        overrides: Published options, `key=value` with the value in YAML; they go before all others.
        dictionary: fairseq's `dict.txt` that was used in training: line i is row i + 4 of the embedding.
        tokenizer: "word" (default with a dictionary), "gpt2-bpe:FOLDER" with GPT-2's merges, or the name or folder of
            a Hugging Face tokenizer.

    Returns:
        What was made.

    Raises:
        DataError: The checkpoint cannot be read safely, is not known, or contradicts what is given.
        ValueError: Weights are missing, unexpected, of another shape or not finite (all of them are listed), or the
            model has parts that no configuration describes.
    """
    output = Path(output)
    _check_is_free(output)
    if (Path(checkpoint) / "run.json").exists():
        raise DataError(f"{checkpoint}: is a run folder already, which every command takes")
    source = read_checkpoint(checkpoint)
    found = recognize(source.tensors, source.arguments, _given(config, overrides), family)
    glue_task = _glue_task(source, found, task)
    with quiet_transformers():
        model = _build(source, found)
    if glue_task is not None and glue.CLASSES[glue_task]:
        model.config.id2label = dict(enumerate(glue.CLASSES[glue_task]))
        model.config.label2id = {label: number for number, label in model.config.id2label.items()}
    with quiet_transformers():
        vocabulary = _tokenizer(source, found, dictionary, tokenizer, getattr(model.config, "vocab_size", None))
    recipe = _recipe(model, found, vocabulary, glue_task, task)
    output.parent.mkdir(parents=True, exist_ok=True)
    with written(output.resolve()) as folder:
        folder.mkdir()
        with quiet_transformers():
            model.save_pretrained(folder)
        if vocabulary is not None:
            vocabulary.save(folder)
        _write(folder / "recipe.yaml", yaml.safe_dump(recipe, sort_keys=False))
        info = _provenance(source, found, model, vocabulary)
        _write(folder / "run.json", json.dumps(info, indent=2, ensure_ascii=False) + "\n")
        if output.is_dir():
            output.rmdir()
    return Converted(
        folder=output,
        family=found.family,
        preset=preset(found.config),
        task=_full_name(recipe),
        parameters=model.num_parameters(),
        vocabulary=getattr(model.config, "vocab_size", None),
        unit=vocabulary and vocabulary.unit,
    )


def _check_is_free(output: Path) -> None:
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise DataError(f"{output}: exists, and is not an empty folder; choose another output folder")


def _given(config: Path | str | None, overrides: Iterable[str]) -> dict[str, Any]:
    """What the person who converts says of the model."""
    given: dict[str, Any] = {}
    if config is not None:
        try:
            content = json.loads(Path(config).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{config}: not a JSON file that can be read ({error})") from None
        if not isinstance(content, dict):
            raise DataError(f"{config}: must be a JSON object of options and values")
        given |= content
    for override in overrides:
        key, sign, value = override.partition("=")
        try:
            given[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            sign = ""
        if not (sign and key):
            raise DataError(f"an option has the form key=value, the value in YAML, got {override!r}")
    return given


def _glue_task(source: Checkpoint, found: Recognized, said: str | None) -> str | None:
    """The task of GLUE that a model was finetuned on; None for all other models."""
    heads = classification_heads(source.tensors)
    if not heads:
        if said is not None and found.family not in arena.PIPELINES:
            raise DataError(
                f"--task {said}: is for masked language models finetuned on a classification and for models of the "
                f"Long Range Arena, this is a {found.family} of the task {found.task}"
            )
        return None
    if len(heads) > 1:
        raise DataError(f"{source.path}: has the classifiers {', '.join(heads)}; a model of one of them is needed")
    (head,) = heads.values()
    return glue.finetuned_on(head["num_classes"], source.task, said)


def _build(source: Checkpoint, found: Recognized) -> Any:
    """The model with its weights."""
    name = f"{source.path}: recognised as {found.family}"
    if found.family not in FAMILIES:
        raise DataError(f"{name}, which this version cannot convert")
    if found.task is None:
        raise DataError(
            f"{name}, a part of a model: take the module that subquad.compat.from_reference({found.family!r}, …) "
            "returns, and use it in a model of yours"
        )
    parameters = inspect.signature(FAMILIES[found.family]).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    # A file stores more than its model's options; what the person gave is held against them.
    extra = set() if takes_all else set(source.arguments) - set(parameters)
    config = {key: value for key, value in found.config.items() if key not in extra}
    try:
        return to_pretrained(dataclasses.replace(found, config=config), source.tensors)
    except ValueError:
        raise
    # Arguments of the wrong kind fail anywhere in the construction.
    except Exception as error:
        raise DataError(f"{name}, but its arguments are not those of one ({type(error).__name__}: {error})") from error


def _tokenizer(
    source: Checkpoint, found: Recognized, dictionary: Path | str | None, spec: str | None, rows: int | None
) -> Tokenizer | None:
    """The tokenizer of the model, held against its vocabulary."""
    if dictionary is not None:
        words = Dictionary.load(dictionary)
        if spec is None and sum(symbol.isdecimal() for symbol in words.symbols) > len(words) / 2:
            raise DataError(
                f"{dictionary}: its symbols are numbers, as of GPT-2's BPE: give the folder with vocab.bpe or "
                "merges.txt, --tokenizer gpt2-bpe:FOLDER (or --tokenizer word, if they are words)"
            )
        if spec is not None and spec != "word" and not spec.startswith("gpt2-bpe"):
            raise DataError(f"--dictionary belongs to the tokenizers word and gpt2-bpe, not to {spec}")
        tokenizer = build_tokenizer(spec or "word", dictionary=words)
    elif spec == "word":
        raise DataError("--tokenizer word needs the dict.txt that was used in training: --dictionary FILE")
    elif spec is not None:
        tokenizer = build_tokenizer(spec)
    elif source.path.is_dir() and (source.path / "tokenizer_config.json").is_file():
        tokenizer = load_tokenizer(source.path)
    else:
        return None
    if rows is None:
        raise DataError(f"a {found.family} has no vocabulary: leave --dictionary and --tokenizer out")
    if found.family.endswith("_roberta") and tokenizer.vocabulary.size < rows:
        tokenizer.add_mask()
    size = tokenizer.num_ids
    # fairseq has a row for each symbol; other embeddings are often padded to a round number.
    if size > rows or (tokenizer.dictionary and size < rows):
        raise DataError(
            f"{dictionary or spec or source.path}: {size} symbols, the model has {rows} rows in its embedding: "
            "it is not the vocabulary that was used in training"
        )
    return tokenizer


def _recipe(
    model: Any, found: Recognized, tokenizer: Tokenizer | None, glue_task: str | None, said: str | None
) -> dict[str, Any]:
    """What the other commands ask a recipe for; the training is not known, of the data what it is of."""
    config = model.config
    if isinstance(config, ReferenceConfig):
        options: dict[str, Any] = {"family": config.family, "options": config.options}
    else:
        options = _own_options(config)
    if glue_task is not None:
        positions = found.config.get("max_positions")
        data = {"task": glue_task, "max_length": positions if isinstance(positions, int) else FAIRSEQ_POSITIONS}
    elif found.task == "sequence-classification":
        data = arena.data_options(found, config, said)
    elif found.task == "image-classification":
        data = {"image_size": _side(config.image_size), "layout": "patches"}
    else:
        data = {
            "tokenizer": tokenizer and tokenizer.unit,
            "block_size": found.config.get("tokens_per_sample"),
            "block_mode": found.config.get("sample_break_mode"),
        }
    task = found.task if glue_task is None else "glue"
    return {"task": task, "model": options, "data": {key: value for key, value in data.items() if value is not None}}


def _full_name(recipe: dict[str, Any]) -> str:
    """The task of a recipe, with the name of the data where one belongs to it."""
    prefixes = {"glue": glue.PREFIX, "sequence-classification": arena.PREFIX}
    name = recipe["data"].get("task")
    return recipe["task"] if name is None else f"{prefixes[recipe['task']]}{name}"


def _side(image_size: int | list[int]) -> int | None:
    """Height and width of square images."""
    sides = {image_size} if isinstance(image_size, int) else set(image_size)
    return sides.pop() if len(sides) == 1 else None


def _own_options(config: SubquadConfig) -> dict[str, Any]:
    defaults = {option.name: option.default for option in dataclasses.fields(SubquadConfig)}
    own = [name for name in SubquadConfig.__annotations__ if name in defaults and name not in FROM_TOKENIZER]
    options = {name: getattr(config, name) for name in own if getattr(config, name, None) != defaults[name]}
    options.pop("layer_types", None)
    return options


def _provenance(source: Checkpoint, found: Recognized, model: Any, tokenizer: Tokenizer | None) -> dict[str, Any]:
    return {
        "version": __version__,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "status": "converted",
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "source": {
            "name": source.path.name,
            "sha256": source.sha256(),
            "family": found.family,
            "preset": preset(found.config),
            "model": arena.published_model(found),
            **source.progress,
            "config": found.config,
        },
        "data": NORMALISATION if found.task == "image-classification" else None,
        "vocabulary": tokenizer and tokenizer.vocabulary.as_dict(),
        "parameters": model.num_parameters(),
    }


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
