"""Refusals: layers that the fused kernels cannot compute with the same spikes and gradients, each with the reason."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from exodus_core.errors import ArgumentError
from exodus_core.refusals import Refusal

_converting: ContextVar[bool] = ContextVar("converting", default=False)


@contextmanager
def converting() -> Iterator[None]:
    """While a model is checked, constants are read wherever they are."""
    token = _converting.set(True)
    try:
        yield
    finally:
        _converting.reset(token)


def holds_of_any(condition: Tensor) -> bool:
    """True if a condition on a constant holds of any element.

    A call of a converted model does not read constants that are not on the CPU, which would wait for the device.
    """
    return (condition.is_cpu or _converting.get()) and bool(condition.any())


class NotMappedError(Exception):
    """A module cannot be computed by the kernels; the message is the reason, in words that follow "it".

    Attributes:
        module: the one, where another one is called that has it within; or None.
    """

    module: torch.nn.Module | None = None


@contextmanager
def of_layer(module: torch.nn.Module) -> Iterator[None]:
    """While a module runs within another one, which is called, its refusals are its own."""
    try:
        yield
    except NotMappedError as reason:
        reason.module = module
        raise


class AccelerationError(ArgumentError):
    """A model that cannot be accelerated, written as data, or called so once it is. Nothing has been changed.

    Args:
        refusals: the layers that are refused.
        expected: a valid model, in words that follow "must be".
    """

    def __init__(self, refusals: Sequence[Refusal], expected: str) -> None:
        super().__init__("model", expected, "".join(f"\n  {refusal}" for refusal in refusals))
        self.refusals = tuple(refusals)

    def __reduce__(self) -> tuple[type[AccelerationError], tuple[tuple[Refusal, ...], str]]:
        return AccelerationError, (self.refusals, self.expected)
