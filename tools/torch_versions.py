"""Compiles the extension against the headers of every minor version of torch that it supports, and tries the result.

    python -m tools.torch_versions [VERSION ...] [--quick]

A version is one such as 2.13; without any, all from 2.10 to the newest on the package index. The headers are those of a
wheel for another platform, which is a tenth of the size of one with CUDA; it is thrown away afterwards.
`_C` is built, and where there is an nvcc `_C_cuda`, for one architecture. Each `_C` then computes in the torch of this
environment what the installed one computes, bit for bit. --quick takes the oldest version, and of each library compiles
one file. Exits with 1 if anything fails.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

from tools.commands import ROOT, CheckError, run

BUILD = ROOT / "build" / "torch-versions"
OLDEST = (2, 10)
#: Platforms whose wheels are small. Headers differ between platforms by a few lines that are not included here.
PLATFORMS = ("macosx_11_0_arm64", "macosx_14_0_arm64", "manylinux_2_28_aarch64")
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")
ARCHITECTURE = "9.0"

#: Stands in for torch while setup.py runs.
STAND_IN = """\
__version__ = {version!r}

class version:
    cuda = {cuda!r}
"""

TRIAL = ROOT / "tools" / "trial.py"


def on_index() -> list[tuple[int, int]]:
    """Minor versions of torch on the package index, the oldest first."""
    listed = subprocess.run([*PIP, "index", "versions", "torch"], capture_output=True, text=True, check=True).stdout
    found = {(int(major), int(minor)) for major, minor in re.findall(r"\b(\d+)\.(\d+)\.\d+", listed)}
    return sorted(version for version in found if version >= OLDEST)


def headers(version: tuple[int, int], folder: Path) -> None:
    """Puts a stand-in for torch into a folder: headers, version, and a library of the name that is linked with."""
    wheels = folder / "wheels"
    wanted = f"torch=={version[0]}.{version[1]}.*"
    nothing = folder / "empty.c"  # also in place of constraints that pip may be told of
    nothing.touch()
    for platform in PLATFORMS:
        download = ("download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", wheels)
        ended = subprocess.run(
            [*PIP, *download, "--platform", platform, "--python-version", "3.11", wanted],
            capture_output=True,
            text=True,
            env={**os.environ, "PIP_CONSTRAINT": str(nothing)},
        )
        if ended.returncode == 0:
            break
    else:
        raise CheckError(f"no wheel of {wanted} can be had: {ended.stderr.strip().splitlines()[-1]}")
    (wheel,) = wheels.iterdir()
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith("torch/include/")]
        archive.extractall(folder, names)
    print(f"  headers of {wheel.name}, {wheel.stat().st_size / 2**20:.0f} MiB", flush=True)
    shutil.rmtree(wheels)
    torch = folder / "torch"
    cuda = "13.0" if shutil.which("nvcc") else None
    (torch / "__init__.py").write_text(STAND_IN.format(version=".".join(map(str, version)), cuda=cuda))
    (torch / "lib").mkdir()
    library = torch / "lib" / "libtorch_cpu.so"
    run("gcc", "-shared", "-Wl,-soname,libtorch_cpu.so", nothing, "-o", library)


def build(folder: Path) -> Path:
    """Builds the libraries against the stand-in in a folder; returns the folder with `exodus_core`."""
    output = folder / "built"
    setup = (sys.executable, "setup.py", "--quiet", "build_ext", "--build-lib", output, "--build-temp", folder / "temp")
    environment = {"PYTHONPATH": str(folder), "TORCH_CUDA_ARCH_LIST": ARCHITECTURE}
    run(*setup, cwd=ROOT / "exodus_core", environment=environment)
    return output


def compile_one_of_each(folder: Path) -> None:
    """Compiles the files that include every header of torch, and writes nothing."""
    options = ("-std=c++17", "-DTORCH_TARGET_VERSION=0x020a000000000000", "-isystem", folder / "torch" / "include")
    sources = ROOT / "exodus_core" / "csrc"
    for source in ("library.cpp", "cpu/lif.cpp"):
        run("g++", *options, "-fsyntax-only", sources / source)
    if nvcc := shutil.which("nvcc"):
        one = (sources / "cuda" / "filter.cu", "-o", folder / "filter.o")
        run(nvcc, *options, "-DUSE_CUDA", "-arch=sm_90", "-c", *one)


def trial(package: Path | None) -> str:
    """The digest of what the libraries of a package compute; None: those that are installed."""
    environment = {} if package is None else {"PYTHONPATH": str(package)}
    path, digest = run(sys.executable, TRIAL, cwd=BUILD, environment=environment).split()[-2:]
    if package is not None and not path.startswith(str(package)):
        raise CheckError(f"the library in {package} was not the one that was tried, but {path}")
    return digest


def check(version: tuple[int, int], quick: bool) -> None:
    """Raises CheckError."""
    folder = BUILD / f"{version[0]}.{version[1]}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    headers(version, folder)
    began = time.monotonic()
    if quick:
        compile_one_of_each(folder)
        print(f"  compiles, {time.monotonic() - began:.0f} s", flush=True)
        return
    package = build(folder)
    built = sorted(path.name for path in (package / "exodus_core").glob("*.so"))
    print(f"  built {', '.join(built)}, {time.monotonic() - began:.0f} s", flush=True)
    for source in (ROOT / "exodus_core" / "src" / "exodus_core").rglob("*.py"):
        target = package / "exodus_core" / source.relative_to(ROOT / "exodus_core" / "src" / "exodus_core")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
    if trial(package) != trial(None):
        raise CheckError("what it computes in the installed torch differs from what the installed library computes")
    print("  computes the same bits in the installed torch", flush=True)
    shutil.rmtree(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs="*", metavar="VERSION", help="such as 2.13; all that are supported")
    parser.add_argument("--quick", action="store_true", help="the oldest version, one file of each library")
    asked = parser.parse_args()
    versions = [(int(major), int(minor)) for major, minor in (text.split(".") for text in asked.versions)]
    versions = versions or ([OLDEST] if asked.quick else on_index())
    failed = []
    for version in versions:
        name = f"{version[0]}.{version[1]}"
        print(f"torch {name}", flush=True)
        try:
            check(version, asked.quick)
        except CheckError as error:
            print(f"  FAILED: {error}", flush=True)
            failed.append(name)
    print(f"torch-versions: {len(versions) - len(failed)} of {len(versions)} work", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
