"""SpikingJelly in step mode "m": every reset, detached or not, every surrogate, the input's decay, the learnt one."""

from importlib import import_module

import pytest
import torch
from accelerated import assert_close, assert_same, seeded
from torch import nn

import exodus_core
from exodus_core import ops

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("default")]

HEAVISIDE = ("Sigmoid", "ATan", "PiecewiseQuadratic", "PiecewiseExp", "SoftSign", "SuperSpike", "Erf", "Rect")
OTHERS = (
    *("NonzeroSignLogAbs", "PiecewiseLeakyReLU", "SquarewaveFourierSeries", "S2NN", "QPseudoSpike", "LeakyKReLU"),
    *("FakeNumericalGradient", "LogTailedReLU"),
)


@pytest.fixture
def x():
    torch.manual_seed(0)
    return torch.randn(30, 4, 12, dtype=torch.float64) * 1.5 + 0.3


def whole(model, x):
    return model(x)


def check(x, node, **options):
    """Twice in a row, so that the second call starts from the state of the first."""

    def build():
        return nn.Sequential(nn.Linear(12, 16), node(), nn.Linear(16, 5), node())

    return assert_same(build, x, whole, **{"gain": 6.0, "calls": 2, **options})


@pytest.mark.parametrize("detach_reset", [False, True])
@pytest.mark.parametrize("v_reset", [None, 0.0, -0.4, 0.2])
@pytest.mark.parametrize("kind", ["IFNode", "LIFNode", "LIFNode without decay of the input", "ParametricLIFNode"])
def test_every_reset_has_spikingjellys_spikes_states_and_gradients(spikingjelly, x, kind, v_reset, detach_reset):
    options = {"v_reset": v_reset, "detach_reset": detach_reset, "step_mode": "m", "store_v_seq": True}
    if "without" in kind:
        options["decay_input"] = False
    node = getattr(spikingjelly.neuron, kind.split()[0])
    gain = 6.0 if kind in ("LIFNode", "ParametricLIFNode") else 2.0
    unmodified, accelerated = check(x, lambda: node(**options), gain=gain)
    assert_close("v", unmodified[1].v, accelerated[1].v)
    assert_close("v_seq", unmodified[1].v_seq, accelerated[1].v_seq)


def test_its_pools_stay_its_own_and_run_on_the_kernels(spikingjelly, tmp_path):
    layer = import_module("spikingjelly.activation_based.layer")
    x = torch.rand(8, 3, 2, 12, 12, dtype=torch.float64)

    def build():
        node = spikingjelly.neuron.IFNode
        return nn.Sequential(
            *(layer.Conv2d(2, 4, 3, step_mode="m"), node(step_mode="m"), layer.MaxPool2d(2, step_mode="m")),
            *(layer.Conv2d(4, 4, 2, step_mode="m"), node(step_mode="m"), layer.AvgPool2d(2, 1, step_mode="m")),
        )

    _, accelerated = assert_same(build, x, whole, gain=4.0, exact=False)
    largest, mean = accelerated[2], accelerated[5]
    for pool, name in ((largest, "MaxPool2d"), (mean, "AvgPool2d")):
        assert isinstance(pool, getattr(layer, name))
        assert isinstance(pool, getattr(exodus_core.nn, name))
    spikes = (torch.rand(8, 3, 4, 10, 10) < 0.3).float().requires_grad_()
    for pool in (largest, mean):
        assert repr(pool).endswith("step_mode=m)")
        found = pool(spikes).grad_fn.next_functions[0][0]
        assert type(found).__name__ in ("MaxPoolBackward", "AvgPoolBackward")
        with pytest.raises(ValueError, match="T, N, C, H, W"):
            pool(spikes[0])
    torch.save(accelerated, tmp_path / "model")
    loaded = torch.load(tmp_path / "model", weights_only=False)
    assert torch.equal(loaded[2](spikes), largest(spikes))
    kinds = [layer["kind"] for layer in exodus_core.to_network(accelerated, [2, 12, 12])[0]["layers"]]
    assert kinds == ["conv2d", "lif", "max_pool", "conv2d", "lif", "avg_pool"]
    exact = exodus_core.accelerate(build(), exact=True)
    assert type(exact[2]) is layer.MaxPool2d


