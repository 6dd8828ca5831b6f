"""Twelve models in the style of the libraries' tutorials: one call, equal outputs, gradients of all parameters within
1e-5 of the library's own; and as data, equal spikes."""

import copy
import pickle
import warnings

import pytest
import torch

import exodus_core
from benchmarks.accelerate.gate import AGREEMENT, SMALL, differences, fault
from benchmarks.accelerate.models import MODELS, PeerModel

pytestmark = pytest.mark.peers


@pytest.fixture(params=MODELS, ids=str)
def model(request: pytest.FixtureRequest) -> PeerModel:
    request.getfixturevalue(request.param.library)
    return request.param


@pytest.mark.filterwarnings("default")
def test_a_model_has_the_same_outputs_and_gradients_after_one_call(model):
    assert AGREEMENT == 1e-5
    assert fault(model) is None


@pytest.mark.filterwarnings("default")
def test_the_gate_sees_a_gradient_that_is_not_the_librarys(model, monkeypatch):
    def off(data: dict[str, float]) -> float:
        return max(value for name, value in data.items() if name not in ("active", "outputs"))

    assert off(differences(model, SMALL, 0)) < 1e-3
    original = exodus_core.accelerate

    def twice(made: torch.nn.Module, **options: object) -> torch.nn.Module:
        accelerated = original(made, **options)
        weight = next(accelerated.parameters())
        weight.register_hook(lambda grad: grad * 1.01)
        return accelerated

    monkeypatch.setattr(exodus_core, "accelerate", twice)
    assert off(differences(model, SMALL, 0)) > 5e-3


@pytest.mark.filterwarnings("default")
def test_a_model_as_data_has_the_same_spikes(model):
    torch.manual_seed(0)
    made = model.build(SMALL)
    torch.manual_seed(1)
    x = model.input(SMALL)
    repeated = "for" in model.name and "steps" in model.name
    data = exodus_core.to_network(made, x.shape[1:] if repeated else x.shape[2:])
    network = exodus_core.network.build(data.description)
    missing, unexpected = network.load_state_dict(data.weights, strict=False)
    assert not unexpected
    assert all(name.split(".")[-1].startswith("running_") for name in missing)
    with warnings.catch_warnings(), torch.no_grad():
        wanted = model.call(made, x, SMALL)
        steps = x.unsqueeze(1).expand(-1, SMALL.steps, *x.shape[1:]) if repeated else x
        if not repeated and model.library != "sinabs":
            steps = x.movedim(0, 1)
        found = network(steps.contiguous()).movedim(1, 0)
    assert wanted.any()
    assert (found - wanted).abs().max() <= 1e-6 * wanted.abs().max()


@pytest.mark.filterwarnings("default")
def test_a_lower_bound_as_data_has_the_gradients_of_sinabs(sinabs):
    torch.manual_seed(0)
    layers = (torch.nn.Linear(6, 8), sinabs.layers.IAF(min_v_mem=-0.2), torch.nn.Linear(8, 3))
    made = torch.nn.Sequential(*layers, sinabs.layers.LIF(tau_mem=9.0, norm_input=False, min_v_mem=-0.2))
    data = exodus_core.to_network(made, [6])
    assert [layer.get("bound_after_reset") for layer in data.description["layers"]] == [None, True, None, True]
    network = exodus_core.network.build(data.description)
    network.load_state_dict(data.weights)
    x = 3.0 * torch.randn(2, 30, 6)
    for net in (made, network):
        net(x).square().sum().backward()
    assert (made[1].v_mem == -0.2).any()
    products = [*made[0].parameters(), *made[2].parameters()]
    for theirs, ours in zip(products, network.parameters(), strict=True):
        assert theirs.grad.any()
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("default")
def test_an_accelerated_model_is_copied_and_pickled(model):
    """As the library's own can be: those of norse and snnTorch hold objects that pickle does not take."""
    torch.manual_seed(0)
    made = exodus_core.accelerate(model.build(SMALL), **model.options)
    copied = copy.deepcopy(made) if model.library in ("snntorch", "norse") else pickle.loads(pickle.dumps(made))
    assert type(copied) is type(made)
    assert [type(module) for module in copied.modules()] == [type(module) for module in made.modules()]
    x = model.input(SMALL)
    assert torch.equal(model.accelerated(copied, x, SMALL), model.accelerated(made, x, SMALL))


@pytest.mark.filterwarnings("default")
def test_half_floats_are_refused_by_the_call(model):
    made = exodus_core.accelerate(model.build(SMALL), **model.options).bfloat16()
    with pytest.raises(exodus_core.AccelerationError, match="bfloat16") as caught:
        model.accelerated(made, model.input(SMALL).bfloat16(), SMALL)
    (refusal,) = caught.value.refusals
    cls = type(made.get_submodule(refusal.name))
    assert refusal.kind == f"{model.library}.{getattr(cls, 'fused_from', cls).__name__}"


@pytest.mark.filterwarnings("default")
def test_what_has_no_counterpart_as_data_is_refused_by_layer(sinabs):
    net = torch.nn.Sequential(
        torch.nn.Linear(4, 4),
        torch.nn.ReLU(),
        sinabs.layers.IAF(surrogate_grad_fn=sinabs.activation.Heaviside()),
        torch.nn.Dropout(),
        torch.nn.BatchNorm1d(4),
        sinabs.layers.ALIF(tau_mem=5.0, tau_adapt=10.0),
    )
    with pytest.raises(exodus_core.AccelerationError) as caught:
        exodus_core.to_network(net, [4])
    assert [refusal.name for refusal in caught.value.refusals] == ["1", "2", "3", "4", "5"]
