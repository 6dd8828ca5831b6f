"""Data parallel training: one model on several servers, each with a part of every batch, all with the same weights."""

from __future__ import annotations

import uuid
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np

from exodus_client import _constants as defaults
from exodus_client._checks import integer, unfit
from exodus_client._client import Client
from exodus_client._data_parallel.model import ShardedModel
from exodus_client._errors import ExodusError
from exodus_client._models.batch_axes import check_time_dim
from exodus_client._models.model import Model
from exodus_client._plain_data import model_id, plain
from exodus_client.neuron import Array


class ShardedClient:
    """Several servers that train one model together. Use it in a `with`, or close it.

        with ShardedClient(["http://gpu-0:8000", "http://gpu-1:8000"]) as client:
            model = client.create_model(layers=[...], optimizer="adam")
            model.step(spikes, targets, loss="max_over_time_ce").result()

    Args:
        servers: URLs, or a `Client` each, which stays open when this one is closed. Their order is that of the parts
            of a batch.
        arguments: of `Client`, for the URLs.

    Attributes:
        clients: one for each server.

    Raises:
        ValueError: there is no server.
    """

    def __init__(self, servers: Iterable[str | Client], **arguments: Any) -> None:
        given = [servers] if isinstance(servers, str) else list(servers)
        if not given:
            raise unfit(ValueError, "servers", "one or more", "none")
        self._own: list[Client] = []
        self._models: weakref.WeakSet[ShardedModel] = weakref.WeakSet()
        try:
            self.clients = tuple(self._client(server, arguments) for server in given)
        except BaseException:
            self.close()
            raise

    def create_model(
        self,
        layers: Sequence[Mapping[str, Any]] | Mapping[str, Any],
        *,
        seed: int = 0,
        weights: Array | Mapping[str, Array] | None = None,
        id: str | None = None,
        steps_ahead: int = defaults.STEPS_AHEAD,
        time_dim: int = 1,
        **options: Any,
    ) -> ShardedModel:
        """Make the model on every server, with the weights that it has on the first.

        Args:
            id: of the model, for `model`; at most 60 characters. On server k the replica is called `ID-k`.
            seed: of the weights; replica k draws its dropout masks from seed + k.
            steps_ahead: steps submitted and not yet done, beyond which `step` waits.
            time_dim: as of `Client.create_model`, for the whole model; the handles of replicas take (batch, time, ...).

        The other arguments, and what is raised, are those of `Client.create_model`. Where a server fails, what was made
        on those before it stays; the same call with the same `id` goes on from there.
        """
        base = uuid.uuid4().hex if id is None else model_id(id)
        seed = integer("seed", plain("seed", seed), 0, 2**63 - len(self.clients))
        own_options = _of_handle(steps_ahead, time_dim)
        first = self.clients[0].create_model(layers, seed=seed, weights=weights, id=f"{base}-0", **options)
        replicas = [first]
        if len(self.clients) > 1:
            named = first.state_dict()
            flat = np.concatenate([named[name].reshape(-1) for name, _ in first.description.parameters])
            for shard, client in enumerate(self.clients[1:], 1):
                own: dict[str, Any] = {"seed": seed + shard, "weights": flat, "id": f"{base}-{shard}"}
                replicas.append(client.create_model(layers, **own, **options))
        return self._model(base, replicas, own_options)

    def model(
        self, id: str, *, steps_ahead: int = defaults.STEPS_AHEAD, time_dim: int = 1, **options: Any
    ) -> ShardedModel:
        """A model that `create_model` made on the same servers, to go on training it. Arguments as of `create_model`.

        All replicas get the state of the one that is furthest: who trained before may have left in the middle of a
        step.

        Raises:
            NotFoundError: a server has no such model.
            ExodusError: see its tree.
        """
        base = model_id(id)
        own_options = _of_handle(steps_ahead, time_dim)
        replicas = [client.model(f"{base}-{shard}", **options) for shard, client in enumerate(self.clients)]
        model = self._model(id, replicas, own_options)
        model.resync()
        return model

    def delete_model(self, id: str) -> None:
        """Delete a model on every server. Raises ExodusError: the first, when all servers were asked."""
        errors, base = [], model_id(id)
        for shard, client in enumerate(self.clients):
            try:
                client.delete_model(f"{base}-{shard}")
            except ExodusError as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def close(self, *, wait: bool = True) -> None:
        """Close the models and the clients that were made here."""
        for model in tuple(self._models):
            model.close(wait=wait)
        for client in self._own:
            client.close(wait=wait)

    def _model(self, id: str, replicas: Sequence[Model], options: Mapping[str, int]) -> ShardedModel:
        model = ShardedModel(id, replicas, **options)
        self._models.add(model)
        return model

    def _client(self, server: str | Client, arguments: dict[str, Any]) -> Client:
        if not isinstance(server, str):
            return server
        self._own.append(Client(server, **arguments))
        return self._own[-1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        # After an exception, Ctrl-C among them, nobody asks for what is under way.
        self.close(wait=kind is None)

    def __repr__(self) -> str:
        return f"ShardedClient({list(self.clients)!r})"


def _of_handle(steps_ahead: Any, time_dim: Any) -> dict[str, int]:
    """The options of the model's handle, checked. Raises TypeError, ValueError."""
    return {"steps_ahead": integer("steps_ahead", steps_ahead, 1), "time_dim": check_time_dim(time_dim)}
