"""Time checkpoints: the module in pieces is the module, with less memory kept for the backward pass."""

import copy
import functools
from collections.abc import Callable
from typing import Any, cast

import network_cases as cases
import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import Linear, Sequential

import exodus_core
from assertions import relative_error
from exodus_core import AlphaKernel, network, nn
from exodus_core.nn import TimeCheckpoint

# Steps, and steps of a piece.
SIZES = [(37, 5), (12, 4), (3, 1), (10, 9), (10, 10), (4, 100), (1, 1)]


class EachStep(torch.nn.Module):
    """A module for images on every step of (batch, time, ...)."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.module(x.flatten(0, 1))
        return y.view(*x.shape[:2], *y.shape[1:])


def on_grid(module: torch.nn.Module) -> torch.nn.Module:
    """Weights of few bits: products with them are exact, and have the same bits whatever else a matrix product has."""
    for name, parameter in module.named_parameters():
        if name.endswith(("weight", "bias")):
            parameter.data.mul_(64).round_().div_(64)
    return module


def stack(stateful: bool = False, time_dim: int = 1) -> Sequential:
    options = {"stateful": stateful, "time_dim": time_dim}
    every = {"threshold": torch.linspace(0.5, 1.0, 8), "reset_by": 0.7, "min_membrane": -0.5}
    trainable = ("alpha", "threshold", "reset_by", "min_membrane")
    return Sequential(
        Linear(6, 8),
        nn.LIF(0.9, **every, trainable=trainable, **options),
        Sequential(Linear(8, 8), nn.IF(reset="zero", trainable=("threshold",), **options)),
        Linear(8, 8),
        nn.LIF(torch.linspace(0.2, 0.9, 8), decay_reset=True, max_spikes=3, **options),
        Linear(8, 3),
        nn.ExpLeak(0.9, trainable=("alpha",), **options),
    )


def images() -> Sequential:
    conv = torch.nn.Conv2d(2, 4, 3)
    return Sequential(EachStep(conv), nn.LIF(0.9), EachStep(torch.nn.MaxPool2d(2)), torch.nn.Flatten(2), Linear(16, 3))


def bptt() -> Sequential:
    return Sequential(Linear(6, 5), nn.LIF(0.8, method="bptt", trainable=("alpha", "threshold")), nn.ExpLeak(0.5))


def slayer() -> Sequential:
    return Sequential(Linear(6, 5), nn.LIF(0.8, method="slayer", trainable=("alpha",)), Linear(5, 2))


def shared() -> Sequential:
    """A layer that is called twice, and one that is in it twice."""
    linear, lif = Linear(6, 6), nn.LIF(0.8, threshold=0.25, trainable=("alpha",))
    return Sequential(linear, lif, linear, lif, Linear(6, 20), nn.ExpLeak(0.5))


STACKS: dict[str, tuple[Callable[[], Sequential], tuple[int, ...]]] = {
    "every option": (stack, (6,)),
    "images": (images, (2, 7, 6)),
    "bptt": (bptt, (6,)),
    "slayer": (slayer, (6,)),
    "shared layers": (shared, (6,)),
    "neurons alone": (lambda: Sequential(nn.LIF(0.9, trainable="alpha")), (4,)),
}


def signal(*shape: int, dtype: torch.dtype = torch.float64, spikes: bool = False) -> Tensor:
    """Numbers of few bits, or spikes."""
    x = torch.rand(shape, dtype=torch.float64) < 0.3 if spikes else torch.randn(shape).mul(8).round().div(8)
    return x.to(dtype)


def pair(make: Callable[[], torch.nn.Module], dtype: torch.dtype = torch.float64) -> tuple[Any, Any]:
    """A module twice."""
    module = on_grid(make()).to(dtype)
    return module, copy.deepcopy(module)


def differentiate(call: Callable[[Tensor], Tensor], x: Tensor, module: torch.nn.Module) -> tuple[Tensor, list[Tensor]]:
    """The output, and the gradients of x and of all parameters of a weighted sum."""
    leaf = x.detach().clone().requires_grad_()
    y = call(leaf)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape).sin()
    wanted = [leaf, *module.parameters()]
    return y, list(torch.autograd.grad((y * weights).sum(), wanted, allow_unused=True, materialize_grads=True))


def assert_same(plain: Any, pieces: Any, bound: float) -> None:
    (y, gradients), (found_y, found) = plain, pieces
    assert torch.equal(found_y, y)
    assert y.count_nonzero() > 0
    assert any(gradient.count_nonzero() > 0 for gradient in gradients)
    for ours, theirs in zip(found, gradients, strict=True):
        assert ours.dtype == theirs.dtype
        assert relative_error(ours, theirs) <= bound


@pytest.mark.parametrize("spikes", [False, True])
@pytest.mark.parametrize(("time", "steps"), SIZES)
@pytest.mark.parametrize("name", STACKS)
def test_outputs_have_the_same_bits_and_gradients_differ_by_rounding(
    name: str, time: int, steps: int, spikes: bool
) -> None:
    make, shape = STACKS[name]
    plain, module = pair(make)
    x = signal(3, time, *shape, spikes=spikes) * 1
    assert_same(differentiate(plain, x, plain), differentiate(TimeCheckpoint(module, steps), x, module), 1e-12)


def test_in_float32_gradients_differ_by_the_rounding_of_a_sum_of_as_many_terms_as_pieces() -> None:
    plain, module = pair(stack, torch.float32)
    exact, _ = pair(stack)
    exact.load_state_dict(plain.state_dict())
    x = signal(4, 300, 6, dtype=torch.float32)
    y, theirs = differentiate(plain, x, plain)
    found_y, ours = differentiate(TimeCheckpoint(module, 10), x, module)
    _, true = differentiate(exact.double(), x.double(), exact)
    assert torch.equal(found_y, y)
    for found, expected, reference in zip(ours, theirs, true, strict=True):
        # The plain gradient's own error, and eps / 2 of the largest term for each of 29 additions.
        assert relative_error(found, reference) <= 2 * relative_error(expected, reference) + 30 * 2**-24


@pytest.mark.parametrize("time_dim", [0, 1, -2, -1])
@pytest.mark.parametrize("spikes", [False, True])
def test_time_may_be_any_axis_and_the_input_any_view(time_dim: int, spikes: bool) -> None:
    plain, module = pair(lambda: Sequential(nn.LIF(0.9, time_dim=time_dim), nn.ExpLeak(0.7, time_dim=time_dim)))
    x = signal(14, 9, 11, spikes=spikes).transpose(0, 2)[:, ::2]
    checkpoint = TimeCheckpoint(module, 4, time_dim=time_dim)
    assert not x.is_contiguous()
    assert_same(differentiate(plain, x, plain), differentiate(checkpoint, x, module), 1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_those_of_stateful_layers(dtype: torch.dtype) -> None:
    plain, module = pair(lambda: Sequential(nn.LIF(0.9, trainable="alpha"), nn.ExpLeak(0.8)), dtype)
    x = signal(3, 50, 20, dtype=dtype)
    for layer in plain:
        layer.stateful = True
    y, theirs = differentiate(plain, x, plain)
    found_y, ours = differentiate(TimeCheckpoint(module, 7), x, module)
    assert torch.equal(found_y, y)
    for found, expected in zip(ours, theirs, strict=True):
        assert relative_error(found, expected) <= 2 * torch.finfo(dtype).eps
    assert torch.equal(TimeCheckpoint(module, 100)(x), y)


@pytest.mark.parametrize(("time", "steps"), [(21, 4), (21, 50), (8, 4)])
def test_stateful_layers_go_on_and_gradients_reach_the_call_before(time: int, steps: int) -> None:
    plain, module = pair(functools.partial(stack, True))
    first, second = signal(2, time, 6), signal(2, time, 6, spikes=True)
    empty = signal(2, 0, 6)
    results = []
    for net, call in ((plain, plain), (module, TimeCheckpoint(module, steps))):
        leaf = first.clone().requires_grad_()
        head = call(leaf)
        call(empty)
        tail = call(second)
        loss = (tail * torch.linspace(-1, 1, tail.numel(), dtype=tail.dtype).view(tail.shape)).sum()
        states = [part for layer in net.modules() if getattr(layer, "state", None) for part in layer.state]
        found = torch.autograd.grad(loss + states[0].sum(), [leaf, *net.parameters()])
        results.append(((head, tail, *states), found))
    (values, gradients), (found_values, found) = results
    assert len(values) == 2 + 2 * 4
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found_values, values, strict=True))
    assert gradients[0].count_nonzero() > 0
    for ours, theirs in zip(found, gradients, strict=True):
        assert relative_error(ours, theirs) <= 1e-12


def test_a_detached_state_ends_the_gradient() -> None:
    module = stack(stateful=True).double()
    checkpoint = TimeCheckpoint(module, 4)
    leaf = signal(2, 10, 6).requires_grad_()
    checkpoint(leaf)
    for layer in module.modules():
        if isinstance(layer, nn.LIF | nn.ExpLeak):
            layer.detach_state()
    checkpoint(signal(2, 10, 6)).sum().backward()
    assert leaf.grad is None


def test_layers_without_a_state_keep_none() -> None:
    module = stack().double()
    checkpoint = TimeCheckpoint(module, 4)
    x = signal(2, 10, 6)
    assert torch.equal(checkpoint(x), checkpoint(x))
    assert all(layer.state is None for layer in module.modules() if isinstance(layer, nn.LIF | nn.ExpLeak))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_nothing_is_kept_and_training_goes_on_from_there(mode: Any) -> None:
    plain, module = pair(functools.partial(stack, True))
    checkpoint = TimeCheckpoint(module, 4)
    x = signal(2, 10, 6)
    with mode():
        expected, y = plain(x), checkpoint(x)
    assert torch.equal(y, expected)
    assert not y.requires_grad
    assert_same(differentiate(plain, x, plain), differentiate(checkpoint, x, module), 1e-12)


def kept_bytes(module: Callable[[Tensor], Tensor], x: Tensor) -> int:
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        y = module(x)
    del y
    return sum(sizes.values())


def test_kept_are_the_bits_of_spikes_and_the_states_at_the_borders() -> None:
    module = Sequential(*[part for _ in range(3) for part in (Linear(64, 64, bias=False), nn.LIF(0.9))])
    weight = 64 * 64 * 4
    x = signal(2, 400, 64, dtype=torch.float32, spikes=True)
    borders = 19 * 3 * 2 * 2 * 64 * 4
    assert kept_bytes(module, x) == 6 * x.nbytes + 2 * weight
    assert kept_bytes(TimeCheckpoint(module, 20), x) == x.numel() // 8 + borders + 3 * weight
    assert kept_bytes(TimeCheckpoint(module, 20), x + 0.5) == x.nbytes + borders + 3 * weight
    for last in (0.5, 2.0, float("nan")):
        x[-1, -1, -1] = last
        assert kept_bytes(TimeCheckpoint(module, 20), x) == x.nbytes + borders + 3 * weight


def test_frozen_parameters_and_inputs_have_no_gradient_and_unused_ones_none() -> None:
    module = stack().double()
    module.unused = torch.nn.Parameter(torch.zeros(3))
    module[0].weight.requires_grad_(False)
    x = signal(2, 10, 6)
    TimeCheckpoint(module, 4)(x).sum().backward()
    assert x.grad is None
    assert module[0].weight.grad is None
    assert module.unused.grad is None
    assert module[0].bias.grad.count_nonzero() > 0
    frozen = Sequential(nn.LIF(0.9), nn.ExpLeak(0.9))
    assert not TimeCheckpoint(frozen, 4)(x).requires_grad
    leaf = x.clone().requires_grad_()
    TimeCheckpoint(frozen, 4)(leaf).sum().backward()
    assert leaf.grad.count_nonzero() > 0


def test_a_piece_whose_output_does_not_depend_on_the_input_has_no_gradient() -> None:
    class LastPiece(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = torch.nn.Parameter(torch.ones(6, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.gain if x.shape[1] == 2 else self.gain.expand(x.shape)

    leaf = signal(2, 10, 6).requires_grad_()
    TimeCheckpoint(LastPiece(), 4)(leaf).sum().backward()
    assert leaf.grad[:, :8].count_nonzero() == 0
    assert torch.equal(leaf.grad[:, 8:], torch.ones_like(leaf[:, 8:]))


def test_a_module_that_changes_its_input_in_place_changes_a_copy() -> None:
    plain, module = pair(lambda: Sequential(torch.nn.ReLU(inplace=True), nn.LIF(0.9, time_dim=0, trainable="alpha")))
    x = signal(10, 2, 6)
    kept = x.clone()
    y = TimeCheckpoint(module, 4, time_dim=0)(x)
    assert torch.equal(x, kept)
    expected = plain(kept)
    assert torch.equal(y, expected)
    y.cumsum(0).sum().backward()
    expected.cumsum(0).sum().backward()
    assert relative_error(module[1].alpha.grad, plain[1].alpha.grad) <= 1e-12


def test_bool_inputs_go_to_the_module_as_they_are() -> None:
    class Converted(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert x.dtype == torch.bool
            return x.double()

    plain, module = pair(lambda: Sequential(Converted(), Linear(6, 4), nn.LIF(0.9)))
    x = signal(2, 20, 6, dtype=torch.bool, spikes=True)
    results = []
    for net, call in ((plain, plain), (module, TimeCheckpoint(module, 6))):
        y = call(x)
        results.append((y, torch.autograd.grad((y * y.detach().cumsum(1)).sum(), list(net.parameters()))))
    assert_same(results[0], results[1], 1e-12)


@pytest.mark.parametrize("inplace", [False, True])
def test_random_masks_are_drawn_again_and_the_random_numbers_go_on(inplace: bool) -> None:
    module = Sequential(Linear(6, 200), torch.nn.Dropout(0.5, inplace), nn.LIF(0.9, threshold=0.01)).double()
    x = signal(2, 20, 6)
    torch.manual_seed(5)
    y = TimeCheckpoint(module, 6)(x)
    after = torch.rand(3)
    module.eval()  # the backward pass computes in the mode of the forward pass
    bias = torch.autograd.grad(y.sum(), module[0].bias)[0]
    module.train()
    torch.manual_seed(5)
    masked = torch.cat([module[1](module[0](part)) for part in x.split(6, 1)], 1)
    assert torch.equal(torch.rand(3), after)
    expected = module[2](masked)
    assert torch.equal(y, expected)
    assert relative_error(bias, torch.autograd.grad(expected.sum(), module[0].bias)[0]) <= 1e-12
    assert module.training


def test_the_backward_pass_leaves_random_numbers_and_modes_alone() -> None:
    module = Sequential(Linear(6, 200), torch.nn.Dropout(0.5), nn.LIF(0.9)).double()
    y = TimeCheckpoint(module, 6)(signal(2, 20, 6)).sum()
    module[1].eval()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    y.backward()
    assert torch.equal(torch.rand(3), expected)
    assert [part.training for part in module] == [True, False, True]


def test_hooks_of_parameters_are_called_once_with_the_whole_gradient() -> None:
    module = stack().double()
    seen: list[Tensor] = []

    def clamp(grad: Tensor) -> Tensor:
        seen.append(grad)
        return grad.clamp(-0.1, 0.1)

    module[0].weight.register_hook(clamp)
    TimeCheckpoint(module, 3)(signal(2, 10, 6)).sum().backward()
    assert len(seen) == 1
    assert torch.equal(module[0].weight.grad, seen[0].clamp(-0.1, 0.1))


@pytest.mark.parametrize("what", ["weight", "alpha", "x", "state", "buffer"])
def test_what_is_changed_in_place_before_the_backward_pass_is_refused(what: str) -> None:
    module = stack(stateful=True).double()
    checkpoint = TimeCheckpoint(module, 4)
    checkpoint(signal(2, 10, 6)).sum().backward()
    for layer in module.modules():
        if isinstance(layer, nn.LIF | nn.ExpLeak):
            layer.detach_state()
    x = signal(2, 10, 6)
    changed = {
        "weight": module[0].weight,
        "alpha": module[1].alpha,
        "x": x,
        "state": module[1].state[0],
        "buffer": module[4].alpha,
    }[what]
    y = checkpoint(x)
    with torch.no_grad():
        changed.add_(0.01)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_parameter_that_is_replaced_before_the_backward_pass_is_that_of_the_forward_pass() -> None:
    plain, module = pair(stack)
    x = signal(2, 10, 6)
    weight = module[0].weight
    y = TimeCheckpoint(module, 4)(x)
    module[0].weight = torch.nn.Parameter(torch.zeros_like(weight))
    y.sum().backward()
    plain(x).sum().backward()
    assert module[0].weight.grad is None
    assert relative_error(weight.grad, plain[0].weight.grad) <= 1e-12


def test_gradients_can_be_taken_again_but_not_differentiated() -> None:
    module = stack().double()
    y = TimeCheckpoint(module, 4)(signal(2, 10, 6)).sum()
    first, second = (torch.autograd.grad(y, module[0].weight, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    (kept,) = torch.autograd.grad(y, module[0].weight, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives"):
        kept.sum().backward()


def test_parametrised_and_tied_weights_have_their_gradients() -> None:
    def make() -> Sequential:
        module = Sequential(Linear(6, 6), nn.LIF(0.9), Linear(6, 6), nn.LIF(0.8))
        module[2].weight = module[0].weight
        torch.nn.utils.parametrizations.weight_norm(module[0])
        module[1].register_parameter("gain", torch.nn.Parameter(torch.ones(())))
        return module

    plain, module = pair(make)
    x = signal(3, 20, 6)
    (y, theirs), (found_y, ours) = (
        differentiate(plain, x, plain),
        differentiate(TimeCheckpoint(module, 6), x, module),
    )
    assert relative_error(found_y, y) <= 1e-12
    for found, expected in zip(ours, theirs, strict=True):
        assert relative_error(found, expected) <= 1e-12


def test_a_tensor_of_a_graph_that_is_a_buffer_has_its_gradient() -> None:
    weight = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    layer = nn.LIF(torch.full((6,), 0.5, dtype=torch.float64))
    layer.alpha = weight.sigmoid()
    x = signal(3, 20, 6)
    expected, found = (
        torch.autograd.grad(call(x).sum(), weight, retain_graph=True)[0] for call in (layer, TimeCheckpoint(layer, 6))
    )
    assert expected.count_nonzero() > 0
    assert relative_error(found, expected) <= 1e-12


def test_autocast_is_as_in_the_forward_pass() -> None:
    plain, module = pair(lambda: Sequential(Linear(6, 8), nn.LIF(0.9, stateful=True), Linear(8, 3)), torch.float32)
    x = signal(3, 20, 6, dtype=torch.float32)
    results = []
    for net, call in ((plain, plain), (module, TimeCheckpoint(module, 6))):
        with torch.autocast(x.device.type, torch.bfloat16):
            y = call(x)
        assert y.dtype == torch.bfloat16
        results.append((y, torch.autograd.grad(y.float().cumsum(1).sum(), list(net.parameters()))))
    (y, theirs), (found_y, ours) = results
    assert torch.equal(found_y, y)
    for found, expected in zip(ours, theirs, strict=True):
        assert relative_error(found, expected) <= 4 * torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_it_is_recomputed_by_torchs_checkpoint_unless_it_is_stateful(use_reentrant: bool) -> None:
    plain, module = pair(stack)
    checkpoint = functools.partial(
        torch.utils.checkpoint.checkpoint, TimeCheckpoint(module, 4), use_reentrant=use_reentrant
    )
    x = signal(2, 10, 6).requires_grad_()
    plain(x).sum().backward()
    checkpoint(x).sum().backward()
    assert relative_error(module[0].weight.grad, plain[0].weight.grad) <= 1e-12
    for layer in module.modules():
        if isinstance(layer, nn.LIF | nn.ExpLeak):
            layer.stateful = True
    y = checkpoint(x)
    with pytest.raises(RuntimeError, match="a stateful layer must not be recomputed in a backward pass"):
        y.sum().backward()


def test_torchs_checkpoint_within_it_is_refused() -> None:
    class Recomputed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Sequential(Linear(6, 6), nn.LIF(0.9)).double()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = torch.utils.checkpoint.checkpoint(self.inner, x, use_reentrant=False)
            return y

    y = TimeCheckpoint(Recomputed(), 4)(signal(2, 10, 6).requires_grad_())
    with pytest.raises(RuntimeError, match="must not be recomputed within a piece of a sequence"):
        y.sum().backward()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_a_compiled_network_leaves_it_out_of_the_graph_or_refuses_it() -> None:
    plain, module = pair(stack)
    net = Sequential(Linear(6, 6).double(), TimeCheckpoint(module, 4))
    x = signal(2, 10, 6)
    compiled = torch.compile(net, backend="eager")
    expected = plain(net[0](x))
    assert torch.equal(compiled(x), expected)
    compiled(x).sum().backward()
    expected.sum().backward()
    assert relative_error(module[0].weight.grad, plain[0].weight.grad) <= 1e-12
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(net, backend="eager", fullgraph=True)(x)


class Calls(torch.nn.Module):
    """A module that calls a function."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def _compiled() -> torch.nn.Module:
    module = stack()
    module.compile(backend="eager")
    return module


