"""NIR graphs as networks: what each node computes, what is refused, and which conventions have to be known."""

import itertools
import json
from pathlib import Path
from typing import Any

import nir
import nir_loop
import numpy as np
import pytest
import torch

import exodus_core
from exodus_core.errors import ArgumentError, ArgumentTypeError
from exodus_core.nir import LIBRARIES, GraphError, Imported, import_graph

DT = 1e-3
EULER: dict[str, Any] = {"dt": DT, "discretisation": "euler", "reset": "zero"}
EXPONENTIAL: dict[str, Any] = {"dt": DT, "discretisation": "exponential", "reset": "subtract"}
GENERATOR = np.random.default_rng(7)


def uniform(low: float, high: float, *shape: int) -> np.ndarray[Any, Any]:
    return GENERATOR.uniform(low, high, shape)


def affine(inputs: int, outputs: int, scale: float = 1.0) -> nir.Affine:
    return nir.Affine(weight=uniform(-1, 2, outputs, inputs) * scale, bias=uniform(0, 0.5, outputs) * scale)


def lif(*shape: int, **changed: Any) -> nir.LIF:
    values = {
        "tau": uniform(2, 30, *shape) * DT,
        "r": uniform(3, 9, *shape),
        "v_leak": np.zeros(shape),
        "v_threshold": uniform(0.5, 1.5, *shape),
    }
    return nir.LIF(**{**values, **changed})


def cuba(*shape: int, **changed: Any) -> nir.CubaLIF:
    values = {
        "tau_syn": uniform(2, 9, *shape) * DT,
        "tau_mem": uniform(2, 30, *shape) * DT,
        "r": uniform(3, 9, *shape),
        "w_in": uniform(1, 3, *shape),
        "v_leak": np.zeros(shape),
        "v_threshold": uniform(0.5, 1.5, *shape),
    }
    return nir.CubaLIF(**{**values, **changed})


def chain(shape: tuple[int, ...], *nodes: Any) -> nir.NIRGraph:
    """Nodes one after another; shapes are not checked here, as no reader can rely on that."""
    named = {"input": nir.Input(input_type={"input": np.array(shape)})}
    named |= {f"{index}.{type(node).__name__}": node for index, node in enumerate(nodes)}
    named["output"] = nir.Output(output_type={"output": None})
    names = list(named)
    return nir.NIRGraph(named, list(itertools.pairwise(names)), type_check=False)


