"""The command `exodus nir`, and the examples and tables of docs/nir.md."""

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from exodus_core import network
from exodus_core.nir import LIBRARIES, export_graph, import_graph
from exodus_core.nir.commands import app

PAGE = Path(__file__).parents[2].joinpath("docs/nir.md").read_text()
CONVENTIONS = ("--dt", "1e-3", "--discretisation", "euler", "--reset", "zero")

Command = Callable[..., Result]


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def command() -> Command:
    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, list(arguments))

    return run


def model() -> nir.NIRGraph:
    """Writes model.nir and x.npy."""
    generator = np.random.default_rng(2)
    ones = np.ones(5)
    neurons = nir.LIF(tau=0.02 * ones, r=15 * ones, v_leak=0 * ones, v_threshold=ones)
    graph = nir.NIRGraph.from_list(nir.Affine(weight=generator.uniform(-1, 2, (5, 3)), bias=0.1 * ones), neurons)
    nir.write("model.nir", graph)
    np.save("x.npy", (generator.uniform(size=(40, 3)) < 0.4).astype(np.float32))
    return graph


def spikes(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    found = import_graph("model.nir", dt=1e-3, discretisation="euler", reset="zero")
    built = network.build(found.description)
    built.load_state_dict(found.weights)
    with torch.no_grad():
        return np.asarray(built(torch.from_numpy(x)).cpu())


def test_run_writes_the_spikes_of_one_sample_or_of_several(command: Command) -> None:
    model()
    x = np.load("x.npy")
    ran = command("run", "model.nir", "x.npy", "--out", "one.npz", *CONVENTIONS)
    assert ran.exit_code == 0, ran.output
    one = np.load("one.npz")["output"]
    assert one.shape == (40, 5)
    assert one.any()
    assert np.array_equal(one, spikes(x[None])[0])
    assert f"one.npz: output (40, 5), {int(one.sum())} values are not 0" in ran.output
    np.savez("several.npz", x=np.stack([x, 1 - x]))
    assert command("run", "model.nir", "several.npz", "--out", "both.npz", *CONVENTIONS).exit_code == 0
    assert np.array_equal(np.load("both.npz")["output"], spikes(np.stack([x, 1 - x])))


def test_import_writes_a_network_and_weights_and_export_the_graph_of_them(command: Command) -> None:
    model()
    files = ("--network", "network.json", "--weights", "weights.safetensors")
    assert command("import", "model.nir", *files, *CONVENTIONS).exit_code == 0
    found = import_graph("model.nir", dt=1e-3, discretisation="euler", reset="zero")
    assert json.loads(Path("network.json").read_text()) == found.description.data
    weights = load_file("weights.safetensors")
    assert all(torch.equal(weights[name].cpu(), value) for name, value in found.weights.items())
    ran = command("export", "weights.safetensors", *files[:2], "--out", "again.nir", "--dt", "1e-3")
    assert (ran.exit_code, ran.output) == (0, "again.nir: 4 nodes, 3 edges\n")
    again = import_graph("again.nir")
    assert again.description == found.description
    assert all(torch.equal(value, found.weights[name]) for name, value in again.weights.items())


def test_export_takes_the_state_of_a_model_with_its_network(command: Command) -> None:
    model()
    found = import_graph("model.nir", dt=1e-3, discretisation="euler", reset="zero")
    tensors = {f"weights.{name}": value for name, value in found.weights.items()}
    tensors |= {"optimizer.0.weight.momentum": torch.ones(5, 3, device="cpu")}
    save_file(tensors, "state.safetensors", {"exodus": json.dumps({"network": found.description.data, "seed": 0})})
    assert command("export", "state.safetensors", "--out", "trained.nir", "--dt", "1e-3").exit_code == 0
    assert import_graph("trained.nir").description == found.description


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("run model.nir x.npy --out y.npz --dt 1e-3", "discretisation, reset must be given, as the file does not say"),
        ("run model.nir x.npy --out y.npz --reset hard", "reset must be one of zero, subtract, got hard"),
        ("run gone.nir x.npy --out y.npz", "there is no file gone.nir"),
        ("run model.nir x.txt --out y.npz {}", "INPUT must be a name that ends in one of .npz"),
        ("run model.nir many.npz --out y.npz {}", "INPUT must be a file with the tensor x alone, got one with x, y"),
        ("run model.nir wide.npy --out y.npz {}", "x must be of shape (batch, time, 3)"),
        ("run model.nir x.npy --out y.txt {}", "--out must be a name that ends in .npz, got y.txt"),
        ("export x.npy --out y.nir --dt 1", "WEIGHTS must be a .safetensors file, got x.npy, which is damaged"),
        ("export w.safetensors --out y.nir --dt 1", "--network must be given, as WEIGHTS has no network, got nothing"),
        ("export w.safetensors --network model.json --out y.nir --dt 1", "--network must be JSON, got {"),
        ("export w.safetensors --network if.json --out y.nir --dt 1", "weights['w'] must be absent, got shape [2]"),
    ],
)
def test_what_does_not_fit_ends_with_one_line_and_2(command: Command, arguments: str, message: str) -> None:
    model()
    np.savez("many.npz", x=np.ones(2), y=np.ones(2))
    np.save("wide.npy", np.ones((4, 7), dtype=np.float32))
    save_file({"w": torch.ones(2, device="cpu")}, "w.safetensors")
    Path("model.json").write_text("{")
    Path("if.json").write_text('{"input_shape": [2], "layers": [{"kind": "if"}]}')
    ran = command(*shlex.split(arguments.replace("{}", " ".join(CONVENTIONS))))
    assert ran.exit_code == 2
    assert ran.stderr.startswith(f"exodus: {message}")
    assert ran.stderr.count("\n") == 1


