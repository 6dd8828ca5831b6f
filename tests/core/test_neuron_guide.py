"""docs/neurons.md is true: its examples run, and print what the comments beside them say."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo

from exodus_core import nn

PAGE = Path(__file__).parents[2].joinpath("docs/neurons.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.filterwarnings("ignore")  # torch's own, of compiling
def test_the_examples_run_and_print_what_they_say(capsys: pytest.CaptureFixture[str]) -> None:
    torch._dynamo.reset()
    namespace: dict[str, Any] = {}
    assert len(BLOCKS) > 10
    for block in BLOCKS:
        exec(block, namespace)
        expected = [line.split("  # ", 1)[1] for line in block.splitlines() if line.lstrip().startswith("print(")]
        assert capsys.readouterr().out.splitlines() == expected


@pytest.mark.parametrize("name", nn.__all__)
def test_the_page_has_every_name(name: str) -> None:
    assert f"nn.{name}" in PAGE
