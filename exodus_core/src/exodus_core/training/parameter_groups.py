"""Groups of torch's optimisers: parameters of one learning rate that all decay, or all do not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.nn import Parameter

from exodus_core.network import Network
from exodus_core.training.parameter_options import ParameterOptions

#: Keys of our own in a group: if it decays, and the factor on the optimiser's rate, None for a rate of its own.
DECAYS, FACTOR = "decays", "lr_factor"


def grouped(net: Network, options: ParameterOptions, lr: float) -> list[dict[str, Any]]:
    """The groups of a network's parameters, for an optimiser of this learning rate.

    The first two are those with the optimiser's rate: what decays, and the parameters of neurons.
    """
    neurons = {id(parameter) for parameter in net.neuron_parameters()}
    members: dict[tuple[float, float | None, bool], list[Parameter]] = {(1.0, None, True): [], (1.0, None, False): []}
    for name, parameter in net.named_parameters():
        members.setdefault((*options.kind(name), id(parameter) not in neurons), []).append(parameter)
    return [_group(parameters, lr, *kind) for kind, parameters in members.items()]


def _group(parameters: list[Parameter], lr: float, factor: float, own: float | None, decays: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"params": parameters, DECAYS: decays, FACTOR: None if own is not None else factor}
    if own is not None or factor != 1.0:
        found["lr"] = lr * factor if own is None else own
    return found if decays else {**found, "weight_decay": 0.0}


def regrouped(groups: list[dict[str, Any]], net: Network, options: ParameterOptions) -> list[dict[str, Any]]:
    """Groups of other options in place of some, the first of which decays and has the optimiser's present rate."""
    first: Mapping[str, Any] = {name: value for name, value in groups[0].items() if name != "params"}
    return [{**first, **group} for group in grouped(net, options, first["lr"])]
