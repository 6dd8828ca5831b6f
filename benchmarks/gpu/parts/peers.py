"""Other libraries' neurons, as functions of an input, (batch, time, neurons) or time first."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from benchmarks.gpu.device import Device
from benchmarks.gpu.rows import Emit, failed

ALPHA = 0.9
TAU = 10.0  # SpikingJelly's LIF without decay of the input: alpha = 1 - 1 / tau


@dataclass(frozen=True)
class Peer:
    """A library's LIF neuron that subtracts its threshold, with a sigmoid surrogate of slope 4."""

    name: str
    run: Callable[[Tensor], Tensor]
    time_first: bool


def peers(device: Device, emit: Emit) -> list[Peer]:
    """Those that are installed; the others are reported with the reason."""
    found = []
    for name, make in (("SpikingJelly", _spikingjelly), ("sinabs-exodus", _sinabs_exodus)):
        try:
            found.append(make(device))
        except ImportError as error:
            emit({"case": name, "ok": True, "detail": f"left out: {error}"})
        except Exception as error:  # noqa: BLE001 (an installation may fail in any way; the others go on)
            emit(failed(name, error))
    return found


def _spikingjelly(device: Device) -> Peer:
    neuron = importlib.import_module("spikingjelly.activation_based.neuron")
    surrogate = importlib.import_module("spikingjelly.activation_based.surrogate")
    functional = importlib.import_module("spikingjelly.activation_based.functional")
    layer = neuron.LIFNode(
        tau=TAU, decay_input=False, v_reset=None, surrogate_function=surrogate.Sigmoid(4.0), step_mode="m"
    ).to(device.type)

    def run(x: Tensor) -> Tensor:
        functional.reset_net(layer)
        spikes: Tensor = layer(x)
        return spikes

    # 2.0 chooses its implementation by itself; earlier versions were told, and say which.
    chosen = getattr(layer, "backend", None) or getattr(layer, "_backend", None) or "its own choice"
    return Peer(f"SpikingJelly ({chosen})", run, time_first=True)


def _sinabs_exodus(device: Device) -> Peer:
    layers = importlib.import_module("sinabs.exodus.layers")
    activation = importlib.import_module("sinabs.activation")
    layer = layers.LIF(tau_mem=-1 / math.log(ALPHA), norm_input=False, spike_fn=activation.SingleSpike).to(device.type)

    def run(x: Tensor) -> Tensor:
        layer.reset_states()
        spikes: Tensor = layer(x)
        return spikes

    return Peer("sinabs-exodus", run, time_first=False)
