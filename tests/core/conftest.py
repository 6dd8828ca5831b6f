"""For the tests of exodus_core: memory that an operator leaves unwritten reads as NaN, and the device they run on."""

import os
from collections.abc import Iterator

import pytest
import torch
import torch._dynamo

import exodus_core
from exodus_core.sparse import convolution, product

# The device on which tensors are made, "cpu" or "cuda".
DEVICE = os.environ.get("EXODUS_TEST_DEVICE", "cpu")


@pytest.fixture(autouse=True, scope="module")
def _nothing_is_compiled_yet() -> None:
    # torch.compile counts how often a function was compiled, also for layers of other tests, and gives up at eight.
    torch._dynamo.reset()


@pytest.fixture(autouse=True)
def _on_device() -> Iterator[None]:
    with torch.device(DEVICE):
        yield


@pytest.fixture(autouse=True)
def _unwritten_memory_is_nan() -> Iterator[None]:
    # torch fills what torch.empty returns, in C++ as in Python, while deterministic algorithms are asked for.
    torch.use_deterministic_algorithms(True)
    limit = exodus_core.keep_memory(0)
    yield
    exodus_core.keep_memory(limit)
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def all_sparse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of any size and density are computed from the spikes."""
    monkeypatch.setattr(product, "_MIN_ROWS", 0)
    monkeypatch.setattr(product, "_MIN_PRODUCTS", 0)
    monkeypatch.setattr(product, "_MAX_DENSITY", ((0, 1.0),))
    monkeypatch.setattr(product, "_MAX_DENSITY_OF_BFLOAT16", ((0, 1.0),))
    monkeypatch.setattr(product, "_BFLOAT16_SHARE", 1.0)
    for shares in ("_MAX_DENSITY", "_MAX_DENSITY_OF_LISTED"):
        monkeypatch.setattr(convolution, shares, ((0, 1.0, 1.0),))
    monkeypatch.setattr(convolution, "_MAX_DENSITY_OF_ONE_TAP", 1.0)
