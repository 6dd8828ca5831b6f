"""A pytest plugin that runs the suite of sinabs-exodus on the CPU: "cuda" stands for it everywhere.

`pytest -p on_cpu` with this folder on PYTHONPATH and a checkout in EXODUS_SINABS_EXODUS. The checkout is not installed:
its `sinabs.exodus` is found through the path of the installed `sinabs`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sinabs
import torch
from torch.overrides import TorchFunctionMode


def _cpu(value: Any) -> Any:
    """A device that is a GPU as the CPU, anything else as it is."""
    is_gpu = isinstance(value, str | torch.device) and str(value).split(":")[0] == "cuda"
    return "cpu" if is_gpu else value


class _GpuIsCpu(TorchFunctionMode):
    """Every function of torch that is given a GPU computes on the CPU."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.Tensor.cuda:
            return args[0]
        return func(*map(_cpu, args), **{name: _cpu(value) for name, value in (kwargs or {}).items()})


def pytest_configure() -> None:
    sinabs.__path__.append(str(Path(os.environ["EXODUS_SINABS_EXODUS"]) / "sinabs"))
    _GpuIsCpu().__enter__()
    torch.manual_seed(0)  # the suite draws parameters while it is collected
