"""Requests that are computed together: the bits of their answers, which of them are, and what becomes of the others."""

import math
import re
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from service.conftest import Answer, Served

import exodus_core
from exodus_client.wire import MSGPACK_TYPE, Encoded, Form, Limits, Message, decode, encode
from exodus_service.call import Call
from exodus_service.compute.scheduler import QueueFullError, Scheduler
from exodus_service.context import Timings
from exodus_service.errors import ServiceError
from exodus_service.gradients import batching
from exodus_service.gradients.batching import BatchKey, compute_ahead
from exodus_service.gradients.request import GradientRequest

CPU = torch.device("cpu")
LIF: dict[str, Any] = {"model": "lif", "alpha": 0.9}
SRM: dict[str, Any] = {"model": "srm", "reset_kernel": {"kind": "alpha", "tau": 4.0, "amplitude": -1.0}}
#: Around the widths of vectors, and of the rows that are computed in place.
INNERS: list[tuple[int, ...]] = [(), (1,), (3,), (7,), (16,), (17,), (100,), (5, 3)]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


SCHEDULER = Scheduler("unused", max_requests=100_000, max_bytes=1 << 40)


def request_of(message: Message, method: str = "exodus", form: Form = "stream") -> GradientRequest:
    encoded = encode(message, form)
    body = memoryview(bytearray(b"".join(encoded.chunks)))
    slot = SCHEDULER.admit(len(body))
    return GradientRequest(method, Call("", encoded.content_type, None, math.inf, slot, Timings(), CPU, Limits(), body))


def body_of(encoded: Encoded) -> bytes:
    return b"".join(encoded.chunks)


def known(key: BatchKey | None) -> BatchKey:
    assert key is not None
    return key


def answers(messages: list[Message], method: str = "exodus") -> tuple[list[bytes], list[bytes]]:
    """The bodies of the answers, computed one by one and together."""
    alone = [body_of(request_of(message, method).run()) for message in messages]
    joined = [request_of(message, method) for message in messages]
    assert len({known(one.batch_key).key for one in joined}) == 1, "they are compatible"
    compute_ahead(joined)
    assert {one.timings.batch for one in joined} == {len(messages)}, "they ran together"
    return alone, [body_of(one.run()) for one in joined]


