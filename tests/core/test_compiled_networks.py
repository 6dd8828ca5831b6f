"""torch.compile(dynamic=True) of networks: compiled once for all batches and numbers of steps, same results."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from assertions import relative_error
from exodus_core import AlphaKernel, ExponentialKernel, nn

traced = pytest.mark.filterwarnings("ignore")  # torch's own, of compiling


class Image(torch.nn.Module):
    """Four neurons as two rows of two."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], 1, 2, 2)


NETS: dict[str, Callable[[], torch.nn.Module]] = {
    "dense": lambda: torch.nn.Sequential(
        nn.Linear(4, 8),
        nn.LIF(0.9, trainable=("alpha", "threshold")),
        torch.nn.Linear(8, 8),
        nn.IF(threshold=torch.full((8,), 0.7)),
        nn.Linear(8, 3),
        nn.SRM(AlphaKernel(3.0, -1.0), response_kernel=ExponentialKernel(0.8)),
        nn.ExpLeak(0.9, trainable="alpha"),
    ),
    "steps": lambda: torch.nn.Sequential(
        Image(),
        nn.Steps(torch.nn.Sequential(torch.nn.Conv2d(1, 3, 2, padding=1, bias=False), torch.nn.BatchNorm2d(3))),
        nn.LIF(0.9),
        nn.Steps(torch.nn.Sequential(torch.nn.AvgPool2d(2), torch.nn.Flatten())),
        nn.ExpLeak(0.8),
    ),
    "bounded": lambda: nn.bounded(torch.nn.Sequential(torch.nn.Linear(4, 4), nn.LIF(0.9, trainable="alpha"))),
}
SHAPES = [(2, 9, 4), (3, 9, 4), (3, 14, 4), (5, 70, 4)]


def results(net: Any, parameters: list[Tensor], shape: tuple[int, ...]) -> list[Tensor]:
    """The output, and the gradients of the input and of the parameters."""
    generator = torch.Generator().manual_seed(shape[1])
    x = (1 + 3 * torch.randn(shape, dtype=parameters[0].dtype, generator=generator)).requires_grad_()
    y = net(x)
    return [y.detach(), *torch.autograd.grad((y * y).sum() + y.sum(), [x, *parameters])]


def check(net: torch.nn.Module, backend: str) -> None:
    torch._dynamo.reset()
    net = net.double()  # compiled code rounds otherwise, which must not flip a spike
    eager, counter = copy.deepcopy(net), CompileCounterWithBackend(backend)
    compiled = torch.compile(net, backend=counter, dynamic=True, fullgraph=True)
    compilations = []
    for shape in SHAPES:
        found = results(compiled, list(net.parameters()), shape)
        expected = results(eager, list(eager.parameters()), shape)
        assert expected[0].abs().sum() > 0
        assert all(relative_error(*pair) < 1e-9 for pair in zip(found, expected, strict=True))
        compilations.append(counter.frame_count)
    assert compilations[0] > 0
    assert len(set(compilations)) == 1


@traced
@pytest.mark.parametrize("make", NETS.values(), ids=NETS)
def test_a_network_is_traced_once_for_all_batches_and_steps(make: Callable[[], torch.nn.Module]) -> None:
    check(make(), "aot_eager")


@traced
@pytest.mark.slow
@pytest.mark.parametrize("make", NETS.values(), ids=NETS)
def test_a_network_is_compiled_once_for_all_batches_and_steps(make: Callable[[], torch.nn.Module]) -> None:
    check(make(), "inductor")


@traced
def test_recurrent_neurons_compile_for_the_steps_that_they_are_called_with() -> None:
    torch._dynamo.reset()
    net = nn.Recurrent(nn.LIF(0.9, trainable="alpha"), torch.nn.Linear(4, 4))
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    for shape in [(2, 3, 4), (2, 5, 4)]:
        parameters = list(net.parameters())
        pairs = zip(results(compiled, parameters, shape), results(net, parameters, shape), strict=True)
        assert all(relative_error(*pair) < 1e-5 for pair in pairs)
