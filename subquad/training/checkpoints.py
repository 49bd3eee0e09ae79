"""Checkpoint folders: which of them are complete, and which are kept."""

import json
import shutil
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open

PREFIX = "checkpoint-"
KEPT = 2  # the last one, and one more in case it is damaged; the best one besides


def checkpoints(folder: Path) -> list[Path]:
    """All checkpoints in a folder, by rising step."""
    found = [path for path in folder.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdecimal()]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The number of updates that a checkpoint has seen."""
    return int(checkpoint.name.removeprefix(PREFIX))


def last_complete(folder: Path) -> Path | None:
    """The last checkpoint that is not damaged, None if there is none."""
    return next((path for path in reversed(checkpoints(folder)) if is_complete(path)), None)


def is_complete(checkpoint: Path) -> bool:
    """Whether all files of a checkpoint are there and none is cut off."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        weights = list(checkpoint.glob("*.safetensors"))
        for path in weights:
            with safe_open(path, framework="pt"):  # compares the length of the file with its header
                pass
        # The directory of a zip file is its end.
        states = [*checkpoint.glob("*.pt"), *checkpoint.glob("*.pth"), *checkpoint.glob("*.bin")]
        return bool(weights) and bool(states) and all(zipfile.is_zipfile(path) for path in states)
    except (OSError, ValueError, SafetensorError):
        return False


def remove_old(folder: Path, best_step: int | None) -> None:
    """Delete all checkpoints but the last ones and the best."""
    for path in checkpoints(folder)[:-KEPT]:
        if step_of(path) != best_step:
            shutil.rmtree(path, ignore_errors=True)