REFUSED: dict[str, tuple[Callable[[], torch.nn.Module], str]] = {
    "srm": (lambda: Sequential(Linear(6, 6), nn.SRM(AlphaKernel(3.0))), r"got SRM '1'; its state is the whole history"),
    "batch norm": (lambda: Sequential(torch.nn.BatchNorm1d(6)), "got BatchNorm1d '0'; in training its statistics"),
    "batch norm without statistics": (
        lambda: Sequential(torch.nn.BatchNorm1d(6, track_running_stats=False)).eval(),
        "got BatchNorm1d '0'",
    ),
    "lstm": (lambda: torch.nn.LSTM(6, 6), "got LSTM; it starts from a state that nothing carries"),
    "compiled": (
        lambda: Sequential(cast(torch.nn.Module, torch.compile(stack(), backend="eager"))),
        "got OptimizedModule '0'; a compiled graph",
    ),
    "compiled in place": (_compiled, "got Sequential; a compiled graph"),
    "network with srm": (
        lambda: network.build(cases.describe("srm") | {"input_shape": [6]}),
        "got Srm '0'; its state is the whole history",
    ),
    "network with batch norm": (
        lambda: network.build(cases.describe("batch_norm") | {"input_shape": [6]}),
        "BatchNorm",
    ),
    "lif": (lambda: Calls(lambda x: exodus_core.lif(x, 0.9)[0]), r"exodus_core\.lif must not be called by a module"),
    "srm function": (lambda: Calls(lambda x: exodus_core.srm(x, AlphaKernel(2.0))[0]), r"exodus_core\.srm must not"),
    "filter": (lambda: Calls(lambda x: exodus_core.filter(x, AlphaKernel(2.0))), r"exodus_core\.filter must not"),
    "another one": (lambda: Sequential(TimeCheckpoint(nn.LIF(0.9), 2)), "must not be within another one"),
    "network in pieces": (
        lambda: network.build(cases.describe("lif") | {"input_shape": [6], "checkpoint_steps": 2}),
        "must not be within another one",
    ),
    "a layer of another time": (lambda: nn.LIF(0.9, time_dim=2), "time_dim must be the axis of time of a time check"),
    "another length": (lambda: Calls(lambda x: x[:, 1:]), "module must be one whose output has the 4 steps"),
    "no time": (lambda: Calls(lambda x: x.sum()), r"with an output of shape \(\)"),
    "no tensor": (lambda: Calls(lambda x: (x, x)), "module must be one that returns a tensor, got .* tuple"),
}


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_run_in_pieces_is_refused_with_the_reason(name: str, keep: bool) -> None:
    make, message = REFUSED[name]
    checkpoint = TimeCheckpoint(make(), 4)
    x = signal(2, 10, 6).requires_grad_(keep)
    with pytest.raises((RuntimeError, ValueError, TypeError), match=message):
        checkpoint(x)
    exodus_core.lif(x, 0.9)  # the refused piece is over


