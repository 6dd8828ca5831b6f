"""Names of code in the documents: a file that is named exists, an identifier occurs in the sources."""

import fnmatch
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
EXTENSIONS = ("py", "pyi", "h", "cpp", "cu", "cuh", "md", "toml", "sh", "lock", "yml", "typed", "safetensors")
FILE = re.compile(rf"[\w.*-]*[\w*-]+(/[\w.*-]+)*/?|[\w*-]+\.({'|'.join(EXTENSIONS)})")
IDENTIFIER = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*(\(\))?")
#: Names of other libraries and of the operating system.
FOREIGN = {"torch", "numpy", "np", "httpx", "asyncio", "slayerPytorch", "snntorch", "spikingjelly", "sinabs", "norse"}
FOREIGN |= {"MultiGaussian", "PeriodicExponential", "SumPool2d", "spikeLayer", "spike_rate_escape"}
FOREIGN |= {"straight_through_estimator", "MAP_SHARED", "SCM_RIGHTS", "HttpClient"}
#: Names with a part that stands for others.
PLACEHOLDERS = {"grad_NAME", "vX.Y.Z"}
#: Where files are that a command makes or a reader has.
MADE = (".venv/", "build/", "demo-output/", "torch/csrc/", "model.safetensors", "state.safetensors")


@cache
def tracked() -> list[str]:
    """The paths of the repository, folders too."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    files = [path for path in listed if (ROOT / path).exists()]
    return files + sorted({str(parent) for path in files for parent in Path(path).parents} - {"."})


@cache
def words() -> set[str]:
    """The identifiers of all sources: of what is not a document."""
    texts = (ROOT / path for path in tracked() if not path.endswith((".md", ".png", ".svg", ".json", ".bin")))
    found: set[str] = set()
    for path in texts:
        if path.is_file() and path != Path(__file__):
            found.update(re.findall(r"\w+", path.read_text(errors="ignore")))
    return found


def named(document: Path) -> list[str]:
    """Texts in single backticks outside of code blocks."""
    text = re.sub(r"^(```|~~~).*?^\1", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [name.strip() for name in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)]


def is_path(name: str) -> bool:
    if name.startswith("application/") or name[0].isdigit():  # media types, networks
        return False
    return bool(FILE.fullmatch(name)) and (name.endswith(tuple(f".{e}" for e in EXTENSIONS)) or "/" in name)


def exists(path: str) -> bool:
    """True for the end of a path of the repository, * standing for anything."""
    if path.startswith(MADE):
        return True
    path = path.rstrip("/")
    return any(fnmatch.fnmatch(f"/{known}", f"*/{path}") for known in tracked())


def looks_like_code(name: str) -> bool:
    """True for identifiers that are no words of English: with an underscore, a dot, a call, or a capital within."""
    return bool(IDENTIFIER.fullmatch(name)) and bool(re.search(r"[_.(]|[a-z][A-Z]|^[A-Z]+[a-z]+[A-Z]", name))


def is_known(identifier: str) -> bool:
    parts = identifier.removesuffix("()").split(".")
    if identifier.startswith("EXODUS_"):  # a setting of the service: a field of its settings in capitals
        parts = [identifier if identifier in words() else identifier.removeprefix("EXODUS_").lower()]
    return parts[0] in FOREIGN or identifier in PLACEHOLDERS or all(part in words() for part in parts)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_that_a_document_names_exists(document: Path) -> None:
    missing = {name for name in named(document) if is_path(name) and not exists(name)}
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_identifier_that_a_document_names_is_in_the_sources(document: Path) -> None:
    unknown = {name for name in named(document) if not is_path(name) and looks_like_code(name) and not is_known(name)}
    assert not unknown


def test_a_name_that_is_nowhere_is_found() -> None:
    assert is_path("csrc/core/nowhere.h")
    assert not exists("csrc/core/nowhere.h")
    assert exists("csrc/core/neuron.h")
    assert looks_like_code("fire_" + "once")
    assert not is_known("fire_" + "once")
    assert is_known("exodus_core.lif")
