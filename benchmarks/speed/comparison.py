"""The comparison itself: every contender on every workload, checked and then timed, alone and after a Linear."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .contenders import CONTENDERS, Contender, Spikes, build_all
from .gate import fault
from .kernels import copy, triad
from .measure import Phases, Timing, forward_backward, interleaved, seconds
from .memory import kept_arrays, peak_arrays
from .workloads import QUICK, WORKLOADS, Workload

TRIADS = "memory limit: 2 triads"  # 24 bytes a neuron-step
COPIES = "memory limit: 3 copies"
LINEAR = "the Linear alone"
LAYER_AT_MOST = 1024  # neurons: with more, matrix products of seconds hide every neuron


@dataclass
class Comparison:
    """Timings by workload and contender; faults by workload and contender; memory by contender, in membranes."""

    neuron: dict[str, dict[str, Timing]] = field(default_factory=dict)
    layer: dict[str, dict[str, Timing]] = field(default_factory=dict)
    wrong: dict[str, dict[str, str]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    kept: dict[str, float] = field(default_factory=dict)
    peak: dict[str, float] = field(default_factory=dict)

    @property
    def ours_is_wrong(self) -> bool:
        ours = {contender.name for contender in CONTENDERS if contender.is_ours}
        return any(ours & set(faults) for faults in self.wrong.values())


def _limits(workload: Workload) -> dict[str, Phases]:
    add, move = seconds(triad(workload)), seconds(copy(workload))
    return {
        TRIADS: lambda: (*add(), *add()),
        COPIES: lambda: (*move(), *move(), *move()),
    }


def _warmed(contender: Contender, turn_of: Spikes, x: Tensor, g: Tensor) -> Phases:
    """A turn; whatever is made at a first call, compiled code for example, is made on three steps of the input."""
    short = (signal.narrow(contender.time_dim, 0, 3).contiguous() for signal in (x, g))
    forward_backward(turn_of, *short)()
    return forward_backward(turn_of, x, g)


def _neuron_turns(workload: Workload, right: dict[str, Spikes]) -> dict[str, Phases]:
    x, g = workload.inputs()
    arranged: dict[tuple[int, float], tuple[Tensor, Tensor]] = {}
    turns = {}
    for contender in (c for c in CONTENDERS if c.name in right):
        key = contender.time_dim, contender.gain
        if key not in arranged:
            arranged[key] = contender.arrange(x) * contender.gain, contender.arrange(g)
        turns[contender.name] = _warmed(contender, right[contender.name], *arranged[key])
    return turns | _limits(workload)


def _layer_turns(workload: Workload, right: dict[str, Spikes]) -> dict[str, Phases]:
    """Linear(N, N) without bias, then the neuron; gradients of the input and of the weights."""
    x, g = workload.inputs()
    weight = torch.randn(workload.neurons, workload.neurons) / workload.neurons**0.5
    turns = {}

    def layer(spikes_of: Spikes, gain: float) -> Spikes:
        weights = (weight * gain).requires_grad_()

        def run(x: Tensor) -> Tensor:
            weights.grad = None
            return spikes_of(torch.nn.functional.linear(x, weights))

        return run

    for contender in (c for c in CONTENDERS if c.name in right):
        run = layer(right[contender.name], contender.gain)
        turns[contender.name] = _warmed(contender, run, contender.arrange(x), contender.arrange(g))
    return turns | {LINEAR: forward_backward(layer(lambda current: current, 1.0), x, g)}


def _right(workload: Workload, built: dict[str, Spikes]) -> tuple[dict[str, Spikes], dict[str, str]]:
    faults = {c.name: fault(c, built[c.name], workload) for c in CONTENDERS if c.name in built}
    wrong = {name: found for name, found in faults.items() if found}
    return {name: run for name, run in built.items() if name not in wrong}, wrong


def compare(quick: bool) -> Comparison:
    result = Comparison()
    contenders = [c for c in CONTENDERS if not (quick and c.compiles)]
    built, result.missing = build_all(contenders)
    most, share = (5, 1.0) if quick else (20, 5.0)
    for workload in QUICK if quick else WORKLOADS:
        print(f"comparing at {workload.name}", flush=True)
        right, result.wrong[workload.name] = _right(workload, built)
        result.neuron[workload.name] = interleaved(_neuron_turns(workload, right), most, share)
        if workload.neurons <= LAYER_AT_MOST:
            result.layer[workload.name] = interleaved(_layer_turns(workload, right), most, share / 2)
    first = WORKLOADS[0]
    for contender in (c for c in contenders if c.name in right):
        result.kept[contender.name] = kept_arrays(contender, right[contender.name], first)
        if not quick:
            result.peak[contender.name] = peak_arrays(contender, first)
    return result
