"""Index of the saved models in SQLite: whose they are, when they were used, what they occupy.

The manifests are the truth. The index is made from them at every start, and again whenever SQLite finds it damaged,
so that losing it loses nothing but the times of last use.
"""

import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")

_TABLE = """CREATE TABLE IF NOT EXISTS models (
    owner TEXT NOT NULL, id TEXT NOT NULL, name TEXT NOT NULL, created TEXT NOT NULL, used REAL NOT NULL,
    durable INTEGER NOT NULL, nbytes INTEGER NOT NULL, PRIMARY KEY (owner, id)) WITHOUT ROWID"""
_PUT = "INSERT OR REPLACE INTO models VALUES (?, ?, ?, ?, ?, ?, ?)"
_COLUMNS = "owner, id, name, created, used, durable, nbytes"


@dataclass(frozen=True)
class Entry:
    """A saved model: `used` in seconds since 1970, its durable sequence number, `nbytes` on disk."""

    owner: str
    id: str
    name: str
    created: str
    used: float
    durable: int
    nbytes: int


class Catalogue:
    """The index. Any thread may use it.

    Args:
        path: the database file.
        scan: yields what is saved, read from the manifests.
    """

    def __init__(self, path: Path, scan: Callable[[], Iterable[Entry]]) -> None:
        self._path = path
        self._scan = scan
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        with self._lock:
            self._do(lambda connection: None)

    def put(self, entry: Entry) -> None:
        """Add a model or replace what is known of it."""
        self._do(lambda connection: connection.execute(_PUT, astuple(entry)))

    def touch(self, owner: str, id: str, used: float) -> None:
        """Note when a model was used."""
        self._do(
            lambda connection: connection.execute(
                "UPDATE models SET used = ? WHERE owner = ? AND id = ?", (used, owner, id)
            )
        )

    def remove(self, owner: str, id: str) -> None:
        """Forget a model; one that is not there is no error."""
        self._do(lambda connection: connection.execute("DELETE FROM models WHERE owner = ? AND id = ?", (owner, id)))

    def get(self, owner: str, id: str) -> Entry | None:
        """What is known of a model."""
        return next((entry for entry in self.list(owner) if entry.id == id), None)

    def list(self, owner: str) -> list[Entry]:
        """All saved models of an owner, by age."""
        query = f"SELECT {_COLUMNS} FROM models WHERE owner = ? ORDER BY created, id"
        rows = self._do(lambda connection: connection.execute(query, (owner,)).fetchall())
        if rows is not None:
            return [Entry(*row) for row in rows]
        return sorted((e for e in self._scan() if e.owner == owner), key=lambda entry: (entry.created, entry.id))

    def nbytes(self) -> int:
        """What all models of all owners occupy."""
        row = self._do(lambda connection: connection.execute("SELECT COALESCE(SUM(nbytes), 0) FROM models").fetchone())
        return int(row[0]) if row is not None else sum(entry.nbytes for entry in self._scan())

    def close(self) -> None:
        """Let go of the database."""
        with self._lock:
            self._discard()

    def _do(self, run: Callable[[sqlite3.Connection], T]) -> T | None:
        """Run within a transaction; where the index is damaged, on a new one. None where there can be none."""
        with self._lock:
            for attempt in (1, 2):
                try:
                    connection = self._connection or self._open()
                    with connection:
                        return run(connection)
                except (sqlite3.Error, OSError) as error:
                    self._discard()
                    logger.error("the index %s failed and is made anew from the manifests: %s", self._path, error)
                    if attempt == 1 and isinstance(error, sqlite3.DatabaseError):
                        self._put_aside()
            return None

    def _open(self) -> sqlite3.Connection:
        # Made with the permissions that it is to have, which its companions take from it.
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
        connection = sqlite3.connect(self._path, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            if connection.execute("PRAGMA quick_check").fetchone() != ("ok",):
                raise sqlite3.DatabaseError("quick_check found it damaged")
            with connection:
                connection.execute(_TABLE)
                used = dict(self._used(connection))
                connection.execute("DELETE FROM models")
                connection.executemany(
                    _PUT,
                    (
                        (*astuple(entry)[:4], used.get((entry.owner, entry.id), entry.used), *astuple(entry)[5:])
                        for entry in self._scan()
                    ),
                )
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return connection

    @staticmethod
    def _used(connection: sqlite3.Connection) -> Iterable[tuple[tuple[str, str], float]]:
        with closing(connection.execute("SELECT owner, id, used FROM models")) as rows:
            return [((owner, id), used) for owner, id, used in rows]

    def _discard(self) -> None:
        if self._connection is not None:
            try:
                self._connection.close()
            except sqlite3.Error as error:
                logger.warning("closing the index %s: %s", self._path, error)
            self._connection = None

    def _put_aside(self) -> None:
        """Out of the way of a new one; its companions go, since they would be applied to the new one."""
        try:
            os.replace(self._path, f"{self._path}.corrupt")
            for companion in ("-wal", "-shm"):
                Path(f"{self._path}{companion}").unlink(missing_ok=True)
        except OSError as error:
            logger.warning("the index %s cannot be moved: %s", self._path, error)
