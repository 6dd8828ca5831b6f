"""The harness of `make chaos`: its proxy does what it says, and its comparisons see a difference."""

import json
import os
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch

from exodus_client import LIF, APIConnectionError, Client, Retries
from tools.chaos import kills, workload
from tools.chaos.points import Disk
from tools.chaos.proxy import FAULTS, Proxy
from tools.chaos.traffic import Message

RETRIES = Retries(count=50, first_delay=0.01, max_delay=0.05)


@pytest.fixture
def membrane() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2, 30, 8), np.float32)


def port_of(client: Client) -> int:
    port = urlsplit(client.connection.session.base_url).port
    assert port is not None
    return port


@pytest.mark.parametrize("fault", FAULTS)
def test_a_patient_client_gets_its_gradients_whatever_the_network_does(
    client: Client, membrane: np.ndarray, fault: str
) -> None:
    wanted = client.gradients(neuron=LIF(0.9), membrane=membrane, grad_output=membrane).grad_input
    with Proxy(port_of(client), 1, [fault], every=2) as proxy, Client(proxy.url, retries=RETRIES) as through:
        for _ in range(12):
            got = through.gradients(neuron=LIF(0.9), membrane=membrane, grad_output=membrane).grad_input
            assert np.array_equal(got, wanted)
    assert proxy.happened[fault] > 0
    assert set(proxy.happened) == {fault}


LOST = {"request lost", "request cut", "connection cut", "answer lost", "answer cut"}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_the_proxy_loses_is_lost(client: Client, membrane: np.ndarray, fault: str) -> None:
    with Proxy(port_of(client), 1, [fault], every=1) as proxy, Client(proxy.url, retries=0) as through:
        if fault in LOST:
            with pytest.raises(APIConnectionError):
                through.gradients(neuron=LIF(0.9), membrane=membrane, grad_output=membrane)
        else:
            through.gradients(neuron=LIF(0.9), membrane=membrane, grad_output=membrane)


def test_the_proxy_reads_the_number_of_a_training_call() -> None:
    from exodus_client.wire import Message as Body
    from exodus_client.wire import Tensor, encode

    encoded = encode(Body.of({"sequence": 17}, [Tensor.of("input", torch.rand(2, 3, 4))]))
    head = f"POST /v1/models/a/step HTTP/1.1\r\nContent-Type: {encoded.content_type}\r\n\r\n".encode()
    assert Message(head, b"".join(encoded.chunks)).sequence == 17
    assert Message(head.replace(b"msgpack", b"json"), json.dumps({"params": {"sequence": 1}}).encode()).sequence is None


def test_power_loss_takes_back_what_was_not_synced(tmp_path: Path) -> None:
    folder = tmp_path / "state" / "models" / "one"
    folder.mkdir(parents=True)
    disk = Disk(loses=True)

    def write(path: Path, *, sync: bool) -> None:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT)
        disk.opened(handle, path)
        os.write(handle, b"0123456789")
        if sync:
            disk.synced(handle)
        os.close(handle)

    def sync_folder() -> None:
        handle = os.open(folder, os.O_RDONLY)
        disk.folders[handle] = folder
        disk.synced(handle)
        del disk.folders[handle]
        os.close(handle)

    write(folder / "old", sync=True)
    write(folder / "safe", sync=True)
    write(folder / "cut", sync=False)
    sync_folder()
    write(folder / "made", sync=True)
    disk.removed(folder / "old")
    (folder / "old").unlink()
    os.rename(folder / "safe", folder / "renamed")
    disk.renamed(folder / "safe", folder / "renamed")
    disk.lose()
    whole = b"0123456789"
    left = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert left == {"old": whole, "safe": whole, "cut": b"01234"}


def test_states_that_differ_in_one_bit_differ() -> None:
    state = {"weights.0": torch.tensor([1.0, 0.0]), "random": torch.zeros(3, dtype=torch.uint8)}
    assert workload.differences({name: value.clone() for name, value in state.items()}, state) == []
    signed = state | {"weights.0": torch.tensor([1.0, -0.0])}
    assert workload.differences(signed, state) == ["weights.0 differs"]
    assert workload.differences({"random": state["random"]}, state) == ["weights.0 is missing"]
    assert workload.differences(state | {"more": state["random"]}, state) == ["more is too many"]


@pytest.mark.parametrize("quick", [True, False])
def test_a_run_has_every_kind_of_death(quick: bool) -> None:
    events = ["open", "write", "sync", kills.COMMIT, "remove"]
    orders = kills.all_kinds(events, events, seed=0, quick=quick)
    wanted = {
        kills.COMPUTATION,
        kills.ANSWER,
        kills.START,
        kills.SAVE,
        kills.POWER,
        kills.LATER,
        kills.NEW,
        kills.REQUEST,
        kills.ANY,
        kills.EARLY,
    }
    assert {order.kind for order in orders} >= wanted
    assert quick or len(orders) >= 20
    assert orders == kills.all_kinds(events, events, seed=0, quick=quick)
