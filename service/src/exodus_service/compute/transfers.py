"""Copies between the host and a GPU beside the kernels: inputs of calls that wait go up, results come down together.

Uploads run on a stream of their own, from pinned memory, while the thread that computes is busy with another call; its
stream waits for them by an event. Without a GPU nothing is copied.
"""

import logging
import threading
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

import torch

logger = logging.getLogger(__name__)

#: Tensors up to this size are left to the call: to copy them takes less time than to prepare it.
SMALL_BYTES = 1 << 14


class Copies(Protocol):
    """Copies to a device that are begun on one thread and waited for on another."""

    def begin(self, tensor: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """The copy, which must not be read yet, and what tells that it is there. On any thread."""

    def wait(self, copied: torch.Tensor, event: Any) -> None:
        """Let the current stream wait for a copy, and the copy's memory for the stream. On the computing thread."""


class CudaCopies:
    """Copies on a stream of their own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def begin(self, tensor: torch.Tensor) -> tuple[torch.Tensor, Any]:
        # Bodies are pinned; what was unpacked from them is not. Blocks of pinned memory are torch's, which reuses them.
        pinned = tensor if tensor.is_pinned() else tensor.pin_memory()
        with torch.cuda.stream(self._stream):
            return pinned.to(self._device, non_blocking=True), self._stream.record_event()

    def wait(self, copied: torch.Tensor, event: Any) -> None:
        current = torch.cuda.current_stream(self._device)
        current.wait_event(event)
        copied.record_stream(current)


class Upload:
    """A tensor that may be on its way to the device; made by `Uploads`.

    Args:
        source: the tensor, which must live until its copy has ended.
        copies: begin the copy now; None: there is none.
        release: called once the upload is waited for or dropped.

    Raises:
        RuntimeError: there is no memory for the copy.
    """

    def __init__(
        self, source: torch.Tensor, copies: Copies | None = None, release: Callable[[], None] = lambda: None
    ) -> None:
        self._source = source
        self._copies = copies
        self._begun = None if copies is None else copies.begin(source)
        self._release = weakref.finalize(self, release)
        self._release.atexit = False

    def wait(self) -> torch.Tensor:
        """The tensor, for the current stream: on the device if its copy was begun, else as it was given."""
        self._release()
        if self._copies is None or self._begun is None:
            return self._source
        copied, event = self._begun
        self._copies.wait(copied, event)
        return copied


class Uploads:
    """Uploads of calls that wait for their turn, up to a number of bytes. Any thread may start one.

    Args:
        max_bytes: of uploads that were begun, until they are waited for; what exceeds them is copied by its call.
        copies: to the device; None: its memory is the host's.
    """

    def __init__(self, max_bytes: int, copies: Copies | None) -> None:
        self.nbytes = 0
        self._max_bytes = max_bytes
        self._copies = copies
        self._lock = threading.Lock()

    def start(self, tensor: torch.Tensor) -> Upload:
        """Begin to copy a tensor, if there is a reason and room to."""
        nbytes = tensor.nbytes
        if self._copies is None or nbytes <= SMALL_BYTES or not self._reserve(nbytes):
            return Upload(tensor)
        try:
            return Upload(tensor, self._copies, partial(self._release, nbytes))
        except RuntimeError as error:  # the call copies it by itself, and says what is wrong if that fails too
            self._release(nbytes)
            logger.warning("an input of %d bytes is not uploaded ahead: %s", nbytes, error)
            return Upload(tensor)

    def _reserve(self, nbytes: int) -> bool:
        with self._lock:
            fits = self.nbytes + nbytes <= self._max_bytes
            self.nbytes += nbytes if fits else 0
            return fits

    def _release(self, nbytes: int) -> None:
        with self._lock:
            self.nbytes -= nbytes


def to_host(tensors: Mapping[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """Tensors of the device in the host's memory, pinned if that is another; one wait for all of them."""
    if device.type != "cuda":
        return dict(tensors)
    copies = {name: _pinned_like(tensor).copy_(tensor, non_blocking=True) for name, tensor in tensors.items()}
    torch.cuda.current_stream(device).synchronize()
    return copies


def _pinned_like(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(tensor, device="cpu", pin_memory=True)
