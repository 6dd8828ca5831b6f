"""The device that a part runs on: a GPU, or the CPU in its place, on which the parts themselves are tried."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Device:
    """A GPU, or a stand-in.

    Attributes:
        type: "cuda", or "cpu" for the stand-in, where sizes are small and times mean nothing.
    """

    type: str

    @property
    def is_gpu(self) -> bool:
        """False for the stand-in."""
        return self.type == "cuda"

    @property
    def name(self) -> str:
        """The card; for the stand-in what it is."""
        return torch.cuda.get_device_name() if self.is_gpu else "no GPU: the CPU stands in, times mean nothing"

    @property
    def free_bytes(self) -> int:
        """Memory that can be allocated now."""
        if not self.is_gpu:
            return 2**26
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0]

    def synchronize(self) -> None:
        """Wait for all that was launched."""
        if self.is_gpu:
            torch.cuda.synchronize()

    def milliseconds(self, run: Callable[[], object], *, repeats: int = 15, budget_s: float = 1.5) -> float:
        """Median of up to so many runs, by events on the stream, in about the budget; one run goes ahead."""
        run()
        self.synchronize()
        began = time.perf_counter()
        run()
        self.synchronize()
        once = time.perf_counter() - began
        found = sorted(self._once(run) for _ in range(max(2, min(repeats, int(budget_s / max(once, 1e-6))))))
        return found[len(found) // 2]

    def _once(self, run: Callable[[], object]) -> float:
        if not self.is_gpu:
            began = time.perf_counter()
            run()
            return (time.perf_counter() - began) * 1e3
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end))

    def graph(self, run: Callable[[], object]) -> Callable[[], object]:
        """A replay of `run` captured in a CUDA graph; on the stand-in the run itself."""
        if not self.is_gpu:
            return run
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            run()
            run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        return graph.replay
