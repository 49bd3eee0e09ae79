"""Reading checkpoint files of others. Nothing in a file is executed, and no file can ask for more memory than its size.

A torch file is a zip archive of one pickle and of the raw bytes of each tensor. A pickle says which functions are
called with which arguments. The names in it are held to a list first, without building anything; then torch's
restricted unpickler reads it. Files that would need the full unpickler are refused, and no option changes that.
"""

import argparse
import hashlib
import itertools
import json
import pickletools
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.serialization import safe_globals

from subquad.data import DataError

# What a pickle may name: tensors and plain containers, and fairseq's arguments. torch allows more, such as
# constructors that take a size and allocate it.
ALLOWED = re.compile(
    r"torch\._utils\._rebuild_(tensor_v2|parameter)|torch\.\w+Storage|torch\.(Size|device|u?int\d+|b?float\d+|bool)|"
    r"collections\.(OrderedDict|Counter)|(builtins|__builtin__)\.set|_codecs\.encode|argparse\.Namespace"
)

ZIP, PICKLE = b"PK\x03\x04", "/data.pkl"

# The pickles of published checkpoints have less than 1 MB; that of optimiser states grows with the number of tensors.
MAX_PICKLE_BYTES = 1 << 26
# Tied weights are stored once and named twice, in some files three times.
MAX_NAMES_FOR_A_BYTE = 4
MAX_ARGUMENTS = 10_000

# Where the weights stand: fairseq and image models, Lightning, the LRA models of Primal-Attention.
WEIGHTS_KEYS = ("model", "state_dict", "model_state_dict")
# What fairseq says of the task that a model was finetuned on.
TASK_KEYS = ("task", "data", "regression_target")
# Wrappers put their name before all others.
WRAPPERS = re.compile(r"(module\.|_orig_mod\.)+")


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Args:
        path: The file, or the folder of a Hugging Face model.
        tensors: Parameters and buffers by name. They are mapped into memory: the file must stay as it is.
        arguments: What the file says about its model, as plain values; empty where it says nothing.
        progress: What it says about its training: number of updates, validation loss.
        task: What fairseq says about the task: its name, the path of the data, whether scores are predicted.
    """

    path: Path
    tensors: dict[str, Tensor]
    arguments: dict[str, Any] = field(default_factory=dict)
    progress: dict[str, Any] = field(default_factory=dict)
    task: dict[str, Any] = field(default_factory=dict)

    def sha256(self) -> dict[str, str]:
        """The hash of each file the weights come from, by its name."""
        paths = weight_files(self.path) if self.path.is_dir() else [self.path]
        return {path.name: _sha256(path) for path in paths}


def read_checkpoint(path: Path | str) -> Checkpoint:
    """Read a checkpoint of fairseq, Lightning or plain torch, a safetensors file, or a folder of Hugging Face.

    Args:
        path: A `.pt`, `.pth`, `.ckpt`, `.bin` or `.safetensors` file, or a folder with `config.json` and weights.

    Raises:
        DataError: There is none, it is damaged, it would need code to be run, or it declares more than it holds.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file or folder")
    if path.suffix == ".safetensors":
        return Checkpoint(path, _unwrapped(_read_safetensors(path)))
    content = _read_torch(path)
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds a {type(content).__name__}, not a dictionary of tensors")
    key = next((key for key in WEIGHTS_KEYS if isinstance(content.get(key), dict)), None)
    if key is None:
        return Checkpoint(path, _unwrapped(_checked_tensors(content, path)))
    tensors = _unwrapped(_checked_tensors(content[key], path))
    arguments = _arguments(content, path)
    return Checkpoint(path, tensors, arguments, _progress(content), _task(content, arguments))


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights of a Hugging Face model, safetensors before pickles.

    Raises:
        DataError: There are none, or the index names files outside the folder.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            shards = _read_json(index).get("weight_map")
            names = sorted(set(map(str, shards.values()))) if isinstance(shards, dict) else []
            if not names or any(Path(shard).name != shard for shard in names):
                raise DataError(f"{index}: its weight_map must name files of this folder")
            if missing := [shard for shard in names if not (folder / shard).is_file()]:
                raise DataError(f"{folder}: lacks {', '.join(missing)}, which {index.name} names")
            return [folder / shard for shard in names]
    raise DataError(f"{folder}: no model.safetensors and no pytorch_model.bin in this folder")


