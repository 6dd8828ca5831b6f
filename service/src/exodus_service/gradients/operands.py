"""The tensors of a request by name, checked and on the device that computes."""

import torch

from exodus_client.wire import Message
from exodus_core.arguments import FLOATS
from exodus_service.errors import Fault, ServiceError, invalid
from exodus_service.gradients.params import Number, TensorName, dtype_name


class Operands:
    """The tensors of a request. A tensor that is never taken is an error of the request."""

    def __init__(self, message: Message, device: torch.device) -> None:
        self._tensors = message.tensors
        self._device = device
        self._taken: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def pointer(self, name: str) -> str:
        """JSON pointer to a tensor of the request."""
        return self._tensors[name].pointer

    def take(self, name: str) -> torch.Tensor:
        """A tensor that the request must contain."""
        if name not in self._tensors:
            raise invalid("/tensors", f"a list with a tensor {name!r}", self.names())
        self._taken.add(name)
        return self._tensors[name].torch().to(self._device, non_blocking=True)

    def take_optional(self, name: str) -> torch.Tensor | None:
        """A tensor, or None."""
        return self.take(name) if name in self._tensors else None

    def take_float(self, name: str) -> torch.Tensor:
        """A tensor of floating-point numbers."""
        tensor = self.take(name)
        if tensor.dtype not in FLOATS:
            expected = f"one of {', '.join(map(dtype_name, FLOATS))}"
            raise self.fault(name, "dtype", expected, dtype_name(tensor.dtype))
        return tensor

    def take_like(self, name: str, other: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor | None:
        """A tensor of the given shape and dtype, which are those of tensor `other`; or None."""
        tensor = self.take_optional(name)
        if tensor is None:
            return None
        if tuple(tensor.shape) != shape:
            raise self.fault(name, "shape", f"{list(shape)}, to match {other!r}", str(list(tensor.shape)))
        if tensor.dtype != dtype:
            raise self.fault(name, "dtype", f"{dtype_name(dtype)}, to match {other!r}", dtype_name(tensor.dtype))
        return tensor

    def value(self, field: str, value: Number | None) -> float | torch.Tensor | None:
        """A parameter of the neuron: a number, or the tensor it refers to."""
        if not isinstance(value, TensorName):
            return value
        if value.tensor not in self._tensors:
            expected = f"the name of a tensor ({self.names()})"
            raise invalid(f"/params/neuron/{field}/tensor", expected, repr(value.tensor))
        return self.take(value.tensor)

    def finish(self) -> None:
        """Check that every tensor was taken.

        Raises:
            ServiceError: invalid: a tensor is of no use to the request.
        """
        unused = [name for name in self._tensors if name not in self._taken]
        if unused:
            faults = tuple(Fault(self.pointer(name), "absent (unused tensor)", repr(name)) for name in unused)
            more = f"; and {len(unused) - 1} more" if len(unused) > 1 else ""
            raise ServiceError("invalid", f"{faults[0].sentence}{more}", faults)

    def fault(self, name: str, member: str, expected: str, got: str) -> ServiceError:
        """An error about the shape or dtype of one tensor."""
        return invalid(f"{self.pointer(name)}/{member}", expected, got, name=f"{member} of tensor {name!r}")

    def names(self) -> str:
        """The names of all tensors, for a message."""
        return ", ".join(map(repr, self._tensors)) or "no tensors"
