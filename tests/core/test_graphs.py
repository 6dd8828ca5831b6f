"""Training steps from CUDA graphs have the bits of steps without; what cannot be replayed is computed as ever.

Where there is no GPU, a stand-in captures: it keeps the computation, and a replay runs it again into the same tensors.
"""

import contextlib
import copy
import functools
import logging
import os
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from graph_stand_in import StandIn
from torch import Tensor

from exodus_core import losses, network
from exodus_core.training import NonFiniteError, Trainer, graphs

#: The device that the fixtures of these tests make tensors on.
DEVICE = os.environ.get("EXODUS_TEST_DEVICE", "cpu")
LAYERS: list[dict[str, Any]] = [
    {"kind": "linear", "in_features": 6, "out_features": 8},
    {"kind": "batch_norm"},
    {"kind": "lif", "alpha": 0.9, "trainable": ["alpha", "threshold"]},
    {"kind": "linear", "out_features": 4},
    {"kind": "exp_leak", "alpha": [0.9, 0.8, 0.7, 0.6]},
]
CLASSES, TRAINS = "max_over_time_ce", {"kind": "van_rossum", "alpha": 0.8}


@pytest.fixture(autouse=True)
def replays(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every replay so far: the recordings in order. Every recording that is made is the real one on a GPU."""
    made: list[Any] = []
    real: Any = graphs.RECORDERS.get(DEVICE, StandIn)

    class Noted(real):  # type: ignore[misc]
        def replay(self) -> None:
            made.append(self)
            super().replay()

    monkeypatch.setitem(graphs.RECORDERS, DEVICE, Noted)
    return made


def pair(optimizer: Any = "adam", data: Any = LAYERS, **options: Any) -> tuple[Trainer, Trainer]:
    """Equal trainers, the first with graphs."""
    made = [Trainer(network.build(data, seed=1), optimizer, graphs=with_graphs) for with_graphs in (None, False)]
    for name, value in options.items():
        setattr(made[0], name, value)
    return made[0], made[1]


def batch(seed: int, samples: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator("cpu").manual_seed(seed)
    x = torch.rand(samples, 7, 6, generator=generator, device="cpu") < 0.4
    return x, torch.randint(0, 4, (samples,), generator=generator, device="cpu")


def equal(first: Trainer, second: Trainer) -> bool:
    one, two = first.state(), second.state()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def both(trainers: tuple[Trainer, Trainer], call: Callable[[Trainer], Any]) -> None:
    """The call on both: equal results, and equal states afterwards."""
    first, second = map(call, trainers)
    assert first == second
    assert equal(*trainers)


def step(trainers: tuple[Trainer, Trainer], x: Any, y: Any, loss: Any = CLASSES, **options: Any) -> None:
    """A step of both."""
    both(trainers, lambda t: t.step(x, y, loss, **options))


OPTIMIZERS: list[Any] = [
    "adam",
    {"kind": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    {"kind": "adamw", "amsgrad": True},
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_steps_have_the_same_bits(optimizer: Any, replays: list[Any]) -> None:
    trainers = pair(optimizer, [*LAYERS[:2], LAYERS[2] | {"recurrent": {}}, *LAYERS[3:]])
    for i in range(20):
        options = [{}, {"clip_norm": 0.1}, {"clip_value": 0.01, "lr": 0.02}][i % 3]
        step(trainers, *batch(i), **options)
    assert len(replays) == 18
    assert len(set(replays)) == 1


@pytest.mark.parametrize("loss", [*losses.KINDS], ids=str)
def test_every_loss_can_be_replayed(loss: str, replays: list[Any]) -> None:
    trainers = pair()
    required: Any = {"van_rossum": TRAINS, "spike_rate_mse": {"kind": loss, "rate": 0.1}}
    required["spike_rate_bounds"] = {"kind": loss, "upper": 0.1}
    name = required.get(loss, loss)
    for i in range(5):
        x, classes = batch(i)
        trains, counts = torch.rand(3, 7, 4) < 0.3, torch.full((3, 4), i)
        targets: Any = classes if loss.endswith("_ce") else counts if loss == "spike_count_mse" else trains
        targets = None if loss.startswith("spike_rate") else targets
        step(trainers, x, targets, name)
    assert len(replays) == 3


def test_accumulated_gradients_have_the_same_bits_and_are_not_overwritten(replays: list[Any]) -> None:
    trainers = pair()
    for i in range(12):
        x, y = batch(i)
        both(trainers, partial(Trainer.forward_backward, x=x, targets=y, loss=CLASSES))
        if i % 4 == 1:
            both(trainers, lambda t: t.optim_step(clip_norm=0.2))
        if i % 4 == 3:
            step(trainers, *batch(i + 50), clip_norm=0.2)
    assert len(replays) == 13


def test_a_call_is_replayed_from_the_third_of_its_kind_on(replays: list[Any]) -> None:
    trainers = pair()
    kinds: list[tuple[Any, Any]] = [
        (batch(0), CLASSES),
        (batch(0, samples=2), CLASSES),
        ((batch(0)[0].float(), batch(0)[1]), CLASSES),
        (batch(0), "sum_over_time_ce"),
        ((batch(0)[0], batch(0)[1].int()), CLASSES),
    ]
    for (x, y), loss in kinds:
        trainers[0]._graphs._forget()
        replays.clear()
        for i in range(4):
            step(trainers, x, y, loss)
            assert len(replays) == max(0, i - 1)


def test_changed_weights_are_used(replays: list[Any]) -> None:
    trainers = pair()
    kept: Any = None
    for i in range(12):
        step(trainers, *batch(i))
        if i == 4:
            kept = trainers[0].state()
            both(trainers, lambda t: t.set_weights(t.weights() * 0.5))
        if i == 7:
            both(trainers, partial(Trainer.load_state, state=kept))
    assert len(set(replays)) == 1
    assert len(replays) == 10


def converted(t: Trainer) -> None:
    t.net.double().float()


def elsewhere(t: Trainer) -> None:
    parameter = next(t.net.parameters())
    parameter.data = parameter.data.clone()


def other_statistics(t: Trainer) -> None:
    norm = t.net._modules["1"]
    assert norm is not None
    norm._buffers["running_mean"] = torch.ones(8)


@pytest.mark.parametrize("change", [converted, elsewhere, other_statistics])
def test_other_memory_is_captured_anew(change: Callable[[Trainer], None], replays: list[Any]) -> None:
    trainers = pair("sgd")
    for i in range(12):
        step(trainers, *batch(i))
        if i == 5:
            both(trainers, change)
    assert len(set(replays)) == 2
    assert len(replays) == 8


def test_a_frozen_parameter_is_refused_as_ever(replays: list[Any]) -> None:
    trainers = pair()
    for i in range(4):
        step(trainers, *batch(i))
    for trainer in trainers:
        trainer.net.get_parameter("0.weight").requires_grad_(False)
        with pytest.raises(RuntimeError, match="does not require grad"):
            trainer.step(*batch(5), CLASSES)


def test_an_input_with_a_gradient_gets_none(replays: list[Any]) -> None:
    trainers = pair()
    for i in range(5):
        x = batch(i)[0].float().requires_grad_()
        step(trainers, x, batch(i)[1])
        assert x.grad is None
    assert len(replays) == 3
    assert trainers[0]._graphs is not None
    assert not any(graph.inputs.x.requires_grad for graph in trainers[0]._graphs._graphs.values())


def test_what_is_not_finite_changes_nothing(replays: list[Any]) -> None:
    trainers = pair()
    for i in range(4):
        step(trainers, batch(i)[0].float(), batch(i)[1])
    x, y = batch(9)
    for call in (Trainer.step, Trainer.forward_backward):
        messages = []
        for trainer in trainers:
            before = trainer.state()
            with pytest.raises(NonFiniteError) as caught:
                call(trainer, x.float() / 0, y, CLASSES)
            messages.append(str(caught.value))
            assert all(torch.equal(value, before[name]) for name, value in trainer.state().items())
        assert messages[0] == messages[1]
    step(trainers, x.float(), y)
    assert len(replays) == 5


def test_wrong_classes_are_refused_before_anything_is_captured_or_replayed(replays: list[Any]) -> None:
    trainer, _ = pair()
    x, y = batch(0)
    for before in (2, 1):
        for _ in range(before):
            trainer.step(x, y, CLASSES)
        for wrong in (y + 4, y - 4):
            with pytest.raises(losses.LossError, match="/targets must be class numbers from 0 to 3"):
                trainer.step(x, wrong, CLASSES)
    assert len(replays) == 1


def own_loss(outputs: Tensor, targets: Tensor) -> losses.LossValue:
    return losses.parse(CLASSES)(outputs, targets)


@contextlib.contextmanager
def hooked(net: Any) -> Iterator[None]:
    handle = net._modules["0"].register_forward_hook(lambda module, args, output: None)
    yield
    handle.remove()


@contextlib.contextmanager
def parameter_hooked(net: Any) -> Iterator[None]:
    handle = net.get_parameter("0.weight").register_hook(lambda grad: grad * 2)
    yield
    handle.remove()


@contextlib.contextmanager
def everything_hooked(net: Any) -> Iterator[None]:
    handle = torch.nn.modules.module.register_module_forward_hook(lambda module, args, output: None)
    yield
    handle.remove()


class Mode(torch.utils._python_dispatch.TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


CONTEXTS: dict[str, Callable[[Any], Any]] = {
    "autocast": lambda net: torch.autocast(DEVICE, torch.bfloat16),
    "a hook of a module": hooked,
    "a hook of a parameter": parameter_hooked,
    "a hook of all modules": everything_hooked,
    "a dispatch mode": lambda net: Mode(),  # type: ignore[no-untyped-call]
    "anomaly detection": lambda net: torch.autograd.set_detect_anomaly(True),
    "an observer": lambda net: network.observe(net, ["0.output"]),
}


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
@pytest.mark.parametrize("context", CONTEXTS)
def test_what_runs_python_is_not_replayed(context: str, replays: list[Any]) -> None:
    trainers = pair("sgd")

    def within(t: Trainer, i: int) -> Any:
        with CONTEXTS[context](t.net):
            return t.step(*batch(i), CLASSES)

    for i in range(4):
        both(trainers, partial(within, i=i))
    assert not replays
    for i in range(4):
        step(trainers, *batch(i))
    assert len(replays) == 2
    both(trainers, partial(within, i=5))
    assert len(replays) == 2
    step(trainers, *batch(6))
    assert len(replays) == 3


class Subclass(Tensor):
    pass


CALLS: dict[str, Callable[[Tensor, Tensor], tuple[Any, Any, Any]]] = {
    "a function as the loss": lambda x, y: (x, y, own_loss),
    "an input that is not contiguous": lambda x, y: (x.transpose(0, 1).contiguous().transpose(0, 1), y, CLASSES),
    "targets that are not contiguous": lambda x, y: (x, y.repeat_interleave(2)[::2], CLASSES),
    "a subclass of tensors": lambda x, y: (x.float().as_subclass(Subclass), y, CLASSES),
}


@pytest.mark.parametrize("kind", CALLS)
def test_other_calls_are_not_replayed(kind: str, replays: list[Any]) -> None:
    trainers = pair("sgd")
    for i in range(5):
        step(trainers, *CALLS[kind](*batch(i)))
    assert not replays


def test_networks_that_draw_masks_are_not_replayed(replays: list[Any]) -> None:
    for p, expected in ((0.5, 0), (0.0, 3)):
        trainers = pair(data=[*LAYERS, {"kind": "dropout", "p": p}])
        for i in range(5):
            step(trainers, *batch(i))
        assert len(replays) == expected


def test_networks_in_pieces_are_not_replayed(replays: list[Any]) -> None:
    layers = [layer for layer in LAYERS if layer["kind"] != "batch_norm"]
    for steps, expected in ((3, 0), (100, 0), (None, 3)):
        trainers = pair(data={"input_shape": [6], "layers": layers, "checkpoint_steps": steps})
        for i in range(5):
            step(trainers, *batch(i))
        assert len(replays) == expected


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")  # torch's own
def test_compiled_networks_are_not_replayed(replays: list[Any]) -> None:
    trainer = Trainer(torch.compile(network.build(LAYERS), backend="eager"), "adam")
    for i in range(4):
        trainer.step(*batch(i), CLASSES)
    assert not replays
    assert trainer.graph_nbytes == 0


def test_settings_that_choose_kernels_tell_calls_apart(replays: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    trainers = pair()
    for i in range(8):
        monkeypatch.setattr(torch.backends.cudnn, "benchmark", i >= 4)
        step(trainers, *batch(i))
    assert len(set(replays)) == 2
    assert len(replays) == 4


def test_a_batch_norm_that_is_switched_tells_calls_apart(replays: list[Any]) -> None:
    trainers = pair()
    for i in range(8):
        for trainer in trainers:
            trainer.net._modules["1"].train(i < 4)
        step(trainers, *batch(i))
    assert len(set(replays)) == 2


@pytest.mark.parametrize("error", [RuntimeError("operation not permitted\nwhere"), torch.OutOfMemoryError("no room")])
def test_a_capture_that_fails_is_told_once_and_the_steps_are_right(
    error: Exception, replays: list[Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(compute: Callable[[], Any], device: torch.device) -> Any:
        compute()
        raise error

    monkeypatch.setitem(graphs.RECORDERS, DEVICE, failing)
    trainers = pair()
    with caplog.at_level(logging.WARNING, "exodus_core"):
        for i in range(6):
            step(trainers, *batch(i))
    reason = str(error).partition("\n")[0]
    assert [record.getMessage() for record in caplog.records] == [
        f"steps of shape (3, 7, 6) are not replayed from a CUDA graph: {reason}"
    ]
    assert not replays


def test_two_graphs_are_kept_and_one_that_is_not_used_makes_room(
    replays: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "IDLE_CALLS", 10)
    trainers = pair()

    def steps(samples: int, count: int) -> None:
        for i in range(count):
            step(trainers, *batch(i, samples))

    steps(1, 3)
    steps(2, 3)
    one, two = replays
    nbytes = trainers[0].graph_nbytes
    # Of each graph the recording, its bool inputs and its int64 targets.
    assert nbytes == one.nbytes + two.nbytes + (1 + 2) * (7 * 6 + 8)
    replays.clear()
    steps(3, 6)  # both others were replayed a moment ago
    assert not replays
    steps(2, 1)
    steps(3, 2)
    assert set(replays) == {two, replays[-1]}
    assert replays[-1] is not one
    assert trainers[0].graph_nbytes == two.nbytes + replays[-1].nbytes + (2 + 3) * (7 * 6 + 8)
    steps(1, 3)  # it was forgotten neither, but has no room
    assert len(set(replays)) == 2


def test_many_kinds_of_calls_take_no_memory(replays: list[Any]) -> None:
    trainer, _ = pair()
    for samples in range(1, 100):
        trainer.step(*batch(0, samples), CLASSES)
    assert trainer._graphs is not None
    assert len(trainer._graphs._warm) <= graphs._MOST_KINDS + 1
    assert not replays
    for _ in range(3):
        trainer.step(*batch(0, 200), CLASSES)
    assert len(replays) == 1


def test_large_steps_are_captured_if_asked_for(replays: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "MOST_BYTES", 1000)
    for asked, expected in ((None, 0), (True, 3)):
        trainers = pair(graphs=asked)
        for i in range(5):
            step(trainers, *batch(i))
        assert len(replays) == expected


def test_graphs_can_be_switched_off_and_on(replays: list[Any]) -> None:
    trainers = pair()
    for i, asked in enumerate([None, None, None, False, False, None]):
        trainers[0].graphs = asked
        step(trainers, *batch(i))
    assert len(replays) == 2


def test_other_devices_have_no_graphs(replays: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    trainers = pair()
    for i in range(5):
        step(trainers, *batch(i))
    assert trainers[0].graph_nbytes
    monkeypatch.delitem(graphs.RECORDERS, DEVICE)
    step(trainers, *batch(5))
    assert len(replays) == 3
    assert trainers[0].graph_nbytes == 0


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda trainer: pickle.loads(pickle.dumps(trainer))])
def test_copies_capture_anew(copied: Callable[[Trainer], Trainer], replays: list[Any]) -> None:
    trainers = pair()
    for i in range(4):
        step(trainers, *batch(i))
    trainers = copied(trainers[0]), trainers[1]
    assert trainers[0].graph_nbytes == 0
    for i in range(4):
        step(trainers, *batch(i))
    assert len(set(replays)) == 2


class FakeCuda:
    """What `CudaRecording` uses of torch.cuda: it notes the order of calls, and whose stream is the current one."""

    def __init__(self, failing: bool = False) -> None:
        self.current, self.failing, self.log = "own", failing, list[str]()

    def current_stream(self, device: torch.device) -> "FakeStream":
        return FakeStream(self, self.current)

    def Stream(self, device: torch.device) -> "FakeStream":  # noqa: N802 (torch's name)
        return FakeStream(self, "side")

    @contextlib.contextmanager
    def stream(self, stream: "FakeStream") -> Iterator[None]:
        before, self.current = self.current, stream.name
        try:
            yield
        finally:
            self.current = before

    def device(self, device: torch.device) -> Any:
        return contextlib.nullcontext()

    def CUDAGraph(self) -> "FakeCuda":  # noqa: N802 (torch's name)
        return self

    @contextlib.contextmanager
    def graph(self, graph: Any, stream: "FakeStream", capture_error_mode: str) -> Iterator[None]:
        self.current = stream.name
        self.log.append(f"capture {capture_error_mode}")
        yield
        if self.failing:  # as in torch, the stream stays
            raise RuntimeError("capture failed")
        self.current = "own"

    def pool(self) -> tuple[int, int]:
        return 0, 1

    def memory_snapshot(self) -> list[dict[str, Any]]:
        pools = {300: (0, 1), 44: (0, 1), 1000: (0, 0), 2000: (0, 2)}
        return [{"total_size": size, "segment_pool_id": pool} for size, pool in pools.items()]

    def replay(self) -> None:
        self.log.append(f"replay on {self.current}")


class FakeStream:
    def __init__(self, cuda: FakeCuda, name: str) -> None:
        self.cuda, self.name = cuda, name

    def wait_stream(self, other: "FakeStream") -> None:
        self.cuda.log.append(f"{self.name} waits for {other.name}")

    def record_event(self) -> str:
        return f"the last turn, on {self.name}"

    def wait_event(self, event: str) -> None:
        self.cuda.log.append(f"{self.name} waits for {event}")


@pytest.mark.parametrize("failing", [False, True])
def test_a_capture_warms_up_on_its_stream_and_leaves_the_threads_stream(
    failing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = FakeCuda(failing)
    monkeypatch.setattr(torch, "cuda", cuda)
    monkeypatch.setattr(graphs, "_side", functools.cache(graphs._Side))
    capture = ["compute on side", "own waits for side", "capture thread_local", "compute on side"]

    def compute() -> str:
        cuda.log.append(f"compute on {cuda.current}")
        return "result"

    def record() -> graphs.CudaRecording[str]:
        return graphs.CudaRecording(compute, torch.device("cuda", 0))

    with pytest.raises(RuntimeError, match="capture failed") if failing else contextlib.nullcontext():
        recording = record()
        assert recording.result == "result"
        assert recording.nbytes == 344
    assert cuda.current == "own"
    assert cuda.log == ["side waits for own", *capture]
    cuda.log.clear()
    if failing:
        cuda.failing = False
        recording = record()
        assert cuda.log == ["side waits for the last turn, on side", "side waits for own", *capture]
        cuda.log.clear()
    recording.replay()
    cuda.current = "another"
    recording.replay()
    assert cuda.log == [
        "own waits for the last turn, on side", "replay on own",
        "another waits for the last turn, on own", "replay on another",
    ]  # fmt: skip


def test_lengths_and_sums_are_replayed_with_the_same_bits(replays: list[Any]) -> None:
    trainers = pair("adam", [LAYERS[0], *LAYERS[2:]])
    loss: Any = [CLASSES, {"kind": "spike_rate_bounds", "upper": 0.1, "weight": 0.5}]
    for i in range(8):
        step(trainers, *batch(i), loss, lengths=torch.tensor([7 - i % 3, 1 + i % 7, 4]))
    assert len(replays) == 6
    with pytest.raises(losses.LossError, match="lengths must be lengths from 1 to 7, got 8"):
        trainers[0].step(*batch(1), loss, lengths=torch.tensor([7, 8, 4]))


def test_class_weights_are_computed_as_ever(replays: list[Any]) -> None:
    trainers = pair()
    for i in range(4):
        step(trainers, *batch(i), {"kind": CLASSES, "class_weights": [1, 2, 1, 0.5]})
    assert replays == []