def outputs(found: Imported, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    network = exodus_core.network.build(found.description)
    network.load_state_dict(found.weights)
    with torch.no_grad():
        return np.asarray(network(torch.tensor(x)[None])[0].cpu())


def check(graph: nir.NIRGraph, conventions: dict[str, Any], steps: int = 60, **loop: Any) -> Imported:
    """Holds the network, in float64, to the loop over the graph; spikes are equal, membranes to rounding."""
    found = import_graph(graph, dtype="float64", **conventions)
    x = (uniform(0, 1, steps, *found.description.input_shape) < 0.4).astype(float)
    expected = nir_loop.run(graph, x, **conventions, **loop)
    np.testing.assert_allclose(outputs(found, x), expected, rtol=1e-10, atol=1e-10)
    assert (expected != 0).mean() > 0.02
    return found


CASES: dict[str, tuple[tuple[int, ...], list[Any]]] = {
    "Linear": ((4,), [nir.Linear(weight=uniform(-1, 1, 3, 4))]),
    "Affine": ((4,), [affine(4, 3)]),
    "Scale": ((4,), [nir.Scale(scale=uniform(-2, 2, 4))]),
    "Scale of channels": ((2, 3, 3), [nir.Scale(scale=np.broadcast_to(uniform(1, 2, 2, 1, 1), (2, 3, 3)))]),
    "Scale after Linear": ((4,), [nir.Linear(weight=uniform(-1, 1, 3, 4)), nir.Scale(scale=uniform(-2, 2, 3))]),
    "Conv1d": ((2, 9), [nir.Conv1d(9, uniform(-1, 1, 4, 1, 3), 2, 1, 2, 2, uniform(-1, 1, 4))]),
    "Conv2d": (
        (2, 7, 6),
        [nir.Conv2d((7, 6), uniform(-1, 1, 4, 2, 3, 2), (2, 1), (1, 0), (1, 2), 1, uniform(-1, 1, 4))],
    ),
    "Conv2d same": ((1, 5, 5), [nir.Conv2d((5, 5), uniform(-1, 1, 2, 1, 3, 5), 1, "same", 1, 1, np.zeros(2))]),
    "Conv2d valid": ((1, 5, 5), [nir.Conv2d(None, uniform(-1, 1, 2, 1, 3, 3), 1, "valid", 1, 1, np.zeros(2))]),
    "SumPool2d": ((2, 5, 6), [nir.SumPool2d(np.array([2, 3]), np.array([1, 2]), np.array([0, 0]))]),
    "AvgPool2d": ((2, 5, 6), [nir.AvgPool2d(np.array([2, 3]), np.array([1, 2]), np.array([0, 0]))]),
    "Flatten": ((2, 3, 2), [nir.Flatten({"input": np.array([2, 3, 2])}, 0, -1), affine(12, 3)]),
    "Flatten of a part": (
        (2, 3, 2),
        [
            nir.Flatten({"input": np.array([2, 3, 2])}, 1, -1),
            nir.Conv1d(6, uniform(-1, 1, 3, 2, 2), 1, 0, 1, 1, np.ones(3)),
        ],
    ),
    "Flatten of the first": ((2, 3, 2), [nir.Flatten({"input": np.array([2, 3, 2])}, 0, 1)]),
    "Threshold": ((4,), [affine(4, 3), nir.Threshold(threshold=uniform(0.1, 1, 3))]),
    "I": ((4,), [affine(4, 3), nir.I(r=uniform(1, 2, 3))]),
    "LI": ((4,), [affine(4, 3), nir.LI(tau=uniform(2, 9, 3) * DT, r=uniform(1, 2, 3), v_leak=np.zeros(3))]),
    "LIF": ((4,), [affine(4, 5), lif(5)]),
    "LIF of the input": ((4,), [lif(4)]),
    "LIF after pooling": (
        (2, 4, 4),
        [
            nir.SumPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0])),
            lif(2, 2, 2, tau=np.full((2, 2, 2), 4 * DT), r=np.broadcast_to(uniform(2, 4, 2, 1, 1), (2, 2, 2))),
        ],
    ),
    "LIF of a convolution": (
        (1, 5, 5),
        [
            nir.Conv2d((5, 5), uniform(-1, 1, 2, 1, 3, 3), 1, 0, 1, 1, uniform(0, 1, 2)),
            lif(2, 3, 3, tau=np.full((2, 3, 3), 4 * DT), r=np.full((2, 3, 3), 5.0)),
        ],
    ),
    "IF": ((4,), [affine(4, 3), nir.IF(r=uniform(90, 200, 3), v_threshold=uniform(0.5, 1, 3))]),
    "CubaLIF": ((4,), [affine(4, 5), cuba(5)]),
    "CubaLI": (
        (4,),
        [
            affine(4, 3),
            nir.CubaLI(
                tau_syn=uniform(2, 9, 3) * DT,
                tau_mem=uniform(2, 30, 3) * DT,
                r=uniform(3, 9, 3),
                w_in=uniform(1, 3, 3),
                v_leak=np.zeros(3),
            ),
        ],
    ),
    "two layers": ((4,), [affine(4, 6), lif(6), affine(6, 3), lif(3)]),
}


@pytest.mark.parametrize("conventions", [EULER, EXPONENTIAL], ids=["euler", "exponential"])
@pytest.mark.parametrize("case", CASES)
def test_a_network_computes_what_the_graph_says(case: str, conventions: dict[str, Any]) -> None:
    shape, nodes = CASES[case]
    check(chain(shape, *nodes), conventions | ({"synapse": "current"} if "Cuba" in case else {}))


