"""docs/exactly-once.md names files and functions that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = [ROOT / "client" / "src" / "exodus_client", ROOT / "service" / "src" / "exodus_service"]
PAGE = (ROOT / "docs" / "exactly-once.md").read_text()
#: A path, and names that are defined there: `path.py`: `name`, `name`
REFERENCES = re.findall(r"`([\w/]+\.py)`:\s((?:`\w+`[,\s]*)+)", PAGE)


@pytest.mark.parametrize(("path", "names"), REFERENCES)
def test_the_page_names_what_is_in_the_file(path: str, names: str) -> None:
    (text,) = [(package / path).read_text() for package in PACKAGES if (package / path).exists()]
    defined = set(re.findall(r"(?:def|class) (\w+)", text)) | set(re.findall(r"^ +(\w+) = ", text, re.M))
    assert set(re.findall(r"\w+", names)) <= defined


def test_the_page_follows_a_step_through_client_and_service() -> None:
    assert {path.split("/")[0] for path, _ in REFERENCES} == {"_models", "operations", "models"}
