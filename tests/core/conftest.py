"""For the tests of exodus_core: memory that an operator leaves unwritten reads as NaN."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _unwritten_memory_is_nan() -> Iterator[None]:
    # torch fills what torch.empty returns, in C++ as in Python, while deterministic algorithms are asked for.
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
