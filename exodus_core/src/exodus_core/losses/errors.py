"""The error of losses."""

from __future__ import annotations

from exodus_core.errors import DescriptionError


class LossError(DescriptionError):
    """A loss description, or tensors that do not fit; the pointers of these are /outputs, /targets, /lengths, /mask."""
