"""Builds exodus_core with mutants: a copy of its sources, in which the headers of csrc/core have all of them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tools.commands import ROOT, CheckError
from tools.mutate.mutants import Header

BUILD = ROOT / "build" / "mutate"
CORE = ROOT / "exodus_core" / "csrc" / "core"
HERE = Path(__file__).parent
#: What the environment of setup.py has for each library.
LIBRARIES = {"cpu": {"EXODUS_MUTANTS": "1"}, "emulated": {"EXODUS_MUTANTS": "1", "EXODUS_EMULATE": "90"}}
#: Together they compile every function of csrc/core. They include neither torch nor anything else that takes long.
PROBE = """\
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <immintrin.h>
#define EXODUS_VECTOR_BYTES 16
#include "cpu/simd.h"
#include "cpu/kernels.h"
#include "core/layout.h"
#include "core/scan.h"
#define EXODUS_INSTRUCTION_SET_NAME portable
#define EXODUS_INSTRUCTION_SET_LABEL "portable"
#include "cpu/kernels_impl.h"
"""


def sources_of_core() -> list[Path]:
    """Files of exodus_core that a library is made from, without what builds and installations leave among them."""
    found = [path for part in ("csrc", "src") for path in (ROOT / "exodus_core" / part).rglob("*") if path.is_file()]
    return [p for p in found if p.suffix not in (".so", ".pyc") and not p.parent.name.endswith(".egg-info")]


def write_sources(headers: list[Header], numbers: frozenset[int], folder: Path) -> None:
    """Copies what setup.py needs, with the mutants of these numbers. Files that stay the same keep their times."""
    sources = folder / "exodus_core"
    wanted: dict[Path, bytes] = {}
    for path in sources_of_core():
        wanted[sources / path.relative_to(ROOT / "exodus_core")] = path.read_bytes()
    for name in ("setup.py", "pyproject.toml", "README.md"):
        wanted[sources / name] = (ROOT / "exodus_core" / name).read_bytes()
    for header in headers:
        text = header.guarded(numbers)
        if "EXODUS_MUTANT" in text:
            text = text.replace("#pragma once", '#pragma once\n#include "switch.h"', 1)
        wanted[sources / "csrc" / "core" / header.name] = text.encode()
    wanted[sources / "csrc" / "core" / "switch.h"] = (HERE / "switch.h").read_bytes()
    wanted[sources / "csrc" / "switch.cpp"] = (HERE / "switch.cpp").read_bytes()
    if sources.exists():
        for path in sources.rglob("*"):
            if path.is_file() and path not in wanted:
                path.unlink()
    for path, content in wanted.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_bytes() != content:
            path.write_bytes(content)
    emulator = folder / "tests" / "cuda"
    emulator.parent.mkdir(exist_ok=True)
    if not emulator.exists():
        emulator.symlink_to(ROOT / "tests" / "cuda")


def blamed(headers: list[Header], numbers: frozenset[int], folder: Path, probe: str = PROBE) -> frozenset[int]:
    """Mutants of these on whose lines the compiler finds errors; none if it takes all, all if it does not say.

    Raises CheckError: the headers do not compile without mutants either.
    """
    write_sources(headers, numbers, folder)
    sources = folder / "exodus_core" / "csrc"
    command = ["g++", "-std=c++17", "-fsyntax-only", "-w", "-fmax-errors=0", f"-I{sources}", "-x", "c++", "-"]
    ended = subprocess.run(command, input=probe, capture_output=True, text=True)
    if ended.returncode == 0:
        return frozenset()
    if not numbers:
        raise CheckError(f"the headers do not compile without mutants either: {ended.stderr[:2000]}")
    # A copy has a line more than its header, for the switch.
    places = {(file, int(line) - 1) for file, line in re.findall(r"(\w+\.h):(\d+):\d+: error", ended.stderr)}
    found = {m.number for header in headers for m in header.mutants if (m.file, m.line) in places}
    return frozenset(found) & numbers or numbers


def valid(numbers: frozenset[int], blame: Callable[[frozenset[int]], frozenset[int]]) -> frozenset[int]:
    """The numbers of the mutants that compile: those that are blamed are tried without the others, by halves."""
    if not numbers:
        return numbers
    suspects = blame(numbers)
    if not suspects:
        return numbers
    if len(numbers) == 1:
        return frozenset()
    if suspects == numbers:
        suspects = frozenset(sorted(numbers)[: len(numbers) // 2])
    return valid(numbers - suspects, blame) | valid(suspects, blame)


def find_valid(headers: list[Header], numbers: frozenset[int]) -> frozenset[int]:
    """Those of the mutants of csrc/core that compile. Raises CheckError."""
    return valid(numbers, lambda some: blamed(headers, some, BUILD / "probe"))


def digest_of_sources() -> str:
    """Of everything that a library with mutants is made from."""
    found = hashlib.sha256()
    others = [ROOT / "exodus_core" / "setup.py", *HERE.glob("switch.*"), HERE / "mutants.py"]
    for path in sorted([*sources_of_core(), *others]):
        found.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return found.hexdigest()


def build(name: str, headers: list[Header], numbers: frozenset[int], folder: Path) -> Path:
    """Builds one of LIBRARIES in a folder; returns that of the package. Raises CheckError.

    One that is there is kept if it was made from the same sources and has these mutants, among others.
    """
    library = folder / "lib"
    stamp, sources = folder / "built.json", digest_of_sources()
    if stamp.exists():
        built = json.loads(stamp.read_text())
        if built["sources"] == sources and numbers <= set(built["numbers"]):
            return library
    write_sources(headers, numbers, folder)
    stamp.unlink(missing_ok=True)
    shutil.rmtree(library, ignore_errors=True)
    setup = [sys.executable, "setup.py", "--quiet", "build", "--build-base", "../temp", "--build-lib", "../lib"]
    ended = subprocess.run(
        setup,
        cwd=folder / "exodus_core",
        env={**os.environ, **LIBRARIES[name]},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if ended.returncode:
        raise CheckError(f"the library with mutants does not build: {ended.stdout[-4000:]}")
    stamp.write_text(json.dumps({"sources": sources, "numbers": sorted(numbers)}))
    return library
