"""One layer: a Linear or a convolution with its neuron, by the share of ones in its input.

The dense layer is the same one with exact=True, which is torch's product.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import exodus_core
from benchmarks.speed.measure import Phases, Timing, interleaved

#: Shares of ones.
DENSITIES = (0.001, 0.01, 0.02, 0.05, 0.1, 0.3, 1.0)
SPARSE, DENSE, ALONE = "from the spikes", "dense", "the dense product alone"
ALPHA = 0.9
#: Of the largest value; float32, against float64. A gradient of a kernel sums half a million terms.
AGREEMENT = 5e-5

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Layer:
    """A product, perhaps with a pool, and LIF neurons behind it, exponential surrogate.

    Args:
        name: for tables.
        shape: of the input, (batch, time, *features).
        make: the module of the product and the pool, given exact.
        hidden: dL/d(input) is wanted too.
    """

    name: str
    shape: tuple[int, ...]
    make: Callable[[bool], torch.nn.Module]
    hidden: bool = False

    def input(self, density: float) -> Tensor:
        chance = torch.Generator().manual_seed(0)
        return (torch.rand(self.shape, generator=chance) < density).float()


def _linear(inputs: int, outputs: int) -> Callable[[bool], torch.nn.Module]:
    return lambda exact: exodus_core.nn.Linear(inputs, outputs, exact=exact)


def _convolution(inputs: int, outputs: int, size: int, **options: int) -> Callable[[bool], torch.nn.Module]:
    return lambda exact: exodus_core.nn.Conv2d(inputs, outputs, size, exact=exact, **options)


def _pooled(batch: tuple[int, int], inputs: int, outputs: int, size: int) -> Callable[[bool], torch.nn.Module]:
    def make(exact: bool) -> torch.nn.Module:
        pool = torch.nn.MaxPool2d(2) if exact else exodus_core.nn.MaxPool2d(2)
        convolution = exodus_core.nn.Conv2d(inputs, outputs, size, exact=exact)
        return torch.nn.Sequential(torch.nn.Flatten(0, 1), convolution, pool, torch.nn.Unflatten(0, batch))

    return make


FIRST = Layer("Linear 1024-1024, 32x100, first", (32, 100, 1024), _linear(1024, 1024))
HIDDEN = Layer("Linear 1024-1024, 32x100, hidden", (32, 100, 1024), _linear(1024, 1024), hidden=True)
LAYERS = (
    FIRST,
    HIDDEN,
    Layer("Linear 128-128, 128x250, first", (128, 250, 128), _linear(128, 128)),
    Layer("Linear 700-20, 64x250, first", (64, 250, 700), _linear(700, 20)),
    Layer("Conv2d 2-32 3x3, 34x34, 16x30, first", (16, 30, 2, 34, 34), _convolution(2, 32, 3, padding=1)),
    Layer("Conv2d 16-32 3x3, 16x16, 16x60, hidden", (16, 60, 16, 16, 16), _convolution(16, 32, 3, padding=1), True),
    Layer(
        "Conv2d 12-64 5x5 and MaxPool2d 2, 12x12, 32x50, hidden",
        (32, 50, 12, 12, 12),
        _pooled((32, 50), 12, 64, 5),
        True,
    ),
)


def _neuron(current: Tensor) -> Tensor:
    return exodus_core.lif(current, ALPHA)[0]


def _turn(module: torch.nn.Module, x: Tensor, grad: Tensor, hidden: bool, neuron: Run) -> Phases:
    """Forward, and backward; gradients are allocated anew."""

    def turn() -> tuple[float, ...]:
        module.zero_grad(set_to_none=True)
        leaf = x.detach().requires_grad_(hidden)
        start = time.perf_counter()
        y = neuron(module(leaf))
        middle = time.perf_counter()
        y.backward(grad)
        end = time.perf_counter()
        return middle - start, end - middle

    return turn


def _check(layer: Layer, density: float, modules: dict[str, torch.nn.Module], x: Tensor) -> None:
    """Raises unless the product of each and its gradients are those in float64."""
    grad = torch.randn(modules[DENSE](x).shape, generator=torch.Generator().manual_seed(1))

    def gradients(module: torch.nn.Module, of: Tensor, grad: Tensor) -> list[Tensor]:
        leaf = of.detach().requires_grad_()
        y = module(leaf)
        return [y.detach(), *torch.autograd.grad(y, [leaf, *module.parameters()], grad)]

    exact = layer.make(True).double()
    exact.load_state_dict(modules[DENSE].state_dict())
    wanted = gradients(exact, x.double(), grad.double())
    for name, module in modules.items():
        for found, expected in zip(gradients(module, x, grad), wanted, strict=True):
            error = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
            if error > AGREEMENT:
                raise SystemExit(f"{layer.name} at {density:.1%}, {name}: differs by {error:.1e}; nothing is timed")


def measured(layer: Layer, density: float, quick: bool) -> dict[str, Timing]:
    """Checked, then timed in turns: with its neuron from the spikes and dense, and the dense product alone."""
    x = layer.input(density)
    torch.manual_seed(0)
    modules = {SPARSE: layer.make(False), DENSE: layer.make(True)}
    with torch.no_grad():  # so that outputs are exact, and a max pool decides alike in any precision
        for parameter in modules[DENSE].parameters():
            parameter.mul_(2**12).round_().div_(2**12)
    modules[SPARSE].load_state_dict(modules[DENSE].state_dict())
    _check(layer, density, modules, x)
    grad = torch.randn(modules[DENSE](x).shape, generator=torch.Generator().manual_seed(1))
    turns = {name: _turn(module, x, grad, layer.hidden, _neuron) for name, module in modules.items()}
    turns[ALONE] = _turn(modules[DENSE], x, grad, layer.hidden, lambda current: current)
    return interleaved(turns, *((3, 1.0) if quick else (15, 3.0)))
