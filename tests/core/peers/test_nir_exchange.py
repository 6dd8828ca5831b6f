"""NIR graphs that other libraries write are read as they compute, and those that Exodus writes are read by them."""

import nir
import numpy as np
import pytest
import torch

from exodus_core import network
from exodus_core.nir import export_graph, import_graph

pytestmark = [
    pytest.mark.peers,
    # Their own ways with torch and NumPy.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"),
]

STEPS, BATCH, INPUTS, NEURONS = 60, 3, 4, 6


@pytest.fixture(autouse=True)
def _as_other_libraries_expect():
    """Their modules are made on torch's default device, and use operators that are not deterministic."""
    torch.use_deterministic_algorithms(False)
    with torch.device("cpu"), torch.no_grad():
        torch.manual_seed(0)
        yield


@pytest.fixture
def x():
    return (torch.rand(BATCH, STEPS, INPUTS) < 0.4).float()


def linear(scale=1.0):
    layer = torch.nn.Linear(INPUTS, NEURONS)
    layer.weight.mul_(scale)
    return layer


def ours(found, x):
    built = network.build(found.description, device="cpu")
    built.load_state_dict(found.weights)
    return built(x)


def assert_same(found, expected, x):
    assert 0.02 < (expected != 0).float().mean() < 0.9
    assert torch.equal(ours(found, x), expected)


def steps(module, x):
    """The output of a module that is called once a step with its state."""
    outputs, state = [], ()
    for value in x.unbind(1):
        output, *state = module(value, *state)
        outputs.append(output)
    return torch.stack(outputs, 1)


@pytest.mark.parametrize(("reset", "delayed"), [("zero", False), ("subtract", False), ("subtract", True)])
@pytest.mark.parametrize("kind", ["Leaky", "Synaptic"])
def test_a_graph_of_snntorch_is_read_as_it_computes(snntorch, x, kind, reset, delayed):
    from snntorch.export_nir import export_to_nir

    decays = {"beta": torch.linspace(0.5, 0.9, NEURONS)}
    if kind == "Synaptic":
        decays["alpha"] = torch.linspace(0.6, 0.3, NEURONS)
    options = {"reset_mechanism": reset, "reset_delay": delayed, "init_hidden": True}
    neuron = getattr(snntorch, kind)(**decays, threshold=torch.full((NEURONS,), 0.8), **options)
    # Membranes stay below twice the threshold: where one is above it after a reset, snnTorch resets once more.
    net = torch.nn.Sequential(linear(1.0 if kind == "Leaky" else 0.3), neuron)
    found = import_graph(
        export_to_nir(net, torch.rand(INPUTS)), written_by="snntorch", reset=reset, reset_delayed=delayed
    )
    neuron.reset_mem()
    assert_same(found, torch.stack([net(value) for value in x.unbind(1)], 1), x)


def test_a_recurrent_graph_of_snntorch_is_read_as_it_computes(snntorch, x):
    from snntorch.export_nir import export_to_nir

    decays = {"alpha": torch.full((NEURONS,), 0.7), "beta": torch.full((NEURONS,), 0.9)}
    neuron = snntorch.RSynaptic(
        **decays, threshold=torch.ones(NEURONS), linear_features=NEURONS, init_hidden=True, reset_delay=True
    )
    net = torch.nn.Sequential(linear(), neuron)
    found = import_graph(
        export_to_nir(net, torch.rand(INPUTS)), written_by="snntorch", reset="subtract", reset_delayed=True
    )
    assert found.description.layers[1].recurrent is not None
    neuron.reset_mem()
    assert_same(found, torch.stack([net(value) for value in x.unbind(1)], 1), x)