def test_a_delay_of_whole_steps_is_a_layer() -> None:
    delay = nir.Delay(delay=np.float32(DT) * np.array([0, 1, 3, 7], dtype=np.float32))
    graph = chain((4,), delay, affine(4, 5), lif(5))
    assert check(graph, EULER).description.data["layers"][0]["delays"] == [0, 1, 3, 7]


@pytest.mark.parametrize("synapse", ["current", "delayed"])
@pytest.mark.parametrize("conventions", [EULER, EXPONENTIAL], ids=["euler", "exponential"])
@pytest.mark.parametrize("input_gain", ["equation", "step"])
def test_the_membrane_sees_the_synaptic_current_of_this_step_or_of_the_one_before(
    synapse: str, conventions: dict[str, Any], input_gain: str
) -> None:
    check(chain((4,), affine(4, 5), cuba(5)), {**conventions, "synapse": synapse, "input_gain": input_gain})


@pytest.mark.parametrize("reset", ["zero", "subtract"])
def test_second_order_neurons_are_recurrent_through_their_synapse(reset: str) -> None:
    graph = chain((4,), affine(4, 6), cuba(6), affine(6, 3), cuba(3))
    graph.nodes["back"] = affine(6, 6, 0.3)
    graph.edges += [("1.CubaLIF", "back"), ("back", "1.CubaLIF")]
    conventions = {**EULER, "reset": reset, "synapse": "current"}
    found = check(graph, conventions, feedback=("back",))
    assert [layer.kind for layer in found.description.layers] == ["linear", "cuba_lif", "linear", "cuba_lif"]


@pytest.mark.parametrize("start", ["leak", "reset"])
def test_a_second_order_neuron_may_leak_to_where_it_starts(start: str) -> None:
    rest = uniform(-0.4, 0.4, 5)
    neuron = cuba(5, v_leak=rest, v_reset=rest if start == "reset" else np.full(5, -0.2))
    check(chain((4,), affine(4, 5), neuron), {**EULER, "synapse": "current", "start": start})


def test_a_readout_of_second_order_leaks_to_v_leak() -> None:
    for start in ("zero", "leak"):
        node = nir.CubaLI(
            tau_syn=uniform(2, 9, 3) * DT, tau_mem=uniform(2, 30, 3) * DT, r=np.ones(3), v_leak=uniform(-1, 1, 3)
        )
        check(chain((4,), affine(4, 3), node), {**EULER, "synapse": "current", "start": start})


@pytest.mark.parametrize("input_gain", ["equation", "step", "unit"])
@pytest.mark.parametrize("discretisation", ["euler", "exponential"])
def test_the_gain_of_the_input_is_that_of_the_convention(discretisation: str, input_gain: str) -> None:
    scale = {"equation": 1.0, "step": 1.0, "unit": 0.1}[input_gain]
    graph = chain((4,), affine(4, 5, scale), lif(5))
    check(graph, {**EULER, "discretisation": discretisation, "input_gain": input_gain})
    graph = chain(
        (4,),
        affine(4, 5, scale),
        nir.IF(r=uniform(1, 2, 5) * (1 if input_gain == "unit" else 90), v_threshold=np.ones(5)),
    )
    check(graph, {"dt": DT, "reset": "zero", "input_gain": input_gain})


@pytest.mark.parametrize("reset_delayed", [False, True])
def test_a_soft_reset_is_at_once_or_a_step_late(reset_delayed: bool) -> None:
    check(chain((4,), affine(4, 5), lif(5)), {**EXPONENTIAL, "reset_delayed": reset_delayed})


@pytest.mark.parametrize("start", ["zero", "leak", "reset"])
@pytest.mark.parametrize("v_reset", [0.0, -0.3], ids=["reset to 0", "reset below"])
def test_a_leak_and_a_reset_other_than_zero_are_shifts_of_the_membrane(start: str, v_reset: float) -> None:
    neuron = lif(5, v_leak=uniform(-0.4, 0.4, 5), v_reset=np.full(5, v_reset))
    check(chain((4,), affine(4, 5), neuron), {**EULER, "start": start})


