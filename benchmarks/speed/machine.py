"""The machine that was measured, and the versions of everything."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import exodus_core

from .contenders import CONTENDERS

ROOT = Path(__file__).parents[2]
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


def _first(path: str, pattern: str) -> str:
    file = Path(path)
    found = re.search(pattern, file.read_text(), re.MULTILINE) if file.exists() else None
    return found[1] if found else "unknown"


def caches() -> dict[str, int]:
    """Bytes of each data cache of the first core, by name: L1, L2, L3; empty where the system does not say."""
    sizes = {}
    for index in sorted(CACHES.glob("index*")):
        if (index / "type").read_text().strip() != "Instruction":
            kib = int((index / "size").read_text().strip().removesuffix("K"))
            sizes["L" + (index / "level").read_text().strip()] = kib * 1024
    return sizes


def last_level_cache() -> int:
    """Bytes; 32 MiB where the system does not say."""
    return max(caches().values(), default=32 << 20)


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _git(*arguments: str) -> str:
    result = subprocess.run(["git", "--no-optional-locks", *arguments], cwd=ROOT, capture_output=True, text=True)
    return result.stdout.strip()


def commit() -> str:
    """The short hash; "+" after it where tracked files differ from it."""
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":!benchmarks/results", ":!README.md")
    return (_git("rev-parse", "--short", "HEAD") or "unknown") + ("+" if changed else "")


def peers() -> dict[str, str]:
    """The versions of the peers that are installed."""
    found = {}
    for package in (c.package for c in CONTENDERS if c.package):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def describe() -> dict[str, Any]:
    capabilities = exodus_core.capabilities()
    return {
        "cpu": _first("/proc/cpuinfo", r"^model name\s*:\s*(.+)$"),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "caches": caches(),
        "memory": _memory(),
        "huge_pages": _first("/sys/kernel/mm/transparent_hugepage/enabled", r"\[(\w+)\]"),
        "instruction_set": capabilities["instruction_set"],
        "threads": capabilities["threads"],
        "python": capabilities["python"],
        "torch": capabilities["torch"],
        "exodus": capabilities["version"],
        "peers": peers(),
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
    }


class Others:
    """Share of processor time that went to other programs, or to other guests of the host, since construction."""

    def __init__(self) -> None:
        self._start = self._seconds()

    @staticmethod
    def _seconds() -> tuple[float, float, float]:
        """Of all processors together: passed, spent by anybody, spent by this program and its finished children."""
        fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        tick = os.sysconf("SC_CLK_TCK")
        idle, waiting = fields[3], fields[4]
        return sum(fields) / tick, (sum(fields) - idle - waiting) / tick, sum(os.times()[:4])

    def share(self) -> float:
        passed, spent, own = (now - then for now, then in zip(self._seconds(), self._start, strict=True))
        return max(0.0, (spent - own) / passed)


def _binary(nbytes: int) -> str:
    return f"{nbytes / 2**20:g} MiB" if nbytes >= 2**20 else f"{nbytes / 2**10:g} KiB"


def sentence(machine: dict[str, Any]) -> str:
    """The machine in a line of prose."""
    sizes = ", ".join(f"{name} {_binary(size)}" for name, size in machine["caches"].items())
    versions = {"Python": machine["python"], "torch": machine["torch"], **machine["peers"]}
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {sizes}, {machine['memory'] / 2**30:.0f} GiB of memory, "
        f"{machine['instruction_set']}, {machine['threads']} threads; "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + f"; others took {machine['others']:.0%} of the processors"
        + f"; commit {machine['commit']}, {machine['date']}"
    )
