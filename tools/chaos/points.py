"""Changes the product from outside so that a server kills itself at a chosen place. Runs in the server's process.

Everything is found by name, and a name that is not there is an error: the harness must follow the product.
"""

from __future__ import annotations

import contextlib
import errno
import json
import mmap
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NoReturn

from .orders import HELD, KERNELS, Order

#: Values of the first byte of the shared page, for the process that watches.
OUTSIDE, SOON, INSIDE = 0, 1, 2


#: Ends of the paths of training calls.
TRAINING = ("/step", "/forward_backward", "/optim_step")


class Points:
    """The places in one server, and what is to happen there.

    Args:
        order: where to die.
        report: where a line of JSON goes for each thing that happens.
        page: shared with the process that kills inside of kernels.
        trace: report each event of each save.
        full: while there is a file of this name, the disk is full.
    """

    def __init__(self, order: Order, report: int, page: mmap.mmap, trace: bool, full: Path) -> None:
        self._order = order
        self._report = report
        self._page = page
        self._trace = trace
        self._full = full
        self._came: Counter[str] = Counter()
        self._disk = Disk(order.power_loss)

    def install(self) -> None:
        """Patch the product."""
        self._computing()
        self._answering()
        self._starting()
        self._saving()

    def tell(self, **what: Any) -> None:
        os.write(self._report, json.dumps(what).encode() + b"\n")

    def at(self, point: str) -> bool:
        """True if the process is to die here; counts the visits."""
        if point != self._order.point:
            return False
        self._came[point] += 1
        return self._came[point] == self._order.nth

    def reach(self, point: str) -> None:
        """Die if this is where."""
        if self.at(point):
            self.die(point)

    def die(self, point: str) -> NoReturn:
        if self._order.power_loss:
            # For good: the power fails at once, while a save may be under way on another thread.
            self._disk.lock.acquire()
            self._disk.lose()
        self.tell(died=point)
        os.kill(os.getpid(), signal.SIGKILL)
        while True:
            time.sleep(1)

    def _computing(self) -> None:
        from exodus_core import ops
        from exodus_core.training import Trainer
        from exodus_core.training.pure_forward import PureForward
        from exodus_core.training.update import Update
        from exodus_service.models.model import Model

        before(Trainer, "step", lambda: self.reach("before the forward pass"))
        after(PureForward, "run", lambda: self.reach("between forward and backward pass"))
        after(Update, "apply", lambda: self.reach("weights changed, call not recorded"))
        checkpoint_if_due = Model._checkpoint_if_due

        def recording(model: Any, sequence: int) -> None:
            checkpoint_if_due(model, sequence)
            self.tell(recorded=[model.id, sequence])
            self.reach("call recorded, answer not sent")

        replace(Model, "_checkpoint_if_due", recording)
        if self._order.point in KERNELS:
            before(Trainer, "step", lambda: self._page.__setitem__(0, SOON))
            name = {"forward": "lif_forward", "backward": "lif_backward"}[self._order.point.split()[-1]]
            kernel = getattr(ops, name)

            def watched(*arguments: Any) -> Any:
                # Should the one that watches be late, the next time will do.
                self._came[name] += 1
                inside = self._came[name] >= self._order.nth
                if inside:
                    self._page[0] = INSIDE
                result = kernel(*arguments)
                if inside:
                    self._page[0] = OUTSIDE
                return result

            setattr(ops, name, watched)

    def _answering(self) -> None:
        import asyncio

        from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

        send: Callable[..., Awaitable[None]] = RequestResponseCycle.send

        async def sending(cycle: Any, message: Any) -> None:
            if cycle.scope["method"] != "POST" or not cycle.scope["path"].endswith(TRAINING):
                await send(cycle, message)
                return
            if self._order.point == HELD:
                await asyncio.sleep(3600)
            if message["type"] == "http.response.start":
                self.reach("before the answer's head")
            body = message.get("body", b"")
            if body and self.at("half of the answer's body sent"):
                half = {**message, "body": bytes(body)[: len(body) // 2], "more_body": True}
                await send(cycle, half)
                await asyncio.sleep(0.01)  # until it has left
                self.die("half of the answer's body sent")
            await send(cycle, message)
            last = message["type"] == "http.response.body" and not message.get("more_body", False)
            if last and self.at("after the answer's last byte"):
                await asyncio.sleep(0.01)
                self.die("after the answer's last byte")

        replace(RequestResponseCycle, "send", sending)

    def _starting(self) -> None:
        from exodus_service.models.saved_models import SavedModels
        from exodus_service.models.storage.state_dir import StateDir

        before(StateDir, "_tidy", lambda: self.reach("folder being tidied"))
        load = SavedModels.load

        def loading(saved: Any, found: Any) -> Any:
            self.reach("model being loaded")
            loaded = load(saved, found)
            self.tell(loaded=[loaded.spec.header.id, loaded.progress.sequence])
            self.reach("model loaded, call not begun")
            return loaded

        replace(SavedModels, "load", loading)

    def _saving(self) -> None:
        from exodus_service.models.storage import checkpoint
        from exodus_service.models.storage.state_dir import StateDir

        disk, local = self._disk, threading.local()
        write = StateDir.write

        def writing(state_dir: Any, snapshot: Any) -> Any:
            local.saving, local.seen, local.first = True, set(), snapshot.sequence == 0
            try:
                written = write(state_dir, snapshot)
            finally:
                local.saving = False
            with disk.lock:
                self.tell(saved=[snapshot.header.id, snapshot.sequence])
            if snapshot.sequence > 0:
                self.reach(HELD)
            return written

        def event(label: str) -> bool:
            """Something of a save is about to be done; whether to die in the midst of it."""
            if not getattr(local, "saving", False):
                return False
            if self._trace and label not in local.seen:
                local.seen.add(label)
                self.tell(event=label, first=local.first)
            return self.at(f"save: {label}")

        def reach(label: str) -> None:
            if event(label):
                self.die(f"save: {label}")

        class File:
            """A file that is written; half of a write is on its way to the disk when the server dies in it."""

            def __init__(self, stream: Any, path: Path) -> None:
                self._stream, self._path = stream, path

            def write(inner, content: Any) -> int:  # noqa: N805
                if self._full.exists():
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(inner._path))
                with disk.lock:
                    if event(f"write to {kind(inner._path)}"):
                        inner._stream.write(memoryview(content).cast("B")[: memoryview(content).nbytes // 2])
                        inner._stream.flush()
                        self.die(f"save: write to {kind(inner._path)}")
                    return int(inner._stream.write(content))

            def __getattr__(self, name: str) -> Any:
                return getattr(self._stream, name)

            def __enter__(self) -> Any:
                return self

            def __exit__(self, *exception: object) -> None:
                self._stream.close()

        class Os:
            """The module os, as the checkpoint sees it."""

            def __getattr__(self, name: str) -> Any:
                return getattr(os, name)

            def open(self, path: Any, flags: int, *mode: int) -> int:
                if flags & os.O_DIRECTORY:
                    handle = os.open(path, flags, *mode)
                    disk.folders[handle] = Path(path)
                    return handle
                with disk.lock:
                    reach(f"open {kind(path)}")
                    handle = os.open(path, flags, *mode)
                    disk.opened(handle, Path(path))
                    return handle

            def fsync(self, handle: int) -> None:
                with disk.lock:
                    folder = disk.folders.get(handle)
                    reach(f"fsync of the folder{disk.stage}" if folder else f"fsync of {kind(disk.files[handle])}")
                    os.fsync(handle)
                    disk.synced(handle)

            def close(self, handle: int) -> None:
                disk.folders.pop(handle, None)
                os.close(handle)

            def rename(self, source: Any, target: Any) -> None:
                with disk.lock:
                    reach(f"rename of {kind(source)}")
                    os.rename(source, target)
                    disk.renamed(Path(source), Path(target))

        def opening(file: Any, mode: str = "r", *more: Any, **options: Any) -> Any:
            stream = open(file, mode, *more, **options)  # noqa: SIM115
            return File(stream, disk.files[file]) if isinstance(file, int) and file in disk.files else stream

        def removing(path: Path) -> None:
            with disk.lock:
                if path.exists():
                    reach(f"removal of the old {kind(path)}")
                    disk.removed(path)
                remove(path)

        remove = checkpoint.remove_quietly
        replace(checkpoint, "os", Os())
        replace(checkpoint, "open", opening)
        replace(checkpoint, "remove_quietly", removing)
        replace(StateDir, "write", writing)


def kind(path: Any) -> str:
    return "manifest" if ".json" in Path(path).name else "tensors"


class Disk:
    """Changes of a save that are not synced yet, so that they can be lost as in a power failure.

    Lost is half of each file that was not synced, and each change of the folder since its last sync: files that were
    made, renamed or removed.

    Args:
        loses: whether it will; only then is kept what a save removes.
    """

    def __init__(self, loses: bool) -> None:
        #: Held while something is done and noted.
        self.lock = threading.RLock()
        self._loses = loses
        self._kept = 0
        self.files: dict[int, Path] = {}
        self.folders: dict[int, Path] = {}
        self.stage = ", where a new one is"
        self._unsynced: set[Path] = set()
        self._undo: list[Callable[[], None]] = []

    def opened(self, handle: int, path: Path) -> None:
        self.files[handle] = path
        self.stage = f", {kind(path)} renamed"
        self._unsynced.add(path)
        self._undo.append(lambda: path.unlink(missing_ok=True))

    def synced(self, handle: int) -> None:
        folder = self.folders.get(handle)
        if folder is None:
            self._unsynced.discard(self.files[handle])
            return
        self._undo.clear()

    def renamed(self, source: Path, target: Path) -> None:
        if source in self._unsynced:
            self._unsynced.discard(source)
            self._unsynced.add(target)
        self._undo.append(lambda: os.rename(target, source))

    def removed(self, path: Path) -> None:
        """Keep what is about to be removed, next to the folders of models."""
        if not self._loses:
            return
        self._kept += 1
        kept = path.parent.parent.parent / f"chaos-kept-{os.getpid()}-{self._kept}"
        os.link(path, kept)
        self._undo.append(lambda: os.link(kept, path))

    def lose(self) -> None:
        """Lose it all."""
        for path in self._unsynced:
            if path.exists():
                os.truncate(path, path.stat().st_size // 2)
        for undo in reversed(self._undo):
            with contextlib.suppress(FileNotFoundError, FileExistsError):
                undo()


def replace(owner: Any, name: str, by: object) -> None:
    """Patch an attribute of a class or a module of the service."""
    setattr(owner, name, by)


def before(owner: Any, name: str, hook: Callable[[], None]) -> None:
    """Have something done before each call of a method."""
    wrapped = getattr(owner, name)

    def replacement(*arguments: Any, **options: Any) -> Any:
        hook()
        return wrapped(*arguments, **options)

    setattr(owner, name, replacement)


def after(owner: Any, name: str, hook: Callable[[], None]) -> None:
    """Have something done after each call of a method that succeeds."""
    wrapped = getattr(owner, name)

    def replacement(*arguments: Any, **options: Any) -> Any:
        result = wrapped(*arguments, **options)
        hook()
        return result

    setattr(owner, name, replacement)
