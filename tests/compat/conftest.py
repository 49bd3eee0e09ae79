"""The golden numbers, as their own comparison reads them."""

import importlib.util

import pytest
from support import shared

from subquad.data.lra import ListOpsLimits, generate_listops


@pytest.fixture(scope="session")
def golden():
    """The comparison that comes with the numbers."""
    spec = importlib.util.spec_from_file_location("golden_check", shared("golden", "check.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def load(golden):
    """The family, configuration, weights, inputs and outputs of a fixture, to be changed by a test."""

    def load(name):
        meta, tensors = golden.load(shared("golden", f"{name}.safetensors"))
        state = {**golden.part(tensors, "param."), **golden.part(tensors, "buffer.")}
        state.pop("positions_used", None)  # a note of the fixture
        inputs = [tensors[f"input.{argument}"] for argument in meta["call"]["args"]]
        return meta["family"], meta["config"], state, inputs, tensors["output.y"], meta["call"]["kwargs"]

    return load


@pytest.fixture
def listops(tmp_path):
    """A folder with short expressions in the format of the Long Range Arena."""
    generate_listops(
        tmp_path / "data/listops-1000",
        train=30,
        valid=5,
        test=11,
        limits=ListOpsLimits(min_length=4, max_length=24, max_depth=4, max_args=4),
        num_workers=1,
        progress=False,
    )
    return tmp_path / "data"