@pytest.mark.parametrize("name", [*HEAVISIDE, *OTHERS])
@pytest.mark.parametrize("detach_reset", [False, True])
def test_every_surrogate_is_spikingjellys(spikingjelly, x, name, detach_reset):
    surrogate = getattr(spikingjelly.surrogate, name)
    check(
        x, lambda: spikingjelly.neuron.LIFNode(surrogate_function=surrogate(), detach_reset=detach_reset, step_mode="m")
    )


def test_float32_has_spikingjellys_spikes(spikingjelly, x):
    check(x.float(), lambda: spikingjelly.neuron.LIFNode(step_mode="m"), tolerance=1e-5)


def test_states_are_reset_and_detached_by_spikingjelly(spikingjelly, x):
    functional = import_module("spikingjelly.activation_based.functional")

    def build():
        return nn.Sequential(nn.Linear(12, 16), spikingjelly.neuron.LIFNode(step_mode="m", detach_reset=True))

    model = exodus_core.accelerate(seeded(build, 6.0))
    x = x.float()
    first = model(x)
    assert not torch.equal(model(x), first)
    functional.detach_net(model)
    assert model[1].v.grad_fn is None
    functional.reset_net(model)
    assert torch.equal(model(x), first)


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        (lambda sj: sj.neuron.LIFNode(), r"step_mode 's'.* before: .* after: .*set_step_mode"),
        (lambda sj: sj.neuron.QIFNode(step_mode="m"), "not one of the neurons that are known"),
        (lambda sj: sj.neuron.LIFNode(step_mode="m", surrogate_function=sj.surrogate.DeterministicPass()), "no step"),
        (lambda sj: sj.neuron.LIFNode(step_mode="m", surrogate_function=sj.surrogate.ATan(spiking=False)), "no spikes"),
        (lambda sj: type("Own", (sj.neuron.LIFNode,), {})(step_mode="m"), "derived"),
    ],
)
def test_what_is_not_the_same_is_refused_by_layer_and_nothing_changes(spikingjelly, node, reason):
    model = nn.Sequential(nn.Linear(12, 16), node(spikingjelly), spikingjelly.neuron.IFNode(step_mode="m"))
    with pytest.raises(exodus_core.AccelerationError, match=reason) as caught:
        exodus_core.accelerate(model)
    assert [refusal.name for refusal in caught.value.refusals] == ["1"]
    assert type(model[2]) is spikingjelly.neuron.IFNode


def test_a_step_mode_that_changes_later_is_refused_by_the_call(spikingjelly, x):
    model = exodus_core.accelerate(nn.Sequential(spikingjelly.neuron.IFNode(step_mode="m")))
    model[0].step_mode = "s"
    with pytest.raises(exodus_core.AccelerationError, match="step_mode 's'"):
        model(x[0])


def test_time_dim_is_refused_where_layers_take_all_steps(spikingjelly):
    with pytest.raises(exodus_core.AccelerationError, match="leave out time_dim"):
        exodus_core.accelerate(nn.Sequential(spikingjelly.neuron.IFNode(step_mode="m")), time_dim=0)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_a_repeated_image_passes_the_first_layers_once(spikingjelly, momentum, training, affine):
    layer = import_module("spikingjelly.activation_based.layer")

    def build():
        made = nn.Sequential(
            layer.Conv2d(2, 6, 3, bias=False, step_mode="m"),
            layer.BatchNorm2d(6, momentum=momentum, affine=affine, step_mode="m"),
            layer.AvgPool2d(2, step_mode="m"),
            spikingjelly.neuron.IFNode(step_mode="m"),
            layer.Conv2d(6, 4, 3, step_mode="m"),
            spikingjelly.neuron.IFNode(step_mode="m"),
        )
        return made.double().train(training)

    torch.manual_seed(0)
    image = torch.rand(3, 2, 12, 12, dtype=torch.float64)
    unmodified, accelerated = assert_same(
        build, image, lambda model, x: model(x.expand(7, *x.shape)), calls=2, gain=4.0, exact=False
    )
    for (name, theirs), ours in zip(unmodified.named_buffers(), accelerated.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12, msg=name)
    seen = []
    accelerated[3].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].stride(0)))
    accelerated(image.expand(7, *image.shape))
    accelerated(image.repeat(7, 1, 1, 1, 1))
    assert seen[0] == 0 < seen[1]


