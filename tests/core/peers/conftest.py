"""Shared parts of the comparisons with other libraries: the libraries, inputs, a guard of exodus_core against unfair
inputs, and the comparison itself. docs/peers.md has the same mappings as a table."""

from collections.abc import Callable
from importlib import import_module, metadata
from types import ModuleType

import pytest
import torch
from torch import Tensor

import exodus_core

PEERS = ("sinabs", "spikingjelly", "snntorch", "norse")

Model = Callable[..., tuple[Tensor, ...]]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says which peers the run compared with: a green run without them would say nothing."""
    found, missing = [], []
    for name in PEERS:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    lines = [("peers found", found), ("peers missing (run `make peers`)", missing)]
    for title, names in lines:
        if names:
            terminalreporter.write_line(f"{title}: {', '.join(names)}")


def _peer(*modules: str) -> ModuleType:
    """Imports the modules of a peer, which may warn as they like, and returns the first; skips where one is missing."""
    for module in modules:
        pytest.importorskip(module, reason=f"{module} cannot be imported: run `make peers`")
    return import_module(modules[0])


@pytest.fixture(scope="session")
def sinabs() -> ModuleType:
    return _peer("sinabs", "sinabs.layers", "sinabs.activation")


@pytest.fixture(scope="session")
def spikingjelly() -> ModuleType:
    """`spikingjelly.activation_based` with its neurons and surrogates."""
    base = "spikingjelly.activation_based"
    return _peer(base, f"{base}.neuron", f"{base}.surrogate")


@pytest.fixture(scope="session")
def snntorch() -> ModuleType:
    return _peer("snntorch", "snntorch.surrogate")


@pytest.fixture(scope="session")
def norse() -> ModuleType:
    """`norse.torch.functional`."""
    base = "norse.torch.functional"
    return _peer(base, f"{base}.lif_box", f"{base}.lif", f"{base}.iaf", f"{base}.reset")


@pytest.fixture(params=[(2, 63, 10), (1, 100, 7)], ids=lambda shape: "x".join(map(str, shape)))
def shape(request: pytest.FixtureRequest) -> tuple[int, int, int]:
    """Batch, time steps and neurons."""
    return request.param


@pytest.fixture
def draw() -> Callable[..., Tensor]:
    """Normally distributed float64 values; the same ones in every run of a test."""
    generator = torch.Generator().manual_seed(7)

    def normal(*shape: int, mean: float = 0.2, std: float = 0.6) -> Tensor:
        return mean + std * torch.randn(shape, generator=generator, dtype=torch.float64)

    return normal


@pytest.fixture
def lif() -> Model:
    """`exodus_core.lif`, refusing inputs that say little: hardly any spikes, nearly only spikes, or a membrane so close
    to the threshold that rounding decides."""

    def guarded(x: Tensor, alpha: float | Tensor, **options: object) -> tuple[Tensor, Tensor]:
        spikes, membrane = exodus_core.lif(x, alpha, **options)
        assert 0.05 <= spikes.bool().to(x.dtype).mean() <= 0.6
        margin = 1e-9 if x.dtype == torch.float64 else 1e-6
        assert (membrane - options.get("threshold", 1.0)).abs().min() > margin
        return spikes, membrane

    return guarded


@pytest.fixture
def widened() -> Callable[[type[torch.autograd.Function]], type[torch.autograd.Function]]:
    """Gives a peer's spike function spikes of the membrane's dtype.

    sinabs and snnTorch write spikes as float32 whatever comes in, so that autograd rounds every gradient that passes a
    spike to float32. Their forward and backward stay theirs; only the dtype that is handed on changes.
    """

    def widen(function: type[torch.autograd.Function]) -> type[torch.autograd.Function]:
        def forward(ctx: object, membrane: Tensor, *options: object) -> Tensor:
            return function.forward(ctx, membrane, *options).to(membrane.dtype)

        return type(function.__name__, (function,), {"forward": staticmethod(forward)})

    return widen


def _run(model: Model, leaves: dict[str, Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The outputs of the model, and the gradients of a fixed random projection of all of them."""
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in leaves.items()}
    outputs = model(**leaves)
    generator = torch.Generator().manual_seed(11)
    projections = [torch.randn(output.shape, generator=generator, dtype=torch.float64) for output in outputs]
    loss = sum((output * p.to(output.dtype)).sum() for output, p in zip(outputs, projections, strict=True))
    return tuple(output.detach() for output in outputs), torch.autograd.grad(loss, tuple(leaves.values()))


def _assert_close(what: str, got: Tensor, wanted: Tensor, tolerance: float) -> None:
    """Equal to `tolerance` of the largest value: the unit in which a sum over time rounds."""
    largest = wanted.abs().max()
    assert got.shape == wanted.shape
    assert largest > 0, f"{what} is zero everywhere and proves nothing"
    error = float((got - wanted).abs().max() / largest)
    assert error <= tolerance, f"{what} differs by {error:.1e} of its largest value, more than {tolerance:.0e}"


@pytest.fixture
def assert_agree() -> Callable[..., None]:
    """Runs the peer and exodus_core on the same leaves: spikes, the first output unless `spiking` is False, must be
    equal, and every output and the gradient of every leaf equal to `tolerance`."""

    def compare(peer: Model, ours: Model, *, tolerance: float = 1e-10, spiking: bool = True, **leaves: Tensor) -> None:
        wanted, wanted_gradients = _run(peer, leaves)
        got, gradients = _run(ours, leaves)
        assert not spiking or torch.equal(got[0], wanted[0].to(got[0].dtype))
        for index, (output, expected) in enumerate(zip(got, wanted, strict=True)):
            _assert_close(f"output {index}", output, expected, tolerance)
        for name, gradient, expected in zip(leaves, gradients, wanted_gradients, strict=True):
            _assert_close(f"the gradient of {name}", gradient, expected, tolerance)

    return compare
