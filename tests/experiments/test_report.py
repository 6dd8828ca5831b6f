"""A report is a page, its numbers and its figures; a quick one is printed alone."""

import json
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from experiments.report import Report, repeated_by, table


def report() -> Report:
    made = Report("sums", "Sums", repeated_by("sums", {"seed": 3, "local": True, "url": None}))
    made.add("One and one.", table(["a", "b"], [[1, 2], ["x", 0.5]]))
    made.figure(Figure(), "Nothing", "empty")
    made.numbers |= {"sum": 2, "curve": [0.5, 1, None], "of": [{"a": [1, 2]}]}
    return made


def test_a_full_report_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report().publish(quick=False, where="a service", folder=tmp_path / "results")
    page = (tmp_path / "results" / "sums.md").read_text()
    assert page.startswith("# Sums\n\nOne and one.\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n| x | 0.5 |\n")
    assert "![Nothing](sums-empty.png)" in page
    assert "By `python -m experiments.sums --seed 3 --local` in 0 min" in page
    assert "computed in a service" in page
    text = (tmp_path / "results" / "sums.json").read_text()
    assert ' "curve": [0.5, 1, null],\n' in text
    numbers = json.loads(text)
    assert numbers["of"] == [{"a": [1, 2]}]
    assert (numbers["sum"], numbers["command"]) == (2, "python -m experiments.sums --seed 3 --local")
    assert (tmp_path / "results" / "sums-empty.png").read_bytes().startswith(b"\x89PNG")
    assert "One and one." in capsys.readouterr().out


def test_a_quick_report_is_printed_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report().publish(quick=True, folder=tmp_path / "results")
    assert "One and one." in capsys.readouterr().out
    assert not (tmp_path / "results").exists()


def test_a_number_that_is_not_finite_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    made = report()
    made.numbers["sum"] = float("nan")
    with pytest.raises(ValueError, match="JSON"):
        made.publish(quick=False, folder=tmp_path / "results")
    assert not (tmp_path / "results").exists()
