"""Errors of arguments and of plain data: `NAME must be EXPECTED, got GOT`.

ArgumentError(ValueError)           an argument has the wrong value, shape or device
    DescriptionError                plain data does not fit; `argument` is a JSON pointer
        network.NetworkError, network.RecordError, losses.LossError, training.OptimizerError
ArgumentTypeError(TypeError)        an argument has the wrong type, dtype or layout
"""

from __future__ import annotations


def must_be(name: str, expected: str, got: object, hint: str = "") -> str:
    """The sentence of an error."""
    return f"{name} must be {expected}, got {got}" + (f"; {hint}" if hint else "")


class _RefusedError(Exception):
    """The fields and the sentence of both errors.

    Args:
        argument: name of the parameter.
        expected: a valid argument, in words that follow "must be".
        got: the argument passed, in words that follow "got".
        hint: how to go on, or "".
    """

    def __init__(self, argument: str, expected: str, got: object, hint: str = "") -> None:
        super().__init__(argument, expected, str(got), hint)
        self.argument = argument
        self.expected = expected
        self.got = str(got)
        self.hint = hint

    def __str__(self) -> str:
        return must_be(self.argument, self.expected, self.got, self.hint)


class ArgumentError(_RefusedError, ValueError):
    """An argument has the wrong value, shape or device; see `argument`, `expected` and `got`."""


class ArgumentTypeError(_RefusedError, TypeError):
    """An argument has the wrong type, dtype or layout; see `argument`, `expected` and `got`."""


class DescriptionError(ArgumentError):
    """Plain data that does not fit.

    Args:
        pointer: JSON pointer to the value within the data, "" for the whole.
        expected: a valid value, in words that follow "must be".
        got: the value found.
    """

    @property
    def pointer(self) -> str:
        """JSON pointer to the value within the data."""
        return self.argument

    def __str__(self) -> str:
        return must_be(self.argument or "the description", self.expected, self.got)
