"""The command that tests and measures a GPU, as far as a machine without one goes."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import exodus_core
from benchmarks import gpu_check
from benchmarks.gpu import rows
from benchmarks.gpu.device import Device
from benchmarks.gpu.parts import PARTS, tests

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu_check.py"


def check(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--report", str(tmp_path / "report"), *arguments]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_ends_with_2(tmp_path: Path) -> None:
    ended = check(tmp_path)
    assert ended.returncode == 2
    assert "gpu-check: a GPU and a torch with CUDA are needed" in ended.stderr


def test_all_parts_together_take_at_most_eight_minutes() -> None:
    assert sum(PARTS.values()) <= 480


def test_parts_run_on_the_stand_in_and_report(tmp_path: Path) -> None:
    ended = check(tmp_path, "--stand-in", "--part", "exact")
    told = json.loads((tmp_path / "report.json").read_text())
    assert list(told["parts"]) == ["exact"]
    assert all(row["ok"] for row in told["parts"]["exact"]), ended.stdout
    report = (tmp_path / "report.md").read_text()
    assert "## exact" in report
    assert "the CPU stands in" in report


def test_without_recordings_the_rest_of_the_service_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXODUS_DATA", str(tmp_path))
    ended = check(tmp_path, "--stand-in", "--part", "service")
    told = json.loads((tmp_path / "report.json").read_text())["parts"]["service"]
    assert all(row["ok"] for row in told), ended.stdout
    found = {row["case"]: row["detail"] for row in told}
    assert found["braille"] == f"left out: no braille_letters.npz in EXODUS_DATA ({tmp_path})"
    assert found["nmnist"] == f"left out: no nmnist_small.npz in EXODUS_DATA ({tmp_path})"
    assert found["training"].startswith("losses equal; not replayed; a step of 4 x 20 in ms: remote ")


def test_a_part_that_hangs_or_dies_keeps_what_it_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "PARTS", {"exact": 1})
    script = tmp_path / "script.py"
    monkeypatch.setattr(gpu_check, "__file__", str(script))
    write = 'import sys, time; open(sys.argv[4], \'a\').write(\'{"case": "a", "ok": true}\\n\'); '
    script.write_text(write + "time.sleep(60)")
    found, _ = gpu_check.run_part("exact", {}, False, tmp_path)
    assert found == [{"case": "a", "ok": True}, {"case": "exact", "ok": False, "detail": "not ended within 1 s"}]
    (tmp_path / "exact.jsonl").unlink()
    script.write_text(write + "sys.exit(3)")
    found, _ = gpu_check.run_part("exact", {}, False, tmp_path)
    assert found[1] == {"case": "exact", "ok": False, "detail": "ended with status 3"}


def test_a_test_that_writes_into_the_package_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "__init__.py").touch()
    monkeypatch.setattr(exodus_core, "__file__", str(tmp_path / "__init__.py"))
    before = tests.digest()
    (tmp_path / "_C_cuda.abi3.so").write_bytes(b"no library")
    assert tests.digest() != before


def test_rows_are_tables_and_lines_of_json() -> None:
    found: list[dict[str, Any]] = [{"case": "a|b", "ms": 1.23456}, {"case": "c", "ms": math.nan}, {"other": True}]
    assert rows.markdown(found) == [
        "", "| case | ms |", "|---|---|", "| a/b | 1.235 |", "| c | nan |", "", "| other |", "|---|", "| yes |",
    ]  # fmt: skip
    assert json.loads(rows.as_json(found[1])) == {"case": "c", "ms": None}
    assert rows.failed("x", ValueError("first\nsecond"))["detail"] == "ValueError: first"


def test_times_are_medians_of_runs() -> None:
    device = Device("cpu")
    assert 0 <= device.milliseconds(lambda: None, budget_s=0.001) < 1
    assert not device.is_gpu
    assert device.graph(math.pi.__abs__)() == math.pi
