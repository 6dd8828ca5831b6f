"""Memory of freed outputs is used again: never while anyone can see it, never more than is allowed."""

import copy
import io
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import exodus_core

MIB = 2**20
PAGE = 4096
DEFAULT = str(exodus_core.capabilities()["keeps_memory"])  # none in a build with sanitizers
SHAPE = (4, 32, 1024)  # 512 KiB

pytestmark = pytest.mark.skipif(
    exodus_core.capabilities()["instruction_set"] == "emulated CUDA", reason="the CPU's outputs are not in this build"
)


@pytest.fixture(autouse=True)
def _kept(_unwritten_memory_is_nan: None) -> Iterator[None]:
    exodus_core.keep_memory(64 * MIB)
    if exodus_core.capabilities()["keeps_memory"] == 0:
        pytest.skip("needs torch 2.11")
    yield
    exodus_core.keep_memory(0)


def outputs(x: Tensor) -> tuple[Tensor, Tensor]:
    return exodus_core.lif(x, 0.9)


def page(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr() // PAGE


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
    )


def test_outputs_lie_where_freed_ones_lay() -> None:
    x = torch.randn(SHAPE)
    spikes, membrane = outputs(x)
    before = {page(spikes), page(membrane)}
    del spikes, membrane
    spikes, membrane = outputs(x)
    assert {page(spikes), page(membrane)} == before


def test_gradients_lie_where_freed_ones_lay() -> None:
    x = torch.randn(SHAPE, requires_grad=True)
    pages = set()
    for _ in range(8):
        x.grad = None
        outputs(x)[0].sum().backward()
        pages.add(page(x.grad))
    # The copy of the expanded gradient of the sum is in cached memory too: the two change places.
    assert len(pages) <= 3


def test_a_view_keeps_its_memory() -> None:
    x = torch.randn(SHAPE)
    view = outputs(x)[1][1:3, ::5, 7:]
    expected = view.clone()
    others = [outputs(-x) for _ in range(10)]
    assert torch.equal(view, expected)
    assert page(view) not in {page(t) for pair in others for t in pair}


def test_memory_that_numpy_sees_is_not_used_again() -> None:
    x = torch.randn(SHAPE)
    array = outputs(x)[1].numpy()
    expected = array.copy()
    for _ in range(5):
        outputs(-x)
    assert np.array_equal(array, expected)