def test_without_nir_the_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("exodus_core.nir")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "nir", None)
    with pytest.raises(ModuleNotFoundError, match=r"exodus_core.nir needs nir: pip install 'exodus-core\[nir\]'"):
        import exodus_core.nir  # noqa: F401


def test_the_example_of_the_page_runs() -> None:
    example = PAGE.split("```python\n")[1].split("```")[0]
    found: dict[str, Any] = {}
    exec(example, found)
    assert found["spikes"].shape == (4, 100, 20)
    assert found["again"].description == found["found"].description
    assert all(torch.equal(value, found["found"].weights[name]) for name, value in found["again"].weights.items())


def test_the_commands_of_the_page_run(command: Command) -> None:
    graph = model()
    save_file(
        {f"weights.{name}": value for name, value in import_graph(graph, written_by="norse", dt=1e-3).weights.items()},
        "digits.safetensors",
        {"exodus": json.dumps({"network": import_graph(graph, written_by="norse", dt=1e-3).description.data})},
    )
    lines = [line.partition("#")[0] for line in PAGE.splitlines() if line.startswith("    exodus nir ")]
    assert len(lines) == 4
    for line in lines:
        ran = command(*shlex.split(line)[2:])
        assert ran.exit_code == 0, ran.output


def test_the_error_on_the_page_is_the_error() -> None:
    ones = np.ones(2)
    node = nir.IF(r=ones, v_threshold=ones)
    graph = nir.NIRGraph({"in": nir.Input([2]), "1": node, "out": nir.Output([2])}, [("in", "1"), ("1", "out")])
    with pytest.raises(ValueError, match="must be given") as caught:
        import_graph(graph)
    assert f"    {caught.value}\n" in PAGE


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_page_has_the_conventions_of_each_library(library: str) -> None:
    (row,) = (line for line in PAGE.splitlines() if line.startswith(f"| `{library}` |"))
    _, _, dt, *cells, more, _ = (cell.strip() for cell in row.split("|"))
    known = LIBRARIES[library].known
    assert (float(dt.partition(":")[0]) if dt else None) == known.get("dt")
    names = ("discretisation", "input_gain", "reset", "synapse", "firing", "start")
    assert dict(zip(names, cells, strict=True)) == {name: known.get(name, "") for name in names}
    assert ("any number of spikes" in more) == ("max_spikes" in known)
    assert ("not below `-v_threshold`" in more) == (known.get("min_membrane") == "threshold")


def test_exports_of_a_network_are_those_of_its_plain_data() -> None:
    layers = [{"kind": "linear", "in_features": 2, "out_features": 3}, {"kind": "if"}]
    built = network.build(layers)
    first = export_graph(layers, built.state_dict(), dt=1.0)
    assert first.metadata == export_graph(built.description, built.state_dict(), dt=1.0).metadata


def test_the_entry_point_is_the_command() -> None:
    pyproject = (Path(__file__).parents[2] / "exodus_core/pyproject.toml").read_text()
    assert 'nir = "exodus_core.nir.commands:app"' in pyproject
