"""One tensor on the wire: its description and its encoded bytes, and the way from and to numpy and torch.

Raw payloads are views in both directions; `bits` and `events` carry boolean tensors (spikes) in far fewer bytes.
"""

from __future__ import annotations

import functools
import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from exodus_client.wire.bounds import refused, sentence

if TYPE_CHECKING:
    import torch

Encoding: TypeAlias = Literal["raw", "bits", "events"]
FloatName: TypeAlias = Literal["float32", "float64", "float16", "bfloat16"]
AnyArray: TypeAlias = "npt.NDArray[Any]"

ENCODINGS: tuple[Encoding, ...] = get_args(Encoding)
FLOATS: tuple[FloatName, ...] = get_args(FloatName)

#: Wire name of a dtype -> the numpy dtype of its raw payload. numpy has no bfloat16: its bits are carried as uint16.
DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "float64": np.dtype("<f8"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
    "int8": np.dtype("i1"),
    "uint8": np.dtype("u1"),
    "int16": np.dtype("<i2"),
    "int32": np.dtype("<i4"),
    "int64": np.dtype("<i8"),
    "bool": np.dtype("?"),
}

_INDEX = DTYPES["int32"]

#: numpy's and torch's dtypes that the wire has not, and those that have room for their values.
_WIDER = {"uint16": "int32", "uint32": "int64", "uint64": "int64"}

#: Elements that are turned into booleans at a time: a block of float32 and its masks stay in the second-level cache.
_BLOCK = 64 * 1024


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A named tensor as it travels.

    Attributes:
        name: its name in the message.
        dtype: wire name of the element type, a key of `DTYPES`.
        shape: of the unpacked tensor, whatever the encoding.
        encoding: "raw", "bits" or "events".
        payload: the encoded bytes, a flat view of unsigned bytes.
        pointer: where the tensor stood in a decoded body ("/tensors/0"), for errors found while unpacking.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    encoding: Encoding
    payload: memoryview
    pointer: str = ""

    @classmethod
    def of(cls, name: str, array: Any, encoding: Encoding = "raw") -> Tensor:
        """Describe a numpy array, a torch tensor, or anything `numpy.asarray` takes.

        A contiguous little-endian array in main memory is not copied with encoding "raw". "bits" and "events" want
        a boolean array, or one of zeros and ones, and make the tensor a boolean one; "events" wants a dimension.
        Unsigned integers of 16, 32 and 64 bits travel as int32, int64 and int64.

        Raises:
            TypeError: the element type cannot travel, or the tensor is sparse or has no elements of its own.
            ValueError: the encoding is unknown, or wants zeros and ones and got something else; an unsigned integer is
                beyond int64.
        """
        if encoding not in ENCODINGS:
            raise ValueError(sentence("encoding", f"one of {', '.join(ENCODINGS)}", repr(encoding)))
        dtype, stored = _as_stored(name, array)
        shape = stored.shape
        if encoding != "raw":
            ones = _as_bool(name, stored, dtype)
            dtype, stored = "bool", _pack_bits(ones) if encoding == "bits" else _pack_events(name, ones)
        flat = np.ascontiguousarray(stored).reshape(-1)
        return cls(name, dtype, shape, encoding, flat.view(np.uint8).data)

    @property
    def size(self) -> int:
        """Number of elements of the unpacked tensor."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the encoded payload."""
        return len(self.payload)

    def numpy(self) -> AnyArray:
        """The tensor as a numpy array: a view of the payload for raw (read-only if the body is), unpacked otherwise.

        Raises:
            TypeError: the dtype is bfloat16, which numpy does not have.
            WireError: the payload holds a boolean that is neither 0 nor 1, or an event outside the shape.
        """
        if self.dtype == "bfloat16":
            raise TypeError(f"tensor {self.name!r}: numpy has no bfloat16; use .torch(), or ask for float32")
        return self.stored()

    def torch(self) -> torch.Tensor:
        """The tensor as a torch tensor on the CPU: a view of the payload for raw, if the body is writable.

        Raises:
            WireError: as `numpy`.
        """
        import torch

        array = self.stored()
        if not array.flags.writeable:  # torch has no read-only tensors
            array = array.copy()
        if self.dtype == "bfloat16":
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)

    def stored(self) -> AnyArray:
        """The elements as numpy can hold them: as `numpy`, and bfloat16 as its bits in uint16.

        Raises:
            WireError: as `numpy`.
        """
        if self.encoding == "bits":
            packed = np.frombuffer(self.payload, np.uint8)
            return np.unpackbits(packed, count=self.size, bitorder="little").view(np.bool_).reshape(self.shape)
        if self.encoding == "events":
            return self._unpack_events()
        if self.dtype == "bool":
            self._check_booleans()
        array = np.frombuffer(self.payload, DTYPES[self.dtype]).reshape(self.shape)
        # An inline payload may start anywhere, and neither numpy's fast paths nor torch's kernels want odd addresses.
        return array if array.flags.aligned else array.copy()

    def _unpack_events(self) -> AnyArray:
        events = np.frombuffer(self.payload, _INDEX).reshape(-1, len(self.shape))
        if events.size:
            outside = (events < 0) | (events >= np.array(self.shape, np.int64))
            if outside.any():
                event = events[outside.any(axis=1).argmax()].tolist()
                within = f"indices within {list(self.shape)}"
                what = f"events of tensor {self.name!r}"
                raise refused(what, within, str(event), code="mismatch", pointer=self.pointer)
        dense = np.zeros(self.shape, np.bool_)
        dense[tuple(events.T)] = True
        return dense

    def _check_booleans(self) -> None:
        largest = int(np.frombuffer(self.payload, np.uint8).max(initial=0))
        if largest > 1:
            what = f"bytes of the boolean tensor {self.name!r}"
            raise refused(what, "0 or 1", str(largest), code="mismatch", pointer=self.pointer)


