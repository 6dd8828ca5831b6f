"""docs/paper.md, written from the results of the experiments."""

import json
from pathlib import Path

import pytest

from experiments import paper
from experiments.report import RESULTS


def test_the_page_is_that_of_the_results() -> None:
    assert paper.PAGE.read_text() == paper.page()


def test_the_page_follows_the_results(tmp_path: Path) -> None:
    for file in RESULTS.glob("*.json"):
        numbers = json.loads(file.read_text())
        if file.stem == "poisson_normalised":
            numbers["pairs"][0]["exodus"]["summed_loss"] = 1e6
        (tmp_path / file.name).write_text(json.dumps(numbers))
    assert "do, for 9 of 9 pairs" in paper.page()
    assert "do, for 8 of 9 pairs" in paper.page(tmp_path)


def test_a_missing_result_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"theory\.json"):
        paper.page(tmp_path)


def test_prose_of_the_page_wraps_at_120_columns() -> None:
    lines = paper.page().splitlines()
    assert [line for line in lines if len(line) > 120 and not line.startswith(("|", "!", "#"))] == []
