"""Membrane of neurons with recurrent connections, from their spikes: what they compute from, step by step.

The pass of these neurons keeps no trace for its callers. Given its spikes the input of each step is known, the same
product of the same operands, and neurons without connections that get it have the same membrane, to the bit.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Unpack

import torch
from torch import Tensor

from exodus_core.coupled import CoupledOptions
from exodus_core.ops import COUPLED_STATES, compute_dtype
from exodus_core.pieces.carried import State
from exodus_core.pieces.continuation import continued_lif


def recurrent_membrane(
    x: Tensor,
    spikes: Tensor,
    weight: Tensor,
    alpha: float | Tensor,
    state: State | None,
    **options: Unpack[CoupledOptions],
) -> Tensor:
    """The membrane before the reset of each step, shape (batch, time, *neurons), in the dtype that is computed in.

    Differentiable, as far as its arguments are.

    Args:
        x, weight, alpha, state, options: as of `continued_recurrent_lif`.
        spikes: what that returned.
    """
    dtype = compute_dtype(x.dtype)
    spikes_before = COUPLED_STATES.index("spikes")  # in the states of all neurons
    # The state of a neuron is not to be rounded from step to step.
    lowers = x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)
    with torch.autocast(x.device.type, enabled=False) if lowers else nullcontext():
        flat, fired = x.to(dtype).flatten(2), spikes.to(dtype).flatten(2)
        transposed = weight.to(dtype).t()
        currents = []
        received = None if state is None else state[spikes_before].to(dtype).flatten(1)
        for t in range(x.shape[1]):
            if received is None:
                currents.append(flat[:, t])
            elif options.get("method") == "bptt":  # the definition, as a plain loop writes it
                currents.append(flat[:, t] + received @ transposed)
            else:
                currents.append(torch.addmm(flat[:, t], received, transposed))
            received = fired[:, t].contiguous()
        (_, membrane), _ = continued_lif(torch.stack(currents, 1).view(x.shape), alpha, state, 1, options)
        return membrane
