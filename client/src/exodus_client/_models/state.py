"""The whole state of a model: a safetensors file, whose weights are read and replaced here."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal, NamedTuple

import numpy as np

from exodus_client._checks import ANY, DECAY, POSITIVE, check_parameter, elements_of, one_of, values_of
from exodus_client._errors import InvalidResponseError
from exodus_client._plain_data import by_name
from exodus_client._transport.session import Answer, is_count, read_json
from exodus_client.neuron import Array
from exodus_client.wire import Tensor
from exodus_client.wire.state_header import GRADIENTS, RANDOM, WEIGHTS, StateHeader

#: Where the parameters of neurons have to be, as networks have them.
_RANGES = {"alpha": DECAY, "threshold": POSITIVE}


class IncompatibleKeys(NamedTuple):
    """Names by which weights and a network differ, as torch calls them.

    Attributes:
        missing_keys: of the network, and not among the weights.
        unexpected_keys: among the weights, and not of the network.
    """

    missing_keys: list[str]
    unexpected_keys: list[str]


class LoadedWeights(NamedTuple):
    """Names of weights that a file had, or had not: parameters and running statistics.

    Attributes:
        loaded: those that were replaced.
        missing: those wanted that were not there.
        unexpected: those that the network does not have.
    """

    loaded: list[str]
    missing: list[str]
    unexpected: list[str]

    @classmethod
    def of(cls, answer: Answer) -> LoadedWeights:
        """Read an answer of the server. Raises InvalidResponseError."""
        given = read_json(answer)
        found = [given.get(name) for name in cls._fields]
        if not all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in found):
            raise InvalidResponseError(
                f"the answer does not say which weights were loaded: got {found!r:.200}", request_id=answer.request_id
            )
        return cls(*found)


@dataclass(frozen=True)
class State:
    """The state of a model at one time.

    Attributes:
        body: the file.
        sequence: number of training calls that led to it.
    """

    body: bytes
    sequence: int

    @classmethod
    def of(cls, answer: Answer) -> State:
        """Read an answer of the server. Raises InvalidResponseError."""
        body = bytes(answer.body)
        try:
            header = _header(body)
            sequence: Any = header.description.get("sequence")
            if not is_count(sequence):
                raise ValueError(f"sequence must be a number of calls, got {sequence!r:.80}")
            header.check_tensors(len(body))
            return cls(body, sequence)
        except ValueError as error:
            raise InvalidResponseError(
                f"the answer is no state of a model: {error}", request_id=answer.request_id
            ) from error

    def weights(self, kind: Literal["numpy", "torch"]) -> dict[str, Array]:
        """Parameters and running statistics by name. Raises ValueError, ModuleNotFoundError."""
        one_of("kind", kind, ("numpy", "torch"))
        arrays = {
            name.removeprefix(WEIGHTS): array
            for name, array in _safetensors().load(self.body).items()
            if name.startswith(WEIGHTS)
        }
        if kind == "numpy":
            return arrays
        import torch

        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def compare(self, weights: Mapping[str, Array], *, strict: bool) -> IncompatibleKeys:
        """The names by which weights differ from those of the network. Raises ValueError if `strict`, and any do."""
        known = [name.removeprefix(WEIGHTS) for name in _header(self.body).tensors if name.startswith(WEIGHTS)]
        found = IncompatibleKeys(sorted(set(known) - set(weights)), [name for name in weights if name not in known])
        if strict and any(found):
            parts = {"missing": found.missing_keys, "unexpected": found.unexpected_keys}
            got = " and ".join(f"{what} {', '.join(map(str, names))}" for what, names in parts.items() if names)
            wanted = "all names that the network has, and no others"
            raise ValueError(f"weights must have {wanted}, got {got}; strict=False replaces those that are there")
        return found

    def with_weights(self, weights: Mapping[str, Array]) -> State:
        """The same with other weights of these names. Raises TypeError, ValueError if one does not fit."""
        check_weights(weights)
        library = _safetensors()
        tensors = library.load(self.body)
        for name, given in weights.items():
            old = tensors[WEIGHTS + name]
            array = values_of(Tensor.of(name, given))
            if array.shape != old.shape:
                raise ValueError(f"weights: {name} must have shape {list(old.shape)}, got {list(array.shape)}")
            # Not ascontiguousarray, which gives a scalar a dimension.
            tensors[WEIGHTS + name] = np.asarray(array, old.dtype, order="C")
        return State(library.save(tensors, metadata=_header(self.body).metadata), self.sequence)

    @property
    def has_gradients(self) -> bool:
        """True if gradients have been accumulated since the last step of the optimiser."""
        return any(name.startswith(GRADIENTS) for name in _header(self.body).tensors)

    def without_gradients(self, random: State | None = None) -> State:
        """The same without accumulated gradients, and with the random state of another if it is given."""
        library = _safetensors()
        tensors = {n: t for n, t in library.load(self.body).items() if not n.startswith(GRADIENTS)}
        if random is not None:
            tensors[RANDOM] = library.load(random.body)[RANDOM]
        return State(library.save(tensors, metadata=_header(self.body).metadata), self.sequence)


def weights_file(weights: Mapping[str, Array], names: Sequence[str] | None = None) -> bytes:
    """A file of weights by name, of which those of some layers or weights are taken; None: all.

    The server judges their values, which it may bring into range.

    Raises:
        TypeError: they are not by name, or one that is taken is no dense array of numbers.
        ModuleNotFoundError: safetensors is not installed.
    """
    by_name("weights", weights)
    taken = {str(name): given for name, given in weights.items() if names is None or _is_of(str(name), names)}
    body: bytes = _safetensors().save(
        {name: np.array(elements_of(name, given), order="C") for name, given in taken.items()}
    )
    return body


def _is_of(name: str, chosen: Sequence[str]) -> bool:
    """True for a weight, named as in a network or in a state, of a layer or by a name that is chosen."""
    return any(f"{own}.".startswith(f"{one}.") for own in (name, name.removeprefix(WEIGHTS)) for one in chosen)


def check_weights(weights: Mapping[str, Array]) -> None:
    """Refuse what is no array of numbers, or out of the range of its parameter. Raises TypeError, ValueError."""
    for name, given in weights.items():
        check_parameter(str(name), given, _RANGES.get(str(name).rpartition(".")[2], ANY))


def _header(body: bytes) -> StateHeader:
    return StateHeader.read(io.BytesIO(body), len(body))


def _safetensors() -> ModuleType:
    try:
        import safetensors.numpy
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("weights are read with safetensors: pip install 'exodus-client[state]'") from error
    module: Any = safetensors.numpy
    return module  # type: ignore[no-any-return]
