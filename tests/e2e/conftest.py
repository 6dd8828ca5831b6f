"""A real service in a process of its own, and the examples, which are no installed package."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from exodus_client import Client

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client of a service that is started for these tests."""
    from examples.local_service import running_service

    with running_service(tmp_path_factory.mktemp("service") / "service.log") as url, Client(url) as client:
        yield client


@pytest.fixture(scope="session")
def oxford_folder() -> Path:
    """The folder of the Oxford raster: `oxford` in EXODUS_DATA, or in ../shared/data next to the checkout."""
    folder = Path(os.environ.get("EXODUS_DATA", ROOT.parent / "shared" / "data")) / "oxford"
    if not folder.is_dir():
        pytest.skip(f"the Oxford raster is not at {folder}; EXODUS_DATA names the folder that has oxford/")
    return folder
