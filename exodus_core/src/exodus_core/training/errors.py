"""Errors of training; those of descriptions are in the modules that read them."""

from __future__ import annotations

from exodus_core.errors import must_be


class ContextStaleError(ValueError):
    """The weights have changed since the forward pass whose backward pass is asked for."""


class NonFiniteError(ValueError):
    """A loss, gradient or running statistic is infinite or not a number.

    Args:
        name: "loss", or the first parameter or buffer.
        value: its value, or its norm.
    """

    def __init__(self, name: str, value: float) -> None:
        super().__init__(name, value)
        self.name = name
        self.value = value

    @property
    def what(self) -> str:
        """The quantity that is not finite, in words."""
        return self.name if self.name == "loss" else f"the norm of {self.name}"

    def __str__(self) -> str:
        return must_be(self.what, "finite", self.value)


class StateError(ValueError):
    """A state that does not belong to this network and optimiser; says the first tensor that does not fit."""
