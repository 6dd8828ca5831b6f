"""Builds the three distributions from what is committed and checks what would be published; publishes nothing.

    python -m tools.release [--quick]

Wheels are built from the sdists, so that an sdist that lacks a file fails. Then: one version everywhere, with a section
of the changelog; metadata (twine); every committed source in sdist and wheel; and the wheel of the client in a fresh
environment without torch. Files are in build/release/dist. --quick leaves out the wheel of the core, which has to be
compiled. Exits with 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterable
from pathlib import Path

from tools.commands import ROOT, CheckError, committed, make_environment, run

BUILD = ROOT / "build" / "release"
CORE = "exodus_core"
DISTRIBUTIONS = (CORE, "service", "client")
SHIPPED = re.compile(r"(src|csrc)/|pyproject\.toml$|setup\.py$|README\.md$|LICENSE$")


SCRIPT = """\
import importlib.metadata, importlib.util
import exodus_client
print(importlib.metadata.version("exodus-client"), importlib.util.find_spec("torch"))
"""


def check_version(source: Path) -> str:
    """The one version of the distributions."""
    projects = [tomllib.loads((source / name / "pyproject.toml").read_text())["project"] for name in DISTRIBUTIONS]
    versions = {project["name"]: project["version"] for project in projects}
    if len(set(versions.values())) != 1:
        raise CheckError(f"versions must be equal, got {versions}")
    version: str = projects[0]["version"]
    if f"## [{version}] - " not in (source / "CHANGELOG.md").read_text():
        raise CheckError(f"CHANGELOG.md must have a section {version}")
    for dependency in (dependency for project in projects for dependency in project["dependencies"]):
        if dependency.startswith("exodus-") and not dependency.endswith(f"~={version}"):
            raise CheckError(f"dependency must be ~={version}, got {dependency}")
    return version


def listed(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def check_files(name: str, files: list[str], version: str, quick: bool) -> None:
    """The sdist has every file that is built from, the wheel every file of the package."""
    distribution = name if name == CORE else f"exodus_{name}"
    with tarfile.open(BUILD / "dist" / f"{distribution}-{version}.tar.gz") as sdist:
        found = {member.partition("/")[2] for member in sdist.getnames()}
    require(f"sdist of {distribution}", found, (file for file in files if SHIPPED.match(file)))
    if quick and name == CORE:
        return
    (path,) = (BUILD / "dist").glob(f"{distribution}-{version}-*.whl")
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
    require(path.name, names, (file.removeprefix("src/") for file in files if file.startswith("src/")))
    require(path.name, names, [f"{distribution}-{version}.dist-info/licenses/LICENSE"])


def require(archive: str, found: set[str], wanted: Iterable[str]) -> None:
    missing = sorted(set(wanted) - found)
    if missing:
        raise CheckError(f"{archive} lacks {', '.join(missing)}")


def check_client(version: str) -> None:
    """The wheel of the client, installed without torch, imports and has its command."""
    (wheel,) = (BUILD / "dist").glob(f"exodus_client-{version}-*.whl")
    programs = make_environment(BUILD / "client", f"exodus-client[cli] @ {wheel.as_uri()}")
    if (found := run(programs / "python", "-c", SCRIPT, cwd=BUILD).split()) != [version, "None"]:
        raise CheckError(f"client must be {version}, in an environment without torch, got {found}")
    run(programs / "exodus", "--help", cwd=BUILD)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="no wheel of the core")
    quick: bool = parser.parse_args().quick
    shutil.rmtree(BUILD, ignore_errors=True)
    source = BUILD / "source"
    try:
        committed(source)
        version = check_version(source)
        files = {name: listed(source / name) for name in DISTRIBUTIONS}  # before a build adds its own
        for name in DISTRIBUTIONS:
            only = ["--sdist"] if quick and name == CORE else []
            run(sys.executable, "-m", "build", "--no-isolation", *only, "--outdir", BUILD / "dist", source / name)
        twine = make_environment(BUILD / "twine", "--requirement", ROOT / "requirements-release.txt") / "twine"
        run(twine, "check", "--strict", *sorted((BUILD / "dist").iterdir()))
        for name in DISTRIBUTIONS:
            check_files(name, files[name], version, quick)
        check_client(version)
    except CheckError as error:
        print(f"release: {error}", file=sys.stderr)
        return 1
    print(f"release: {version} is in {(BUILD / 'dist').relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