def test_products_of_spikingjelly_read_spikes(spikingjelly, monkeypatch):
    layer = import_module("spikingjelly.activation_based.layer")
    model = nn.Sequential(
        layer.Conv2d(2, 32, 3, step_mode="m"), layer.Flatten(2), layer.Linear(1152, 40, step_mode="m")
    )
    model.append(spikingjelly.neuron.IFNode(step_mode="m"))
    exodus_core.accelerate(model)
    assert isinstance(model[0], layer.Conv2d)
    assert isinstance(model[2], layer.Linear)
    found = []
    for name in ("spike_convolution", "spike_linear"):
        operator = getattr(ops, name)
        monkeypatch.setattr(ops, name, lambda *given, name=name, run=operator: (found.append(name), run(*given))[1])
    spikes = (torch.rand(50, 8, 2, 8, 8) < 0.05).float()
    assert model[0](spikes).shape == (50, 8, 32, 6, 6)
    assert model[2]((torch.rand(50, 8, 1152) < 0.05).float()).shape == (50, 8, 40)
    assert found == ["spike_convolution", "spike_linear"]


def test_each_step_of_an_expanded_input_has_its_own_gradient(spikingjelly):
    layer = import_module("spikingjelly.activation_based.layer")

    def build():
        return nn.Sequential(layer.Linear(6, 9, step_mode="m"), spikingjelly.neuron.LIFNode(step_mode="m"))

    x = torch.rand(3, 6, dtype=torch.float64).expand(5, 3, 6)
    found = []
    for model in (seeded(build, 8.0), exodus_core.accelerate(seeded(build, 8.0))):
        leaf = x.detach().requires_grad_()
        (grad,) = torch.autograd.grad(model.double()(leaf).square().sum(), leaf)
        found.append(grad)
    assert all(step.any() for step in found[0])
    assert_close("the gradient of the input", *found)


@pytest.mark.parametrize(
    "middle",
    [
        lambda layer: nn.ReLU(inplace=True),
        lambda layer: nn.Unflatten(2, (3, 3)),
        lambda layer: layer.BatchNorm1d(9, step_mode="m"),
        lambda layer: nn.Sequential(layer.BatchNorm1d(9, step_mode="m"), nn.Hardtanh(inplace=True)),
    ],
    ids=["in place", "view", "one value of a feature", "nested"],
)
@pytest.mark.parametrize("batch", [1, 4])
def test_what_follows_a_repeated_image_gets_a_tensor_like_any_other(spikingjelly, middle, batch):
    layer = import_module("spikingjelly.activation_based.layer")

    def build():
        first = layer.Linear(6, 9, bias=False, step_mode="m")
        return nn.Sequential(first, middle(layer), spikingjelly.neuron.IFNode(step_mode="m")).double()

    torch.manual_seed(0)
    image = torch.rand(batch, 6, dtype=torch.float64)
    call = lambda model, x: model(x.expand(7, *x.shape))  # noqa: E731
    if batch == 1:  # a norm of equal values is 0: nothing fires
        with torch.no_grad():
            outputs = [call(model, image) for model in (seeded(build, 8.0), exodus_core.accelerate(seeded(build, 8.0)))]
        assert torch.equal(*outputs)
    else:
        assert_same(build, image, call, gain=8.0, exact=False, tolerance=1e-6)


def test_images_with_channels_last_stay_so(spikingjelly):
    layer = import_module("spikingjelly.activation_based.layer")
    first = layer.Conv2d(2, 8, 3, step_mode="m")
    model = nn.Sequential(first, nn.Identity(), spikingjelly.neuron.IFNode(step_mode="m"))
    exodus_core.accelerate(model.to(memory_format=torch.channels_last))
    x = torch.rand(12, 2, 9, 9).to(memory_format=torch.channels_last).unflatten(0, (4, 3))
    assert model[0](x).flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