def test_outputs_and_their_input_begin_in_different_quarters_of_a_page() -> None:
    leaf = torch.randn(SHAPE, requires_grad=True)
    for _ in range(4):
        spikes, membrane = outputs(leaf)
        assert len({t.data_ptr() % PAGE // 1024 for t in (leaf, spikes, membrane)}) == 3
        (grad,) = torch.autograd.grad(membrane.sum(), leaf)
        assert grad.data_ptr() % PAGE // 1024 != membrane.data_ptr() % PAGE // 1024
        assert all(t.data_ptr() % 64 == 0 for t in (spikes, membrane, grad))


def test_results_have_the_same_bits_in_fresh_and_in_used_memory() -> None:
    found = []
    for limit in (0, 64 * MIB):
        exodus_core.keep_memory(limit)
        for _ in range(3):
            x = torch.linspace(-1, 2, 4 * 33 * 1027).view(4, 33, 1027).requires_grad_()
            spikes, membrane = outputs(x)
            (spikes.sum() + membrane.square().sum()).backward()
            found.append((spikes, membrane, x.grad))
            del x, spikes, membrane
    assert all(torch.equal(a, b) for first, second in pairwise(found) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("limit", [0, 3 * MIB, 20 * MIB])
def test_no_more_is_kept_than_is_allowed(limit: int) -> None:
    exodus_core.keep_memory(limit)
    for neurons in (*range(1000, 3000, 250), *range(1000, 3000, 250)):
        outputs(torch.randn(4, 64, neurons))
        assert exodus_core.kept_memory() <= limit
    assert limit == 0 or exodus_core.kept_memory() > 0


def test_memory_of_sizes_that_do_not_come_again_makes_room() -> None:
    exodus_core.keep_memory(8 * MIB)
    for neurons in range(1000, 2000, 200):
        outputs(torch.randn(4, 64, neurons))
    x = torch.randn(4, 64, 3000)  # 3 MB
    before = {page(t) for t in outputs(x)}
    assert {page(t) for t in outputs(x)} == before


def test_a_lower_limit_frees_at_once() -> None:
    outputs(torch.randn(SHAPE))
    assert exodus_core.kept_memory() > 0
    assert exodus_core.keep_memory(0) == 64 * MIB
    assert exodus_core.kept_memory() == 0


def test_small_outputs_are_not_kept() -> None:
    exodus_core.keep_memory(0)
    exodus_core.keep_memory(64 * MIB)
    outputs(torch.randn(4, 8, 16))
    assert exodus_core.kept_memory() == 0


def test_a_negative_limit_is_named() -> None:
    with pytest.raises(ValueError, match="limit must be at least 0, got -1"):
        exodus_core.keep_memory(-1)


def test_threads_never_share_memory() -> None:
    inputs = [torch.randn(4, 32, 1000 + 10 * i) for i in range(8)]
    expected = [outputs(x)[1] for x in inputs]

    def work(i: Any) -> bool:
        held = []
        for turn in range(60):
            held.append(outputs(inputs[i])[1])
            if turn % 3 == 0:
                del held[: len(held) // 2]
            if not all(torch.equal(membrane, expected[i]) for membrane in held[-3:]):
                return False
        return all(torch.equal(membrane, expected[i]) for membrane in held)

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(work, range(8)))
    assert exodus_core.kept_memory() <= 64 * MIB


def test_strides_are_those_of_empty_like() -> None:
    x = torch.randn(4, 33, 1024).as_strided((4, 33, 1, 1024), (33 * 1024, 1024, 77, 1))
    assert x.is_contiguous()
    for output in exodus_core.lif(x, 0.9):
        assert output.shape == x.shape
        assert output.stride() == torch.empty_like(x).stride()


ORDINARY: dict[str, Callable[[Tensor], Tensor]] = {
    "pickle": lambda t: pickle.loads(pickle.dumps(t)),
    "save": lambda t: saved_and_loaded(t),
    "deepcopy": copy.deepcopy,
    "shared memory": lambda t: t.clone().copy_(t.share_memory_()),
    "dlpack": torch.from_dlpack,  # type: ignore[attr-defined]
    "data": lambda t: t.data,
    "in place": lambda t: t.add_(1).sub_(1),
    "resize to the same": lambda t: t.resize_(t.numel()).view(SHAPE),
    "out": lambda t: torch.mul(t.clone(), 1, out=t),
}


def saved_and_loaded(tensor: Tensor) -> Tensor:
    file = io.BytesIO()
    torch.save(tensor, file)
    loaded: Tensor = torch.load(io.BytesIO(file.getvalue()))
    return loaded


@pytest.mark.parametrize("use", ORDINARY)
def test_an_output_is_used_as_any_tensor(use: str) -> None:
    spikes = outputs(torch.randn(SHAPE))[0]
    expected = spikes.clone()
    assert torch.equal(ORDINARY[use](spikes), expected)


def test_a_storage_can_be_enlarged_only_where_nothing_is_kept() -> None:
    x = torch.randn(SHAPE)
    with pytest.raises(RuntimeError, match="not resizable"):
        outputs(x)[0].resize_(2 * x.numel())
    exodus_core.keep_memory(0)
    assert outputs(x)[0].resize_(2 * x.numel()).numel() == 2 * x.numel()


def test_a_program_ends_with_outputs_alive() -> None:
    code = (
        "import threading, torch, exodus_core\n"
        "held = [exodus_core.lif(torch.randn(4, 32, 1024), 0.9) for _ in range(3)]\n"
        "threading.held = held[1]\n"
        "del held[0]\n"
    )
    run = run_python(code)
    assert (run.returncode, run.stderr) == (0, "")


FORK = """
import os, threading, torch, exodus_core
torch.set_num_threads(1)
x = torch.randn(4, 32, 1024)
expected = exodus_core.lif(x, 0.9)[1]
running = True
def work():
    while running:
        exodus_core.lif(x, 0.9)
threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads:
    thread.start()
for _ in range(20):
    child = os.fork()
    if child == 0:
        same = all(torch.equal(exodus_core.lif(x, 0.9)[1], expected) for _ in range(5))
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0
running = False
for thread in threads:
    thread.join()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_a_forked_child_computes_while_threads_of_the_parent_do() -> None:
    run = run_python(FORK, PYTHONWARNINGS="ignore")
    assert (run.returncode, run.stderr) == (0, "")


@pytest.mark.parametrize(("limit", "told"), [("", DEFAULT), ("0", "0"), ("1000000", "1000000")])
def test_the_environment_sets_the_limit(limit: str, told: str) -> None:
    run = run_python("import exodus_core; print(exodus_core.capabilities()['keeps_memory'])", EXODUS_KEEP_MEMORY=limit)
    assert run.stdout.strip() == told


def test_a_limit_in_the_environment_that_is_no_number_is_named() -> None:
    run = run_python("import exodus_core", EXODUS_KEEP_MEMORY="1G")
    assert "EXODUS_KEEP_MEMORY must be a number of bytes, got '1G'" in run.stderr


def test_where_torch_lacks_what_keeping_needs_outputs_are_torchs_own(tmp_path: Path) -> None:
    package = tmp_path / "exodus_core"
    shutil.copytree(Path(exodus_core.__file__).parent, package)
    library = package / "_C.abi3.so"
    content = library.read_bytes()
    assert b"\0torch_from_blob\0" in content
    library.write_bytes(content.replace(b"\0torch_from_blob\0", b"\0torch_from_none\0"))
    code = (
        "import torch, exodus_core\n"
        "exodus_core.keep_memory(2**30)\n"
        "spikes, _ = exodus_core.lif(torch.ones(4, 32, 1024), 0.9)\n"
        "spikes.resize_(2**20)\n"
        "del spikes\n"
        "print(exodus_core.__file__, exodus_core.capabilities()['keeps_memory'], exodus_core.kept_memory())\n"
    )
    run = run_python(code, PYTHONPATH=str(tmp_path))
    assert run.stdout.split() == [str(package / "__init__.py"), "0", "0"], run.stderr
