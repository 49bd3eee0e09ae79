"""The choice of a backend is visible, and never falls back in silence."""

import pytest
import torch

from subquad.ops import backends


def test_explain_names_what_auto_takes_and_why(monkeypatch):
    monkeypatch.setattr(backends, "HAS_NUMBA", False)
    lines = backends.explain()
    assert set(lines) == set(backends.IMPLEMENTED)
    assert lines["linear_recurrence"] == "torch; not numba: numba is not installed: pip install 'subquad[cpu]'"


def test_asking_for_what_cannot_run_is_an_error(monkeypatch):
    monkeypatch.setattr(backends, "HAS_NUMBA", False)
    with pytest.raises(ValueError, match=r"pip install 'subquad\[cpu\]'"):
        backends.choose("linear_recurrence", "numba", torch.device("cpu"))
    monkeypatch.setattr(backends, "HAS_NUMBA", True)
    with pytest.raises(ValueError, match="the tensors are on cuda: use backend='torch'"):
        backends.choose("linear_recurrence", "numba", torch.device("cuda"))
    assert backends.choose("linear_recurrence", "auto", torch.device("cuda")) == "torch"
    assert backends.choose("linear_cross_entropy", "auto", torch.device("cpu")) == "torch"
    with pytest.raises(ValueError, match="liger-kernel runs on a GPU, the tensors are on cpu: use backend='torch'"):
        backends.choose("linear_cross_entropy", "liger", torch.device("cpu"))
    monkeypatch.setattr(backends, "HAS_LIGER", False)
    with pytest.raises(ValueError, match=r"pip install 'subquad\[gpu\]'"):
        backends.choose("linear_cross_entropy", "liger", torch.device("cuda"))
    monkeypatch.setattr(backends, "HAS_LIGER", True)
    assert backends.choose("linear_cross_entropy", "auto", torch.device("cuda")) == "liger"
