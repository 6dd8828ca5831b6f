"""The decoded body of a call on a model, whose tensors are checked against the network.

All sizes are checked before anything is unpacked: bits and events grow to a byte an element, and the activations of a
network to many times its inputs. The memory of an unpacked body counts before it is unpacked, and a call that has to
wait for others waits with its body as it came.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import torch
from pydantic import BaseModel

from exodus_client.wire import peek_params
from exodus_core import ArgumentError, ArgumentTypeError, DescriptionError, losses
from exodus_core.network import Description
from exodus_core.training import NonFiniteError, OptimizerError
from exodus_service.call import Call
from exodus_service.errors import Fault, ServiceError, invalid
from exodus_service.gradients.operands import Operands
from exodus_service.gradients.params import parse
from exodus_service.models.model import Model

Params = TypeVar("Params", bound=BaseModel)

#: Errors of exodus_core about the tensors of a call.
REFUSALS = (ArgumentError, ArgumentTypeError, NonFiniteError)

#: Arguments of the trainer that are parameters of a call.
_OPTIONS = ("accumulate", "average")

#: Tensors that errors of losses name; all else that they name is of the loss's own description.
_OF_LOSSES = ("outputs", "targets", "lengths", "mask")

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Early:
    """Stands for a call that has to wait for the call of this number before it is decoded."""

    sequence: int


@dataclass(frozen=True)
class Labels:
    """A loss, its targets, and the lengths or the mask of the samples; None for what there is not."""

    loss: losses.Loss
    targets: torch.Tensor | None
    lengths: torch.Tensor | None
    mask: torch.Tensor | None

    def given(self) -> dict[str, Any]:
        """Arguments of `Trainer.step` and `forward_backward`."""
        return {"targets": self.targets, "loss": self.loss, "lengths": self.lengths, "mask": self.mask}

    def value(self, outputs: torch.Tensor) -> losses.LossValue:
        """The value for outputs. Raises LossError."""
        return self.loss(outputs, self.targets, lengths=self.lengths, mask=self.mask)


class DecodedCall:
    """The message of a call, with checks against a network. Making it raises WireError, QueueFullError.

    Attributes:
        message: the decoded body.
        body: the bytes after decompression, which the tensors are views of.
        operands: hands out the tensors, on the CPU.
    """

    def __init__(self, call: Call) -> None:
        self.body, self.message = call.decode()
        self.operands = Operands(self.message, _CPU)

    def params(self, model: type[Params]) -> Params:
        """The parameters, checked. Raises ServiceError: invalid."""
        return parse(model, self.message.params)

    def digest(self, operation: str) -> str:
        """SHA-256 of the operation and the bytes, which tells this call from another of the same number."""
        digest = hashlib.sha256(operation.encode() + b"\0")
        digest.update(self.body)
        return digest.hexdigest()

    def input(
        self,
        model: Model,
        max_activation_bytes: int,
        *,
        training: bool,
        beside: Callable[[int, int], int] = lambda batch, time: 0,
    ) -> torch.Tensor:
        """The tensor `input`, shape (batch, time, *input_shape), of a pass with or without a backward pass.

        `beside`: bytes that the call takes beside the pass, given batch and time.

        Raises ServiceError: invalid, too_large.
        """
        tensor = self._present("input")
        wanted = model.network.input_shape
        if len(tensor.shape) != 2 + len(wanted) or tensor.shape[2:] != wanted or 0 in tensor.shape[:2]:
            sizes = ", ".join(map(str, wanted))
            expected = f"[batch, time, {sizes}], at least one sample and step, as the network takes it"
            raise self.operands.fault("input", "shape", expected, str(list(tensor.shape)))
        batch, time = tensor.shape[:2]
        nbytes = model.activation_bytes(batch, time, training=training) + beside(batch, time)
        if nbytes > max_activation_bytes:
            expected = f"a batch that takes at most {max_activation_bytes} bytes (EXODUS_MAX_ACTIVATION_BYTES)"
            got = f"{list(tensor.shape)}, which takes up to {nbytes}"
            detail = f"tensor 'input' must be {expected}, got {got}"
            raise ServiceError("too_large", detail, (Fault(f"{tensor.pointer}/shape", expected, got),))
        return self.take("input")

    def outputs_gradient(self, shape: tuple[int, ...] | None) -> torch.Tensor:
        """The tensor `grad_output`, of the shape of the outputs if that is known. Raises ServiceError: invalid."""
        tensor = self._present("grad_output")
        if shape is not None and tensor.shape != shape:
            expected = f"{list(shape)}, that of the outputs"
            raise self.operands.fault("grad_output", "shape", expected, str(list(tensor.shape)))
        return self.operands.take_float("grad_output")

    def flat(self, name: str, network: Description) -> torch.Tensor:
        """A tensor that has an element for each parameter of the network. Raises ServiceError: invalid."""
        tensor = self._present(name)
        count = network.nbytes // network.itemsize
        if tensor.shape != (count,):
            raise self.operands.fault(name, "shape", f"[{count}], all parameters in order", str(list(tensor.shape)))
        if tensor.dtype != network.dtype:
            raise self.operands.fault(name, "dtype", f"{network.dtype}, that of the network", tensor.dtype)
        return self.take(name)

    def labels(self, loss: losses.Loss, network: Description, *, training: bool = True) -> "Labels":
        """The tensors `targets`, `lengths` and `mask` of a loss, for a network in training mode or not.

        Raises:
            ServiceError: invalid: one is missing, or steps are not to count for a network that normalises by all.
        """
        for name in ("lengths", "mask"):
            if training and network.statistics and name in self.operands:
                expected = "absent for a network with batch norm in training, whose statistics are of all steps"
                raise invalid(self.operands.pointer(name), expected, "a tensor", name=f"tensor {name!r}")
        targets = self.take("targets") if loss.takes_targets else None
        lengths, mask = self.operands.take_optional("lengths"), self.operands.take_optional("mask")
        return Labels(loss, targets, lengths, mask)

    def take(self, name: str) -> torch.Tensor:
        """Any tensor."""
        return self.operands.take(name)

    def _present(self, name: str) -> Any:
        if name not in self.operands:
            names = ", ".join(map(repr, self.message.tensors)) or "no tensors"
            raise invalid("/tensors", f"a list with a tensor {name!r}", names)
        return self.message.tensors[name]


def peek(call: Call, name: str) -> int | None:
    """The number of the call that this one waits for, read without unpacking a compressed body; None if unknown."""
    if call.content_encoding in (None, "identity"):  # unpacking it takes no memory
        return None
    params = peek_params(call.body, call.content_type, call.content_encoding, limits=call.limits)
    value = None if params is None else params.get(name)
    return value if type(value) is int else None


def parsed_loss(given: Any) -> losses.Loss:
    """The loss of a call. Raises ServiceError: invalid."""
    try:
        return _loss_of_name(given) if isinstance(given, str) else losses.parse(given)
    except DescriptionError as error:
        raise invalid(f"/params/loss{error.pointer}", error.expected, error.got) from error


_loss_of_name = lru_cache(maxsize=32)(losses.parse)


def refusal(error: ArgumentError | ArgumentTypeError | NonFiniteError, operands: Operands) -> ServiceError:
    """The error of a call whose tensors exodus_core refuses (REFUSALS)."""
    if isinstance(error, NonFiniteError):
        fault = Fault("/tensors", "a finite loss and finite gradients", f"{error.value} as {error.what}")
        return ServiceError("non_finite", f"{error}; nothing was changed", (fault,))
    if isinstance(error, OptimizerError):
        pointer = f"/params{error.pointer}"
        fault = Fault(pointer, error.expected, error.got)
        return ServiceError("invalid", fault.sentence, (fault,))
    if isinstance(error, DescriptionError):
        name = error.pointer.removeprefix("/")
        if name not in _OF_LOSSES:
            fault = Fault(f"/params/loss{error.pointer}", error.expected, error.got)
            return ServiceError("invalid", fault.sentence, (fault,))
        # The outputs are the network's own: it is the loss that does not fit them.
        pointer = operands.pointer(name) if name in operands else "/params/loss"
        detail = f"{name} must be {error.expected}, got {error.got}"
        return ServiceError("invalid", detail, (Fault(pointer, error.expected, error.got),))
    if error.argument in operands:
        pointer = operands.pointer(error.argument)
    else:
        pointer = f"/params/{error.argument}" if error.argument in _OPTIONS else "/tensors"
    return ServiceError("invalid", str(error), (Fault(pointer, error.expected, error.got),))


def scalars(metrics: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Metrics as numbers."""
    return {name: float(value) for name, value in metrics.items()}
