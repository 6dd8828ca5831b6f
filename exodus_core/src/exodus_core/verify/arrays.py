"""The tensors of a file: .npz, .npy, .pt or .pth, .safetensors."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from exodus_core.errors import ArgumentError

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
        from safetensors.torch import load_file

        return dict(load_file(file))
    found = torch.load(file, map_location="cpu", weights_only=True)
    named = {"x": found} if isinstance(found, Tensor) else found
    if not isinstance(named, dict) or not all(isinstance(value, Tensor) for value in named.values()):
        raise ArgumentError("FILE", "a tensor or a dict of tensors", f"{file}: {type(found).__name__}")
    return {str(name): value for name, value in named.items()}


def _numpy_arrays(file: Path) -> dict[str, Tensor]:
    import numpy as np

    try:
        found = np.load(file, allow_pickle=False)
        arrays = {"x": found} if isinstance(found, np.ndarray) else dict(found)
        return {name: torch.from_numpy(array) for name, array in arrays.items()}
    except (ValueError, TypeError, EOFError) as error:
        raise ArgumentError("FILE", "arrays of numbers", f"{file}: {error}") from error