def is_torch(array: object) -> bool:
    """True for a torch tensor; does not import torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def widen(bfloat16: AnyArray) -> npt.NDArray[np.float32]:
    """bfloat16 bits in uint16 as the float32 numbers they are: a bfloat16 is the upper half of a float32."""
    return np.asarray(bfloat16.astype(np.uint32) << 16).view(np.float32)


def _as_stored(name: str, array: Any) -> tuple[str, AnyArray]:
    """Wire name of the dtype, and the elements as a little-endian numpy array (bfloat16 as uint16)."""
    if is_torch(array):
        return _torch_as_stored(name, array)
    try:
        given = np.asarray(array)
    except ValueError as error:
        raise ValueError(f"tensor {name!r}: {error}") from error
    return _numpy_as_stored(name, given)


@functools.cache
def _name_of(dtype: np.dtype[Any]) -> str:
    return dtype.name  # which numpy puts together each time


def _numpy_as_stored(name: str, given: AnyArray) -> tuple[str, AnyArray]:
    dtype = _name_of(given.dtype)
    if dtype == "uint64" and given.size and (largest := int(given.max())) >= 2**63:
        raise ValueError(f"tensor {name!r} must have values below 2**63, which is what int64 holds, got {largest}")
    dtype = _WIDER.get(dtype, dtype)
    if dtype not in DTYPES:
        raise TypeError(sentence(f"dtype of {name!r}", f"one of {', '.join(DTYPES)}", dtype))
    return dtype, given.astype(DTYPES[dtype], copy=False)


def _torch_as_stored(name: str, tensor: torch.Tensor) -> tuple[str, AnyArray]:
    import torch

    if tensor.layout is not torch.strided or tensor.is_nested:
        kind = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
        raise TypeError(f"tensor {name!r} must be dense, got a {kind} tensor")
    if tensor.is_meta:
        raise TypeError(f"tensor {name!r} must have elements, got one on the device meta")
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype in _WIDER:
        return _numpy_as_stored(name, tensor.numpy(force=True))
    if dtype not in DTYPES:
        raise TypeError(sentence(f"dtype of {name!r}", f"one of {', '.join(DTYPES)}", dtype))
    if dtype == "bfloat16":
        tensor = tensor.detach().view(torch.int16)
    stored = tensor.numpy(force=True)
    return dtype, stored.view(np.uint16) if dtype == "bfloat16" else stored


def _as_bool(name: str, stored: AnyArray, dtype: str) -> AnyArray:
    """Zeros and ones of any dtype as booleans, refusing everything else."""
    if dtype == "bool":
        return stored
    flat = np.ascontiguousarray(widen(stored) if dtype == "bfloat16" else stored).reshape(-1)
    ones = np.empty(flat.size, np.bool_)
    for start in range(0, flat.size, _BLOCK):
        block, mask = flat[start : start + _BLOCK], ones[start : start + _BLOCK]
        np.equal(block, 1, out=mask)
        if np.count_nonzero(mask) + np.count_nonzero(block == 0) != block.size:
            raise ValueError(
                sentence(f"tensor {name!r}", "zeros and ones in encodings bits and events", "other values")
            )
    return ones.reshape(stored.shape)


def _pack_bits(ones: AnyArray) -> AnyArray:
    return np.packbits(np.ascontiguousarray(ones).reshape(-1), bitorder="little")


def _pack_events(name: str, ones: AnyArray) -> AnyArray:
    if ones.ndim == 0:
        raise ValueError(sentence(f"tensor {name!r} in encoding events", "of one dimension or more", "shape ()"))
    if max(ones.shape) > 2**31:
        raise ValueError(sentence(f"tensor {name!r}", "no longer than 2**31 in encoding events", list(ones.shape)))
    return np.argwhere(ones).astype(_INDEX)
