"""docs/training.md is true: it has every loss with its formula, and its example runs."""

from pathlib import Path
from typing import Any

import pytest

from exodus_core import losses

PAGE = Path(__file__).parents[2].joinpath("docs/training.md").read_text()


def test_the_page_has_every_loss() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| `")]
    assert [kind for kind in losses.KINDS if not any(row.startswith(f"| `{kind}` | ") for row in rows)] == []


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    example = PAGE.split("```python\n")[1].split("```")[0]
    namespace: dict[str, Any] = {}
    exec(example, namespace)
    assert namespace["norms"]["in.weight"] == 0
    assert namespace["norms"]["out.weight"] > 0
    assert len(capsys.readouterr().out.split()) == 4
