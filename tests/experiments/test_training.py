"""Experiments train on a service or in this program by one interface, with the same results to the bit."""

from collections.abc import Iterator

import pytest
import torch
import typer

from examples.local_service import running_service
from exodus_client import Client
from experiments.training import Batch, DivergedError, Local, Method, Place, Remote, feed_forward, place, with_method

LOSS = "spike_train_mse"
OPTIMIZER = {"kind": "adam", "lr": 0.01}
NETWORK = feed_forward([12, 8, 2], {"kind": "lif", "alpha": 0.9}, gain=3.0)


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remote]:
    with running_service(tmp_path_factory.mktemp("service") / "service.log") as url, Client(url) as client:
        yield Remote(client, url)


def batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    spikes = torch.rand(3, 40, 12, generator=generator) < 0.1
    targets = torch.rand(3, 40, 2, generator=generator) < 0.05
    return Batch(spikes.float(), targets.float())


def trained(where: Place, method: Method, updates: int = 12) -> tuple[object, ...]:
    learner = where.learner(with_method(NETWORK, method), loss=LOSS, optimizer=OPTIMIZER, seed=5)
    found = list(learner.learn([batch()] * updates, clip_norm=1.0))
    outputs, weights = learner.outputs(batch().spikes), learner.weights()
    learner.close()
    numbers = [(u.loss, sorted(u.grad_norms.items())) for u in found]
    return numbers, outputs.tolist(), {name: weight.tolist() for name, weight in weights.items()}


@pytest.mark.parametrize("method", ["exodus", "slayer"])
def test_remote_equals_local_to_the_bit(remote: Remote, method: Method) -> None:
    assert trained(remote, method) == trained(Local(), method)


def test_methods_differ() -> None:
    assert trained(Local(), "exodus")[0] != trained(Local(), "slayer")[0]


def test_exodus_equals_bptt() -> None:
    learners = (
        Local().learner(with_method(NETWORK, method), loss=LOSS, optimizer=OPTIMIZER, seed=5)
        for method in ("exodus", "bptt")
    )
    exodus, bptt = (next(learner.learn([batch()])) for learner in learners)
    assert exodus.grad_norms == pytest.approx(bptt.grad_norms, rel=1e-5)


@pytest.mark.parametrize("where", ["remote", "local"])
def test_a_gradient_that_is_not_finite_is_named(remote: Remote, where: str) -> None:
    learner = (remote if where == "remote" else Local()).learner(NETWORK, loss=LOSS, optimizer=OPTIMIZER, seed=0)
    endless = Batch(batch().spikes, torch.full((3, 40, 2), torch.inf))
    with pytest.raises(DivergedError, match="loss must be finite, got inf"):
        list(learner.learn([endless]))
    learner.close()


def test_a_closed_learner_leaves_no_model_on_the_service(remote: Remote) -> None:
    trained(remote, "exodus", updates=1)
    assert remote._client.models() == []


def test_local_does_not_go_with_a_url() -> None:
    with pytest.raises(typer.BadParameter, match="--local does not go with --url"), place("http://localhost:1", True):
        pass


def test_a_service_that_is_not_there_ends_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended, place("http://127.0.0.1:9", False) as there:
        there.learner(NETWORK, loss=LOSS, optimizer=OPTIMIZER, seed=0)
    assert ended.value.exit_code == 3
    assert "127.0.0.1:9" in capsys.readouterr().err
