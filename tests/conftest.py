"""Same numbers at every run: fixed seeds, few threads, and memory that is never silently zero."""

import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).parent))

import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(1234)


@pytest.fixture(scope="session", autouse=True)
def _poisoned_memory():
    """Uninitialised tensors are filled with NaN, so that a read of one cannot go unnoticed."""
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.utils.deterministic.fill_uninitialized_memory = before


@pytest.fixture(autouse=True)
def _cache_folder(tmp_path_factory, monkeypatch):
    """Prepared corpora of tests never touch the user's cache."""
    monkeypatch.setenv("SUBQUAD_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
