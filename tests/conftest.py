"""For all tests: the same random numbers each time, and installed packages that they leave as they are."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import exodus_client
import exodus_core
import exodus_service


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(42)


def digests() -> dict[str, str]:
    """Digests of all files of the three packages, libraries included, by path."""
    folders = [Path(package.__file__ or "").parent for package in (exodus_core, exodus_client, exodus_service)]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path.suffix != ".pyc"}


@pytest.fixture(autouse=True, scope="session")
def _packages_stay_as_they_are() -> Iterator[None]:
    """No test writes into an installed package, nor through a link into one."""
    before = digests()
    yield
    after = digests()
    changed = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
    assert not changed, f"the tests, or someone else meanwhile, changed installed files: {', '.join(changed)}"