def test_neurons_of_sinabs_are_read_as_it_computes(sinabs, x):
    import sinabs.nir

    some = torch.ones(NEURONS)
    for neuron in (
        sinabs.layers.IAFSqueeze(batch_size=1, spike_threshold=some, min_v_mem=-1.0),
        sinabs.layers.LIFSqueeze(batch_size=1, spike_threshold=some, tau_mem=10 * some, norm_input=False),
    ):
        net = torch.nn.Sequential(linear(4.0), neuron)
        found = import_graph(sinabs.nir.to_nir(net, torch.rand(STEPS, INPUTS)), written_by="sinabs")
        outputs = []
        for sample in x:
            neuron.reset_states()
            outputs.append(net(sample))
        expected = torch.stack(outputs)
        assert expected.max() > 1
        assert_same(found, expected, x)


@pytest.mark.parametrize("case", ["decayed input", "not decayed", "IF", "CUBA"])
def test_neurons_of_spikingjelly_are_read_as_it_computes(spikingjelly, x, case):
    from spikingjelly.activation_based.nir_exchange import to_nir

    neuron = {
        "decayed input": lambda of: of.LIFNode(tau=4.0, v_threshold=0.3, v_reset=-0.1, decay_input=True),
        "not decayed": lambda of: of.LIFNode(tau=4.0, v_threshold=0.5, v_reset=0.0, decay_input=False),
        "IF": lambda of: of.IFNode(v_threshold=0.7, v_reset=0.1),
        "CUBA": lambda of: of.CUBALIFNode(c_decay=0.5, v_decay=0.75, v_threshold=0.7),
    }[case](spikingjelly.neuron)
    net = torch.nn.Sequential(linear(2.0), neuron)
    found = import_graph(to_nir.export_to_nir(net, torch.rand(1, INPUTS)), written_by="spikingjelly", dt=1e-4)
    neuron.reset()
    assert_same(found, torch.stack([net(value) for value in x.unbind(1)], 1), x)


@pytest.mark.parametrize("kind", ["LIF", "CubaLIF"])
def test_a_graph_is_read_as_norse_reads_it(norse, x, kind):
    import norse.torch

    ones = np.ones(NEURONS, dtype=np.float32)
    if kind == "LIF":
        neuron = nir.LIF(tau=0.01 * ones, r=ones, v_leak=0.05 * ones, v_threshold=0.2 * ones)
    else:
        taus = {"tau_syn": 0.005 * ones, "tau_mem": 0.01 * ones}
        neuron = nir.CubaLIF(**taus, r=5 * ones, w_in=2 * ones, v_leak=0 * ones, v_threshold=0.2 * ones)
    weight = linear(4.0).weight.numpy()
    graph = nir.NIRGraph.from_list(nir.Affine(weight=weight, bias=0.1 * ones), neuron)
    theirs = norse.torch.from_nir(graph, dt=1e-3, ignore_warnings=True)
    assert_same(import_graph(graph, written_by="norse", dt=1e-3), steps(theirs, x), x)


LAYERS = {
    "lif": {"kind": "lif", "alpha": 0.8, "threshold": 0.4, "reset": "zero"},
    "cuba_lif": {"kind": "cuba_lif", "alpha": 0.8, "synapse_alpha": 0.5, "threshold": 0.6, "reset": "zero"},
}


@pytest.mark.parametrize("layer", LAYERS)
def test_a_graph_that_exodus_writes_runs_in_snntorch_and_spikingjelly(snntorch, spikingjelly, x, layer):
    from snntorch.import_nir import import_from_nir as into_snntorch
    from spikingjelly.activation_based.nir_exchange.from_nir import import_from_nir as into_spikingjelly

    first = {"kind": "linear", "in_features": INPUTS, "out_features": NEURONS}
    built = network.build([first, LAYERS[layer]], seed=1, device="cpu")
    graph = export_graph(built.description, built.state_dict(), dt=1e-4)
    expected = built(x)
    assert 0.02 < expected.mean() < 0.9
    assert torch.equal(steps(into_spikingjelly(graph, dt=1e-4), x), expected)
    assert torch.equal(steps(into_snntorch(graph), x), expected)
