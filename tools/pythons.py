"""Tests the client under every supported Python on this machine, in environments without torch.

    python -m tools.pythons [VERSION ...]

Each Python gets an environment in build/pythons with the client and its extras from this checkout. There the sources of
all packages compile, the client imports, `exodus --help` runs, and those of its tests pass that need no server.
Pythons are found on the PATH and among pyenv's; one that is missing is skipped with a message. Exits with 1 if a check
fails.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).absolute().parents[1]
BUILD = ROOT / "build" / "pythons"
VERSIONS = ("3.11", "3.12", "3.13", "3.14")
SOURCES = ("exodus_core/src", "client/src", "service/src", "tools", "benchmarks", "examples", "tests")
TESTS = ("tests/client/test_sockets.py", "tests/client/test_wire_compression.py")


def find(version: str) -> Path | None:
    """The interpreter of a version, None if this machine has none that starts."""
    name = f"python{version}"
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [str(path) for path in sorted(pyenv.glob(f"{version}.*/bin/{name}"))]
    candidates += filter(None, [shutil.which(name)])
    for candidate in candidates:
        if subprocess.run([candidate, "-c", "import venv"], capture_output=True).returncode == 0:
            return Path(candidate)
    return None


def check(version: str, python: Path) -> None:
    """Raises CalledProcessError: a check fails."""
    folder = BUILD / version
    programs = folder / "bin"
    constraints = folder / "constraints.txt"
    shutil.rmtree(folder, ignore_errors=True)
    run(python, "-m", "venv", folder)
    # The versions of the lock, without torch: the client needs none.
    constraints.write_text("".join(line for line in lock() if not line.startswith("torch")))
    client = f"exodus-client[cli,zstd,state] @ {(ROOT / 'client').as_uri()}"
    pip = (programs / "pip", "--disable-pip-version-check", "install", "--quiet", "--constraint", constraints)
    run(*pip, client, "pytest")
    run(programs / "python", "-m", "compileall", "-q", *SOURCES, compiled=folder / "compiled")
    run(programs / "python", "-W", "error", "-c", "import exodus_client")
    run(programs / "exodus", "--help", quiet=True)
    # The tests' conftest.py imports the other packages, which need torch.
    run(programs / "python", "-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider", *TESTS)


def lock() -> list[str]:
    return (ROOT / "requirements.lock").read_text().splitlines(keepends=True)


def run(*command: str | Path, quiet: bool = False, compiled: Path | None = None) -> None:
    print("+", *command, flush=True)
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(compiled)} if compiled else None
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL if quiet else None, env=environment)


def main() -> int:
    found = {version: find(version) for version in sys.argv[1:] or VERSIONS}
    for version, python in found.items():
        if python is None:
            print(f"Python {version}: skipped, this machine has none", flush=True)
            continue
        print(f"Python {version}: {python}", flush=True)
        try:
            check(version, python)
        except subprocess.CalledProcessError as error:
            print(f"Python {version}: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