def test_a_leak_above_the_threshold_fires_without_input() -> None:
    node = nir.LIF(tau=np.full(2, 0.01), r=np.ones(2), v_leak=np.full(2, 1.2), v_threshold=np.ones(2))
    found = import_graph(chain((2,), node), **EULER, start="zero")
    spikes = outputs(found, np.zeros((60, 2)))
    assert np.nonzero(spikes[:, 0])[0].tolist() == [17, 35, 53]
    with pytest.raises(GraphError, match=r"v_threshold is not above the membrane that it starts from \(leak\)"):
        import_graph(chain((2,), node), **EULER, start="leak")


@pytest.mark.parametrize("start", ["zero", "leak"])
def test_an_integrator_leaks_to_v_leak(start: str) -> None:
    node = nir.LI(tau=uniform(2, 9, 3) * DT, r=uniform(1, 2, 3), v_leak=uniform(-1, 1, 3))
    check(chain((4,), affine(4, 3), node), {**EULER, "start": start})


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("conventions", [EULER, EXPONENTIAL], ids=["euler", "exponential"])
def test_a_neuron_with_a_product_back_to_it_is_recurrent(conventions: dict[str, Any], with_bias: bool) -> None:
    back = affine(5, 5, 0.4) if with_bias else nir.Linear(weight=uniform(-1, 0.5, 5, 5))
    graph = chain((4,), affine(4, 5), lif(5))
    graph.nodes["back"] = back
    graph.edges += [("1.LIF", "back"), ("back", "1.LIF")]
    found = check(graph, conventions, feedback=("back",))
    assert [layer.kind for layer in found.description.layers] == ["linear", "lif"]


def test_an_edge_from_a_neuron_to_itself_is_a_recurrent_connection_of_weight_one() -> None:
    graph = chain((4,), affine(4, 5), lif(5))
    graph.edges.append(("1.LIF", "1.LIF"))
    same = chain((4,), *[graph.nodes[name] for name in ("0.Affine", "1.LIF")])
    same.nodes["back"] = nir.Linear(weight=np.eye(5))
    same.edges += [("1.LIF", "back"), ("back", "1.LIF")]
    check(same, EULER, feedback=("back",))
    found, twin = (import_graph(g, **EULER) for g in (graph, same))
    assert found.description == twin.description
    assert all(torch.equal(value, twin.weights[name]) for name, value in found.weights.items())


def test_a_graph_within_a_graph_is_flattened() -> None:
    neuron, back, first = lif(5), nir.Linear(weight=uniform(-1, 1, 5, 5)), affine(4, 5)
    inner = nir.NIRGraph(
        {"input": nir.Input([5]), "lif": neuron, "w_rec": back, "output": nir.Output([5])},
        [("input", "lif"), ("lif", "w_rec"), ("w_rec", "lif"), ("lif", "output")],
        type_check=False,
    )
    found = import_graph(chain((4,), first, inner), **EULER)
    assert list(found.layers) == ["0.Affine", "1.NIRGraph.lif"]
    flat = chain((4,), first, neuron)
    flat.nodes["w_rec"] = back
    flat.edges += [("1.LIF", "w_rec"), ("w_rec", "1.LIF")]
    x = (uniform(0, 1, 60, 4) < 0.4).astype(np.float32)
    assert np.array_equal(outputs(found, x), outputs(import_graph(flat, **EULER), x))


def test_several_edges_into_a_node_are_added() -> None:
    graph = chain((4,), affine(4, 5), lif(5), affine(5, 5))
    graph.nodes["aside"] = affine(4, 5)
    graph.edges += [("input", "aside"), ("aside", "1.LIF"), ("1.LIF", "output")]
    found = check(graph, EULER)
    assert [layer.kind for layer in found.description.layers].count("add") == 2


def layer_values(found: Imported, x: np.ndarray[Any, Any]) -> dict[str, Any]:
    """What the layer of each node gives."""
    network = exodus_core.network.build(found.description)
    network.load_state_dict(found.weights)
    values = {}
    for node, name in found.layers.items():
        network.get_submodule(name).register_forward_hook(lambda *call, node=node: values.update({node: call[2]}))
    with torch.no_grad():
        network(torch.tensor(x)[None])
    return {
        node: np.asarray(value[0] if isinstance(value, torch.Tensor) else value[0][0]) for node, value in values.items()
    }


