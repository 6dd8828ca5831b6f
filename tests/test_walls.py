"""The three packages stand alone: what measures, checks, shows or tests them is not imported by them."""

import re
from pathlib import Path

import pytest

import exodus_client
import exodus_core
import exodus_service

PACKAGES = {
    package.__name__: Path(package.__file__ or "").parent for package in (exodus_core, exodus_client, exodus_service)
}
OUTSIDE = re.compile(r"^\s*(?:from|import) (?:tools|benchmarks|examples|tests|assertions)\b", re.MULTILINE)


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_imports_nothing_that_is_not_shipped(name: str) -> None:
    sources = list(PACKAGES[name].rglob("*.py"))
    assert sources
    assert [path.name for path in sources if OUTSIDE.search(path.read_text())] == []
