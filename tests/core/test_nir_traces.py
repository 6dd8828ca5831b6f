"""One LIF neuron in the simulators of the NIR paper: each one's trace under its conventions.

The folder paper/01_lif of the repository of NIR has them; EXODUS_NIR_TRACES names it. Traces that are made here, by the
rule of each simulator in plain NumPy, stand for the same files.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nir
import nir_loop
import numpy as np
import pytest
import torch

import exodus_core
from exodus_core.nir import Imported, import_graph

DT, TAU, THRESHOLD = 1e-4, 0.0025, 0.1
GRAPH = "lif_norse.nir"


@dataclass(frozen=True)
class Simulator:
    """How a simulator computes the neuron, and what it writes to lif_NAME.csv.

    Args:
        conventions: of `import_graph`.
        rule: membrane before the spike, from that after the last one, the spike of then, and the input.
        unit: what it writes for a membrane of 1.
        late: steps by which what it writes is behind the input: membrane, spikes.
        reset: the membrane that it writes is that after the reset.
        tolerance: of its membrane, of which the threshold is 0.1.
    """

    conventions: dict[str, Any]
    rule: Callable[[float, float, float], float]
    unit: float = 1.0
    late: tuple[int, int] = (0, 0)
    reset: bool = True
    tolerance: float = 1e-7


EULER = {"dt": DT, "discretisation": "euler", "reset": "zero"}
EXPONENTIAL = {"dt": DT, "discretisation": "exponential", "reset": "subtract"}
STEP = DT / TAU
DECAY = math.exp(-STEP)


def euler_step(v: float, s: float, x: float) -> float:
    return v + STEP * (x - v)


SIMULATORS = {
    "norse": Simulator(EULER, euler_step),
    "snntorch": Simulator(EULER, euler_step, unit=25.0),
    # Weights are integers there: of a neuron in the unit of 102.02, 102.
    "spinnaker2": Simulator(EULER, euler_step, unit=25 * 102 / 102.02),
    "lava_cpu_float": Simulator(EULER, euler_step, late=(1, 1)),
    "spyx": Simulator(
        EULER | {"reset": "subtract", "reset_delayed": True},
        lambda v, s, x: (1 - STEP) * v + STEP * x - THRESHOLD * s,
        late=(0, 1),
        reset=False,
    ),
    "nengo": Simulator(EXPONENTIAL | {"reset": "zero"}, lambda v, s, x: x + (v - x) * DECAY, unit=10.0),
    "sinabs": Simulator(EXPONENTIAL | {"input_gain": "unit"}, lambda v, s, x: DECAY * v + x),
    "rockpool": Simulator(EXPONENTIAL | {"input_gain": "step"}, lambda v, s, x: DECAY * v + STEP * x),
}


@dataclass
class Trace:
    """Columns of a file: input, membrane, spikes; and the same as Exodus computes them."""

    input: np.ndarray[Any, Any]
    membrane: np.ndarray[Any, Any]
    spikes: np.ndarray[Any, Any]
    found: tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]] = field(init=False)


def late(values: np.ndarray[Any, Any], steps: int) -> np.ndarray[Any, Any]:
    return np.concatenate([np.zeros(steps), values[: len(values) - steps]])


def read(folder: Path, name: str) -> Trace:
    return Trace(*np.loadtxt(folder / f"lif_{name}.csv", delimiter=",").T)


def run(found: Imported, x: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Spikes of the network, and the membrane before the reset."""
    network = exodus_core.network.build(found.description)
    network.load_state_dict(found.weights)
    given = torch.tensor(x, dtype=torch.float32).view(1, -1, 1)
    with torch.no_grad():
        spikes = network(given)
        *before, neuron = found.description.layers
        current = given
        for layer in before:
            current = network.get_submodule(layer.name)(current)
        options = {name: getattr(neuron, name) for name in ("threshold", "reset", "reset_by", "decay_reset")}
        same, membrane = exodus_core.lif(current, neuron.alpha, **options)  # type: ignore[attr-defined]
    assert torch.equal(spikes, same)
    return spikes.flatten().cpu().numpy(), membrane.flatten().cpu().numpy()


