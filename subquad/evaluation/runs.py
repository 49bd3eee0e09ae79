"""Run folders: what `train` wrote, read back with clear errors.

The folder may come from someone else: nothing in it is executed, and weights are read from safetensors only.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
)
from transformers.utils import logging

import subquad.models  # noqa: F401 - makes them known to the Auto classes
from subquad.data import Corpus, DataError, Tokenizer, TokenStream, build_tokenizer, load_tokenizer, prepare
from subquad.data.sources import DataValue, is_databin

# What the name of a model's class ends with, the class that loads it, and what it is trained for.
HEADS: dict[str, tuple[Any, str]] = {
    "ForCausalLM": (AutoModelForCausalLM, "causal-lm"),
    "ForMaskedLM": (AutoModelForMaskedLM, "masked-lm"),
    "ForSequenceClassification": (AutoModelForSequenceClassification, "sequence-classification"),
    "ForImageClassification": (AutoModelForImageClassification, "image-classification"),
}


class Run:
    """A run folder. Its files are read when they are asked for.

    Args:
        folder: The folder that `train` wrote.

    Raises:
        DataError: It is no run folder, or its first training has not finished.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise DataError(f"{folder}: no such run folder")
        if not (self.folder / "config.json").is_file():
            if (self.folder / "run.json").is_file():
                raise DataError(
                    f"{folder}: this run has no model yet (its status is {self.info.get('status', 'unknown')})"
                )
            raise DataError(f"{folder}: not a run folder (no config.json); `subquad train` writes one")

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.folder.resolve().name

    @cached_property
    def config(self) -> dict[str, Any]:
        """`config.json`: the model's configuration."""
        return self._read_json("config.json")

    @cached_property
    def info(self) -> dict[str, Any]:
        """`run.json`: how the run came about; empty where there is none."""
        return self._read_json("run.json", optional=True)

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """`metrics.json`: the final figures; empty where there are none."""
        return self._read_json("metrics.json", optional=True)

    @cached_property
    def extrapolation(self) -> dict[str, Any]:
        """`extrapolation.json`: what `extrapolate` found; empty where there is none."""
        return self._read_json("extrapolation.json", optional=True)

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """`recipe.yaml`: the resolved recipe; empty where there is none."""
        path = self.folder / "recipe.yaml"
        if not path.is_file():
            return {}
        try:
            content = yaml.safe_load(self._read_text("recipe.yaml"))
        except (yaml.YAMLError, RecursionError) as error:
            raise DataError(f"{path}: not YAML ({_first_line(error)})") from None
        if not isinstance(content, dict) or _refers_to_itself(content, set(), set()):
            raise DataError(f"{path}: not a recipe")
        return content

    @cached_property
    def log(self) -> list[dict[str, Any]]:
        """`log.jsonl`, in order; without a last line that was being written when the run ended."""
        if not (self.folder / "log.jsonl").is_file():
            return []
        lines = self._read_text("log.jsonl").splitlines()
        entries = []
        for number, line in enumerate(lines, start=1):
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                entry = None
            if isinstance(entry, dict):
                entries.append(entry)
            elif number < len(lines):
                raise DataError(f"{self.folder / 'log.jsonl'}: line {number} is not a JSON object")
        return entries

    @property
    def task(self) -> str:
        """What the model was trained for: the task of the recipe, or what its class is for."""
        return self._field(self.recipe, "task") or self._head[1]

    def require_task(self, task: str, what: str) -> None:
        """Refuse a run of another task.

        Args:
            task: The only one that will do.
            what: What is refused, for the message.

        Raises:
            DataError: The run is of another task.
        """
        if self.task != task:
            raise DataError(f"{self.folder}: {what} needs a model of the task {task}, this one is of {self.task}")

    @property
    def _head(self) -> tuple[Any, str]:
        names = self._field(self.config, "architectures", kind=list) or []
        fitting = [head for end, head in HEADS.items() for name in names if str(name).endswith(end)]
        return fitting[0] if fitting else HEADS["ForCausalLM"]

    @property
    def training_length(self) -> int | None:
        """Tokens in a training block, or of an example the most."""
        lengths = (self._field(self.recipe, "data", name, kind=int) for name in ("block_size", "max_length"))
        return next((length for length in lengths if length is not None), None)

    @property
    def block_mode(self) -> Any:
        """How the recipe cuts the text into blocks."""
        return self._field(self.recipe, "data", "block_mode") or "none"

    @property
    def evaluated_split(self) -> str:
        """The part of the data that figures are of: the test split, where its labels are public."""
        return "valid" if self.task == "glue" else "test"

    @property
    def masking(self) -> dict[str, Any] | None:
        """How the recipe masks tokens; None: in the default way."""
        return self._field(self.recipe, "data", "masking", kind=dict)

    @property
    def seed(self) -> int:
        """The seed of the recipe."""
        return self._field(self.recipe, "training", "seed", kind=int) or 0

    @property
    def device_batch_size(self) -> int:
        """Examples that are on a device at once in the recipe.

        Raises:
            DataError: There are none.
        """
        size = self._field(self.recipe, "training", "device_batch_size", kind=int) or 8
        if size < 1:
            raise DataError(f"{self.folder / 'recipe.yaml'}: training.device_batch_size must be positive, got {size}")
        return size

    @property
    def is_converted(self) -> bool:
        """Whether it is the model of a published checkpoint, whose training is not known."""
        return self.info.get("status") == "converted"

    @property
    def source(self) -> dict[str, Any]:
        """What is known of the checkpoint that a converted model comes from; empty for all others."""
        return self._field(self.info, "source", kind=dict) or {}

    @property
    def data_name(self) -> str | None:
        """The data's name."""
        return self._field(self.info, "data", "name")

    @property
    def data_fingerprint(self) -> str | None:
        """Equal for runs that were given the same text."""
        return self._field(self.info, "data", "fingerprint")

    @property
    def evaluated_data(self) -> dict[str, Any]:
        """What is known of the data that the figures of `metrics` are of; see `evaluate_run`."""
        record = (self.metrics if self.is_converted else self.info).get("data")
        return record if isinstance(record, dict) else {}

    @property
    def evaluated_fingerprint(self) -> str | None:
        """Equal for runs whose figures are of the same data, divided in the same way."""
        return self._field(self.evaluated_data, "fingerprint")

    @property
    def hardware(self) -> str | None:
        """What the run was trained on."""
        return self._field(self.info, "hardware")

    @property
    def date(self) -> str | None:
        """The day on which the training began."""
        started = self._field(self.info, "started")
        return started and started.partition("T")[0]

    @property
    def recipe_data(self) -> str | list[str] | None:
        """What the recipe trains on."""
        return self._field(self.recipe, "data", "source") or self._field(self.recipe, "data", "source", kind=list)

    def provenance(self) -> list[tuple[str, str]]:
        """Everything `run.json` says, as names and values."""
        return list(_leaves("", self.info))

    @staticmethod
    def _field(content: Any, *keys: str, kind: type = str) -> Any:
        for key in keys:
            content = content.get(key) if isinstance(content, dict) else None
        return content if isinstance(content, kind) else None

    @property
    def model_class(self) -> Any:
        """The Auto class of transformers that the model belongs to."""
        return self._head[0]

    def load_config(self) -> Any:
        """Load the configuration of the model.

        Raises:
            DataError: It is none of ours, or damaged.
        """
        self._know_published_models()
        try:
            return AutoConfig.from_pretrained(self.folder, local_files_only=True)
        except (OSError, ValueError, TypeError, StrictDataclassError) as error:
            raise DataError(f"{self.folder}: config.json cannot be read ({_first_line(error)})") from error

    def _know_published_models(self) -> None:
        if self.config.get("model_type") == "subquad-reference":
            import subquad.compat  # noqa: F401 - makes them known to the Auto classes

    def load_model(self, device: torch.device | str | None = None) -> Any:
        """Load the model, in evaluation mode.

        Args:
            device: Where to; default: the accelerator, where there is one.

        Raises:
            DataError: The weights are missing, corrupt, cut off, or not those of the configuration.
            ValueError: The device cannot be used.
        """
        device = _usable(device)
        path = self.folder / "model.safetensors"
        if not (path.is_file() or path.with_suffix(".safetensors.index.json").is_file()):
            raise DataError(f"{self.folder}: no model.safetensors in it; the run has not saved a model")
        try:
            self._know_published_models()
            # Sizes that differ are refused below, with names, as all weights that do not fit.
            with quiet_transformers():
                loaded: Any = self.model_class.from_pretrained(
                    self.folder,
                    use_safetensors=True,
                    local_files_only=True,
                    ignore_mismatched_sizes=True,
                    output_loading_info=True,
                )
        except SafetensorError as error:
            raise DataError(
                f"{path}: corrupt or cut off ({_first_line(error)}); copy it again or train again"
            ) from None
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, StrictDataclassError) as error:
            raise DataError(f"{self.folder}: the model cannot be loaded ({_first_line(error)})") from error
        model, report = loaded
        for problem in ("missing", "unexpected", "mismatched"):
            if names := sorted(str(key) for key in report.get(f"{problem}_keys") or ()):
                raise DataError(f"{path}: not the weights of config.json ({problem}: {', '.join(names[:3])} …)")
        return model.to(device).eval()

    def load_tokenizer(self) -> Tokenizer:
        """Load the tokenizer.

        Raises:
            DataError: It is missing or corrupt.
        """
        if not (self.folder / "tokenizer_config.json").is_file():
            hint = ": convert it with --dictionary or --tokenizer" if self.info.get("status") == "converted" else ""
            raise DataError(f"{self.folder}: no tokenizer in it (tokenizer_config.json is missing){hint}")
        return load_tokenizer(self.folder)

    def open_data(self, data: DataValue | None = None, split: str = "test", *, progress: bool = True) -> TokenStream:
        """A split of data, encoded with the tokenizer of the run; see `open_corpus`."""
        return self.open_corpus(data, progress=progress).splits[split]

    def open_corpus(self, data: DataValue | None = None, *, progress: bool = True) -> Corpus:
        """Encode data with the tokenizer of the run.

        Args:
            data: See `subquad.data.open_source`; default: the data of the recipe.
            progress: Show a progress bar.

        Raises:
            DataError: The data cannot be read, or does not match the tokenizer.
        """
        data = data if data is not None else self.recipe_data
        if data is None:
            raise DataError(f"{self.folder}: its data is not known (no recipe.yaml): give the data")
        text_column = self._field(self.recipe, "data", "text_column") or "text"
        return prepare(data, self.tokenizer_for(data), text_column=text_column, progress=progress)

    def tokenizer_for(self, data: DataValue | None = None) -> Tokenizer:
        """The tokenizer of the run; where a converted model has none, the dictionary of a data-bin folder."""
        data = data if data is not None else self.recipe_data
        has_own = (self.folder / "tokenizer_config.json").is_file()
        if has_own or not (isinstance(data, str | Path) and is_databin(data)):
            return self.load_tokenizer()
        words = build_tokenizer("word", data)
        size, rows = words.vocabulary.size, self._field(self.config, "vocab_size", kind=int)
        # Models of masked words have one more, the mask.
        if size not in (rows, (rows or 0) - 1):
            raise DataError(f"{data}: its dict.txt has {size} symbols, the model of {self.folder} {rows}")
        # Whether the symbols are words or numbers of a BPE is not known.
        unit = f"symbol of {Path(data).name}/dict.txt"
        return Tokenizer(words.fast, unit=unit, line_wise=True, dictionary=words.dictionary)

    def _read_json(self, name: str, *, optional: bool = False) -> dict[str, Any]:
        path = self.folder / name
        if optional and not path.is_file():
            return {}
        try:
            content = json.loads(self._read_text(name))
        except (ValueError, RecursionError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path}: not JSON, or cut off ({_first_line(error)})") from None
        if not isinstance(content, dict):
            raise DataError(f"{path}: not a JSON object")
        return content

    def _read_text(self, name: str) -> str:
        path = self.folder / name
        try:
            return path.read_text(encoding="utf-8")
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from None
        except UnicodeDecodeError:
            raise DataError(f"{path}: not UTF-8 text, or damaged") from None


def _usable(device: torch.device | str | None) -> torch.device:
    """The device, or the accelerator where there is one."""
    if device is None:
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    try:
        return torch.empty(0, device=device or "cpu").device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {str(device)!r} cannot be used ({_first_line(error)})") from None


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without progress bars and reports; what matters in them becomes an error."""
    verbosity, has_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bar:
            logging.enable_progress_bar()


def _leaves(name: str, content: Any) -> Iterator[tuple[str, str]]:
    if isinstance(content, dict):
        for key, value in content.items():
            yield from _leaves(f"{name} {key}".strip(), value)
    elif content is not None:
        yield name.replace("_", " "), str(content)


def _refers_to_itself(content: Any, above: set[int], seen: set[int]) -> bool:
    """Whether a part of YAML content is its own part, which aliases allow."""
    place = id(content)
    if not isinstance(content, dict | list) or place in seen:
        return False
    if place in above:
        return True
    values = content.values() if isinstance(content, dict) else content
    is_circular = any(_refers_to_itself(value, above | {place}, seen) for value in values)
    seen.add(place)
    return is_circular


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
