"""Same numbers at every run, and nothing of the user's is touched."""

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


@pytest.fixture(autouse=True)
def _cache_folder(tmp_path_factory, monkeypatch):
    """Prepared corpora of tests never touch the user's cache."""
    monkeypatch.setenv("SUBQUAD_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