def batches(count: int, seed: int) -> list[int]:
    """Sizes of the outermost axis of `count` requests."""
    generator = torch.Generator().manual_seed(seed)
    return [int(size) for size in torch.randint(1, 6, (count,), generator=generator)]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes with which the gradient of LIF is computed, one for each call of the kernel."""
    seen: list[tuple[int, ...]] = []
    right = exodus_core.lif_gradient

    def counted(membrane: torch.Tensor, *args: Any, **more: Any) -> Any:
        seen.append(tuple(membrane.shape))
        return right(membrane, *args, **more)

    monkeypatch.setattr(exodus_core, "lif_gradient", counted)
    return seen


@pytest.mark.parametrize("method", ["exodus", "slayer"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("neuron", [LIF, LIF | {"reset": "zero"}, {"model": "if", "reset_by": 0.7}, SRM], ids=str)
def test_answers_are_the_same_to_the_bit(
    ask: Callable[..., Message], method: str, dtype: torch.dtype, neuron: dict[str, Any]
) -> None:
    for case, inner in enumerate(INNERS):
        steps = (1, 5, 65, 130)[case % 4]
        source = "psp" if neuron is SRM else "input"
        for kind in (source, "membrane"):
            messages: list[Message] = []
            for size in batches(2 + case % 5, case):
                trace, output, membrane = torch.randn(3, size, steps, *inner).to(dtype).unbind()
                parts = {kind: trace, "grad_output": output, "grad_membrane": membrane}
                messages.append(ask(neuron, return_=["spikes", "membrane"], **parts))
            alone, together = answers(messages, method)
            assert alone == together, (inner, kind)


@pytest.mark.parametrize("surrogate", exodus_core.surrogate.KINDS)
def test_every_surrogate_gives_the_same_bits(ask: Callable[..., Message], surrogate: str) -> None:
    messages = [
        ask(LIF, surrogate={"kind": surrogate}, membrane=torch.randn(b, 33, 37), grad_output=torch.randn(b, 33, 37))
        for b in (1, 4, 2)
    ]
    alone, together = answers(messages)
    assert alone == together


@pytest.mark.parametrize(
    "more",
    [
        {"output_filter": {"alpha": 0.8}},
        {"result_dtype": "float16"},
        {"time_dim": -1},
        {"time_dim": 2},
        {"surrogate": {"kind": "arctan", "slope": 2.0, "scale": 0.5}},
    ],
    ids=str,
)
def test_every_parameter_of_the_request_gives_the_same_bits(ask: Callable[..., Message], more: dict[str, Any]) -> None:
    messages = [
        ask(LIF, membrane=torch.randn(b, 9, 21), grad_output=torch.randn(b, 9, 21), **more) for b in (3, 1, 1, 7)
    ]
    alone, together = answers(messages)
    assert alone == together


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_spikes_and_weights_give_the_same_bits(ask: Callable[..., Message], dtype: torch.dtype) -> None:
    messages = [
        ask(
            LIF,
            return_=["spikes"],
            spikes=(torch.rand(b, 13, 19) < 0.3),
            weight=torch.randn(33, 19, dtype=dtype),
            grad_output=torch.randn(b, 13, 33, dtype=dtype),
        )
        for b in (2, 1, 5)
    ]
    alone, together = answers(messages)
    assert alone == together


def test_norms_are_those_of_each_request_to_the_bit(ask: Callable[..., Message]) -> None:
    messages = [ask(LIF, membrane=torch.randn(b, 77, 13), grad_output=torch.randn(b, 77, 13)) for b in (1, 2, 3, 5)]
    alone, together = ([decode(bytearray(body), MSGPACK_TYPE) for body in bodies] for bodies in answers(messages))
    norms = [answer.params["grad_norms"]["grad_input"] for answer in alone]
    assert norms == [answer.params["grad_norms"]["grad_input"] for answer in together]
    assert len(set(norms)) == 4


def test_a_batch_is_one_call_of_the_kernel(ask: Callable[..., Message], calls: list[tuple[int, ...]]) -> None:
    joined = [request_of(ask(LIF, membrane=torch.rand(b, 5, 3), grad_output=torch.rand(b, 5, 3))) for b in (1, 2, 4)]
    compute_ahead(joined)
    for one in joined:
        one.run()
    assert calls == [(7, 5, 3)]


def test_no_answer_keeps_the_memory_of_the_batch(ask: Callable[..., Message]) -> None:
    messages = [ask(LIF, membrane=torch.rand(b, 5, 3), grad_output=torch.rand(b, 5, 3)) for b in (1, 2)]
    parts = batching.compute_together([request_of(message).prepare() for message in messages])
    assert [part["grad_input"].untyped_storage().nbytes() for part in parts] == [60, 120]


TRACE = torch.rand(2, 5, 3)
BASE: dict[str, Any] = {"membrane": TRACE, "grad_output": TRACE}


def key_of(message: Message, method: str = "exodus", device: torch.device = CPU) -> BatchKey | None:
    return batching.batch_key(method, message, device)


@pytest.mark.parametrize(
    ("method", "neuron", "parts"),
    [
        ("bptt", LIF, BASE),
        ("exodus", LIF, BASE | {"wrt": ["alpha"]}),
        ("exodus", LIF, BASE | {"time_dim": 0}),
        ("exodus", LIF, BASE | {"time_dim": -3}),
        ("exodus", LIF, BASE | {"time_dim": 3}),
        ("exodus", LIF, BASE | {"time_dim": True}),
        ("exodus", LIF | {"alpha": {"tensor": "decay"}}, BASE | {"decay": torch.rand(3)}),
        ("exodus", LIF | {"initial_membrane": {"tensor": "grad_output"}}, BASE),
        ("exodus", {"model": "srm"}, BASE | {"reset_kernel": torch.rand(3)}),
        ("exodus", LIF, BASE | {"input": TRACE}),
        ("exodus", LIF, BASE | {"weight": torch.rand(3, 3)}),
        ("exodus", LIF, {"grad_output": TRACE}),
    ],
)
def test_what_is_computed_alone(
    ask: Callable[..., Message], method: str, neuron: dict[str, Any], parts: dict[str, Any]
) -> None:
    assert key_of(ask(neuron, **parts), method) is None


@pytest.mark.parametrize(
    ("neuron", "parts"),
    [
        (LIF | {"alpha": 0.8}, BASE),
        (LIF | {"threshold": 0.0}, BASE),
        (LIF | {"threshold": -0.0}, BASE),
        (LIF | {"threshold": True}, BASE),
        (LIF | {"threshold": 1}, BASE),
        (LIF | {"threshold": 1.0}, BASE),
        (LIF, BASE | {"time_dim": 2}),
        (LIF, BASE | {"surrogate": {"kind": "boxcar"}}),
        (LIF, BASE | {"return_": ["spikes"]}),
        (LIF, BASE | {"grad_membrane": TRACE}),
        (LIF, {name: tensor.double() for name, tensor in BASE.items()}),
        (LIF, {name: tensor[:, :4] for name, tensor in BASE.items()}),
        (LIF, {name: tensor[..., :2] for name, tensor in BASE.items()}),
        (LIF, {name: tensor[..., None] for name, tensor in BASE.items()}),
        (LIF, {"input": TRACE, "grad_output": TRACE}),
    ],
)
def test_what_is_not_compatible(ask: Callable[..., Message], neuron: dict[str, Any], parts: dict[str, Any]) -> None:
    other, base = key_of(ask(neuron, **parts)), known(key_of(ask(LIF, **BASE)))
    assert other is not None
    assert other.key != base.key


def test_requests_of_other_sizes_are_compatible_and_say_what_they_add(ask: Callable[..., Message]) -> None:
    small, large = (ask(LIF, membrane=torch.rand(b, 5, 3), grad_output=torch.rand(b, 5, 3)) for b in (1, 4))
    assert known(key_of(small)).key == known(key_of(large)).key
    assert (known(key_of(small)).nbytes, known(key_of(large)).nbytes) == (120, 480)
    product = ask(LIF, spikes=torch.rand(2, 5, 3) < 0.5, weight=torch.rand(100, 3), return_=["membrane"])
    assert known(key_of(product)).nbytes == 2 * 5 * 100 * 4


def test_a_gpu_combines_where_it_has_one_kernel_only(ask: Callable[..., Message]) -> None:
    gpu = torch.device("cuda", 0)
    border = batching.LONG_TIME
    short, long = (
        ask(LIF, membrane=torch.rand(1, t, 3), grad_output=torch.rand(1, t, 3)) for t in (border - 1, border)
    )
    assert key_of(short, device=gpu) is not None
    assert key_of(long, device=gpu) is None
    tables = (Path(__file__).parents[2] / "exodus_core" / "csrc" / "cuda" / "choice.cuh").read_text()
    steps = [int(found) for found in re.findall(r"^    {\w+, \d+, (\d+)},$", tables, re.MULTILINE)]
    assert min(filter(None, steps)) == border


@pytest.mark.parametrize("form", ["json", "zstd", "broken"])
def test_a_body_that_only_unpacking_would_tell_apart_is_computed_alone(good: Message, form: str) -> None:
    one = request_of(good, form="json" if form == "json" else "stream")
    if form == "zstd":
        one.call.content_encoding = "zstd"
    if form == "broken":
        one.call.body = one.call.body[:-1]
    assert one.batch_key is None


def test_a_description_longer_than_any_that_is_needed_does_not_wait_as_objects(
    ask: Callable[..., Message], monkeypatch: pytest.MonkeyPatch
) -> None:
    message = ask(membrane=torch.rand(2, 5), grad_output=torch.rand(2, 5))
    message.params["unknown"] = [[]] * 5000
    request = request_of(message)
    decode = request.call.decode
    decoded: list[weakref.ref[Message]] = []

    def noted() -> Any:
        decoded.append(weakref.ref(decode()[1]))
        return decode()

    monkeypatch.setattr(request.call, "decode", noted)
    assert request.batch_key is None
    assert [message() for message in decoded] == [None]
    with pytest.raises(ServiceError, match="unknown"):
        request.run()


def test_a_request_that_there_is_no_room_for_is_refused_in_its_own_turn(
    ask: Callable[..., Message], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(nbytes: int) -> None:
        raise QueueFullError(f"{nbytes} bytes")

    requests = [request_of(ask(membrane=torch.rand(2, 5), grad_output=torch.rand(2, 5))) for _ in range(3)]
    full = requests[1]
    monkeypatch.setattr(full.call.slot, "reserve", refuse)
    assert full.batch_key is None
    compute_ahead(requests)
    assert [request.timings.batch for request in requests] == [2, 1, 2]
    with pytest.raises(QueueFullError, match="bytes"):
        full.run()


def test_a_request_that_is_refused_does_not_take_the_others_with_it(
    ask: Callable[..., Message], calls: list[tuple[int, ...]]
) -> None:
    good = [ask(LIF, membrane=torch.rand(b, 5, 3), grad_output=torch.rand(b, 5, 3)) for b in (1, 2)]
    bad = ask(LIF, membrane=torch.rand(2, 5, 3), grad_output=torch.rand(3, 5, 3))
    first, refused, second = joined = [request_of(message) for message in (good[0], bad, good[1])]
    assert len({known(one.batch_key).key for one in joined}) == 1
    compute_ahead(joined)
    expected = [body_of(request_of(message).run()) for message in good]
    assert [body_of(first.run()), body_of(second.run())] == expected
    with pytest.raises(ServiceError, match="grad_output") as caught:
        refused.run()
    assert caught.value.code == "invalid"
    assert calls[0] == (3, 5, 3)
    assert [one.timings.batch for one in joined] == [2, 1, 2]


def test_parameters_that_are_refused_are_refused_for_each(ask: Callable[..., Message]) -> None:
    messages = [
        ask(LIF | {"alpha": 1.5}, membrane=torch.rand(b, 5, 3), grad_output=torch.rand(b, 5, 3)) for b in (1, 2)
    ]
    joined = [request_of(message) for message in messages]
    compute_ahead(joined)
    for one in joined:
        with pytest.raises(ServiceError, match=r"/params/neuron/alpha.* in \[0, 1\], got 1.5"):
            one.run()


def test_without_memory_for_all_each_is_computed_alone(
    ask: Callable[..., Message],
    monkeypatch: pytest.MonkeyPatch,
    calls: list[tuple[int, ...]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    messages = [ask(LIF, membrane=torch.rand(b, 5, 3), grad_output=torch.rand(b, 5, 3)) for b in (1, 2)]
    expected = [body_of(request_of(message).run()) for message in messages]
    calls.clear()

    def no_memory(_computations: Any) -> None:
        raise torch.OutOfMemoryError("tried to allocate 2 GiB")

    monkeypatch.setattr(batching, "compute_together", no_memory)
    joined = [request_of(message) for message in messages]
    compute_ahead(joined)
    assert [body_of(one.run()) for one in joined] == expected
    assert calls == [(1, 5, 3), (2, 5, 3)]
    assert "no memory for 2 requests at once" in caplog.text
    assert [one.timings.batch for one in joined] == [1, 1]


def test_a_fault_of_the_service_is_not_hidden(ask: Callable[..., Message], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_computations: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(batching, "compute_together", broken)
    message = ask(LIF, membrane=torch.rand(1, 5, 3), grad_output=torch.rand(1, 5, 3))
    with pytest.raises(RuntimeError, match="a bug"):
        compute_ahead([request_of(message), request_of(message)])


def _batch(answer: Answer) -> int:
    timing = answer.headers["server-timing"]
    return int(timing.partition('batch;desc="')[2].partition('"')[0] or 1)


def _send_while_busy(
    service: Served, messages: list[Message], until: Callable[..., None], late: Message | None = None
) -> list[Answer]:
    """The answers of requests that wait together until the thread is free; `late` is sent first, and has a deadline."""
    callers = [service.new_caller() for _ in messages]
    with ThreadPoolExecutor(len(messages)) as pool:
        with service.busy():
            if late is not None:
                answer = service.caller.gradients(late, headers={"X-Deadline-Ms": "30"})
                assert answer.status == 504
            sent: list[Future[Answer]] = []
            for caller, message in zip(callers, messages, strict=True):
                sent.append(pool.submit(caller.gradients, message))
                until(lambda: service.engine.scheduler.waiting == len(sent))
        found = [one.result() for one in sent]
    for caller in callers:
        caller.connection.close()
    return found


def test_requests_that_wait_together_run_together(
    serve: Callable[..., Served], ask: Callable[..., Message], until: Callable[..., None], calls: list[tuple[int, ...]]
) -> None:
    service = serve()
    messages = [ask(LIF, membrane=torch.rand(b, 5, 3), grad_output=torch.rand(b, 5, 3)) for b in (1, 2, 3)]
    calls.clear()
    found = _send_while_busy(service, messages, until)
    assert calls == [(6, 5, 3)]
    assert [_batch(answer) for answer in found] == [3, 3, 3]
    for message, answer in zip(messages, found, strict=True):
        alone = service.caller.gradients(message)
        assert alone.body == answer.body
        assert "batch" not in alone.headers["server-timing"]
        assert all(
            f"{phase};dur=" in answer.headers["server-timing"] for phase in ("queue", "decode", "kernel", "encode")
        )


def test_settings_bound_a_batch(
    serve: Callable[..., Served], ask: Callable[..., Message], until: Callable[..., None], calls: list[tuple[int, ...]]
) -> None:
    messages = [ask(LIF, membrane=torch.rand(1, 5, 3), grad_output=torch.rand(1, 5, 3)) for _ in range(5)]
    for settings, shapes in (
        ({"max_batch": 1}, [1, 1, 1, 1, 1]),
        ({"max_batch": 2}, [2, 2, 1]),
        ({"max_batch_bytes": 3 * 120}, [3, 2]),
        ({"max_batch_bytes": 120}, [1, 1, 1, 1, 1]),
    ):
        service = serve(**settings)
        calls.clear()
        assert [answer.status for answer in _send_while_busy(service, messages, until)] == [200] * 5
        assert calls == [(size, 5, 3) for size in shapes]


def test_one_past_its_deadline_and_one_refused_leave_the_batch_to_the_others(
    serve: Callable[..., Served], ask: Callable[..., Message], until: Callable[..., None], calls: list[tuple[int, ...]]
) -> None:
    service = serve()
    good = ask(LIF, membrane=torch.rand(2, 5, 3), grad_output=torch.rand(2, 5, 3))
    bad = ask(LIF, membrane=torch.rand(2, 5, 3), grad_output=torch.rand(3, 5, 3))
    calls.clear()
    found = _send_while_busy(service, [good, bad, good], until, late=good)
    assert [answer.status for answer in found] == [200, 422, 200]
    assert calls == [(4, 5, 3)]
    until(lambda: (service.engine.scheduler.requests, service.engine.scheduler.bytes) == (0, 0))


def test_many_clients_with_mixed_requests_each_get_their_own_result(
    serve: Callable[..., Served], ask: Callable[..., Message]
) -> None:
    service = serve(max_batch=8)
    batched: list[int] = []

    def one(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        method = ("exodus", "slayer", "bptt")[seed % 3]
        shape = (1 + seed % 4, 20, (7, 16)[seed % 2])
        membrane, grad_output = torch.randn((2, *shape), generator=generator).unbind()
        more = {"wrt": ["alpha"]} if seed % 5 == 0 else {}
        expected = exodus_core.lif_gradient(membrane, grad_output, 0.9, method=method).input
        caller = service.new_caller()
        for _ in range(6):
            answer = caller.gradients(ask(LIF, membrane=membrane, grad_output=grad_output, **more), method)
            assert torch.equal(answer.tensor("grad_input"), expected)
            batched.append(_batch(answer))
        caller.connection.close()

    with ThreadPoolExecutor(24) as pool:
        list(pool.map(one, range(48)))
    assert max(batched) > 1, "none ran together"
    assert max(batched) <= 8
    assert (service.engine.scheduler.requests, service.engine.scheduler.bytes) == (0, 0)
