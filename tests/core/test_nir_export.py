"""Networks as NIR graphs: the same network comes back, and what NIR does not express is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nir
import nir_loop
import numpy as np
import pytest
import torch

from exodus_core import network
from exodus_core.errors import ArgumentError
from exodus_core.nir import GraphError, Imported, export_graph, import_graph

DT = 1e-3
LINEAR = {"kind": "linear", "out_features": 6}
RECURRENT = {"recurrent": {"bias": True, "gain": 0.5}}
CASES: dict[str, tuple[list[int], list[dict[str, Any]]]] = {
    "lif": ([4], [LINEAR, {"kind": "lif", "alpha": 0.9, "threshold": 0.3}]),
    "lif of lists": (
        [4],
        [LINEAR, {"kind": "lif", "alpha": [0.9, 0.8, 0.7, 0.6, 0.5, 0.0], "threshold": [0.1, 0.2, 0.3, 0.1, 0.2, 0.3]}],
    ),
    "reset at once": ([4], [LINEAR, {"kind": "lif", "alpha": 0.9, "threshold": 0.3, "decay_reset": True}]),
    "reset zero": ([4], [LINEAR, {"kind": "lif", "alpha": 0.9, "threshold": 0.3, "reset": "zero"}]),
    "if": ([4], [LINEAR, {"kind": "if", "threshold": 0.3, "reset": "zero"}]),
    "alpha of one": ([4], [LINEAR, {"kind": "lif", "alpha": 1.0, "threshold": 0.3}]),
    "threshold": ([4], [LINEAR, {"kind": "lif", "alpha": 0.0, "threshold": 0.2, "reset": "none"}]),
    "exp_leak": ([4], [LINEAR, {"kind": "exp_leak", "alpha": 0.9}]),
    "integrator": ([4], [LINEAR, {"kind": "exp_leak", "alpha": 1.0}]),
    "without bias": ([4], [{**LINEAR, "bias": False}, {"kind": "lif", "alpha": 0.9, "threshold": 0.3}]),
    "recurrent": ([4], [LINEAR, {"kind": "lif", "alpha": 0.9, "threshold": 0.3, "reset": "zero", **RECURRENT}]),
    "recurrent if": ([4], [LINEAR, {"kind": "if", "threshold": 0.3, "recurrent": {}}]),
    "reset to a value": (
        [4],
        [LINEAR, {"kind": "lif", "alpha": 0.9, "threshold": 0.3, "reset": "value", "reset_to": -0.1}],
    ),
    "cuba_lif": (
        [4],
        [LINEAR, {"kind": "cuba_lif", "alpha": 0.9, "synapse_alpha": 0.7, "synapse_gain": 0.5, "threshold": 0.3}],
    ),
    "cuba_lif delayed": (
        [4],
        [
            LINEAR,
            {
                "kind": "cuba_lif",
                "alpha": 0.9,
                "synapse_alpha": [0.7, 0.6, 0.5, 0.4, 0.3, 0.2],
                "synapse_delayed": True,
                "threshold": 0.3,
                "reset": "zero",
                **RECURRENT,
            },
        ],
    ),
    "trained": (
        [4],
        [
            LINEAR,
            {"kind": "lif", "alpha": 0.9, "threshold": 0.3, "trainable": ["alpha", "threshold"]},
            {**LINEAR, "name": "last"},
            {"kind": "exp_leak", "alpha": [0.9] * 6, "trainable": ["alpha"]},
        ],
    ),
    "images": (
        [2, 8, 9],
        [
            {"kind": "conv2d", "out_channels": 4, "kernel_size": [3, 2], "stride": [1, 2], "groups": 2, "padding": 1},
            {"kind": "lif", "alpha": [[[0.9]], [[0.8]], [[0.7]], [[0.6]]], "threshold": 0.2, "reset": "zero"},
            {"kind": "sum_pool", "kernel_size": 2},
            {"kind": "conv2d", "out_channels": 3, "kernel_size": 2, "bias": False},
            {"kind": "if", "threshold": 0.2},
            {"kind": "avg_pool", "kernel_size": [2, 1], "stride": 1},
            {"kind": "flatten"},
            {"kind": "linear", "out_features": 3},
        ],
    ),
    "windows of an output size": (
        [2, 6, 4],
        [{"kind": "adaptive_avg_pool", "output_size": [3, 2]}, {"kind": "lif", "alpha": 0.9, "reset": "zero"}],
    ),
    "conv1d": (
        [2, 9],
        [
            {"kind": "conv1d", "out_channels": 4, "kernel_size": 3, "dilation": 2, "stride": 2, "padding": 1},
            {"kind": "lif", "alpha": 0.9, "threshold": 0.2, "reset": "zero"},
        ],
    ),
    "sums and names": (
        [6],
        [
            {"kind": "lif", "alpha": 0.9, "threshold": 0.9, "reset": "zero", "name": "output"},
            {"kind": "linear", "out_features": 6, "name": "W"},
            {"kind": "dropout", "p": 0.2},
            {"kind": "add", "inputs": ["output", "input", "2"], "name": "sum"},
            {"kind": "lif", "alpha": 0.8, "threshold": 0.9, "reset": "zero"},
            {"kind": "add", "inputs": ["4", "W"]},
        ],
    ),
}


def made(case: str, dtype: str = "float32") -> network.Network:
    shape, layers = CASES[case]
    found = network.build({"input_shape": shape, "dtype": dtype, "layers": layers}, seed=3).eval()
    with torch.no_grad():
        for name, value in found.named_parameters():
            if name.endswith(("alpha", "threshold")):
                value.sub_(0.05)  # as after a training
    return found


def exported(found: network.Network, discretisation: str = "euler") -> nir.NIRGraph:
    return export_graph(found.description, found.state_dict(), dt=DT, discretisation=discretisation)


def resets(found: Imported) -> list[str]:
    return [layer["reset"] for layer in found.description.data["layers"] if layer["kind"] in ("lif", "if")]


def rebuilt(found: Imported) -> network.Network:
    same = network.build(found.description).eval()
    same.load_state_dict(found.weights)
    return same


def signal(found: network.Network, batch: int = 3, time: int = 50) -> torch.Tensor:
    shape = found.description.input_shape
    return (
        torch.rand(batch, time, *shape, generator=torch.Generator("cpu").manual_seed(1), device="cpu") < 0.4
    ).double()


def without_metadata(graph: nir.NIRGraph) -> nir.NIRGraph:
    for holder in (graph, *graph.nodes.values()):
        holder.metadata = {}
    return graph


def conventions_of(case: str) -> dict[str, Any]:
    neurons = [layer for layer in CASES[case][1] if layer["kind"] in ("if", "lif", "cuba_lif")]
    soft = any(layer.get("reset", "subtract") == "subtract" for layer in neurons)
    late = soft and not any(layer.get("decay_reset") for layer in neurons)
    synapse = "delayed" if any(layer.get("synapse_delayed") for layer in neurons) else "current"
    return {"reset": "subtract" if soft else "zero", "reset_delayed": late, "start": "zero", "synapse": synapse}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES)
def test_a_network_written_and_read_is_the_same_network(case: str, dtype: str, tmp_path: Path) -> None:
    before = made(case, dtype)
    nir.write(tmp_path / "model.nir", exported(before))
    found = import_graph(tmp_path / "model.nir")
    assert list(found.weights) == list(before.state_dict())
    for name, value in before.state_dict().items():
        assert torch.equal(found.weights[name], value.cpu()), name
    kinds = [(layer.name, layer.kind, layer.inputs) for layer in before.description.layers]
    assert [(layer.name, layer.kind, layer.inputs) for layer in found.description.layers] == kinds
    x = signal(before)
    assert torch.equal(rebuilt(found)(x), before(x))


@pytest.mark.parametrize("discretisation", ["euler", "exponential"])
@pytest.mark.parametrize("case", [case for case in CASES if case != "images"])
def test_the_nodes_alone_give_the_same_spikes(case: str, discretisation: str, tmp_path: Path) -> None:
    if discretisation == "exponential" and case == "lif of lists":
        CASES[case][1][1]["alpha"][-1] = 0.4  # 0 has no time constant
    before = made(case)
    nir.write(tmp_path / "model.nir", without_metadata(exported(before, discretisation)))
    given = {"dt": DT, "discretisation": discretisation, "firing": "at", **conventions_of(case)}
    found = import_graph(tmp_path / "model.nir", **given)
    x = signal(before)
    expected = before(x)
    assert (expected != 0).double().mean() > 0.02
    if before.description.layers[-1].kind in ("lif", "if"):
        assert torch.equal(rebuilt(found)(x), expected)
    else:
        torch.testing.assert_close(rebuilt(found)(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_each_layer_keeps_its_own_reset_without_the_description(case: str) -> None:
    before = made(case)
    graph = exported(before)
    graph.metadata = {}
    found = import_graph(graph, dt=DT, discretisation="euler", start="zero")
    if case == "images":
        assert resets(found) == ["zero", "subtract"]
    x = signal(before)
    torch.testing.assert_close(rebuilt(found)(x), before(x), rtol=1e-5, atol=1e-6)


def test_a_delay_is_written_in_seconds() -> None:
    layers = [{"kind": "delay", "delays": [0, 2, 5, 3]}, {"kind": "if", "threshold": 0.5}]
    before = network.build({"input_shape": [4], "layers": layers})
    graph = exported(before)
    np.testing.assert_allclose(graph.nodes["0"].delay, np.array([0, 2, 5, 3]) * DT)
    x = signal(before)
    for found in (import_graph(graph), import_graph(without_metadata(graph), dt=DT, reset="subtract", firing="at")):
        assert torch.equal(rebuilt(found)(x), before(x))


@pytest.mark.parametrize("discretisation", ["euler", "exponential"])
def test_the_graph_says_what_the_network_computes(discretisation: str) -> None:
    before = made("reset zero", "float64")
    x = signal(before, 1)
    graph = exported(before, discretisation)
    loop = nir_loop.run(graph, x[0].numpy(), dt=DT, discretisation=discretisation)
    assert np.array_equal(before(x)[0].detach().cpu().numpy(), loop)
    assert loop.any()


def test_a_file_is_read_by_nir_with_its_checks_of_types(tmp_path: Path) -> None:
    nir.write(tmp_path / "model.nir", exported(made("recurrent")))
    assert set(nir.read(tmp_path / "model.nir").nodes) == {"input", "0", "1", "1.w_rec", "output"}


def test_a_node_that_was_changed_is_read_as_it_is_now() -> None:
    before = made("lif")
    graph = exported(before)
    graph.nodes["0"].weight = graph.nodes["0"].weight * 2
    found = import_graph(graph)
    torch.testing.assert_close(found.weights["0.weight"], before.state_dict()["0.weight"] * 2)
    assert resets(found) == ["subtract"]


def test_an_argument_goes_before_what_the_file_says() -> None:
    graph = exported(made("lif"))
    assert import_graph(graph, dt=DT).description.data["layers"][1]["alpha"] == 0.9
    half = import_graph(graph, dt=DT / 2).description.data["layers"][1]["alpha"]
    assert half == pytest.approx(0.95)
    assert resets(import_graph(graph, reset="zero", reset_delayed=False)) == ["zero"]
    assert import_graph(graph, dtype="float64").description.dtype == "float64"


def test_a_soft_reset_smaller_than_the_threshold_by_a_rounding_is_firing_above() -> None:
    node = nir.LIF(tau=np.full(1, 0.01), r=np.full(1, 10.0), v_leak=np.zeros(1), v_threshold=np.ones(1))
    graph = nir.NIRGraph.from_list(nir.Linear(weight=np.ones((1, 1))), node)
    found = import_graph(graph, dt=DT, discretisation="euler", reset="subtract")
    again = export_graph(found.description, found.weights, dt=DT)
    (name,) = (name for name, kind in again.nodes.items() if isinstance(kind, nir.LIF))
    assert again.nodes[name].v_threshold == 1.0
    assert import_graph(without_description(again)).description == found.description


def without_description(graph: nir.NIRGraph) -> nir.NIRGraph:
    graph.nodes["input"].input_type = {"input": np.array([1])}
    graph.metadata = {"exodus": graph.metadata["exodus"].replace('"digest": "', '"digest": "0')}
    return graph


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "min_membrane": ({"kind": "lif", "alpha": 0.9, "min_membrane": -1.0}, "its min_membrane is -1.0; NIR has none"),
    "max_spikes": ({"kind": "if", "max_spikes": 3}, "its max_spikes is 3; NIR has none"),
    "refractory": ({"kind": "if", "refractory": 2}, "its refractory is 2; NIR has none"),
    "max_spikes of a threshold": (
        {"kind": "lif", "alpha": 0.0, "reset": "none", "max_spikes": 3},
        "its max_spikes is 3; NIR has none",
    ),
    "min_membrane of a threshold": (
        {"kind": "lif", "alpha": 0.0, "reset": "none", "min_membrane": -1.0},
        "its min_membrane is -1.0; NIR has none",
    ),
    "refractory of a threshold": (
        {"kind": "lif", "alpha": 0.0, "reset": "none", "refractory": 2},
        "its refractory is 2; NIR has none",
    ),
    "alif": ({"kind": "alif", "alpha": 0.9, "adapt_alpha": 0.9}, "NIR has no adaptive neuron"),
    "no synapse": ({"kind": "cuba_lif", "alpha": 0.9, "synapse_alpha": 1.0}, "synapse_alpha is 1 for some neurons"),
    "no reset": ({"kind": "lif", "alpha": 0.9, "reset": "none"}, "its reset is none; in NIR a spike resets"),
    "reset_by": ({"kind": "lif", "alpha": 0.9, "reset_by": 0.5}, "its reset_by is other than its threshold"),
    "some of one": ({"kind": "lif", "alpha": [1.0, 1.0, 1.0, 0.5]}, "alpha is 1 for some neurons"),
    "batch_norm": ({"kind": "batch_norm"}, "NIR has no normalisation"),
    "reshape": ({"kind": "reshape", "shape": [4]}, "NIR has no such node"),
    "srm": ({"kind": "srm", "reset_kernel": [-1.0]}, "NIR has no spike-response neuron"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_nir_does_not_express_is_refused_by_layer_with_the_reason(case: str) -> None:
    layer, reason = REFUSED[case]
    found = network.build({"input_shape": [4], "layers": [layer, {"kind": "batch_norm", "name": "also"}]})
    with pytest.raises(GraphError, match="the network must be one of layers that NIR expresses") as caught:
        exported(found)
    first, also = caught.value.refusals
    assert (first.name, first.kind, also.name) == ("0", layer["kind"], "also")
    assert reason in first.reason


def test_shapes_that_nir_has_no_node_for_are_refused() -> None:
    layers = [
        {"kind": "lif", "alpha": 0.9, "recurrent": {}},
        {"kind": "sum_pool", "kernel_size": 2},
        {"kind": "add", "inputs": ["1", "1"]},
    ]
    found = network.build({"input_shape": [2, 4], "layers": layers})
    with pytest.raises(GraphError) as caught:
        exported(found)
    assert [refusal.reason for refusal in caught.value.refusals] == [
        "it has recurrent connections, and an input of several dimensions",
        "NIR pools over images, and its input has one dimension of space",
        "it adds 1 twice, in NIR two edges",
    ]


def test_a_decay_of_zero_has_no_exponential_time_constant() -> None:
    with pytest.raises(GraphError, match="alpha is 0, which has no time constant with discretisation exponential"):
        exported(network.build({"input_shape": [2], "layers": [{"kind": "lif", "alpha": 0.0}]}), "exponential")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("0.bias"), r"weights\['0.bias'\] must be of shape \[6\], got nothing"),
        (lambda w: w.update({"0.bias": torch.ones(5)}), r"weights\['0.bias'\] must be of shape \[6\], got shape \[5\]"),
        (lambda w: w.update(more=torch.ones(5)), r"weights\['more'\] must be absent, got shape \[5\]"),
    ],
)
def test_weights_of_another_network_are_refused(change: Callable[[Any], Any], message: str) -> None:
    found = made("lif")
    weights = dict(found.state_dict())
    change(weights)
    with pytest.raises(ArgumentError, match=message):
        export_graph(found.description, weights, dt=DT)


def test_a_description_of_other_nodes_is_refused() -> None:
    graph = exported(made("lif"))
    graph.metadata["exodus"] = graph.metadata["exodus"].replace('"out_features": 6', '"out_features": 5')
    with pytest.raises(ArgumentError, match=r"with 0.weight of shape \[5, 4\], got a node with \[6, 4\]"):
        import_graph(graph)
    graph.metadata["exodus"] = graph.metadata["exodus"].replace('"name": "0"', '"name": "7"').replace('["0"]', '["7"]')
    with pytest.raises(ArgumentError, match=r"with 7.weight of shape \[5, 4\], got a node with \[0\]"):
        import_graph(graph)


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 2}', "1", "[" * 100_000])
def test_metadata_that_exodus_did_not_write_is_refused(text: str) -> None:
    graph = exported(made("lif"))
    graph.metadata["exodus"] = text
    with pytest.raises(ArgumentError, match="metadata of the graph must be"):
        import_graph(graph)


def test_conventions_in_metadata_are_checked() -> None:
    graph = exported(made("lif"))
    graph.nodes["1"].metadata["exodus"] = '{"version": 1, "reset": "hard"}'
    with pytest.raises(ArgumentError, match="metadata of 1: reset must be one of zero, subtract, got hard"):
        import_graph(graph)


def test_dt_and_discretisation_of_an_export_are_checked() -> None:
    found = made("lif")
    with pytest.raises(ArgumentError, match="dt must be a positive number, got -1"):
        export_graph(found.description, found.state_dict(), dt=-1)
    with pytest.raises(ArgumentError, match="discretisation must be one of euler, exponential, got exact"):
        exported(found, "exact")
