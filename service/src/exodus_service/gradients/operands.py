"""The tensors of a request, handed out by name on the device that computes, with the checks that name both sides."""

import torch

from exodus_client.wire import Message
from exodus_service.errors import Fault, ServiceError, invalid
from exodus_service.gradients.params import Number, TensorName

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class Operands:
    """Every tensor has to be taken: one that nobody asked for is a mistake in the request, not a thing to ignore."""

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
        """A tensor that the request has to contain."""
        if name not in self._tensors:
            raise invalid("/tensors", f"a tensor {name!r}", self.names())
        self._taken.add(name)
        return self._tensors[name].torch().to(self._device, non_blocking=True)

    def take_optional(self, name: str) -> torch.Tensor | None:
        """A tensor, or None where the request has none of this name."""
        return self.take(name) if name in self._tensors else None

    def take_float(self, name: str) -> torch.Tensor:
        """A tensor of floating-point numbers."""
        tensor = self.take(name)
        if tensor.dtype not in FLOATS:
            expected = " or ".join(dtype_name(dtype) for dtype in FLOATS)
            raise self.fault(name, "dtype", expected, dtype_name(tensor.dtype))
        return tensor

    def take_like(self, name: str, other: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor | None:
        """A tensor, or None, that has the shape and dtype that tensor `other` calls for."""
        tensor = self.take_optional(name)
        if tensor is None:
            return None
        if tuple(tensor.shape) != shape:
            raise self.fault(name, "shape", f"{list(shape)}, as {other!r} asks for", str(list(tensor.shape)))
        if tensor.dtype != dtype:
            raise self.fault(name, "dtype", f"{dtype_name(dtype)}, as {other!r} has", dtype_name(tensor.dtype))
        return tensor

    def value(self, field: str, value: Number | None) -> float | torch.Tensor | None:
        """A parameter of the neuron: the number, or the tensor that it names."""
        if not isinstance(value, TensorName):
            return value
        if value.tensor not in self._tensors:
            expected = f"the name of a tensor of the request ({self.names()})"
            raise invalid(f"/params/neuron/{field}/tensor", expected, repr(value.tensor))
        return self.take(value.tensor)

    def finish(self) -> None:
        """Raise a ServiceError where a tensor of the request was not taken."""
        unused = [name for name in self._tensors if name not in self._taken]
        if unused:
            expected = "no tensor that the request does not use"
            faults = tuple(Fault(self.pointer(name), expected, repr(name)) for name in unused)
            raise ServiceError("invalid", f"not used by this request: tensors {', '.join(map(repr, unused))}", faults)

    def fault(self, name: str, member: str, expected: str, got: str) -> ServiceError:
        """A 422 for the shape or dtype of one tensor."""
        detail = f"tensor {name!r}: expected {member} {expected}, got {got}"
        return ServiceError("invalid", detail, (Fault(f"{self.pointer(name)}/{member}", expected, got),))

    def names(self) -> str:
        """The tensors of the request, for a message."""
        return ", ".join(map(repr, self._tensors)) or "no tensors"


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype on the wire."""
    return str(dtype).removeprefix("torch.")
