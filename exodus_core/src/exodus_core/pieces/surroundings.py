"""All that decides a module's output beside its input, so that it can be computed again from that.

Parameters and buffers, the modes of its parts (`train`, `eval`), autocast, and the state of torch's random numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor


class _Owned(NamedTuple):
    """A parameter or buffer: the tensor, the dicts of modules that have it, and its version; None if it has none."""

    tensor: Tensor
    places: list[tuple[dict[str, Any], str]]
    version: int | None


class Surroundings:
    """Those of a module at the time that this is made.

    Attributes:
        tensors: parameters and buffers, each once.
        generators: the GPUs whose random numbers it may draw, by index.
    """

    def __init__(self, module: torch.nn.Module, x: Tensor) -> None:
        found: dict[int, _Owned] = {}
        for part in module.modules():
            for owner in (part._parameters, part._buffers):
                for name, tensor in owner.items():
                    if tensor is not None:
                        version = None if tensor.is_inference() else tensor._version
                        found.setdefault(id(tensor), _Owned(tensor, [], version)).places.append((owner, name))
        self._owned = list(found.values())
        self._training = [(part, part.training) for part in module.modules()]
        devices = {tensor.device for tensor in (x, *self.tensors)}
        self.generators = sorted({device.index for device in devices if device.type == "cuda"})
        self._autocast = [
            (kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
            for kind in sorted({device.type for device in devices})
            if torch.amp.autocast_mode.is_autocast_available(kind)
        ]

    @property
    def tensors(self) -> list[Tensor]:
        return [own.tensor for own in self._owned]

    def changed(self) -> str | None:
        """The name of a parameter or buffer that has changed since, or None."""
        for tensor, places, version in self._owned:
            for owner, name in places:
                if owner.get(name) is not tensor or (version is not None and tensor._version != version):
                    return name
        return None

    @contextmanager
    def again(self) -> Iterator[None]:
        """A context with the modes and the autocast of then."""
        present = [(part, part.training) for part, _ in self._training]
        with ExitStack() as stack:
            for kind, enabled, dtype in self._autocast:
                stack.enter_context(torch.autocast(kind, enabled=enabled, dtype=dtype))
            try:
                for part, mode in self._training:
                    part.training = mode
                yield
            finally:
                for part, mode in present:
                    part.training = mode

    @contextmanager
    def with_tensors(self, tensors: Sequence[Tensor]) -> Iterator[None]:
        """A context in which the module has these tensors as its parameters and buffers, in order."""
        kept = [(owner, name, owner[name]) for _, places, _ in self._owned for owner, name in places]
        try:
            for (_, places, _), tensor in zip(self._owned, tensors, strict=True):
                for owner, name in places:
                    owner[name] = tensor
            yield
        finally:
            for owner, name, tensor in kept:
                owner[name] = tensor

    def random_states(self) -> list[Tensor]:
        """The states of torch's random numbers, on the CPU and on the GPUs."""
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(index) for index in self.generators)]

    def have_drawn(self, states: Sequence[Tensor]) -> bool:
        """True if numbers were drawn since `random_states` returned these."""
        return not all(torch.equal(*pair) for pair in zip(states, self.random_states(), strict=True))

    def set_random_states(self, states: Sequence[Tensor]) -> None:
        """Draws again what was drawn after `random_states`."""
        of_cpu, *of_gpus = states
        torch.set_rng_state(of_cpu)
        for index, state in zip(self.generators, of_gpus, strict=True):
            torch.cuda.set_rng_state(state, index)
