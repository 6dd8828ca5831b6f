"""Unix socket to listen on, with permissions and a check for a stale one."""

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
    """A socket that listens at `path` and is removed on exit. That of a dead server is replaced.

    Raises:
        SocketPathError: another server listens there, the path is another kind of file, or cannot be created.
    """
    listener = socket.socket(socket.AF_UNIX)
    try:
        try:
            with _locked(path.parent):
                _remove_stale(path)
                listener.bind(str(path))
                os.chmod(path, mode)  # before it listens, when nobody can connect yet
                listener.listen(backlog)
                made = os.lstat(path)
        except OSError as error:
            raise SocketPathError(f"uds {path} must be a path to listen on, got {error}") from error
        yield listener
        with contextlib.suppress(FileNotFoundError), _locked(path.parent):
            there = os.lstat(path)
            if (there.st_dev, there.st_ino) == (made.st_dev, made.st_ino):  # not a successor's
                os.unlink(path)
    finally:
        listener.close()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock a folder, so that servers starting at once do not take each other's sockets for stale ones."""
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
            pass  # its server is busy
    raise SocketPathError(f"uds {path} must be free, got one that another server listens on")
