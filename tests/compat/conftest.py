"""The golden numbers, as their own comparison reads them."""

import importlib.util

import pytest
from support import shared


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
        inputs = [tensors[f"input.{argument}"] for argument in meta["call"]["args"]]
        return meta["family"], meta["config"], state, inputs, tensors["output.y"], meta["call"]["kwargs"]

    return load
