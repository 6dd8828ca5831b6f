"""Training of a network that is described as data, on a service or in this program, by one interface.

`place` opens where to train: a service that is started for the block, the service of a URL, or this program. A place
makes learners, and a learner makes updates of its network. Equal descriptions, seeds and batches give the same losses,
gradient norms, outputs and weights to the bit in every place that has the same build, processor and number of threads.
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
import typer
from torch import Tensor

from examples.local_service import own_service
from exodus_client import APIConnectionError, Client, ExodusError, Future, StepResult, UnprocessableError
from exodus_core import losses, network
from exodus_core.training import NonFiniteError, Trainer

Method = Literal["exodus", "slayer", "bptt"]
#: A loss, an optimiser: a name, or an object with `kind` (docs/networks.md).
Named = str | Mapping[str, Any]
#: A network as data (docs/networks.md).
Description = Mapping[str, Any]

#: Kinds of layers that have a `method`.
NEURONS = ("lif", "if", "srm")
#: Training calls under way at a time on a service.
AHEAD = 8
#: Models are short-lived: a service saves them so rarely that it never has to.
DURABLE_EVERY = 1_000_000
#: Exit statuses, those of the command `exodus`.
REFUSED, NO_SERVER = 1, 3


class DivergedError(ArithmeticError):
    """The loss or a gradient of a batch is not finite; the message says which. Its update was not made."""


class Batch(NamedTuple):
    """Samples: spikes, shape (samples, time, *input_shape), and targets as the loss wants them."""

    spikes: Tensor
    targets: Tensor


class Update(NamedTuple):
    """One update of the weights.

    Attributes:
        metrics: of the batch before the update: "loss:mean", and "accuracy:mean" of classes; `losses.combine` joins
            those of several updates.
        grad_norms: L2 norm of the gradient of each parameter, by its name, and of all together, "total".
    """

    metrics: Mapping[str, float]
    grad_norms: Mapping[str, float]

    @property
    def loss(self) -> float:
        return self.metrics["loss:mean"]


class Learner(Protocol):
    """A network in training, wherever it is."""

    def learn(
        self, batches: Iterable[Batch], *, lr: float | None = None, clip_norm: float | None = None
    ) -> Iterator[Update]:
        """One update a batch, in order. Batches are read some updates ahead of the results.

        Args:
            batches: to learn from.
            lr: instead of the optimiser's.
            clip_norm: largest norm of the gradient of all parameters together; without it there is no bound.

        Yields:
            for each batch what its update found.

        Raises:
            DivergedError: the loss or a gradient is not finite. On a service, later updates may have been made.
            exodus_client.ExodusError: the service failed.
        """

    def outputs(self, spikes: Tensor) -> Tensor:
        """Outputs in evaluation mode with the weights after all updates so far, shape (samples, time, *outputs)."""

    def weights(self) -> dict[str, Tensor]:
        """A copy of the weights after all updates so far, by the names of docs/networks.md."""

    def close(self) -> None:
        """Forgets the network; a service deletes it."""


class Place(Protocol):
    """A machine to train on."""

    name: str

    def learner(self, description: Description, *, loss: Named, optimizer: Named, seed: int) -> Learner:
        """A new network with the weights of a seed."""


class _LocalLearner:
    def __init__(self, description: Description, loss: Named, optimizer: Named, seed: int) -> None:
        self._trainer = Trainer(network.build(description, seed), optimizer)
        self._loss = losses.parse(loss)

    def learn(
        self, batches: Iterable[Batch], *, lr: float | None = None, clip_norm: float | None = None
    ) -> Iterator[Update]:
        for batch in batches:
            try:
                result = self._trainer.step(batch.spikes, batch.targets, self._loss, lr=lr, clip_norm=clip_norm)
            except NonFiniteError as error:
                raise DivergedError(str(error)) from error
            yield Update(result.metrics, result.grad_norms)

    def outputs(self, spikes: Tensor) -> Tensor:
        return self._trainer.forward(spikes)

    def weights(self) -> dict[str, Tensor]:
        return {name: weight.detach().clone() for name, weight in self._trainer.net.named_parameters()}

    def close(self) -> None:
        pass


class Local:
    """This program."""

    name = "this program"

    def learner(self, description: Description, *, loss: Named, optimizer: Named, seed: int) -> Learner:
        return _LocalLearner(description, loss, optimizer, seed)


class _RemoteLearner:
    """Network, weights and optimiser on a service: an update is one request, sent while others are computed."""

    def __init__(self, client: Client, description: Description, loss: Named, optimizer: Named, seed: int) -> None:
        self._client = client
        self._loss = loss
        self._model = client.create_model(
            description, optimizer=optimizer, seed=seed, durable_every=DURABLE_EVERY, ahead=AHEAD
        )

    def learn(
        self, batches: Iterable[Batch], *, lr: float | None = None, clip_norm: float | None = None
    ) -> Iterator[Update]:
        under_way: deque[Future[StepResult]] = deque()
        for batch in batches:
            if len(under_way) == AHEAD:
                yield _update(under_way.popleft())
            under_way.append(self._model.step(batch.spikes, batch.targets, loss=self._loss, lr=lr, clip_norm=clip_norm))
        while under_way:
            yield _update(under_way.popleft())

    def outputs(self, spikes: Tensor) -> Tensor:
        return torch.as_tensor(self._model.forward(spikes).result().outputs)

    def weights(self) -> dict[str, Tensor]:
        return {name: torch.from_numpy(np.array(weight)) for name, weight in self._model.state_dict().items()}

    def close(self) -> None:
        self._model.close()
        self._client.delete_model(self._model.id)


def _update(step: Future[StepResult]) -> Update:
    try:
        result = step.result()
    except UnprocessableError as error:
        if error.code != "non_finite":
            raise
        raise DivergedError(str(error)) from error
    return Update(result.metrics, result.grad_norms)


class Remote:
    """A service."""

    def __init__(self, client: Client, name: str) -> None:
        self.name = name
        self._client = client

    def learner(self, description: Description, *, loss: Named, optimizer: Named, seed: int) -> Learner:
        return _RemoteLearner(self._client, description, loss, optimizer, seed)


@contextmanager
def place(url: str | None, local: bool) -> Iterator[Place]:
    """The place where a command trains, by --url and --local; without either, a service is started for the block.

    Raises:
        typer.BadParameter: both are given, or the URL or the API key of the environment is invalid.
        typer.Exit: the service refused or failed, or there is none; the reason was printed.
    """
    if local and url is not None:
        raise typer.BadParameter("--local does not go with --url")
    if local:
        yield Local()
        return
    with ExitStack() as stack:
        name = "a service at " + url if url else "a service of its own"
        if url is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="exodus-")))
            url = stack.enter_context(own_service(folder / "service.log"))
        try:
            client = stack.enter_context(Client(url))
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--url") from error
        try:
            yield Remote(client, name)
        except ExodusError as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(NO_SERVER if isinstance(error, APIConnectionError) else REFUSED) from error


def feed_forward(sizes: Sequence[int], neuron: Mapping[str, Any], *, gain: float = 1.0, readout: bool = False) -> Any:
    """A fully connected network without biases.

    Args:
        sizes: of the input, of the hidden layers and of the output.
        neuron: the layer behind each linear layer, as `{"kind": "lif", "alpha": 0.9}`.
        gain: factor on the initial weights.
        readout: whether the last linear layer has no neurons: its outputs are those of the network.

    Returns:
        its description.
    """
    layers: list[dict[str, Any]] = []
    for size in sizes[1:]:
        layers += [{"kind": "linear", "out_features": size, "bias": False, "gain": gain}, dict(neuron)]
    return {"input_shape": [sizes[0]], "layers": layers[:-1] if readout else layers}


def with_method(description: Description, method: Method) -> Description:
    """The same network, the gradients of whose neurons are computed by another method."""
    layers = [
        {**layer, "method": method} if layer["kind"] in NEURONS else dict(layer) for layer in description["layers"]
    ]
    return {**description, "layers": layers}
