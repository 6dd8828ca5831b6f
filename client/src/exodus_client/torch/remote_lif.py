"""LIF neurons for PyTorch whose forward and backward run on the server, one request each."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor

from exodus_client._client import Client
from exodus_client._gradients.result import Method
from exodus_client.neuron import LIF, Reset
from exodus_client.surrogate import Exponential, Surrogate
from exodus_client.torch.remote_neuron import RemoteNeuron, check_input, run

__all__ = ["RemoteLIF", "remote_lif"]


def remote_lif(
    client: Client,
    x: Tensor,
    alpha: float | Tensor,
    *,
    threshold: float | Tensor = 1.0,
    reset: Reset = "subtract",
    reset_by: float | Tensor | None = None,
    decay_reset: bool = False,
    surrogate: Surrogate = Exponential(),  # noqa: B008 - frozen
    method: Method = "exodus",
    initial_membrane: float | Tensor | None = None,
    initial_spikes: float | Tensor | None = None,
    min_membrane: float | Tensor | None = None,
    bound_after_reset: bool = False,
    max_spikes: int = 1,
    reset_to: float | Tensor | None = None,
    detach_reset: bool = False,
    refractory: int = 0,
    initial_refractory: float | Tensor | None = None,
    time_dim: int = 1,
) -> tuple[Tensor, Tensor]:
    """Leaky integrate-and-fire neurons on the server.

    Differentiable, once, in x, alpha, threshold, reset_by, reset_to and initial_membrane. The server is asked for the
    gradients that autograd needs, and for none where it needs none.

    Args:
        client: connected to the server.
        x: input current with a dimension of time, (B, T, N) by default; float32, float64, float16 or bfloat16. It is
            kept for the backward pass.
        initial_membrane, initial_spikes, initial_refractory: state before the first step; the shape of x without time,
            or broadcast to it.

    The other arguments are those of `LIF` and `Client.gradients`.

    Returns:
        spikes and membrane (before reset), with the shape, dtype and device of x.

    Raises:
        TypeError, ValueError: an argument does not fit; also where initial_spikes, initial_refractory or min_membrane
            require a gradient, which the server does not compute.
        ExodusError: see its tree.
    """
    check_input(client, x)
    given: dict[str, Any] = {
        "alpha": alpha,
        "threshold": threshold,
        "reset": reset,
        "reset_by": reset_by,
        "decay_reset": decay_reset,
        "min_membrane": min_membrane,
        "bound_after_reset": bound_after_reset,
        "max_spikes": max_spikes,
        "reset_to": reset_to,
        "detach_reset": detach_reset,
        "refractory": refractory,
    }
    initial = {
        "initial_membrane": initial_membrane,
        "initial_spikes": initial_spikes,
        "initial_refractory": initial_refractory,
    }
    outputs = run(client, x, LIF, given, initial, surrogate, method, time_dim, ("spikes", "membrane"))
    assert outputs.membrane is not None
    return outputs.spikes, outputs.membrane


class RemoteLIF(RemoteNeuron):
    """Leaky integrate-and-fire neurons on the server, in the place of a local layer of the same arguments.

    Args:
        client: connected to the server. It is no part of the state of the module, which can be saved without it.
        trainable: names of "alpha", "threshold", "reset_by", "reset_to" that become `torch.nn.Parameter`. After each
            step of an optimiser of torch.optim alpha is brought back to [0, 1] and the threshold above 0.001; after
            other changes call `constrain`.
        stateful: start each call from the state that the last one ended with. The state carries values and no
            gradients: backpropagation through time ends at the border between two calls, as it does for a local layer
            whose `detach_state` is called after each. The membrane of each call comes from the server for it, and
            float16 and bfloat16 travel as float32, so that a sequence in pieces is that in one call.
        return_membrane: fetch the membrane of each call too, for `membrane`; as much again as the spikes.

    The other arguments are those of `remote_lif`. Tensors are copied. Numbers are in the state_dict beside them,
    float64, and are set by load_state_dict; a state_dict from before they were is loaded without.

    Attributes:
        membrane: of the last call, with its gradient, if `return_membrane`; None before the first.
        state: membrane and spikes of the last step, and with a refractory period the steps of it that are left, a
            copy, if stateful; None at rest.

    Raises:
        TypeError: client is no `Client`; a parameter is neither a number nor an array of numbers.
        ValueError: trainable names something else, or a parameter that is None or has to be a number; a parameter is
            out of range, as of `LIF`; a threshold to be trained is not positive; a tensor that is not trained requires
            a gradient. In the call: x has two dimensions where time_dim is 1.
        RuntimeError: a stateful layer is called by a backward pass, to be recomputed (torch.utils.checkpoint).
    """

    kind = LIF
    _function = "remote_lif"

    def __init__(
        self,
        client: Client,
        alpha: float | Tensor,
        *,
        threshold: float | Tensor = 1.0,
        reset: Reset = "subtract",
        reset_by: float | Tensor | None = None,
        decay_reset: bool = False,
        surrogate: Surrogate = Exponential(),  # noqa: B008 - frozen
        method: Method = "exodus",
        min_membrane: float | Tensor | None = None,
        bound_after_reset: bool = False,
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
                "threshold": threshold,
                "reset_by": reset_by,
                "min_membrane": min_membrane,
                "reset_to": reset_to,
            },
            {
                "reset": reset,
                "decay_reset": decay_reset,
                "bound_after_reset": bound_after_reset,
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
