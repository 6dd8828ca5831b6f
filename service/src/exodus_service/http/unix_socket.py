"""A socket of the file system to listen on, that only its owner may use unless told otherwise."""

import contextlib
import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class SocketPathError(Exception):
    """The service cannot listen at this path."""


@contextmanager
def unix_socket(path: Path, mode: int, backlog: int = 2048) -> Iterator[socket.socket]:
    """A socket that listens at `path` and is removed in the end. What a dead server left there is replaced.

    Raises:
        SocketPathError: another server listens there, something else is there, or nothing can be made there.
    """
    listener = socket.socket(socket.AF_UNIX)
    try:
        try:
            with _alone(path.parent):
                _remove_stale(path)
                listener.bind(str(path))
                os.chmod(path, mode)  # before it listens: until then nobody can connect
                listener.listen(backlog)
                made = os.lstat(path)
        except OSError as error:
            raise SocketPathError(f"uds {path}: {error}") from error
        yield listener
        with contextlib.suppress(FileNotFoundError), _alone(path.parent):
            there = os.lstat(path)
            if (there.st_dev, there.st_ino) == (made.st_dev, made.st_ino):  # not that of a successor
                os.unlink(path)
    finally:
        listener.close()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Two servers that start at once must not take each other's socket for that of a dead one."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_stale(path: Path) -> None:
    try:
        kind = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise SocketPathError(f"uds {path} must be a socket or absent, got another kind of file")
    with socket.socket(socket.AF_UNIX) as caller:
        caller.settimeout(1.0)
        try:
            caller.connect(str(path))
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except (TimeoutError, BlockingIOError):
            pass  # it listens, and is busy
    raise SocketPathError(f"uds {path}: another server listens there")
