"""Optimisers as data: torch's SGD, Adam and AdamW, by torch's names and with torch's defaults."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch

from exodus_core.errors import DescriptionError
from exodus_core.network import Network
from exodus_core.schema import Place, array, boolean, choice, number, plain, read_record
from exodus_core.training.parameter_groups import grouped
from exodus_core.training.parameter_options import ParameterOptions, names, rates, resolved

_NOT_NEGATIVE = number(0)
# Where squares of gradients are 0 in float32, a step divides by eps alone: 0 would make weights NaN.
_EPS = number(1e-30)


#: Fields that are not torch's, and are left out of plain data where they are empty: what a model was made from stays
#: the same for services of before they were there.
_OF_PARAMETERS = ("frozen", "lr_scale", "lr_of")


class OptimizerError(DescriptionError):
    """An optimiser description that does not fit; see `pointer`, `expected` and `got`."""


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """An optimiser; `parse_optimizer` makes it."""

    kind: ClassVar[str]
    cls: ClassVar[type[torch.optim.Optimizer]]

    lr: Annotated[float, _NOT_NEGATIVE, "learning rate"] = 1e-3
    frozen: Annotated[tuple[str, ...], names, "layers or parameters that are not trained"] = ()
    lr_scale: Annotated[dict[str, float] | None, rates, "factors on lr, by layer or parameter"] = None
    lr_of: Annotated[dict[str, float] | None, rates, "learning rates in place of lr, by layer or parameter"] = None

    @property
    def data(self) -> dict[str, Any]:
        """The optimiser as plain data, with all defaults; options of single parameters where there are some."""
        found: dict[str, Any] = plain(self)
        return {name: value for name, value in found.items() if name not in _OF_PARAMETERS or value}

    def of_parameters(self, parameters: Sequence[str]) -> ParameterOptions:
        """The options of single parameters of a network. Raises OptimizerError: it has none of such a name."""
        given = {name: getattr(self, name) for name in _OF_PARAMETERS}
        return resolved(parameters, Place("", OptimizerError), **given)

    def made(self, net: Network) -> torch.optim.Optimizer:
        """The torch optimiser of a network, in torch's default implementation.

        It has two groups: what decays, and the parameters of neurons, which do not, either of which may be empty; and
        as many more as there are other learning rates.
        """
        fields = [field.name for field in dataclasses.fields(self) if field.name not in _OF_PARAMETERS]
        options: dict[str, Any] = {name: getattr(self, name) for name in fields}
        of_parameters = self.of_parameters([name for name, _ in net.named_parameters()])
        return self.cls(grouped(net, of_parameters, self.lr), **options)

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
