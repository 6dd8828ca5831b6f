"""Trainer against the plain torch loop, to the bit; and calls that fail, which change nothing, to the bit."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import network_cases as cases
import pytest
import torch
from torch import Tensor

from exodus_core import losses, network
from exodus_core.training import ContextStaleError, NonFiniteError, OptimizerError, Trainer, parse_optimizer

OPTIMIZERS = [
    {"kind": "sgd", "lr": 0.02},
    {"kind": "sgd", "lr": 0.02, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    {"kind": "adam", "lr": 0.01},
    {"kind": "adam", "lr": 0.01, "betas": [0.8, 0.9], "eps": 1e-6, "weight_decay": 0.1, "amsgrad": True},
    {"kind": "adamw", "lr": 0.01, "weight_decay": 0.1},
]
TORCHS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
LOSS = losses.parse("max_over_time_ce")


def batch(seed: int, samples: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator("cpu").manual_seed(seed)
    x = torch.rand(samples, 9, 2, 6, 7, generator=generator, device="cpu") < 0.4
    return x, torch.randint(0, 5, (samples,), generator=generator, device="cpu")


def trainer(optimizer: Any = OPTIMIZERS[2], seed: int = 1, data: Any = cases.MIXED) -> Trainer:
    return Trainer(network.build(data, seed=seed), optimizer)


def plain(optimizer: Any, seed: int = 1, data: Any = cases.MIXED) -> Any:
    """A network and its torch optimiser, for the plain loop."""
    net = network.build(data, seed=seed)
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in optimizer.items() if k != "kind"}
    neurons = [p for name, p in net.named_parameters() if name.rpartition(".")[2] in ("alpha", "threshold", "reset_by")]
    others = [p for p in net.parameters() if all(p is not q for q in neurons)]
    return net, TORCHS[optimizer["kind"]]([{"params": others}, {"params": neurons, "weight_decay": 0.0}], **options)


def equal(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def same_net(ours: Trainer, net: Any) -> bool:
    return equal(ours.net.state_dict(), net.state_dict()) and torch.equal(
        ours.net.generator.get_state(), net.generator.get_state()
    )


def some_state(**options: Any) -> Trainer:
    """A trainer in the midst of training, with accumulated gradients."""
    ours = trainer(**options)
    for i in range(2):
        ours.step(*batch(i), LOSS)
    ours.forward_backward(*batch(2), LOSS)
    return ours


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_steps_have_the_bits_of_the_plain_loop(optimizer: Any) -> None:
    ours, (net, theirs) = trainer(optimizer), plain(optimizer)
    start = ours.weights()
    for i in range(20):
        x, y = batch(i)
        result = ours.step(x, y, LOSS)
        loss = LOSS(net(x), y).loss
        loss.backward()
        norms = {name: p.grad.norm().item() for name, p in net.named_parameters()}
        theirs.step()
        theirs.zero_grad()
        net.constrain()
        assert result.metrics["loss:mean"] == loss.item()
        assert same_net(ours, net)
        total = math.sqrt(sum(v**2 for v in norms.values()))
        assert result.grad_norms == pytest.approx({**norms, "total": total}, rel=1e-6)
    assert not torch.equal(ours.weights(), start)
    for parameter, other in zip(ours.net.parameters(), net.parameters(), strict=True):
        kept = {k: v for k, v in ours.optimizer.state[parameter].items() if v is not None}
        assert equal(kept, {k: v for k, v in theirs.state[other].items() if v is not None})


@pytest.mark.parametrize("optimizer", OPTIMIZERS[1:3], ids=str)
def test_accumulated_gradients_have_the_bits_of_the_plain_loop(optimizer: Any) -> None:
    ours, (net, theirs) = trainer(optimizer), plain(optimizer)
    for i in range(6):
        for k in range(3):
            x, y = batch(3 * i + k)
            LOSS(net(x), y).loss.backward()
            if k < 2:
                ours.forward_backward(x, y, LOSS)
            elif i % 2:
                ours.step(x, y, LOSS)
            else:
                ours.forward_backward(x, y, LOSS)
                flat = torch.cat([p.grad.flatten() for p in net.parameters()])
                assert torch.equal(ours.gradients(), flat)
                norms = ours.optim_step()
                assert norms["total"] == pytest.approx(flat.norm().item(), rel=1e-6)
        assert not ours.gradients().any()
        theirs.step()
        theirs.zero_grad()
        net.constrain()
        assert same_net(ours, net)


def test_options_of_a_call_have_the_bits_of_the_plain_loop_and_hold_for_that_call() -> None:
    optimizer = {"kind": "adamw", "lr": 0.01}
    ours, (net, theirs) = trainer(optimizer), plain(optimizer)
    calls = [{}, {"lr": 0.05, "clip_norm": 0.01}, {"weight_decay": 0.3, "clip_value": 0.002}, {"clip_norm": 1e6}, {}]
    for i, options in enumerate(calls):
        x, y = batch(i)
        ours.step(x, y, LOSS, **options)
        LOSS(net(x), y).loss.backward()
        if "clip_norm" in options:
            torch.nn.utils.clip_grad_norm_(net.parameters(), options["clip_norm"])
        if "clip_value" in options:
            torch.nn.utils.clip_grad_value_(net.parameters(), options["clip_value"])
        for group in theirs.param_groups:
            group["lr"] = options.get("lr", 0.01)
        theirs.param_groups[0]["weight_decay"] = options.get("weight_decay", 0.01)
        theirs.step()
        theirs.zero_grad()
        net.constrain()
        assert same_net(ours, net)
    kept = [(group["lr"], group["weight_decay"]) for group in ours.optimizer.param_groups]
    assert kept == [(0.01, 0.01), (0.01, 0.0)]


@pytest.mark.parametrize("kind", TORCHS)
def test_weight_decay_leaves_the_parameters_of_neurons_alone(kind: str) -> None:
    # Without a gradient a step is the decay alone.
    layers = [
        {"kind": "batch_norm"},
        {"kind": "linear", "out_features": 2},
        {
            "kind": "lif",
            "alpha": 0.9,
            "reset_by": 0.7,
            "trainable": ["alpha", "threshold", "reset_by"],
            "recurrent": {},
        },
        {"kind": "exp_leak", "alpha": [0.9, 0.8], "trainable": ["alpha"]},
    ]
    ours = trainer({"kind": kind, "lr": 0.1, "weight_decay": 0.5}, data={"input_shape": [2], "layers": layers})
    neurons = ["2.alpha", "2.threshold", "2.reset_by", "3.alpha"]
    for options in ({}, {"weight_decay": 0.9}):
        before = {name: value.clone() for name, value in ours.net.named_parameters()}
        ours.optim_step(gradients=torch.zeros_like(ours.gradients()), **options)
        unchanged = [name for name, value in ours.net.named_parameters() if torch.equal(value, before[name])]
        assert unchanged == [*(["0.bias"] if before["0.bias"].eq(0).all() else []), *neurons]
    assert {id(p) for p in ours.net.neuron_parameters()} == {id(ours.net.get_parameter(name)) for name in neurons}


def test_neurons_alone_can_be_trained_with_a_decay() -> None:
    data = {"input_shape": [2], "layers": [{"kind": "exp_leak", "alpha": 0.9, "trainable": ["alpha"]}]}
    ours = trainer({"kind": "adamw", "lr": 0.1, "weight_decay": 0.5}, data=data)
    ours.optim_step(gradients=torch.zeros(1))
    assert ours.weights().item() == pytest.approx(0.9)
    ours.step(torch.rand(2, 3, 2), torch.tensor([0, 1]), LOSS)


def test_step_is_forward_backward_and_optim_step() -> None:
    one, two = trainer(), trainer()
    for i in range(3):
        first = one.step(*batch(i), LOSS, clip_norm=0.1)
        second = two.forward_backward(*batch(i), LOSS)
        assert second.grad_norms == two.optim_step(clip_norm=0.1)
        assert first == second
        assert equal(one.state(), two.state())


def test_begin_and_backward_have_the_bits_of_forward_backward() -> None:
    one, two = some_state(), some_state()
    for i in range(3):
        x, y = batch(i)
        before = one.state()
        forward = one.begin(x)
        assert equal(one.state(), before)
        assert forward.outputs.is_leaf
        assert torch.equal(forward.outputs, one.forward(x, train=True))
        (grad,) = torch.autograd.grad(LOSS(forward.outputs, y).loss, forward.outputs)
        assert one.backward(forward, grad) == two.forward_backward(x, y, LOSS).grad_norms
        assert equal(one.state(), two.state())
        one.optim_step()
        two.optim_step()
    assert equal(one.state(), two.state())


def test_what_a_forward_pass_keeps_is_counted() -> None:
    data = {"input_shape": [40], "layers": [{"kind": "linear", "out_features": 30}, {"kind": "lif", "alpha": 0.9}]}
    ours = trainer(data=data)
    x = torch.rand(5, 11, 40)
    # The input of linear, the membrane, and the outputs; neither the weights, nor the current.
    assert ours.begin(x).nbytes == 4 * 5 * 11 * (40 + 30 + 30)
    assert some_state().begin(batch(0)[0]).nbytes > 0


def test_a_released_forward_pass_leaves_no_memory() -> None:
    ours = trainer()
    outputs = ours._pure_forward.run_counted(batch(0)[0])[0]
    import weakref

    node = weakref.ref(outputs.grad_fn)
    del outputs
    assert node() is None


def test_forward_changes_nothing() -> None:
    ours = some_state()
    before = ours.state()
    x, _ = batch(5)
    ours.net.eval()
    expected = ours.net(x)
    assert torch.equal(ours.forward(x), expected)
    assert not ours.forward(x).requires_grad
    trained = ours.forward(x, train=True)
    assert not torch.equal(trained, expected)
    assert torch.equal(ours.forward(x, train=True), trained)
    assert not ours.net.training
    assert equal(ours.state(), before)


def test_given_gradients_are_used_in_place_of_those_accumulated() -> None:
    one, two = some_state(), some_state()
    given = torch.randn_like(one.gradients())
    kept = given.clone()
    norms = one.optim_step(gradients=given, clip_norm=0.5)
    assert norms["total"] == pytest.approx(given.norm().item(), rel=1e-6)
    assert torch.equal(given, kept)
    offset = 0
    for p in two.net.parameters():
        p.grad = given[offset : offset + p.numel()].view_as(p)
        offset += p.numel()
    two.optim_step(clip_norm=0.5)
    assert equal(one.state(), two.state())
    assert not one.gradients().any()


def test_without_gradients_a_step_of_the_optimizer_changes_nothing() -> None:
    ours = trainer()
    ours.step(*batch(0), LOSS)
    before = ours.state()
    assert set(ours.optim_step().values()) == {0.0}
    assert equal(ours.state(), before)
    assert not any(name.startswith("gradients.") for name in before)


def test_parameters_are_kept_within_their_bounds_after_each_step() -> None:
    ours = trainer({"kind": "sgd", "lr": 1e3})
    ours.step(*batch(0), LOSS)
    first, leak = ours.net._modules["first"], ours.net._modules["13"]
    assert 0 <= first.alpha <= 1
    assert first.threshold > 0
    assert 0 <= leak.alpha <= 1


@pytest.mark.parametrize("optimizer", ["adam", {"kind": "sgd", "lr": 0.1}, {"kind": "sgd", "lr": 0.1, "momentum": 0.9}])
def test_the_tensors_of_a_training_are_all_that_its_state_has(optimizer: Any) -> None:
    layers = [{"kind": "linear", "out_features": 3}, {"kind": "batch_norm"}, {"kind": "lif", "alpha": 0.9}]
    trainer = Trainer(network.build({"input_shape": [4], "layers": layers}), optimizer)
    x, targets = torch.rand(2, 5, 4), torch.zeros(2, 5, 3)
    trainer.step(x, targets, "spike_train_mse")
    trainer.forward_backward(x, targets, "spike_train_mse")
    found, state = trainer.tensors(), trainer.state()
    assert len(found) == len(state) - 2  # the generator's and the count are no tensors of their own
    assert sum(tensor.nbytes for tensor in found) + state["gradients.count"].nbytes == trainer.nbytes
    versions = [tensor._version for tensor in found]
    trainer.optim_step()
    parameters = len(dict(trainer.net.named_parameters()))
    assert all(t._version > before for t, before in zip(found[:parameters], versions, strict=False))


def test_weights_can_be_set() -> None:
    ours = some_state()
    before = ours.state()
    given = torch.randn_like(ours.weights())
    ours.set_weights(given)
    assert torch.equal(ours.weights(), given)
    ours.set_weights(torch.cat([before[f"weights.{name}"].flatten() for name, _ in ours.net.named_parameters()]))
    assert equal(ours.state(), before)


class Broken(torch.autograd.Function):
    """Passes a tensor, and fails in its backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> None:
        raise RuntimeError("broken")


