"""The tensors of a file: .npz, .npy, .pt or .pth, .safetensors."""

from __future__ import annotations

import pickle
import zipfile
import zlib
from pathlib import Path

import torch
from torch import Tensor

from exodus_core.errors import ArgumentError

# What readers raise for a file that is cut, forged or holds other objects. Their messages advise how to run its code.
_UNREADABLE = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    zlib.error,
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)

_SUFFIXES = (".npz", ".npy", ".pt", ".pth", ".safetensors")


def read_arrays(file: Path) -> dict[str, Tensor]:
    """The tensors of a file by name; that of a .npy file, or of a .pt file of one tensor, is `x`.

    Files are read as data: no pickled code is run.

    Raises:
        ValueError: the file is of another format, or its contents are.
        OSError: it cannot be read.
        ModuleNotFoundError: numpy or safetensors is not installed.
    """
    if file.suffix not in _SUFFIXES:
        raise ArgumentError("FILE", f"a name that ends in one of {', '.join(_SUFFIXES)}", file)
    if file.suffix in (".npz", ".npy"):
        return _numpy_arrays(file)
    if file.suffix == ".safetensors":
        return _safetensors_arrays(file)
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise ArgumentError("FILE", "a .pt file of a tensor or a dict of tensors", _other(file)) from error
    named = {"x": found} if isinstance(found, Tensor) else found
    if not isinstance(named, dict) or not all(isinstance(value, Tensor) for value in named.values()):
        raise ArgumentError("FILE", "a tensor or a dict of tensors", f"{file}: {type(found).__name__}")
    return {str(name): value for name, value in named.items()}


def _other(file: Path) -> str:
    return f"{file}, which is damaged or holds something else"


def _safetensors_arrays(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(file))
    except (SafetensorError, *_UNREADABLE) as error:
        raise ArgumentError("FILE", "a .safetensors file", _other(file)) from error


def _numpy_arrays(file: Path) -> dict[str, Tensor]:
    import numpy as np

    try:
        with file.open("rb") as stream:
            found = np.load(stream, allow_pickle=False)
            arrays = {"x": found} if isinstance(found, np.ndarray) else dict(found)
        return {name: torch.from_numpy(array) for name, array in arrays.items()}
    except _UNREADABLE as error:
        raise ArgumentError("FILE", "a file of arrays of numbers", _other(file)) from error
