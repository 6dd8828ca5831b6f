"""The neurons of a whole module: their trained parameters."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from exodus_core.ranges import Bounded


def neuron_parameters(module: torch.nn.Module) -> Iterator[torch.nn.Parameter]:
    """The trained parameters of the neurons in a module: alpha, threshold, reset_by, min_membrane, taps.

    They are constants of a model, which weight decay would pull to 0: give them to an optimiser in a group of their own
    with `weight_decay=0`. Networks of `exodus_core.network.build` in the module count too.
    """
    for part in module.modules():
        if isinstance(part, Bounded):
            yield from part.parameters(recurse=False)