def test_the_layer_of_a_product_gives_its_values_with_the_gain_and_the_leak_of_the_node_behind() -> None:
    product, leak = affine(4, 3), uniform(-1, 1, 3)
    node = nir.LI(tau=uniform(2, 9, 3) * DT, r=uniform(1, 2, 3), v_leak=leak)
    graph = chain((4,), product, node)
    conventions = {**EULER, "start": "reset"}
    found = import_graph(graph, dtype="float64", **conventions)
    x = (uniform(0, 1, 40, 4) < 0.4).astype(float)
    values = layer_values(found, x)
    given = x @ product.weight.T + product.bias
    np.testing.assert_allclose(values["0.Affine"], DT / node.tau * (node.r * given + leak), rtol=1e-10)
    np.testing.assert_allclose(values["1.LI"], nir_loop.run(graph, x, **conventions), rtol=1e-10, atol=1e-10)


def test_weights_that_two_nodes_read_keep_the_gain_of_neither() -> None:
    graph = chain((4,), affine(4, 5), lif(5))
    graph.nodes["beside"] = lif(5)
    graph.edges += [("0.Affine", "beside"), ("beside", "output")]
    check(graph, EULER)


def test_a_scale_of_one_leaves_the_weights_before_it_to_all_who_read_them() -> None:
    graph = chain((4,), affine(4, 5), nir.Scale(scale=np.ones(5)), lif(5))
    graph.nodes["beside"] = lif(5)
    graph.edges += [("0.Affine", "beside"), ("beside", "output")]
    check(graph, EULER)


def test_parameters_of_each_neuron_become_lists_and_equal_ones_numbers() -> None:
    taus = np.array([2.0, 4.0, 8.0]) * DT
    one = import_graph(chain((3,), lif(3, tau=taus, r=taus / DT)), **EULER).description.data["layers"]
    assert one[0]["alpha"] == [0.5, 0.75, 0.875]
    every = import_graph(chain((3,), lif(3, tau=np.full(3, 4 * DT), r=np.full(3, 4.0))), **EULER).description
    assert every.data["layers"][0]["alpha"] == 0.75
    image = np.broadcast_to(taus[:2].reshape(2, 1, 1), (2, 3, 3))
    channels = import_graph(chain((2, 3, 3), lif(2, 3, 3, tau=image, r=image / DT)), **EULER).description
    assert channels.data["layers"][0]["alpha"] == [[[0.5]], [[0.75]]]


def test_one_value_for_all_neurons_is_taken_to_each() -> None:
    node = nir.LIF(tau=np.array(4 * DT), r=np.array(4.0), v_leak=np.array(0.0), v_threshold=np.array(1.0))
    found = import_graph(chain((3,), node), **EULER)
    assert found.description.data["layers"][0]["alpha"] == 0.75
    assert found.description.output_shape == (3,)