def broken(y: Tensor, target: Tensor) -> losses.LossValue:
    return LOSS(Broken.apply(y), target)  # type: ignore[no-untyped-call]


def infinite(y: Tensor, target: Tensor) -> losses.LossValue:
    value = LOSS(y, target)
    return value._replace(loss=value.loss / 0)


def no_metrics(y: Tensor, target: Tensor) -> Tensor:
    return LOSS(y, target).loss


def nan_gradient(y: Tensor, target: Tensor) -> losses.LossValue:
    value = LOSS(y, target)
    return value._replace(loss=value.loss + (y * 0).sum().sqrt())


X, Y = batch(9)
FAILURES: dict[str, tuple[Callable[[Trainer], Any], type[Exception], str]] = {
    "another shape": (lambda t: t.step(X[:, :, :1], Y, LOSS), ValueError, "x must be of shape"),
    "bad target": (lambda t: t.step(X, Y + 5, LOSS), losses.LossError, "/targets must be class numbers"),
    "bad target alone": (lambda t: t.forward_backward(X, Y + 5, LOSS), losses.LossError, "/targets"),
    "backward": (lambda t: t.step(X, Y, broken), RuntimeError, "broken"),
    "backward alone": (lambda t: t.forward_backward(X, Y, broken), RuntimeError, "broken"),
    "no metrics": (
        lambda t: t.step(X, Y, no_metrics),
        TypeError,
        "loss must be a function that returns a LossValue, got one that returns Tensor",
    ),
    "infinite loss": (lambda t: t.step(X, Y, infinite), NonFiniteError, "loss must be finite, got inf"),
    "gradient": (lambda t: t.step(X, Y, nan_gradient), NonFiniteError, "the norm of 0.weight must be finite, got nan"),
    "gradient alone": (lambda t: t.forward_backward(X, Y, nan_gradient), NonFiniteError, "0.weight"),
    "nan in": (lambda t: t.step(X.float().log(), Y, LOSS), NonFiniteError, "must be finite"),
    "bad lr": (lambda t: t.step(X, Y, LOSS, lr=-1.0), OptimizerError, "/lr must be a number of at least 0, got -1.0"),
    "bad clip": (lambda t: t.optim_step(clip_norm=0.0), OptimizerError, "/clip_norm must be a number above 0"),
    "nan clip": (lambda t: t.optim_step(clip_value=math.nan), OptimizerError, "/clip_value must be a number above"),
    "bad decay": (lambda t: t.optim_step(weight_decay="1"), OptimizerError, "/weight_decay must be a number"),
    "gradients' shape": (lambda t: t.optim_step(gradients=torch.ones(3)), ValueError, r"gradients must be of shape"),
    "gradients' dtype": (
        lambda t: t.optim_step(gradients=t.gradients().double()),
        TypeError,
        "gradients must be torch.float32, got torch.float64",
    ),
    "no gradients": (lambda t: t.optim_step(gradients=[1.0]), TypeError, "gradients must be a float tensor, got list"),
    "infinite gradients": (lambda t: t.optim_step(gradients=t.gradients() + math.inf), NonFiniteError, "0.weight"),
    "weights": (lambda t: t.set_weights(torch.ones(3)), ValueError, r"weights must be of shape \(.*got \(3,\)"),
    "grad_outputs": (
        lambda t: t.backward(t.begin(X), torch.ones(4, 9)),
        ValueError,
        r"grad_outputs must be of shape \(4, 9, 5\), got \(4, 9\)",
    ),
    "integer grad_outputs": (
        lambda t: t.backward(t.begin(X), torch.ones(4, 9, 5, dtype=torch.int64)),
        TypeError,
        "grad_outputs must be a float tensor",
    ),
    "infinite grad_outputs": (
        lambda t: t.backward(t.begin(X), torch.full((4, 9, 5), math.inf)),
        NonFiniteError,
        "must be finite",
    ),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_call_that_fails_changes_nothing(failure: str) -> None:
    call, error, message = FAILURES[failure]
    ours = some_state()
    before, version = ours.state(), ours.weights_version
    with pytest.raises(error, match=message):
        call(ours)
    assert equal(ours.state(), before)
    assert ours.weights_version == version
    assert ours.net.training
    # And it goes on as one that has not failed.
    other = some_state()
    assert ours.step(X, Y, LOSS) == other.step(X, Y, LOSS)
    assert equal(ours.state(), other.state())


def test_a_failing_optimizer_keeps_the_accumulated_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = some_state()
    before = ours.state()

    def fail() -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(ours.optimizer, "step", fail)
    with pytest.raises(RuntimeError, match="no memory"):
        ours.step(X, Y, LOSS, lr=1.0)
    assert equal(ours.state(), before)
    assert ours.optimizer.param_groups[0]["lr"] == 0.01


def test_what_is_not_finite_can_be_asked_for() -> None:
    ours = some_state()
    result = ours.forward_backward(X, Y, nan_gradient, allow_non_finite=True)
    assert math.isnan(result.grad_norms["total"])
    assert ours.gradients().isnan().any()
    with pytest.raises(NonFiniteError):
        ours.optim_step()
    ours.optim_step(allow_non_finite=True)
    assert ours.weights().isnan().any()


def test_running_statistics_that_are_not_finite_are_refused() -> None:
    # Where no gradient reaches the layer that saw it, an input that is not finite shows in the statistics alone.
    layers = [
        {"kind": "batch_norm"},
        {"kind": "lif", "alpha": 0.9, "surrogate": {"kind": "boxcar"}},
        {"kind": "linear", "out_features": 2},
    ]
    ours = trainer(data={"input_shape": [3], "layers": layers})
    x = torch.randn(4, 6, 3)
    x[0, 0, 0] = math.nan
    before = ours.state()
    with pytest.raises(NonFiniteError, match="must be finite, got nan"):
        ours.step(x, torch.tensor([0, 1, 0, 1]), LOSS)
    assert equal(ours.state(), before)


def test_a_forward_pass_of_other_weights_is_stale() -> None:
    ours = some_state()
    changes = (
        lambda: ours.step(X, Y, LOSS),
        lambda: ours.set_weights(ours.weights()),
        lambda: (ours.forward_backward(X, Y, LOSS), ours.optimizer.step()),
    )
    for change in changes:
        forward = ours.begin(X)
        change()
        with pytest.raises(ContextStaleError, match="forward must be of the present weights"):
            ours.backward(forward, torch.ones(4, 9, 5))


def test_gradients_may_accumulate_between_forward_and_backward() -> None:
    ours = trainer()
    forward = ours.begin(X)
    ours.forward_backward(X, Y, LOSS)
    ours.backward(forward, torch.ones(4, 9, 5))


def test_a_forward_pass_serves_one_backward_pass_that_succeeds() -> None:
    ours, other = some_state(), some_state()
    forward = ours.begin(X)
    with pytest.raises(NonFiniteError):
        ours.backward(forward, torch.full((4, 9, 5), math.nan))
    given = torch.randn(4, 9, 5)
    assert ours.backward(forward, given) == other.backward(other.begin(X), given)
    with pytest.raises(ValueError, match="forward must be unused"):
        ours.backward(forward, given)


OTHERS: dict[str, Callable[[], Any]] = {
    "Sequential": lambda: torch.nn.Sequential(torch.nn.Linear(3, 3)),
    "Linear": lambda: torch.nn.Linear(3, 3),
    "OptimizedModule": lambda: torch.compile(torch.nn.Linear(3, 3), backend="eager"),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own
@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_network_of_a_description_is_refused_before_anything_changes(kind: str) -> None:
    net = OTHERS[kind]().eval()
    with pytest.raises(TypeError, match=f"net must be a network of exodus_core.network.build, got {kind}"):
        Trainer(net, "adam")
    assert not any(module.training for module in net.modules())


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")  # torch's own
def test_a_compiled_network_can_be_trained() -> None:
    net = network.build(cases.MIXED, seed=1)
    ours, other = Trainer(torch.compile(net, backend="eager"), "adam"), trainer({"kind": "adam"})
    for i in range(2):
        ours.step(*batch(i), LOSS)
        other.step(*batch(i), LOSS)
    assert torch.allclose(ours.weights(), other.weights(), atol=1e-6)
    assert torch.equal(net.generator.get_state(), other.net.generator.get_state())
    assert ours.state().keys() == other.state().keys()
    other.load_state(ours.state())
    assert equal(ours.state(), other.state())


def test_a_network_is_trained_in_the_dtype_that_it_was_converted_to() -> None:
    ours = Trainer(network.build(cases.MIXED, seed=1).double(), "adamw")
    other = trainer({"kind": "adamw"}, data={**cases.MIXED, "dtype": "float64"})
    with torch.no_grad():
        for p, q in zip(other.net.parameters(), ours.net.parameters(), strict=True):
            p.copy_(q)
    for i in range(2):
        assert ours.step(*batch(i), LOSS) == other.step(*batch(i), LOSS)
    assert equal(ours.state(), other.state())
    half = Trainer(network.build(cases.MIXED, seed=1).bfloat16(), "sgd")
    half.step(*batch(0), LOSS)
    assert half.weights().dtype == torch.bfloat16


def test_a_step_under_autocast_has_the_bits_of_the_loop_that_torch_recommends() -> None:
    optimizer = {"kind": "adam", "lr": 0.01}
    ours, (net, theirs) = trainer(optimizer), plain(optimizer)
    for i in range(3):
        x, y = batch(i)
        with torch.autocast("cpu", torch.bfloat16):
            result = ours.step(x, y, LOSS)
            loss = LOSS(net(x), y).loss
        loss.backward()
        theirs.step()
        theirs.zero_grad()
        net.constrain()
        assert result.metrics["loss:mean"] == loss.item()
        assert same_net(ours, net)


def test_a_network_without_parameters_cannot_be_trained() -> None:
    with pytest.raises(ValueError, match="net must be a network with at least one parameter"):
        trainer(data={"input_shape": [3], "layers": [{"kind": "if"}]})


@pytest.mark.parametrize("optimizer", [{"kind": kind} for kind in TORCHS])
def test_defaults_are_torchs(optimizer: Any) -> None:
    ours, (_, theirs) = trainer(optimizer), plain(optimizer)
    ours_group, theirs_group = (dict(o.param_groups[0], params=None) for o in (ours.optimizer, theirs))
    assert ours_group == {**theirs_group, "decays": True, "lr_factor": 1.0}
    assert parse_optimizer(ours.optimizer_data).data == ours.optimizer_data
    assert ours.optimizer_data["lr"] == 1e-3


def test_optimizers_and_losses_may_be_names() -> None:
    by_name, whole = trainer("adam"), trainer({"kind": "adam"})
    assert by_name.optimizer_data == whole.optimizer_data
    for loss in ("max_over_time_ce", {"kind": "max_over_time_ce"}):
        assert by_name.step(*batch(0), loss) == whole.step(*batch(0), LOSS)
    for wrong in ("max_ce", 3):
        with pytest.raises(losses.LossError, match="must be"):
            by_name.step(*batch(0), wrong)
    assert torch.equal(by_name.weights(), whole.weights())


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_the_smallest_eps_leaves_weights_without_gradient_finite(kind: str) -> None:
    ours = trainer({"kind": kind, "eps": 1e-30, "betas": [0.9, 0.0]})
    for scale in (1.0, 1e-30, 0.0, 0.0):
        ours.optim_step(gradients=torch.full_like(ours.weights(), scale))
    assert ours.weights().isfinite().all()


@pytest.mark.parametrize(
    ("data", "pointer", "expected", "got"),
    [
        (3, "", "a name or an object", "3"),
        ("lion", "/kind", "one of sgd, adam, adamw", "'lion'"),
        ({"kind": "adam", "eps": 0}, "/eps", "a number of at least 1e-30", "0"),
        ({"kind": "adamw", "eps": 1e-31}, "/eps", "a number of at least 1e-30", "1e-31"),
        ({}, "/kind", "one of sgd, adam, adamw", "None"),
        ({"kind": "lion"}, "/kind", "one of sgd, adam, adamw", "'lion'"),
        ({"kind": "adam", "lr": -1}, "/lr", "a number of at least 0", "-1"),
        ({"kind": "adam", "lr": math.inf}, "/lr", "a number of at least 0", "inf"),
        (
            {"kind": "adam", "momentum": 0.9},
            "/momentum",
            "absent (the fields are kind, lr, frozen, lr_scale, lr_of, betas",
            "0.9",
        ),
        ({"kind": "adam", "betas": [0.9, 1.0]}, "/betas/1", "a number in [0, 1)", "1.0"),
        ({"kind": "adam", "betas": [0.9]}, "/betas", "a list of 2", "[0.9]"),
        ({"kind": "adamw", "amsgrad": 1}, "/amsgrad", "true or false", "1"),
        ({"kind": "sgd", "nesterov": True}, "/nesterov", "false, or a momentum above 0", "True"),
    ],
)
def test_optimizers_that_do_not_fit_are_refused(data: Any, pointer: str, expected: str, got: str) -> None:
    with pytest.raises(OptimizerError) as caught:
        trainer(data)
    assert caught.value.pointer == pointer
    assert expected in caught.value.expected
    assert got in caught.value.got
