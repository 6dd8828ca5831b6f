"""Training states as safetensors files: encoded without copying the tensors, decoded by the library.

The layout (https://huggingface.co/docs/safetensors) is a length, a JSON header and the payloads. `safetensors` itself
only writes copies of all tensors, which would double the memory of each save.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch

MEDIA_TYPE = "application/vnd.safetensors"

#: Parsing a header takes many times its bytes. The largest model that can be created, with 64 KiB of parameter names
#: and six tensors of 200 bytes of header for each, stays below this.
MAX_HEADER_BYTES = 2 * 2**20

Buffer = bytes | bytearray | memoryview

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class StateFileError(ValueError):
    """The bytes are not a safetensors file of a training state."""


@dataclass(frozen=True)
class StateFile:
    """A file to write or send, as views of the tensors' memory.

    Attributes:
        chunks: its pieces in order.
        nbytes: their total length.
    """

    chunks: list[Buffer]
    nbytes: int


def encode_state(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> StateFile:
    """Encode tensors of any device. Tensors on the CPU are not copied and must not change while the file is used.

    Raises:
        TypeError: a dtype that no training state has.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in _NAMES:
            raise TypeError(f"tensors[{name!r}].dtype must be one of {', '.join(_NAMES.values())}, got {tensor.dtype}")
    # Widest elements first: then each payload is aligned to its elements, whatever the sizes.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    payloads: list[Buffer] = []
    end = 0
    for name in order:
        tensor = tensors[name].detach().cpu().contiguous()
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
        if end > begin:
            payloads.append(tensor.reshape(-1).view(torch.uint8).numpy().data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return StateFile([struct.pack("<Q", len(text)) + text, *payloads], 8 + len(text) + end)


def decode_state(body: Buffer) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors, copied, and the metadata of a file in memory.

    Raises:
        StateFileError: it is not a safetensors file.
    """
    try:
        length = header_bytes(body)
        tensors = safetensors.torch.load(bytes(body))
        metadata = json.loads(bytes(memoryview(body)[8 : 8 + length])).get("__metadata__")
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise StateFileError(f"the body must be a safetensors file, got {len(body)} bytes: {error}") from error
    return tensors, metadata or {}


def header_bytes(body: Buffer) -> int:
    """The length of the header of a file in memory, without parsing it.

    Raises:
        StateFileError: it is not a safetensors file, or the header is longer than that of any training state.
    """
    length = int.from_bytes(memoryview(body)[:8], "little")
    if len(body) < 8 + length:
        raise StateFileError(f"the body must be a safetensors file, got {len(body)} bytes, which end in the header")
    if length > MAX_HEADER_BYTES:
        raise StateFileError(f"the header must have at most {MAX_HEADER_BYTES} bytes, got {length}")
    return length


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file on disk, as views of the mapped file.

    Raises:
        StateFileError: it is not a safetensors file.
        OSError: it cannot be read.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a mapping)
    except safetensors.SafetensorError as error:
        raise StateFileError(f"{path} must be a safetensors file, got {error}") from error
