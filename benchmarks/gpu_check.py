"""Tests and measures the CUDA kernels on a machine with a GPU, in one command of at most eight minutes.

    python3 benchmarks/gpu_check.py [--part PART ...] [--report gpu-report] [--stand-in]

Needs a python3 whose torch has CUDA, and the built libraries in exodus_core/src/exodus_core; no environment, and no
package index. `tests` and `sanitizer` also need pytest and the packages of client and service, `service` those; a part
whose packages are missing is left out. Parts, each a process with a time limit of its own: `tests` (the core's, on the
device), `exact` (bits and gradients against the CPU), `sanitizer` (compute-sanitizer on chosen edges), `times` (the
neuron alone, against a copy and other libraries), `paper` (a training step at the paper's architectures), `service`
(the service on the device; it trains on recordings if EXODUS_DATA names their folder), `tune` (the choices of the LIF
kernels). A part or a contender that fails is reported, and the others go on. The report is Markdown, and JSON beside
it. --stand-in runs all parts on the CPU, at small sizes, to try the parts themselves. Exits with 1 if a check fails,
with 2 if there is no GPU.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).absolute().parents[1]
SOURCES = {"exodus-core": "exodus_core/src", "exodus-client": "client/src", "exodus-service": "service/src"}
# Beside the script's own folder, which python3 puts there.
sys.path[:0] = [str(ROOT), *(str(ROOT / folder) for folder in SOURCES.values())]

from benchmarks.gpu.parts import PARTS  # noqa: E402
from benchmarks.gpu.rows import Row, as_json, failed, markdown  # noqa: E402


def work(part: str, stand_in: bool, output: Path) -> None:
    """Runs one part; its rows go to a file as they come."""
    from benchmarks.gpu.device import Device

    with output.open("a", encoding="utf-8") as file:

        def emit(row: Row) -> None:
            print(as_json(row), file=file, flush=True)

        try:
            importlib.import_module(f"benchmarks.gpu.parts.{part}").run(Device("cpu" if stand_in else "cuda"), emit)
        except ModuleNotFoundError as error:
            emit({"case": part, "ok": True, "detail": f"left out: {error}"})
        except Exception as error:
            emit(failed(part, error))
            raise


def run_part(part: str, environment: dict[str, str], stand_in: bool, folder: Path) -> tuple[list[Row], float]:
    """The rows of a part, and its seconds."""
    output = folder / f"{part}.jsonl"
    output.touch()
    command = [sys.executable, __file__, "--part", part, "--worker", str(output)]
    began = time.monotonic()
    # Its own session, so that what it has started ends with it.
    with subprocess.Popen(command + ["--stand-in"] * stand_in, env=environment, start_new_session=True) as process:
        try:
            status: int | None = process.wait(PARTS[part])
        except subprocess.TimeoutExpired:
            status = None
        finally:
            kill_session(process.pid)
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    if status is None:
        rows.append({"case": part, "ok": False, "detail": f"not ended within {PARTS[part]} s"})
    elif status != 0 and all(row.get("ok", True) for row in rows):
        rows.append({"case": part, "ok": False, "detail": f"ended with status {status}"})
    return rows, time.monotonic() - began


def kill_session(leader: int) -> None:
    """End every process of a session; none may be left."""
    with suppress(ProcessLookupError):  # all have ended
        os.killpg(leader, 9)


def environment_of_parts(folder: Path) -> dict[str, str]:
    """Where the packages are, and what `importlib.metadata` says of those that are not installed."""
    paths = [str(ROOT), *(str(ROOT / source) for source in SOURCES.values())]
    for name in SOURCES:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            info = folder / "metadata" / f"{name.replace('-', '_')}-0.dist-info"
            info.mkdir(parents=True)
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0\n")
    given = os.environ.get("PYTHONPATH")
    paths += [str(folder / "metadata"), *([given] if given else [])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def head(environment: dict[str, str], stand_in: bool) -> dict[str, Any]:
    """The head of the report: date, commit, device, versions. Raises RuntimeError: there is nothing to run on."""
    code = (
        "import json, torch, exodus_core; from benchmarks.gpu.device import Device\n"
        f"told = exodus_core.capabilities(); stand_in = {stand_in}\n"
        "gpu = torch.cuda.is_available()\n"
        "name = Device('cpu' if stand_in else 'cuda').name if gpu or stand_in else ''\n"
        "print(json.dumps({'device': name, 'torch': torch.__version__, 'cuda': torch.version.cuda, 'gpu': gpu,"
        " 'library': told['cuda_library']}))"
    )
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    if ended.returncode:
        raise RuntimeError(ended.stderr.strip().splitlines()[-1])
    told: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    if not stand_in and not told["gpu"]:
        raise RuntimeError(f"a GPU and a torch with CUDA are needed; torch {told['torch']} sees none")
    if not stand_in and not told["library"]["loaded"]:
        raise RuntimeError(f"the CUDA library is needed: {told['library']['reason']}")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return {"date": str(datetime.date.today()), "commit": commit or "unknown", **told}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=PARTS, help="may be given several times; all if it is not")
    parser.add_argument("--report", type=Path, default=Path("gpu-report"), help="path without its ending")
    parser.add_argument("--stand-in", action="store_true", help="on the CPU, at small sizes")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.part[0], options.stand_in, options.worker)
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = environment_of_parts(folder)
        try:
            found = head(environment, options.stand_in)
        except RuntimeError as error:
            print(f"gpu-check: {error}", file=sys.stderr)
            return 2
        lines = [
            "# Report of gpu-check",
            "",
            f"{found['date']}, commit {found['commit']}: {found['device']}; torch {found['torch']}, CUDA "
            f"{found['cuda']}; kernels built for CUDA {found['library']['built_for']} "
            f"({found['library']['architectures']}).",
        ]
        parts: dict[str, list[Row]] = {}
        for part in options.part or PARTS:
            print(f"part {part}", flush=True)
            parts[part], seconds = run_part(part, environment, options.stand_in, folder)
            table = markdown(parts[part])
            print("\n".join(table), f"\n{seconds:.0f} s\n", flush=True)
            lines += ["", f"## {part}", *table, "", f"{seconds:.0f} s."]
    report = options.report.parent
    report.mkdir(parents=True, exist_ok=True)
    (report / f"{options.report.name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (report / f"{options.report.name}.json").write_text(json.dumps(found | {"parts": parts}, indent=1) + "\n")
    bad = [row for rows in parts.values() for row in rows if not row.get("ok", True)]
    print(f"gpu-check: {len(bad)} failed; {options.report}.md")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
