"""Memory that is freed stays with the process."""

import os
import platform
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import subquad.cli
import subquad.memory

PAGES = """
import resource, sys
from subquad.memory import keep_freed_memory
print(keep_freed_memory() if sys.argv[1] == "keep" else False)
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = bytearray(64 * 2**20)
    del block
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages(choice, **environment):
    """Whether anything was changed, and the new pages of each of four blocks."""
    names = {name: value for name, value in os.environ.items() if "MALLOC" not in name and "GLIBC" not in name}
    command = [sys.executable, "-c", PAGES, choice]
    output = subprocess.run(command, env={**names, **environment}, check=True, capture_output=True, text=True).stdout
    changed, *counts = output.split()
    return changed == "True", [int(count) for count in counts]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_a_block_of_the_same_size_costs_no_new_pages():
    changed, counts = pages("keep")
    assert changed
    assert max(counts[1:]) < 100
    changed, counts = pages("default")
    assert not changed
    assert min(counts) > 100


def test_what_the_user_chose_stays():
    assert not pages("keep", MALLOC_TRIM_THRESHOLD_="131072")[0]
    assert not pages("keep", GLIBC_TUNABLES="glibc.malloc.arena_max=2")[0]


def test_every_command_does_so(monkeypatch):
    calls = []
    monkeypatch.setattr(subquad.memory, "keep_freed_memory", lambda: calls.append(True))
    assert CliRunner().invoke(subquad.cli.app, ["info"]).exit_code == 0
    assert calls == [True]