@pytest.mark.parametrize(("firing", "count"), [("above", 4), ("at", 5)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_membrane_at_the_threshold_fires_by_the_convention(firing: str, count: int, dtype: str) -> None:
    node = nir.IF(r=np.ones(1), v_threshold=np.ones(1))
    graph = chain((1,), node)
    found = import_graph(graph, input_gain="unit", reset="subtract", firing=firing, dtype=dtype)
    x = np.array([1.0, 0.0] * 5)[:, None]
    spikes = outputs(found, x.astype(dtype))
    # Above: 1 does not fire, 2 does, and leaves 1.
    assert spikes.sum() == count


def test_conventions_of_sinabs_are_several_spikes_in_a_step_and_a_lower_bound() -> None:
    node = nir.IF(r=np.ones(1), v_threshold=np.ones(1))
    found = import_graph(chain((1,), node), written_by="sinabs")
    spikes = outputs(found, np.array([2.5, 0.5, -5.0, 1.75, 0.5], dtype=np.float32)[:, None])
    assert spikes[:, 0].tolist() == [2, 1, 0, 0, 1]


def test_the_argument_goes_before_the_library_and_that_before_the_equations() -> None:
    graph = chain((3,), lif(3))
    assert import_graph(graph, written_by="norse", dt=DT).conventions.input_gain == "step"
    assert import_graph(graph, written_by="norse", dt=DT, input_gain="unit").conventions.input_gain == "unit"
    assert import_graph(graph, **EULER).conventions.input_gain == "equation"


@pytest.mark.parametrize(
    ("node", "given", "missing"),
    [
        (lif(3), {}, "dt, discretisation, reset"),
        (lif(3), {"dt": DT, "discretisation": "euler"}, "reset"),
        (lif(3), {"written_by": "snntorch"}, "reset"),
        (lif(3), {"written_by": "norse"}, "dt"),
        (lif(3, v_leak=np.ones(3)), EULER, "start"),
        (lif(3, v_reset=np.ones(3)), EULER, "start"),
        (cuba(3), EULER, "synapse"),
        (nir.IF(r=np.ones(3), v_threshold=np.ones(3)), {"dt": DT}, "reset"),
        (nir.IF(r=np.ones(3), v_threshold=np.ones(3)), {}, "dt, reset"),
        (nir.I(r=np.ones(3)), {}, "dt"),
        (nir.Delay(delay=np.ones(3)), {}, "dt"),
        (nir.LI(tau=np.ones(3), r=np.ones(3), v_leak=np.zeros(3)), {}, "dt, discretisation"),
    ],
)
def test_a_convention_that_nobody_states_is_an_error_that_names_the_argument(
    node: Any, given: dict[str, Any], missing: str
) -> None:
    with pytest.raises(ArgumentError) as caught:
        import_graph(chain((3,), node), **given)
    assert caught.value.argument == missing
    assert str(caught.value).startswith(f"{missing} must be given, as the file does not say, got nothing (")
    assert type(node).__name__ in str(caught.value)


def test_integrators_of_unit_gain_need_no_time_step() -> None:
    node = nir.IF(r=np.ones(3), v_threshold=np.ones(3))
    assert import_graph(chain((3,), node), reset="zero", input_gain="unit").description.layers[0].kind == "if"


@pytest.mark.parametrize(
    ("argument", "value", "expected"),
    [
        ("dt", 0.0, "a positive number"),
        ("dt", float("inf"), "a positive number"),
        ("dt", True, "a positive number"),
        ("discretisation", "midpoint", "one of euler, exponential"),
        ("input_gain", "r", "one of equation, step, unit"),
        ("reset", "hard", "one of zero, subtract"),
        ("reset_delayed", 1, "True or False"),
        ("synapse", "late", "one of current, delayed"),
        ("firing", "below", "one of above, at"),
        ("start", "rest", "one of zero, leak, reset"),
        ("max_spikes", 0, "an integer of at least 1"),
        ("min_membrane", -1.0, "one of none, threshold"),
        ("written_by", "brian", f"one of {', '.join(LIBRARIES)}, or None"),
        ("dtype", "float16", "one of float32, float64, or None"),
    ],
)
def test_a_convention_of_another_value_is_refused(argument: str, value: Any, expected: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        import_graph(chain((3,), lif(3)), **{**EULER, argument: value})
    assert str(caught.value) == f"{argument} must be {expected}, got {value}"


REFUSED = {
    "Delay": ((3,), nir.Delay(delay=np.full(3, 1.5 * DT)), "a delay is no whole number of steps of 0.001"),
    "matrix": ((3,), nir.Linear(weight=np.ones((2, 3, 3))), r"its weight has shape \[2, 3, 3\]"),
    "features": ((3,), nir.Linear(weight=np.ones((2, 4))), "in_features must be 3"),
    "bias": ((3,), nir.Affine(weight=np.ones((2, 3)), bias=np.ones(3)), r"its bias has shape \[3\], want \[2\]"),
    "same": ((1, 4, 4), nir.Conv2d((4, 4), np.ones((1, 1, 2, 2)), 1, "same", 1, 1, np.zeros(1)), "padding same of an"),
    "conv": ((1, 4, 4), nir.Conv1d(4, np.ones((1, 1, 2)), 1, 0, 1, 1, np.zeros(1)), r"an input of shape \[channels, l"),
    "pool": (
        (1, 4, 4),
        nir.AvgPool2d(np.array([2, 2]), np.array([2, 2]), np.array([1, 1])),
        r"its padding is \[1, 1\]",
    ),
    "pooled": ((4,), nir.SumPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0])), r"its input has shape \[4\]"),
    "beyond": ((3,), nir.Flatten({"input": np.array([3])}, 1, 1), r"start_dim 1 and end_dim 1 are not of \[3\]"),
    "space": ((2, 2, 2), nir.Scale(scale=uniform(1, 2, 2, 2, 2)), "differs over space"),
    "shape": ((3,), nir.Scale(scale=np.ones(4)), r"scale of shape \[4\] does not fit its input, \[3\]"),
    "below": ((3,), nir.Threshold(threshold=-np.ones(3)), "a threshold is negative"),
    "tau": ((3,), lif(3, tau=np.zeros(3)), "tau is not positive and finite everywhere"),
    "short": ((3,), lif(3, tau=np.full(3, DT / 2)), "tau of 0.0005 is below dt of 0.001: no euler step"),
    "current": ((3,), cuba(3, v_leak=np.ones(3)), "a current past its synapse; start leak has none"),
    "threshold": ((3,), lif(3, v_threshold=-np.ones(3)), "v_threshold is not above the membrane"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_networks_do_not_compute_is_refused_with_the_reason(case: str) -> None:
    shape, node, reason = REFUSED[case]
    with pytest.raises(GraphError, match=reason) as caught:
        import_graph(chain(shape, node), **EULER, start="zero", synapse="current")
    (refusal,) = caught.value.refusals
    assert (refusal.name, refusal.kind) == (f"0.{type(node).__name__}", type(node).__name__)


@pytest.mark.parametrize(
    ("changed", "conventions", "reason"),
    [
        ({"v_reset": np.ones(3)}, {**EXPONENTIAL, "start": "zero"}, "reset subtract subtracts v_threshold"),
        ({}, {**EULER, "reset_delayed": True}, "reset zero is computed at once only"),
        ({}, {**EULER, "max_spikes": 3}, "several spikes in a step are computed with reset subtract only"),
    ],
)
def test_resets_that_no_layer_has_are_refused(
    changed: dict[str, Any], conventions: dict[str, Any], reason: str
) -> None:
    with pytest.raises(GraphError, match=reason):
        import_graph(chain((3,), lif(3, **changed)), **conventions)


def test_a_readout_with_a_delayed_synapse_is_refused() -> None:
    ones = np.ones(3)
    node = nir.CubaLI(tau_syn=ones, tau_mem=ones, r=ones, v_leak=0 * ones)
    with pytest.raises(GraphError, match="synapse delayed is computed for CubaLIF only"):
        import_graph(chain((3,), node), **EULER, synapse="delayed")


def test_all_nodes_that_are_refused_are_named_at_once() -> None:
    graph = chain((3,), nir.Delay(delay=np.full(3, DT / 3)), nir.Linear(weight=np.ones((2, 2, 3))))
    graph.nodes["aside"] = nir.Flatten({"input": np.array([3])}, 0, -1)
    graph.nodes["alone"] = lif(3)
    graph.nodes["bad"] = lif(3, tau=np.zeros(3))
    graph.edges += [("input", "aside"), ("input", "bad"), ("bad", "output")]
    with pytest.raises(GraphError) as caught:
        import_graph(graph, **EULER)
    assert [(refusal.name, refusal.reason) for refusal in caught.value.refusals] == [
        ("aside", "it does not lead to the output"),
        ("alone", "no edge leads to it"),
        ("0.Delay", "a delay is no whole number of steps of 0.001"),
        ("bad", "tau is not positive and finite everywhere"),
    ]


def looped() -> nir.NIRGraph:
    graph = chain((3,), lif(3), nir.Linear(weight=np.eye(3)), lif(3), nir.Linear(weight=np.eye(3)))
    graph.edges.append(("3.Linear", "0.LIF"))
    return graph


def twice() -> nir.NIRGraph:
    graph = chain((3,), lif(3))
    for name in ("a", "b"):
        graph.nodes[name] = nir.Linear(weight=np.eye(3))
        graph.edges += [("0.LIF", name), (name, "0.LIF")]
    return graph


def double_edge() -> nir.NIRGraph:
    graph = chain((3,), lif(3))
    graph.edges.append(("input", "0.LIF"))
    return graph


def unnamed() -> nir.NIRGraph:
    graph = chain((3,), lif(3))
    graph.edges.append(("gone", "0.LIF"))
    return graph


def two_inputs() -> nir.NIRGraph:
    graph = chain((3,), lif(3))
    graph.nodes["more"] = nir.Input([3])
    graph.edges.append(("more", "0.LIF"))
    return graph


def without_output() -> nir.NIRGraph:
    graph = chain((3,), lif(3))
    del graph.nodes["output"]
    graph.edges.remove(("0.LIF", "output"))
    return graph


def empty() -> nir.NIRGraph:
    return chain((3,))


def of_other_output() -> nir.NIRGraph:
    graph = chain((3,), lif(3))
    graph.nodes["output"] = nir.Output([4])
    return graph


def two_ends() -> nir.NIRGraph:
    inner = chain((3,), lif(3))
    inner.nodes["more"] = nir.Output([3])
    inner.edges.append(("0.LIF", "more"))
    return chain((3,), inner)


@pytest.mark.parametrize(
    ("graph", "reason"),
    [
        (looped, "it is on a loop other than neuron -> Linear or Affine -> the same neuron"),
        (twice, "it has 2 recurrent connections, a, b; one is computed"),
        (double_edge, "it has two edges from input"),
        (unnamed, "the edge gone -> 0.LIF names it, and there is no such node"),
        (two_inputs, "it is one of 2; a network has one"),
        (without_output, "it has no Output node"),
        (empty, "it is the input"),
        (of_other_output, r"its shape is \[4\], and \[3\] comes"),
        (two_ends, "it has 1 Input and 2 Output nodes; one of each is read"),
    ],
)
def test_edges_that_no_network_has_are_refused(graph: Any, reason: str) -> None:
    with pytest.raises(GraphError, match=reason):
        import_graph(graph(), **EULER)


def test_both_ways_refuse_with_the_refusals_of_models() -> None:
    assert exodus_core.Refusal is exodus_core.nir.Refusal


def test_names_of_nodes_become_names_of_layers() -> None:
    graph = chain((3,), affine(3, 3), lif(3))
    nodes = dict(zip(["in", "a/b", "a.b", "out"], graph.nodes.values(), strict=True))
    renamed = nir.NIRGraph(nodes, [("in", "a/b"), ("a/b", "a.b"), ("a.b", "out")], type_check=False)
    found = import_graph(renamed, **EULER)
    assert found.layers == {"a/b": "a_b", "a.b": "a_b_1"}
    assert [layer.name for layer in found.description.layers] == ["a_b", "a_b_1"]


def test_a_file_gives_what_its_graph_gives(tmp_path: Path) -> None:
    graph = chain((4,), affine(4, 5), lif(5))
    graph.nodes["output"] = nir.Output([5])
    nir.write(tmp_path / "model.nir", graph)
    found, same = import_graph(tmp_path / "model.nir", **EULER), import_graph(graph, **EULER)
    assert found.description == same.description
    assert all(torch.equal(value, same.weights[name]) for name, value in found.weights.items())
    json.dumps(found.description.data)


def test_a_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file .*gone.nir"):
        import_graph(tmp_path / "gone.nir", **EULER)
    (tmp_path / "text.nir").write_text("nothing")
    with pytest.raises(ArgumentError, match=r"graph must be a NIR file, got .*text.nir, which nir does not read"):
        import_graph(tmp_path / "text.nir", **EULER)
    with pytest.raises(ArgumentTypeError, match=r"graph must be a nir\.NIRGraph, or the path of a file, got list"):
        import_graph([], **EULER)
