"""The state of a model as a safetensors file: names of its tensors, its metadata, and the header that has both.

A file is the length of its header (8 bytes, little endian), the header in JSON, and the tensors one after the other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

MEDIA_TYPE = "application/vnd.safetensors"

#: Key of the metadata that has the description, as JSON: network, optimizer, seed, sequence and more.
DESCRIPTION = "exodus"

#: Names of tensors begin with these; "random" is the state of the generator.
WEIGHTS, OPTIMIZER, GRADIENTS, RANDOM = "weights.", "optimizer.", "gradients.", "random"

#: Bytes of an element, by safetensors' name of its dtype.
ITEM_BYTES: Mapping[str, int] = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class StateHeader:
    """Header of a state file.

    Attributes:
        nbytes: where the tensors begin.
        tensors: dtype, shape and data_offsets of each, by name, unchecked.
        metadata: strings by name.
        description: what the state belongs to.
    """

    nbytes: int
    tensors: dict[str, Any]
    metadata: dict[str, str]
    description: dict[str, Any]

    @classmethod
    def read(cls, stream: BinaryIO, file_bytes: int) -> StateHeader:
        """Read the header at the front of a file of so many bytes. Raises ValueError."""
        size = int.from_bytes(stream.read(8), "little")
        if size > file_bytes:  # a file of another kind may ask for any amount of memory
            raise ValueError(f"the header must be within the file of {file_bytes} bytes, got one of {size}")
        try:
            tensors = json.loads(stream.read(size))
            metadata = tensors.pop("__metadata__")
            description = json.loads(metadata[DESCRIPTION])
            return cls(8 + size, dict(tensors), dict(metadata), dict(description))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"the header must be JSON with {DESCRIPTION!r} in its metadata, got {error!r:.200}"
            ) from error

    def check_tensors(self, file_bytes: int) -> None:
        """Refuse tensors that do not fill the file, one after the other. Raises ValueError."""
        try:
            places = sorted((*about["data_offsets"], name) for name, about in self.tensors.items())
            end = 0
            for start, stop, name in places:
                dtype, shape = self.tensors[name]["dtype"], self.tensors[name]["shape"]
                if not all(type(number) is int and 0 <= number < 2**63 for number in (*shape, start, stop)):
                    raise ValueError(f"{name} must have a shape and a place, got {self.tensors[name]!r:.200}")
                if start != end or stop - start != math.prod(shape) * ITEM_BYTES[dtype]:
                    raise ValueError(f"{name} must be {dtype} of shape {shape} at {end}, got bytes {start} to {stop}")
                end = stop
        except (KeyError, TypeError) as error:
            raise ValueError(f"tensors must have dtype, shape and data_offsets, got {error!r:.200}") from error
        if self.nbytes + end != file_bytes:
            raise ValueError(f"the file must have {self.nbytes + end} bytes, got {file_bytes}")