def _read_folder(folder: Path) -> Checkpoint:
    files = weight_files(folder)
    config = _plain(_read_json(folder / "config.json"), folder / "config.json")
    tensors: dict[str, Tensor] = {}
    for path in files:
        read = _read_safetensors if path.suffix == ".safetensors" else _read_tensors
        tensors |= read(path)
    return Checkpoint(folder, _unwrapped(tensors), config)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    return _checked_tensors(_read_torch(path), path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{path}: corrupt or cut off ({_first_line(error)})") from None


def _read_torch(path: Path) -> Any:
    """What `torch.save` wrote, with tensors mapped into memory."""
    pickle, sizes = _open_archive(path)
    try:
        forbidden = sorted({name for name in _globals(pickle) if not ALLOWED.fullmatch(name)})
        if not forbidden:
            with safe_globals([argparse.Namespace]):
                content = torch.load(str(path), map_location="cpu", weights_only=True, mmap=True)
    # What damaged and hostile pickles raise has no common kind: their reader trusts their structure.
    except Exception as error:
        raise DataError(f"{path}: damaged, or not what `torch.save` writes ({_first_line(error)})") from None
    if forbidden:
        raise DataError(
            f"{path}: reading it would run code: {', '.join(forbidden)}. Nothing was run. If you trust the file, load "
            "it where it was written, keep the dictionary of tensors alone (usually under 'model' or 'state_dict'), "
            "and save that with safetensors"
        )
    for tensor in _tensors_in(content):
        if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise DataError(f"{path}: holds a tensor that is sparse, quantised or without values")
        # A view of few bytes can have any number of entries.
        held = tensor.untyped_storage().nbytes()
        if held not in sizes or tensor.nbytes > held:
            raise DataError(f"{path}: a tensor {tuple(tensor.shape)} declares more than the file holds for it")
    return content


def _open_archive(path: Path) -> tuple[bytes, set[int]]:
    """Hold the archive to what `torch.save` writes; return its pickle, and the sizes of its records."""
    with path.open("rb") as file:
        if file.read(len(ZIP)) != ZIP:
            raise DataError(
                f"{path}: not a zip archive of torch. Formats older than torch 1.6 are not read, nor other pickles: "
                "if you trust the file, load it where it was written, and save its tensors with safetensors"
            )
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _check_entries(path, entries)
            pickle = next(entry for entry in entries if entry.filename.endswith(PICKLE))
            return archive.read(pickle), {entry.file_size for entry in entries}
    except DataError:
        raise
    # Damaged archives raise errors of many kinds.
    except Exception as error:
        raise DataError(f"{path}: damaged or cut off ({_first_line(error)})") from None


def _check_entries(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    size = path.stat().st_size
    pickles = [entry for entry in entries if entry.filename.endswith(PICKLE)]
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise DataError(f"{path}: a compressed archive; torch writes none, and it may unpack to any size")
    if sum(entry.file_size for entry in entries) > size:
        raise DataError(f"{path}: its records declare more than the {size:,} bytes of the file")
    if len(pickles) != 1 or any("/code/" in entry.filename for entry in entries):
        raise DataError(f"{path}: not what `torch.save` writes (a TorchScript archive, which holds code?)")
    if pickles[0].file_size > MAX_PICKLE_BYTES:
        raise DataError(f"{path}: a pickle of more than {MAX_PICKLE_BYTES:,} bytes")


def _globals(pickle: bytes) -> set[str]:
    """The names of all functions and classes in a pickle. torch reads no other instruction that names one."""
    found = (argument for code, argument, _ in pickletools.genops(pickle) if code.name == "GLOBAL")
    return {str(argument).replace(" ", ".", 1) for argument in found}


def _tensors_in(content: Any) -> Iterator[Tensor]:
    """Every tensor in nested containers, each container once."""
    seen, stack = set(), [content]
    while stack:
        value = stack.pop()
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, dict | list | tuple | set | argparse.Namespace) and id(value) not in seen:
            seen.add(id(value))
            value = vars(value) if isinstance(value, argparse.Namespace) else value
            stack.extend(value.values() if isinstance(value, dict) else value)


def _checked_tensors(weights: Any, path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict."""
    if not isinstance(weights, dict) or not weights:
        raise DataError(f"{path}: holds no tensors by name")
    if others := [name for name, value in weights.items() if not (isinstance(name, str) and isinstance(value, Tensor))]:
        names = ", ".join(str(name)[:40] for name in others[:5])
        raise DataError(
            f"{path}: no dictionary of tensors (it holds {names}); weights are looked for under "
            f"{', '.join(WEIGHTS_KEYS)} and at the top"
        )
    total, limit = sum(tensor.nbytes for tensor in weights.values()), path.stat().st_size * MAX_NAMES_FOR_A_BYTE
    if total > limit:
        raise DataError(f"{path}: its tensors have {total:,} bytes, more than {MAX_NAMES_FOR_A_BYTE} times the file's")
    return {name: tensor.detach() for name, tensor in weights.items()}


def _unwrapped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names without the prefix that DistributedDataParallel or torch.compile put before all of them."""
    prefixes = {(WRAPPERS.match(name) or [""])[0] for name in tensors}
    return {name.removeprefix(min(prefixes)): tensor for name, tensor in tensors.items()}


def _arguments(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The model's arguments: fairseq's `args` or `cfg`, Lightning's `hyper_parameters`."""
    source = content.get("args") or content.get("hyper_parameters") or {}
    cfg = content.get("cfg")
    if not source and isinstance(cfg, dict):
        source = cfg.get("model") or {}
    arguments = _plain(source, path)
    return arguments if isinstance(arguments, dict) else {}


def _progress(content: Mapping[str, Any]) -> dict[str, Any]:
    """The number of updates and the validation loss, where fairseq or Lightning wrote them."""
    history, extra = content.get("optimizer_history"), content.get("extra_state")
    last = history[-1] if isinstance(history, list) and history else {}
    facts = {
        "updates": last.get("num_updates") if isinstance(last, dict) else None,
        "valid_loss": extra.get("val_loss") if isinstance(extra, dict) else None,
    }
    facts["updates"] = facts["updates"] or content.get("global_step")
    return {name: value for name, value in facts.items() if isinstance(value, int | float)}


def _task(content: Mapping[str, Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What fairseq says about the task, in a section of its own or among all arguments."""
    cfg = content.get("cfg")
    section = cfg.get("task") if isinstance(cfg, dict) else None
    section = vars(section) if isinstance(section, argparse.Namespace) else section
    said = {**arguments, **section, "task": section.get("_name")} if isinstance(section, dict) else arguments
    return {key: said[key] for key in TASK_KEYS if isinstance(said.get(key), str | bool)}


def _plain(value: Any, path: Path) -> Any:
    """Arguments as numbers, texts, lists and dictionaries; `argparse.Namespace` is a dictionary."""
    counter = itertools.count()

    def convert(value: Any) -> Any:
        if next(counter) > MAX_ARGUMENTS:
            raise DataError(f"{path}: more than {MAX_ARGUMENTS:,} arguments")
        if isinstance(value, argparse.Namespace):
            value = vars(value)
        if isinstance(value, dict):
            return {str(key): convert(entry) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return [convert(entry) for entry in value]
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise DataError(f"{path}: an argument is a {type(value).__name__}; only numbers, texts and lists are read")

    try:
        return convert(value)
    except RecursionError:
        raise DataError(f"{path}: its arguments are nested too deeply") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({_first_line(error)})") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: not a JSON object")
    return content


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