def test_batch_norm_after_training_runs_in_pieces() -> None:
    class Features(torch.nn.BatchNorm1d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.flatten(0, 1)).view_as(x)

    plain, module = pair(lambda: Sequential(Features(6), nn.LIF(0.9)))
    plain(signal(3, 30, 6))
    module.load_state_dict(plain.state_dict())
    plain.eval(), module.eval()
    x = signal(2, 10, 6)
    assert_same(differentiate(plain, x, plain), differentiate(TimeCheckpoint(module, 4), x, module), 1e-12)


def test_a_module_that_changes_its_buffers_is_refused() -> None:
    class Counts(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.get_buffer("count").add_(1)
            return x

    with pytest.raises(RuntimeError, match=r"must leave its parameters and buffers as they are, got .* changes count"):
        TimeCheckpoint(Counts(), 4)(signal(2, 10, 6))


def test_layers_are_the_same_in_every_piece() -> None:
    layers = [nn.LIF(0.9), nn.LIF(0.8)]
    with pytest.raises(RuntimeError, match="must call the same layers in every piece"):
        TimeCheckpoint(Calls(lambda x: layers[x.shape[1] < 4](x)), 4)(signal(2, 10, 6))


def test_a_stateful_layer_is_called_once() -> None:
    layer = nn.LIF(0.9, stateful=True)
    with pytest.raises(RuntimeError, match=r"a stateful layer must be called once .*, got a second call of LIF"):
        TimeCheckpoint(Sequential(layer, layer), 4)(signal(2, 10, 6))
    assert layer.state is None


def test_a_tensor_that_is_neither_parameter_nor_buffer_is_refused() -> None:
    weight = torch.ones(6, dtype=torch.float64, requires_grad=True)
    y = TimeCheckpoint(Sequential(Calls(lambda x: x * weight.exp()), nn.LIF(0.9)), 4)(signal(2, 10, 6).requires_grad_())
    with pytest.raises(RuntimeError, match=r"as parameters or buffers, got one that uses another, of shape \(6,\)"):
        y.sum().backward()


@pytest.mark.parametrize("backward", [False, True])
def test_an_error_within_leaves_states_and_parameters_as_they_were(backward: bool) -> None:
    left = [100]

    def fail(x: Tensor) -> Tensor:
        left[0] -= 1
        if not left[0]:
            raise ArithmeticError("within")
        return x

    module = Sequential(*stack(stateful=True), Calls(fail)).double()
    checkpoint = TimeCheckpoint(module, 4)
    checkpoint(signal(2, 10, 6))
    x = signal(2, 10, 6)
    y = checkpoint(x).sum()
    before = [*module.parameters(), *(layer.state for layer in module if isinstance(layer, nn.LIF | nn.ExpLeak))]
    left[0] = 2
    with pytest.raises(ArithmeticError):
        y.backward() if backward else checkpoint(x)
    after = [*module.parameters(), *(layer.state for layer in module if isinstance(layer, nn.LIF | nn.ExpLeak))]
    assert all(ours is theirs for ours, theirs in zip(after, before, strict=True))
    exodus_core.lif(x, 0.9)  # no piece is current


def test_the_spikes_of_a_known_membrane_need_no_state() -> None:
    x = signal(2, 10, 6)
    assert torch.equal(TimeCheckpoint(Calls(exodus_core.fire), 4)(x), exodus_core.fire(x))


def test_arguments_are_checked() -> None:
    layer = nn.LIF(0.9)
    for wrong, message in [
        (lambda: TimeCheckpoint(len, 4), "module must be a torch.nn.Module, got builtin_function_or_method"),
        (lambda: TimeCheckpoint(layer, 0), "steps must be at least 1, got 0"),
        (lambda: TimeCheckpoint(layer, 2.0), "steps must be an int, got float"),
        (lambda: TimeCheckpoint(layer, 2, time_dim=None), "time_dim must be an int, got NoneType"),
        (lambda: TimeCheckpoint(layer, 2, time_dim=3)(signal(2, 10, 6)), "time_dim must be an axis of x"),
        (lambda: TimeCheckpoint(layer, 2)([1.0]), "x must be a torch.Tensor, got list"),
        (lambda: TimeCheckpoint(layer, 2)(signal(2, 10, 6).to_sparse()), "x must be a dense tensor"),
    ]:
        with pytest.raises((ValueError, TypeError), match=message):
            wrong()  # type: ignore[no-untyped-call]


def test_copies_and_repr() -> None:
    checkpoint = copy.deepcopy(TimeCheckpoint(stack(), 4))
    assert repr(checkpoint).startswith("TimeCheckpoint(\n  steps=4, time_dim=1\n  (module): Sequential(")
    assert len(list(nn.neuron_parameters(checkpoint))) == 6


# Networks as data.

IN_PIECES = [case for case in cases.CASES if "srm" not in case and "batch_norm" not in case]


@pytest.mark.parametrize(("time", "steps"), [(23, 5), (8, 4), (3, 1)])
@pytest.mark.parametrize("case", IN_PIECES)
def test_networks_in_pieces_are_the_networks(case: str, time: int, steps: int) -> None:
    description = cases.describe(case)
    plain, pieces = (network.build(d, seed=1) for d in (description, description | {"checkpoint_steps": steps}))
    on_grid(plain)
    pieces.load_state_dict(plain.state_dict())
    assert pieces.description.checkpoint_steps == steps
    for spikes in (False, True):
        x = signal(3, time, *plain.description.input_shape, spikes=spikes)
        (y, theirs), (found_y, ours) = (differentiate(net, x, net) for net in (plain, pieces))
        assert relative_error(found_y, y) <= 1e-13
        for found, expected in zip(ours, theirs, strict=True):
            assert relative_error(found, expected) <= 1e-12


def test_masks_are_those_of_the_network_without_pieces_one_for_all_steps() -> None:
    data = cases.describe("dropout")
    plain, pieces = (network.build(d, seed=1) for d in (data, data | {"checkpoint_steps": 4}))
    x = torch.ones(3, 10, 5, requires_grad=True)
    for _ in range(2):
        y, found = plain(x), pieces(x)
        assert torch.equal(found, y)
        (grad,) = torch.autograd.grad(found.sum(), x)
        assert torch.equal(grad, y.to(grad.dtype))
    assert torch.equal(plain.generator.get_state(), pieces.generator.get_state())


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32])
def test_inputs_are_converted_piece_by_piece(dtype: torch.dtype) -> None:
    data = {"input_shape": [9], "layers": [{"kind": "linear", "out_features": 2}, {"kind": "lif", "alpha": 0.9}]}
    plain, pieces = (network.build(d, seed=1) for d in (data, data | {"checkpoint_steps": 8}))
    x = signal(2, 80, 9, dtype=dtype, spikes=True)
    assert torch.equal(pieces(x), plain(x))
    assert kept_bytes(pieces, x) < kept_bytes(plain, x) / 3