def check(folder: Path, name: str) -> None:
    simulator, trace = SIMULATORS[name], read(folder, name)
    assert len(trace.input) == 1000
    spikes, membrane = run(import_graph(folder / GRAPH, **simulator.conventions), trace.input)
    if simulator.reset:
        zero = simulator.conventions["reset"] == "zero"
        membrane = membrane * (1 - spikes) if zero else membrane - THRESHOLD * spikes
    written = np.nonzero(trace.spikes)[0].tolist()
    assert np.nonzero(late(spikes, simulator.late[1]))[0].tolist() == written
    assert len(written) == 4
    expected = late(membrane, simulator.late[0])
    np.testing.assert_allclose(trace.membrane / simulator.unit, expected, rtol=0, atol=simulator.tolerance)


def gaps() -> np.ndarray[Any, Any]:
    """34 spikes in 1,000 steps, as many as in the paper, from silence to one every 10 steps."""
    x = np.zeros(1000)
    x[[60, 220, 270, 310, 320, 350, 370, 400, 410, *range(430, 540, 10), *range(670, 790, 10), 840, 850]] = 1
    return x


def made(folder: Path, name: str) -> None:
    """Writes the graph and the trace of a simulator, by its rule in float64."""
    ones = np.ones(1, dtype=np.float32)
    node = nir.LIF(tau=ones * TAU, r=ones, v_leak=ones * 0, v_threshold=ones * THRESHOLD)
    graph = nir.NIRGraph.from_list(nir.Affine(weight=np.ones((1, 1), dtype=np.float32), bias=ones * 0), node)
    nir.write(folder / GRAPH, graph)
    simulator, x = SIMULATORS[name], gaps()
    x = x * STEP if name == "sinabs" else x
    v, s = 0.0, 0.0
    membranes, spikes = [], []
    for value in x:
        u = simulator.rule(v, s, float(value))
        s = float(u > THRESHOLD)
        v = u if not simulator.reset else u * (1 - s) if simulator.conventions["reset"] == "zero" else u - THRESHOLD * s
        membranes.append(v)
        spikes.append(s)
    columns = late(np.array(membranes), simulator.late[0]) * simulator.unit, late(np.array(spikes), simulator.late[1])
    np.savetxt(folder / f"lif_{name}.csv", np.stack([x, *columns]).T, delimiter=",")


@pytest.mark.parametrize("name", SIMULATORS)
def test_a_trace_made_by_the_rule_of_a_simulator_is_reproduced(name: str, tmp_path: Path) -> None:
    made(tmp_path, name)
    check(tmp_path, name)


@pytest.mark.parametrize("name", SIMULATORS)
def test_the_trace_of_a_simulator_is_reproduced(name: str) -> None:
    check(folder_with(GRAPH), name)


def folder_with(name: str) -> Path:
    folder = Path(os.environ.get("EXODUS_NIR_TRACES", "."))
    if not (folder / name).exists():
        pytest.skip(f"{name} is not in {folder}; EXODUS_NIR_TRACES names the folder that has it")
    return folder


@pytest.mark.parametrize("name", ["braille_noDelay_bias_zero.nir", "braille_noDelay_noBias_subtract.nir"])
def test_the_braille_models_of_the_paper_compute_what_their_graphs_say(name: str) -> None:
    file = f"../03_rnn/{name}"
    path = folder_with(file) / file
    conventions = {"dt": DT, "discretisation": "euler", "reset": name[:-4].rpartition("_")[2], "synapse": "current"}
    found = import_graph(path, dtype="float64", **conventions)
    assert [layer.kind for layer in found.description.layers] == ["linear", "cuba_lif", "linear", "cuba_lif"]
    network = exodus_core.network.build(found.description)
    network.load_state_dict(found.weights)
    x = (np.random.default_rng(5).uniform(size=(256, 12)) < 0.2).astype(float)
    expected = nir_loop.run(nir.read(path), x, feedback=("lif1.w_rec",), **conventions)
    with torch.no_grad():
        assert np.array_equal(network(torch.tensor(x)[None])[0].cpu().numpy(), expected)
    assert 0.02 < expected.mean() < 0.5
