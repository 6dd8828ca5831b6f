"""Commands that the checks of builds run, and environments that they run in."""

from __future__ import annotations

import os
import subprocess
import tarfile
import venv
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

ROOT = Path(__file__).absolute().parents[1]


class CheckError(Exception):
    """A check has failed."""


def run(*command: str | Path, cwd: Path = ROOT, environment: Mapping[str, str] = MappingProxyType({})) -> str:
    """The output of a command; `environment` goes over that of this process. Raises CheckError: it fails."""
    print("+", *command, flush=True)
    ended = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if ended.returncode:
        print(ended.stdout, flush=True)
        raise CheckError(f"{command[0]} ended with status {ended.returncode}")
    return ended.stdout


def make_environment(folder: Path, *requirements: str | Path) -> Path:
    """A fresh environment with the requirements; returns its folder of programs. Raises CheckError."""
    venv.create(folder, with_pip=True, clear=True)
    programs = folder / "bin"
    if requirements:
        run(programs / "pip", "--disable-pip-version-check", "install", "--quiet", *requirements)
    return programs


def committed(folder: Path) -> None:
    """Unpacks the committed files into a folder, so that a build takes nothing else and leaves nothing behind."""
    if run("git", "status", "--porcelain"):
        print("note: changes that are not committed are left out", flush=True)
    folder.mkdir(parents=True)
    archive = folder.with_suffix(".tar")
    run("git", "archive", "--output", archive, "HEAD")
    with tarfile.open(archive) as files:
        files.extractall(folder, filter="fully_trusted")  # our own; a LICENSE is a link to the one of the project
