import ctypes
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

import exodus_core
from exodus_service.compute import allocator
from exodus_service.settings import MIB, Settings

# What a thread allocates lies in the heap of the process, and is still resident when it is freed.
THREAD = """
import re, sys, threading
from pathlib import Path
import torch
from exodus_service.compute.allocator import keep_memory

def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

def compute():
    tensors = [torch.ones(4 << 20) for _ in range(5)]
    heap = re.search(r"(\\w+)-(\\w+).*\\[heap\\]", Path("/proc/self/maps").read_text())
    inside = int(heap[1], 16) <= tensors[-1].data_ptr() < int(heap[2], 16)
    before = resident()
    tensors.clear()
    print(inside, before - resident() < 16 << 20)

keep_memory(int(sys.argv[1]))
thread = threading.Thread(target=compute)
thread.start()
thread.join()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no mallopt")
@pytest.mark.parametrize(
    ("limit", "found"), [(512 * MIB, "True True"), (128 * MIB, "False False"), (136 * MIB, "True True"), (0, "False")]
)
def test_threads_share_a_heap_that_keeps_what_is_freed(limit: int, found: Any) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    run = subprocess.run([sys.executable, "-c", THREAD, str(limit)], env=environment, capture_output=True, text=True)
    assert run.stderr == ""
    assert run.stdout.startswith(found)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Calls of mallopt, which answers `calls.answer`; the outputs' limit is put back."""
    made = SimpleNamespace(made=[], answer=1)

    def mallopt(parameter: int, value: int) -> Any:
        made.made.append((parameter, value))
        return made.answer

    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=mallopt))
    before = exodus_core.keep_memory(1)
    yield made
    exodus_core.keep_memory(before)


def test_limits_are_c_ints(calls: SimpleNamespace) -> None:
    allocator.keep_memory(2**40)
    assert calls.made == [(-8, 1), (-1, 2**31 - 1), (-3, (2**31 - 1) // 8)]


def test_a_refusal_is_logged(calls: SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    calls.answer = 0
    allocator.keep_memory(MIB)
    assert "mallopt(-1, 1048576) failed" in caplog.text


def test_without_glibc_outputs_are_kept(monkeypatch: pytest.MonkeyPatch, calls: SimpleNamespace) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    allocator.keep_memory(3 * MIB)
    assert exodus_core.keep_memory(3 * MIB) == 3 * MIB


def test_the_limit_is_that_of_outputs_by_default() -> None:
    code = "import exodus_core; print(exodus_core.capabilities()['keeps_memory'])"
    environment = {name: value for name, value in os.environ.items() if name != "EXODUS_KEEP_MEMORY"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert int(run.stdout) == Settings.model_fields["keep_memory"].default
