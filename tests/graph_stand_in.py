"""A stand-in for CUDA graphs of training steps, for the tests of core and service on the CPU."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class StandIn:
    """A recording on the CPU. Like a capture, making it leaves the result unwritten."""

    def __init__(self, compute: Callable[[], Any], device: torch.device) -> None:
        compute()
        self.compute, self.result, self.nbytes = compute, compute(), 1000
        for tensor in self._written(self.result):
            tensor.fill_(math.nan)

    def replay(self) -> None:
        for tensor, new in zip(self._written(self.result), self._written(self.compute()), strict=True):
            tensor.copy_(new)

    @staticmethod
    def _written(result: Any) -> list[Tensor]:
        return [*result.gradients, *result.changes.buffers, *result.scalars.stacks]
