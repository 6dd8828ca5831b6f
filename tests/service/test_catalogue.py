"""The index of saved models: made from what is saved, and made anew where it is lost or damaged."""

import logging
import os
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from exodus_service.models.storage.index import Catalogue, Entry

ENTRIES = [
    Entry("", "b", "label", "2026-01-02", 5.0, 10, 300),
    Entry("", "a", "", "2026-01-03", 6.0, 0, 20),
    Entry("owner", "b", "", "2026-01-01", 7.0, 3, 1000),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "index.sqlite"


def scan() -> list[Entry]:
    return list(ENTRIES)


def test_the_index_lists_each_owners_models_by_age(path: Path) -> None:
    catalogue = Catalogue(path, scan)
    assert catalogue.list("") == ENTRIES[:2]
    assert catalogue.list("owner") == ENTRIES[2:]
    assert catalogue.list("nobody") == []
    assert catalogue.nbytes() == 1320
    catalogue.close()


def test_models_are_put_touched_and_removed(path: Path) -> None:
    catalogue = Catalogue(path, list)
    assert catalogue.nbytes() == 0
    for entry in ENTRIES:
        catalogue.put(entry)
    newer = Entry("", "a", "", "2026-01-03", 8.0, 10, 25)
    catalogue.put(newer)
    catalogue.touch("", "b", 9.0)
    catalogue.remove("owner", "b")
    catalogue.remove("owner", "no such")
    assert catalogue.get("", "a") == newer
    assert catalogue.get("owner", "b") is None
    assert [entry.used for entry in catalogue.list("")] == [9.0, 8.0]
    assert catalogue.nbytes() == 325
    catalogue.close()


def test_ids_are_values_and_never_part_of_a_statement(path: Path) -> None:
    catalogue = Catalogue(path, scan)
    catalogue.remove("' OR '1'='1", "' OR '1'='1")
    assert catalogue.list("' OR '1'='1") == []
    assert catalogue.nbytes() == 1320
    catalogue.close()


def test_a_start_takes_what_is_saved_and_keeps_the_times_of_use(path: Path) -> None:
    catalogue = Catalogue(path, scan)
    catalogue.touch("", "a", 99.0)
    catalogue.put(Entry("", "gone", "", "2026-01-01", 1.0, 1, 1))
    catalogue.close()
    again = Catalogue(path, scan)
    assert [(entry.id, entry.used) for entry in again.list("")] == [("b", 5.0), ("a", 99.0)]
    again.close()


def test_the_index_is_private(path: Path) -> None:
    old = os.umask(0)
    try:
        catalogue = Catalogue(path, scan)
        catalogue.list("")
        assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {0o600}
    finally:
        os.umask(old)
    catalogue.close()


def garbage(path: Path) -> None:
    path.write_bytes(b"this is no database" * 1000)


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:3000])


def holes(path: Path) -> None:
    body = bytearray(path.read_bytes())
    body[4096:8192] = b"\xa5" * 4096
    path.write_bytes(body)


def another_table(path: Path) -> None:
    path.unlink()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE models (id TEXT)")
    connection.close()


def lost(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [garbage, torn, holes, another_table, lost])
def test_a_damaged_index_is_made_anew_at_the_start(path: Path, damage: Callable[[Path], None]) -> None:
    Catalogue(path, scan).close()
    damage(path)
    again = Catalogue(path, scan)
    assert again.list("") == ENTRIES[:2]
    assert again.nbytes() == 1320
    assert again._connection is not None
    again.close()


@pytest.mark.parametrize("damage", [garbage, holes, another_table])
def test_an_index_damaged_while_it_is_open_is_made_anew(
    path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    catalogue = Catalogue(path, scan)
    assert catalogue._connection is not None
    catalogue._connection.close()  # as SQLite does not look at pages that it knows
    damage(path)
    with caplog.at_level(logging.ERROR):
        assert catalogue.list("owner") == ENTRIES[2:]
    assert "made anew" in caplog.text
    assert catalogue._connection is not None
    catalogue.put(ENTRIES[0])
    assert catalogue.nbytes() == 1320
    catalogue.close()


def test_where_there_can_be_no_index_the_manifests_answer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    catalogue = Catalogue(tmp_path / "no such folder" / "index.sqlite", scan)
    assert catalogue.list("") == ENTRIES[:2]
    assert catalogue.nbytes() == 1320
    catalogue.put(ENTRIES[0])
    assert "failed" in caplog.text
    catalogue.close()
