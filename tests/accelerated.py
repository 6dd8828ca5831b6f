"""Comparison of a model of another library with the same model accelerated."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import exodus_core

Call = Callable[[torch.nn.Module, Tensor], Any]


def widen(monkeypatch: pytest.MonkeyPatch, *functions: Any) -> None:
    """Gives a library's spike functions spikes of the membrane's dtype; they write float32 whatever comes in."""
    for function in functions:

        def forward(ctx: Any, membrane: Tensor, *options: Any, original: Any = function.forward) -> Tensor:
            spikes: Tensor = original(ctx, membrane, *options)
            return spikes.to(membrane.dtype)

        monkeypatch.setattr(function, "forward", staticmethod(forward))


def seeded(build: Callable[[], torch.nn.Module], gain: float = 1.0) -> torch.nn.Module:
    """A model with the same weights in each call, large enough for it to fire."""
    torch.manual_seed(1)
    model = build()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
                module.weight.mul_(gain)
    return model


def outputs(value: Any) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


def results(model: torch.nn.Module, call: Call, x: Tensor, calls: int) -> tuple[list[Tensor], dict[str, Tensor | None]]:
    """The outputs of some calls, one after the other, and the gradients of a projection of all of them."""
    leaf = x.clone().requires_grad_()
    found = [output for _ in range(calls) for output in outputs(call(model, leaf))]
    generator = torch.Generator().manual_seed(3)
    projections = [torch.randn(output.shape, generator=generator, dtype=torch.float64) for output in found]
    terms = [(output * w.to(output.dtype)).sum() for output, w in zip(found, projections, strict=True)]
    torch.stack(terms).sum().backward()
    return found, {"input": leaf.grad, **{name: p.grad for name, p in model.named_parameters()}}


def assert_same(
    build: Callable[[], torch.nn.Module],
    x: Tensor,
    call: Call,
    accelerated_call: Call | None = None,
    *,
    gain: float = 1.0,
    calls: int = 1,
    tolerance: float = 1e-10,
    exact: bool = True,
    **options: Any,
) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Spikes are equal, other outputs and all gradients to a part of their largest value. Returns both models."""
    unmodified = seeded(build, gain).to(x.dtype)
    accelerated = exodus_core.accelerate(seeded(build, gain).to(x.dtype), exact=exact, **options)
    expected, expected_gradients = results(unmodified, call, x, calls)
    found, gradients = results(accelerated, accelerated_call or call, x, calls)
    for wanted, got in zip(expected, found, strict=True):
        assert wanted.any(), "nothing fires: the comparison says nothing"
        if bool((wanted == wanted.round()).all()):
            assert torch.equal(wanted.double(), got.double())
        else:
            assert_close("an output", wanted, got, tolerance)
    assert expected_gradients.keys() == gradients.keys()
    for name, gradient in expected_gradients.items():
        given = gradients[name]
        if gradient is None or given is None:
            assert gradient is given
        else:
            assert_close(f"the gradient of {name}", gradient, given, tolerance)
    return unmodified, accelerated


def runs_unless_refused(model: torch.nn.Module, x: Tensor) -> bool:
    """True for a model that is accelerated, and then runs; False for one that is refused, and has not been changed."""
    before = [type(module) for module in model.modules()]
    try:
        exodus_core.accelerate(model)
    except exodus_core.AccelerationError:
        assert [type(module) for module in model.modules()] == before
        return False
    model(x)
    return True


def assert_close(what: str, wanted: Tensor, got: Tensor, tolerance: float = 1e-10) -> None:
    assert wanted.any(), f"{what} is zero: the comparison says nothing"
    error = float((wanted - got).detach().abs().max() / wanted.detach().abs().max())
    assert error <= tolerance, f"{what} differs by {error:.1e} of its largest value"
