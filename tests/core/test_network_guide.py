"""docs/networks.md is true: its tables are those of the code, its example runs."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from exodus_core.network import NetworkError, __main__, parse

PAGE = Path(__file__).parents[2].joinpath("docs/networks.md").read_text()


@pytest.mark.parametrize("name", ["layer_tables", "part_tables", "loss_tables", "optimizer_tables"])
def test_the_page_has_the_tables_that_the_module_prints(name: str) -> None:
    tables = getattr(__main__, name)()
    assert tables.count("| field | value |") > 2
    assert tables in PAGE, "run `python -m exodus_core.network` and put its output into docs/networks.md"


def test_the_module_prints_them() -> None:
    run = subprocess.run([sys.executable, "-m", "exodus_core.network"], capture_output=True, text=True, check=True)
    assert __main__.layer_tables() in run.stdout
    assert __main__.optimizer_tables() in run.stdout


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    example = PAGE.split("```python\n")[1].split("```")[0]
    namespace: dict[str, Any] = {}
    exec(example, namespace)
    assert namespace["outputs"].shape == (4, 25, 10)
    assert "('0.weight', (8, 2, 3, 3))" in capsys.readouterr().out


def test_the_example_of_recordings_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = [block.split("```")[0] for block in PAGE.split("```python\n") if "network.observe(" in block]
    exec(example, {})
    shape, *numbers = capsys.readouterr().out.splitlines()
    assert shape == "torch.Size([8, 50, 64])"
    assert [line.split()[0] for line in numbers] == ["0", "hidden", "weights"]


def test_the_error_on_the_page_is_the_error() -> None:
    layers = [{"kind": "flatten"}, {"kind": "lif", "alpha": 1.5}]
    with pytest.raises(NetworkError) as caught:
        parse({"input_shape": [3], "layers": layers})
    assert str(caught.value) in PAGE
