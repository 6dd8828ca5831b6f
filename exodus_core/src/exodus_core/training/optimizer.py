"""Optimisers as data: torch's SGD, Adam and AdamW, by torch's names and with torch's defaults."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch

from exodus_core.errors import DescriptionError
from exodus_core.network import Network
from exodus_core.schema import (
    Place,
    array,
    boolean,
    choice,
    number,
    plain,
    read_record,
)

_NOT_NEGATIVE = number(0)
# Where squares of gradients are 0 in float32, a step divides by eps alone: 0 would make weights NaN.
_EPS = number(1e-30)


class OptimizerError(DescriptionError):
    """An optimiser description that does not fit; see `pointer`, `expected` and `got`."""


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """An optimiser; `parse_optimizer` makes it."""

    kind: ClassVar[str]
    cls: ClassVar[type[torch.optim.Optimizer]]

    lr: Annotated[float, _NOT_NEGATIVE, "learning rate"] = 1e-3

    @property
    def data(self) -> dict[str, Any]:
        """The optimiser as plain data, with all defaults."""
        found: dict[str, Any] = plain(self)
        return found

    def made(self, net: Network) -> torch.optim.Optimizer:
        """The torch optimiser of a network, in torch's default implementation.

        It has two groups: what decays, and the parameters of neurons, which do not. Either may be empty.
        """
        options: dict[str, Any] = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        neurons = list(net.neuron_parameters())
        fixed = {id(parameter) for parameter in neurons}
        decaying = [parameter for parameter in net.parameters() if id(parameter) not in fixed]
        groups: list[dict[str, Any]] = [{"params": decaying}, {"params": neurons, "weight_decay": 0.0}]
        return self.cls(groups, **options)

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the tensors that it keeps for each parameter."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class SGD(Optimizer):
    """Stochastic gradient descent, torch.optim.SGD."""

    kind: ClassVar[str] = "sgd"
    cls: ClassVar[type[torch.optim.Optimizer]] = torch.optim.SGD

    momentum: Annotated[float, _NOT_NEGATIVE, "momentum"] = 0.0
    dampening: Annotated[float, number(), "dampening of the momentum"] = 0.0
    nesterov: Annotated[bool, boolean, "Nesterov's momentum; needs a momentum, and no dampening"] = False
    weight_decay: Annotated[float, _NOT_NEGATIVE, "L2 penalty; not of parameters of neurons"] = 0.0

    @property
    def slots(self) -> tuple[str, ...]:
        return ("momentum_buffer",) if self.momentum else ()


@dataclass(frozen=True, kw_only=True)
class Adam(Optimizer):
    """Adam, torch.optim.Adam."""

    kind: ClassVar[str] = "adam"
    cls: ClassVar[type[torch.optim.Optimizer]] = torch.optim.Adam

    betas: Annotated[
        tuple[float, float], array(number(0, 1, below=True), 2), "decay of the averages of gradient and square"
    ] = (0.9, 0.999)
    eps: Annotated[
        float, _EPS, "added to the denominator; with 0 weights become 0/0 where squared gradients vanish"
    ] = 1e-8
    weight_decay: Annotated[float, _NOT_NEGATIVE, "L2 penalty; not of parameters of neurons"] = 0.0
    amsgrad: Annotated[bool, boolean, "use the largest average so far"] = False

    @property
    def slots(self) -> tuple[str, ...]:
        names = ("step", "exp_avg", "exp_avg_sq")
        return (*names, "max_exp_avg_sq") if self.amsgrad else names


@dataclass(frozen=True, kw_only=True)
class AdamW(Adam):
    """Adam with decoupled weight decay, torch.optim.AdamW."""

    kind: ClassVar[str] = "adamw"
    cls: ClassVar[type[torch.optim.Optimizer]] = torch.optim.AdamW

    weight_decay: Annotated[float, _NOT_NEGATIVE, "decoupled weight decay; not of parameters of neurons"] = 1e-2


OPTIMIZERS: dict[str, type[Optimizer]] = {cls.kind: cls for cls in (SGD, Adam, AdamW)}
_KIND = choice(*OPTIMIZERS)


def parse_optimizer(data: str | Mapping[str, Any]) -> Optimizer:
    """The optimiser that a name, or an object with a kind and its options, describes.

    Raises:
        OptimizerError: it does not fit; with a JSON pointer to the value, what was expected and what is there.
    """
    place = Place("", OptimizerError)
    if isinstance(data, str):
        data = {"kind": data}
    if not isinstance(data, Mapping):
        raise place.refuse("a name or an object", data)
    kind = _KIND.read(data.get("kind"), place.at("kind"))
    found = read_record(OPTIMIZERS[kind], data, place, ("kind",))
    if isinstance(found, SGD) and found.nesterov and (found.momentum == 0 or found.dampening != 0):
        raise place.at("nesterov").refuse("false, or a momentum above 0 and no dampening", True)
    return found
