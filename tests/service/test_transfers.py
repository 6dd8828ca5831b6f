"""Inputs of calls that wait are uploaded meanwhile, with a stand-in for a GPU: its copies are empty until awaited."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from remote_models import LOSS, Remote, batch, local, same_state
from service.conftest import Served, wait_until

from exodus_core import losses
from exodus_service.compute import transfers
from exodus_service.compute.transfers import SMALL_BYTES, CudaCopies, Uploads, to_host

LARGE = torch.ones(SMALL_BYTES + 1, dtype=torch.uint8)


class StandIn:
    """Copies that are there once they are waited for; `begun` and `waited` have the sources in order."""

    def __init__(self) -> None:
        self.begun: list[torch.Tensor] = []
        self.waited: list[torch.Tensor] = []
        self.failing = False

    def begin(self, tensor: torch.Tensor) -> tuple[torch.Tensor, Any]:
        if self.failing:
            raise torch.OutOfMemoryError("no room")
        self.begun.append(tensor)
        return torch.zeros_like(tensor), tensor

    def wait(self, copied: torch.Tensor, event: Any) -> None:
        copied.copy_(event)
        self.waited.append(event)


def test_an_upload_is_there_once_it_is_waited_for() -> None:
    copies = StandIn()
    upload = Uploads(10**6, copies).start(LARGE)
    assert len(copies.begun) == 1
    assert not copies.waited
    there = upload.wait()
    assert there is not LARGE
    assert torch.equal(there, LARGE)


def test_without_a_gpu_nothing_is_copied() -> None:
    assert Uploads(10**6, None).start(LARGE).wait() is LARGE
    tensors = {"a": LARGE}
    assert to_host(tensors, torch.device("cpu"))["a"] is LARGE


def test_small_tensors_are_left_to_the_call() -> None:
    copies = StandIn()
    assert Uploads(10**6, copies).start(LARGE[:-1]).wait().nbytes == SMALL_BYTES
    assert not copies.begun


def test_uploads_are_bounded_in_bytes_until_they_are_waited_for_or_dropped() -> None:
    copies = StandIn()
    uploads = Uploads(2 * LARGE.nbytes, copies)
    first, second, third = (uploads.start(LARGE) for _ in range(3))
    assert len(copies.begun) == 2
    assert third.wait() is LARGE
    assert uploads.nbytes == 2 * LARGE.nbytes
    assert second.wait() is not LARGE
    assert uploads.nbytes == LARGE.nbytes
    assert uploads.start(LARGE).wait() is not LARGE
    del first
    assert uploads.nbytes == 0


def test_an_upload_without_memory_is_left_to_the_call(caplog: pytest.LogCaptureFixture) -> None:
    copies = StandIn()
    copies.failing = True
    uploads = Uploads(10**6, copies)
    assert uploads.start(LARGE).wait() is LARGE
    assert uploads.nbytes == 0
    assert f"an input of {LARGE.nbytes} bytes is not uploaded ahead: no room" in caplog.text


@pytest.fixture
def copies(serve: Callable[..., Served], connect: Callable[..., Remote]) -> Iterator[tuple[Served, Remote, StandIn]]:
    """A service on a stand-in, and a model on it."""
    service, copies = serve(), StandIn()
    service.engine.uploads = Uploads(10**6, copies)
    remote = connect(service.port)
    remote.create()
    yield service, remote, copies
    assert service.engine.uploads.nbytes == 0


def large(number: int) -> dict[str, Any]:
    spikes, targets = batch(number, samples=64, steps=50)
    return {"input": spikes, "targets": targets}


def test_the_next_step_is_uploaded_while_the_thread_computes(
    copies: tuple[Served, Remote, StandIn], connect: Callable[..., Remote]
) -> None:
    service, remote, copied = copies
    callers = [connect(service.port) for _ in range(2)]

    def post(number: int) -> None:
        params = {"sequence": number, "loss": LOSS}
        assert callers[number - 1].post("/v1/models/m/step", params, **large(number)).status == 200

    threads = [threading.Thread(target=post, args=(number,)) for number in (1, 2)]
    with service.busy():
        for thread in threads:
            thread.start()
        wait_until(lambda: len(copied.begun) == 2)
        assert not copied.waited
    for thread in threads:
        thread.join(30)
    assert len(copied.waited) == 2
    trainer = local()
    for number in (1, 2):
        trainer.step(large(number)["input"], large(number)["targets"], losses.parse(LOSS))
    assert same_state(remote.state(), trainer.state())


def test_a_forward_pass_is_uploaded(copies: tuple[Served, Remote, StandIn]) -> None:
    _, remote, copied = copies
    answer = remote.post("/v1/models/m/forward", {"mode": "eval", "return": ["outputs"]}, input=large(1)["input"])
    assert torch.equal(answer.tensor("outputs"), local().forward(large(1)["input"]))
    assert len(copied.waited) == 1


def test_a_call_that_is_refused_releases_its_upload(copies: tuple[Served, Remote, StandIn]) -> None:
    _, remote, copied = copies
    wrong = large(1) | {"targets": torch.full((64,), 7)}
    assert remote.post("/v1/models/m/step", {"sequence": 1, "loss": LOSS}, **wrong).status == 422
    assert len(copied.begun) == 1


class FakeCuda:
    """The part of torch.cuda that transfers use; it notes the order of calls."""

    def __init__(self) -> None:
        self.current, self.log = "own", list[str]()

    def Stream(self, device: torch.device) -> "FakeStream":  # noqa: N802 (torch's name)
        return FakeStream(self, "copies")

    def current_stream(self, device: torch.device) -> "FakeStream":
        return FakeStream(self, self.current)

    @contextlib.contextmanager
    def stream(self, stream: "FakeStream") -> Iterator[None]:
        before, self.current = self.current, stream.name
        yield
        self.current = before


class FakeStream:
    def __init__(self, cuda: FakeCuda, name: str) -> None:
        self.cuda, self.name = cuda, name

    def record_event(self) -> str:
        self.cuda.log.append(f"event of {self.name}")
        return "event"

    def wait_event(self, event: str) -> None:
        self.cuda.log.append(f"{self.name} waits for {event}")

    def synchronize(self) -> None:
        self.cuda.log.append(f"wait for {self.name}")


class FakeTensor:
    """A tensor of the host, or with `where` set one of the GPU."""

    def __init__(self, cuda: FakeCuda, pinned: bool, where: str = "host") -> None:
        self.cuda, self.pinned, self.where = cuda, pinned, where

    def is_pinned(self) -> bool:
        return self.pinned

    def pin_memory(self) -> "FakeTensor":
        self.cuda.log.append("pin")
        return FakeTensor(self.cuda, True)

    def to(self, device: torch.device, non_blocking: bool) -> "FakeTensor":
        assert self.pinned
        assert non_blocking
        self.cuda.log.append(f"copy on {self.cuda.current}")
        return FakeTensor(self.cuda, False, str(device))

    def record_stream(self, stream: FakeStream) -> None:
        self.cuda.log.append(f"memory is kept for {stream.name}")

    def copy_(self, other: "FakeTensor", non_blocking: bool) -> "FakeTensor":
        assert self.pinned
        assert non_blocking
        self.cuda.log.append(f"copy from {other.where}")
        return self


@pytest.mark.parametrize("pinned", [False, True])
def test_copies_run_on_a_stream_that_the_computing_one_waits_for(pinned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda()
    monkeypatch.setattr(torch, "cuda", cuda)
    copies: Any = CudaCopies(torch.device("cuda", 0))
    copied, event = copies.begin(FakeTensor(cuda, pinned))
    assert copied.where == "cuda:0"
    copies.wait(copied, event)
    assert cuda.log == [
        *([] if pinned else ["pin"]), "copy on copies", "event of copies",
        "own waits for event", "memory is kept for own",
    ]  # fmt: skip


def test_results_come_down_with_one_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda()
    monkeypatch.setattr(torch, "cuda", cuda)
    monkeypatch.setattr(transfers, "_pinned_like", lambda tensor: FakeTensor(cuda, True))
    results: Any = {name: FakeTensor(cuda, False, "cuda:0") for name in ("a", "b")}
    found: Any = to_host(results, torch.device("cuda", 0))
    assert {name: tensor.where for name, tensor in found.items()} == {"a": "host", "b": "host"}
    assert cuda.log == ["copy from cuda:0", "copy from cuda:0", "wait for own"]
