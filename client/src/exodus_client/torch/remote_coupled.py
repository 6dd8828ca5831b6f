"""Second-order and adaptive LIF neurons for PyTorch whose forward and backward run on the server, one request each."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor

from exodus_client._client import Client
from exodus_client._gradients.result import Method
from exodus_client.neuron import ALIF, CubaLIF, Reset
from exodus_client.surrogate import Exponential, Surrogate
from exodus_client.torch.remote_neuron import RemoteNeuron

__all__ = ["RemoteALIF", "RemoteCubaLIF"]


class RemoteCubaLIF(RemoteNeuron):
    """Second-order LIF neurons on the server, in the place of a local layer of the same arguments.

    Args:
        client: connected to the server.
        trainable: names of the parameters of `CubaLIF` but min_membrane that become `torch.nn.Parameter`; decays are
            kept in [0, 1] and the threshold above 0.001, as those of `RemoteLIF`.
        stateful: start each call from the state that the last one ended with, without gradients, as `RemoteLIF` does:
            membrane, spikes, current and steps of the refractory period left. It comes from the server for it.
        return_membrane: fetch the membrane of each call too, for `membrane`.

    The other arguments are those of `CubaLIF` and `Client.gradients`; tensors, numbers, attributes and errors are as
    those of `RemoteLIF`.
    """

    kind = CubaLIF
    synapse_alpha: float | Tensor
    synapse_gain: float | Tensor
    synapse_delayed: bool

    def __init__(
        self,
        client: Client,
        alpha: float | Tensor,
        synapse_alpha: float | Tensor,
        *,
        synapse_gain: float | Tensor = 1.0,
        synapse_delayed: bool = False,
        threshold: float | Tensor = 1.0,
        reset: Reset = "subtract",
        reset_by: float | Tensor | None = None,
        decay_reset: bool = False,
        surrogate: Surrogate = Exponential(),  # noqa: B008 - frozen
        method: Method = "exodus",
        min_membrane: float | Tensor | None = None,
        max_spikes: int = 1,
        reset_to: float | Tensor | None = None,
        detach_reset: bool = False,
        refractory: int = 0,
        time_dim: int = 1,
        trainable: Collection[str] = (),
        stateful: bool = False,
        return_membrane: bool = False,
    ) -> None:
        super().__init__(
            client,
            {
                "alpha": alpha,
                "synapse_alpha": synapse_alpha,
                "synapse_gain": synapse_gain,
                "threshold": threshold,
                "reset_by": reset_by,
                "min_membrane": min_membrane,
                "reset_to": reset_to,
            },
            {
                "synapse_delayed": synapse_delayed,
                "reset": reset,
                "decay_reset": decay_reset,
                "max_spikes": max_spikes,
                "detach_reset": detach_reset,
                "refractory": refractory,
            },
            surrogate=surrogate,
            method=method,
            time_dim=time_dim,
            trainable=trainable,
            stateful=stateful,
            return_membrane=return_membrane,
        )


class RemoteALIF(RemoteNeuron):
    """Adaptive LIF neurons on the server, in the place of a local layer of the same arguments.

    With float16 and bfloat16 and an adapt_membrane, gradients are those of a neuron that senses the membrane as it is
    stored; of a local layer, of one that senses it before it is rounded.

    Args:
        client: connected to the server.
        trainable: names of the parameters of `ALIF` but min_membrane that become `torch.nn.Parameter`; decays are kept
            in [0, 1] and the threshold above 0.001, as those of `RemoteLIF`.
        stateful: start each call from the state that the last one ended with, without gradients, as `RemoteLIF` does:
            membrane, spikes, current, adaptation and steps of the refractory period left. It comes from the server for
            it.
        return_membrane: fetch the membrane of each call too, for `membrane`.

    The other arguments are those of `ALIF` and `Client.gradients`; tensors, numbers, attributes and errors are as those
    of `RemoteLIF`.
    """

    kind = ALIF
    adapt_alpha: float | Tensor
    adapt_by: float | Tensor
    adapt_membrane: float | Tensor
    adapt_threshold: float | Tensor
    adapt_current: float | Tensor
    synapse_alpha: float | Tensor | None
    synapse_gain: float | Tensor
    synapse_delayed: bool

    def __init__(
        self,
        client: Client,
        alpha: float | Tensor,
        adapt_alpha: float | Tensor,
        *,
        adapt_by: float | Tensor = 1.0,
        adapt_membrane: float | Tensor = 0.0,
        adapt_threshold: float | Tensor = 0.0,
        adapt_current: float | Tensor = 0.0,
        synapse_alpha: float | Tensor | None = None,
        synapse_gain: float | Tensor = 1.0,
        synapse_delayed: bool = False,
        threshold: float | Tensor = 1.0,
        reset: Reset = "subtract",
        reset_by: float | Tensor | None = None,
        decay_reset: bool = False,
        surrogate: Surrogate = Exponential(),  # noqa: B008 - frozen
        method: Method = "exodus",
        min_membrane: float | Tensor | None = None,
        max_spikes: int = 1,
        reset_to: float | Tensor | None = None,
        detach_reset: bool = False,
        refractory: int = 0,
        time_dim: int = 1,
        trainable: Collection[str] = (),
        stateful: bool = False,
        return_membrane: bool = False,
    ) -> None:
        super().__init__(
            client,
            {
                "alpha": alpha,
                "adapt_alpha": adapt_alpha,
                "adapt_by": adapt_by,
                "adapt_membrane": adapt_membrane,
                "adapt_threshold": adapt_threshold,
                "adapt_current": adapt_current,
                "synapse_alpha": synapse_alpha,
                "synapse_gain": synapse_gain,
                "threshold": threshold,
                "reset_by": reset_by,
                "min_membrane": min_membrane,
                "reset_to": reset_to,
            },
            {
                "synapse_delayed": synapse_delayed,
                "reset": reset,
                "decay_reset": decay_reset,
                "max_spikes": max_spikes,
                "detach_reset": detach_reset,
                "refractory": refractory,
            },
            surrogate=surrogate,
            method=method,
            time_dim=time_dim,
            trainable=trainable,
            stateful=stateful,
            return_membrane=return_membrane,
        )
