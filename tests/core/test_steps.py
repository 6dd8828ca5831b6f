"""Steps: modules of single steps on sequences are what a loop over the steps gives."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from assertions import relative_error
from exodus_core import network, nn

X = torch.linspace(-1, 2, 2 * 7 * 3 * 6 * 5).view(2, 7, 3, 6, 5)
MODULES: dict[str, Callable[[], torch.nn.Module]] = {
    "conv": lambda: torch.nn.Conv2d(3, 4, 3),
    "pool": lambda: torch.nn.MaxPool2d(2),
    "layer norm": lambda: torch.nn.LayerNorm([3, 6, 5]),
    "batch norm, eval": lambda: torch.nn.BatchNorm2d(3).eval(),
    "several": lambda: torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.AvgPool2d(2), torch.nn.Flatten()),
}


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_steps_are_the_module_on_each_step(make: Callable[[], torch.nn.Module]) -> None:
    module = make()
    expected = torch.stack([module(X[:, t]) for t in range(X.shape[1])], 1)
    assert relative_error(nn.Steps(module)(X), expected) < 1e-6


@pytest.mark.parametrize("time_dim", [0, 1, 2, -1])
def test_time_may_be_any_axis(time_dim: int) -> None:
    module = torch.nn.Conv2d(3, 4, 3)
    expected = nn.Steps(module)(X).movedim(1, time_dim)
    assert torch.equal(nn.Steps(module, time_dim=time_dim)(X.movedim(1, time_dim)), expected)


def test_statistics_of_batch_norm_are_those_over_batch_and_time() -> None:
    norm = torch.nn.BatchNorm2d(3)
    y = nn.Steps(norm)(X)
    assert relative_error(y.mean((0, 1, 3, 4)), torch.zeros(3)) < 1e-6
    assert relative_error(y.var((0, 1, 3, 4), unbiased=False), torch.ones(3)) < 1e-3
    assert relative_error(norm.running_mean, 0.1 * X.mean((0, 1, 3, 4))) < 1e-6


def test_steps_are_in_networks_with_neurons_and_train() -> None:
    block = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.AvgPool2d(2))
    net = torch.nn.Sequential(nn.Steps(block), nn.LIF(0.9), nn.Steps(torch.nn.Flatten()), nn.ExpLeak(0.9))
    net(X).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in (block[0].weight, block[1].weight))
    assert "0.module.0.weight" in net.state_dict()


def test_steps_in_pieces_are_those_of_the_whole() -> None:
    block = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4).eval())
    net = torch.nn.Sequential(nn.Steps(block), nn.LIF(0.9, threshold=0.2))
    results = []
    for module in (net, nn.TimeCheckpoint(copy.deepcopy(net), 3)):
        leaf = X.clone().requires_grad_()
        y = module(leaf)
        y.sum().backward()
        results.append((y.detach(), leaf.grad, next(module.parameters()).grad))
    assert results[0][1].abs().sum() > 0
    assert all(relative_error(*pair) < 1e-5 for pair in zip(*results, strict=True))
    block.train()
    with pytest.raises(ValueError, match=r"BatchNorm2d '0\.module\.1'; in training its statistics are those of all"):
        nn.TimeCheckpoint(net, 3)(X)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: nn.LIF(0.9), "LIF"),
        (lambda: nn.SRM(torch.ones(2)), "SRM"),
        (lambda: torch.nn.GRU(3, 3), "GRU"),
        (lambda: nn.TimeCheckpoint(torch.nn.Flatten(), 2), "TimeCheckpoint"),
        (lambda: nn.Steps(torch.nn.Flatten()), "Steps"),
        (lambda: network.build({"input_shape": [3], "layers": [{"kind": "flatten"}]}), "Network"),
    ],
)
def test_parts_that_take_time_themselves_are_refused(make: Callable[[], torch.nn.Module], name: str) -> None:
    with pytest.raises(ValueError, match=f"module must be made of layers that take single steps, got {name}; it takes"):
        nn.Steps(make())
    with pytest.raises(ValueError, match=f"got {name} '1'"):
        nn.Steps(torch.nn.Sequential(torch.nn.Flatten(), make()))


class Other(torch.nn.Module):
    """A module that does not keep to samples."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nn.Steps(torch.nn.Flatten)(X), "module must be a torch.nn.Module, got type"),
        (lambda: nn.Steps(torch.nn.Flatten())([1]), "x must be a torch.Tensor, got list"),
        (lambda: nn.Steps(torch.nn.Flatten())(X[0, 0, 0, 0]), r"x must be of shape \(batch, time, ...\), got \(5,\)"),
        (lambda: nn.Steps(torch.nn.Flatten(), time_dim=5)(X), "time_dim must be an axis of x"),
        (lambda: nn.Steps(torch.nn.Flatten(), time_dim="1"), "time_dim must be an int, got str"),
        (
            lambda: nn.Steps(Other(lambda x: x.sum(0)))(X),
            r"has the 14 samples of its input.*\(3, 6, 5\)",
        ),
        (lambda: nn.Steps(Other(torch.sum))(X), r"one with an output of shape \(\)"),
        (lambda: nn.Steps(Other(lambda x: (x, x)))(X), "one that returns a tensor, got one that returns tuple"),
    ],
)
def test_what_does_not_fit_is_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        call()
