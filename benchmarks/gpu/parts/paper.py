"""A training step at the architectures of the paper's table 3: forward, backward, Adam; HSD also by a CUDA graph."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import exodus_core
from benchmarks.gpu.device import Device
from benchmarks.gpu.rows import Emit, Row, failed
from exodus_core import network, training

SURROGATE = exodus_core.surrogate.Exponential(slope=2.0, scale=2.0)
KINDS = ("exodus", "slayer", "bptt", "sinabs-exodus", "SpikingJelly")


@dataclass(frozen=True)
class Task:
    """A network, the shape of its input, its classes, and how its outputs, (B, T, classes), become logits."""

    make: Callable[[str, int], nn.Module]
    shape: tuple[int, ...]
    classes: int
    read: Callable[[Tensor], Tensor]


def run(device: Device, emit: Emit) -> None:
    """One row for each task and method."""
    for name, task in TASKS.items():
        ours = float("nan")
        for kind in KINDS:
            try:
                spent = device.milliseconds(_step(device, task, kind), repeats=3 if kind == "bptt" else 10, budget_s=3)
            except ImportError as error:
                emit({"case": f"{name}, {kind}", "ok": True, "detail": f"left out: {error}"})
                continue
            except Exception as error:  # noqa: BLE001 (the other methods go on)
                emit(failed(f"{name}, {kind}", error))
                continue
            ours = spent if kind == "exodus" else ours
            emit({"task": name, "method": kind, "ms a step": spent, "against exodus": spent / ours})
    try:
        emit(_by_graph(device))
    except Exception as error:  # noqa: BLE001 (what was found so far is reported)
        emit(failed("HSD by graph", error))


def _by_graph(device: Device) -> Row:
    """A step of HSD of `Trainer` by a CUDA graph and without: times, and weights that are equal to the bit."""
    shape, classes = TASKS["HSD"].shape if device.is_gpu else (2, 10, 100), TASKS["HSD"].classes
    neuron = {"kind": "if", "surrogate": {"kind": "exponential", "slope": 2.0, "scale": 2.0}}
    layers: list[dict[str, Any]] = []
    for size in (128, 128, 128, classes):
        layers += [{"kind": "linear", "out_features": size, "bias": False}, neuron]
    description = {"input_shape": [shape[2]], "layers": layers}
    replaying, eager = (
        training.Trainer(network.build(description, 0, device.type), "adam", graphs=graphs) for graphs in (None, False)
    )
    generator = torch.Generator().manual_seed(0)
    batches = [
        ((torch.rand(shape, generator=generator) < 0.05).to(device.type), torch.randint(classes, shape[:1]))
        for _ in range(20)
    ]
    for x, y in batches:
        for trainer in (replaying, eager):
            trainer.step(x, y, "max_over_time_ce")
    same = torch.equal(replaying.weights(), eager.weights())
    (x, y), replayed = batches[0], replaying.graph_nbytes > 0
    by_graph, without = (
        device.milliseconds(partial(trainer.step, x, y, "max_over_time_ce"), budget_s=2)
        for trainer in (replaying, eager)
    )
    detail = (
        f"weights after {len(batches)} steps {'equal' if same else 'differ'}; {by_graph:.3f} ms by graph (at most 1.0 "
        f"is wanted), {without:.3f} ms without; {'replayed' if replayed else 'not replayed'}, "
        f"{replaying.graph_nbytes} bytes"
    )
    return {"case": "HSD by graph", "ok": same and replayed == device.is_gpu, "detail": detail}


def _step(device: Device, task: Task, kind: str) -> Callable[[], Tensor]:
    shape = task.shape if device.is_gpu else (2, 10, *task.shape[2:])
    torch.manual_seed(0)
    x = (torch.rand(shape, device=device.type) < 0.05).float()
    y = torch.randint(task.classes, (shape[0],), device=device.type)
    net = task.make(kind, task.classes).to(device.type)
    net(x[:1])  # which sizes the last layer
    optimizer, loss = torch.optim.Adam(net.parameters(), 1e-3), nn.CrossEntropyLoss()

    def step() -> Tensor:
        for module in net.modules():
            reset: Any = getattr(module, "reset_states", None)
            if reset is not None:
                reset()
        optimizer.zero_grad()
        value: Tensor = loss(task.read(net(x)), y)
        value.backward()
        optimizer.step()
        return value

    return step


class _PerStep(nn.Module):
    """A layer without time, on every step of (B, T, ...)."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x.flatten(0, 1))
        return y.reshape(*x.shape[:2], *y.shape[1:])


class _SpikingJelly(nn.Module):
    """Its IF neuron, which wants time first."""

    def __init__(self) -> None:
        super().__init__()
        neuron = importlib.import_module("spikingjelly.activation_based.neuron")
        self.functional = importlib.import_module("spikingjelly.activation_based.functional")
        self.layer = neuron.IFNode(v_reset=None, step_mode="m")

    def forward(self, x: Tensor) -> Tensor:
        self.functional.reset_net(self.layer)
        y: Tensor = self.layer(x.transpose(0, 1).contiguous())
        return y.transpose(0, 1)


def _neuron(kind: str) -> nn.Module:
    if kind == "SpikingJelly":
        return _SpikingJelly()
    if kind == "sinabs-exodus":
        layers, activation = (importlib.import_module(f"sinabs.{name}") for name in ("exodus.layers", "activation"))
        module: nn.Module = layers.IAF(spike_fn=activation.SingleSpike)
        return module
    return exodus_core.nn.IF(method=kind, surrogate=SURROGATE)


def _convolutional(kind: str, classes: int) -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in ((2, 2), (2, 4), (4, 8), (8, 16)):
        convolution, pool = nn.Conv2d(before, after, 3, bias=False), nn.AvgPool2d(2)
        layers += [_PerStep(convolution), _neuron(kind), _PerStep(pool)]
    return nn.Sequential(*layers, nn.Flatten(2), nn.LazyLinear(classes, bias=False), _neuron(kind))


def _linear(kind: str, classes: int) -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in ((100, 128), (128, 128), (128, 128), (128, classes)):
        layers += [nn.Linear(before, after, bias=False), _neuron(kind)]
    return nn.Sequential(*layers)


TASKS = {
    "DVS Gesture": Task(_convolutional, (32, 300, 2, 64, 64), 11, lambda y: y.sum(1)),
    "HSD": Task(_linear, (128, 250, 100), 20, lambda y: y.max(1).values),
    "SSC": Task(_linear, (128, 250, 100), 35, lambda y: y.max(1).values),
}
