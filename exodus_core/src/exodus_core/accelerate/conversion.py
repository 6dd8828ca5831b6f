"""`accelerate`: finds the neurons in a model, checks all of them, and then lets them run on the kernels."""

from __future__ import annotations

import importlib
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib import metadata
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor

from exodus_core import nn
from exodus_core.accelerate import norse, over_time, sinabs, snntorch, spikingjelly
from exodus_core.accelerate.fused import check
from exodus_core.accelerate.layers import counterpart, hand_on
from exodus_core.accelerate.refusal import AccelerationError, NotMappedError, converting
from exodus_core.errors import ArgumentError, ArgumentTypeError
from exodus_core.refusals import Refusal

Model = TypeVar("Model", bound=torch.nn.Module)
LIBRARIES: dict[str, ModuleType] = {
    "snntorch": snntorch,
    "sinabs": sinabs,
    "spikingjelly": spikingjelly,
    "norse": norse,
}
_EXPECTED = "made of neurons that the kernels compute with the same spikes and gradients"
_SNNTORCH_LOOP = (
    "is called step by step, and the loop over time is the model's; before: `utils.reset(net)` and "
    "`torch.stack([net(x[t]) for t in range(T)])`; after: a torch.nn.Sequential of layers and neurons with "
    "init_hidden=True, `net = exodus_core.accelerate(net, time_dim=0)` and `net(x)`, x of shape (time, batch, ...)"
)
_NORSE_LOOP = (
    "is a cell of one step, and the loop over time is yours; before: `for t in range(T): y, state = net(x[t], state)`; "
    "after: `net = exodus_core.accelerate(net, time_dim=0)` for a SequentialState, and `ys, state = net(x)`, x of "
    "shape (time, batch, ...); or norse.torch.LIF for LIFCell and norse.torch.Lift around layers without state"
)


def libraries() -> Iterator[tuple[str, ModuleType]]:
    """The libraries that this process has imported: a model of another one cannot be here."""
    for name, library in LIBRARIES.items():
        if name in sys.modules:
            yield name, library


def kind_of(module: torch.nn.Module) -> tuple[str, str] | None:
    """Library and name of the nearest class of neurons that a module is of; None for every other module."""
    for name, library in libraries():
        known = library.classes()
        for cls in type(module).__mro__:
            if cls in known:
                return name, known[cls]
    return None


def is_exactly(module: torch.nn.Module, kind: tuple[str, str]) -> bool:
    """True unless the class is derived from the library's by somebody else, who may have changed its equations."""
    cls: Any = getattr(type(module), "fused_from", type(module))
    if cls in LIBRARIES[kind[0]].classes():
        return True
    return str(cls.__module__).startswith("sinabs.exodus")


def _warn_of_version(name: str) -> None:
    version, tested = metadata.version(name), LIBRARIES[name].TESTED
    if version not in tested:
        warnings.warn(
            f"{name} {version} has not been compared with exodus_core; tested: {', '.join(tested)}. Compare the "
            "spikes and gradients of your model with those of the unmodified one",
            stacklevel=4,
        )


def _shown(module: torch.nn.Module) -> str:
    """The library and the name of a class, as refusals have them."""
    cls, kind = getattr(type(module), "fused_from", type(module)), kind_of(module)
    return cls.__name__ if kind is None else f"{kind[0]}.{cls.__name__}"


def refusal_of(layer: str, module: torch.nn.Module, kind: tuple[str, str], *, runs: bool = True) -> Refusal | None:
    """Why the kernels cannot compute a module of neurons, or None; without `runs`, why there is no data of it."""
    name, cls = kind
    library = LIBRARIES[name]
    shown = _shown(module)
    if cls in library.REFUSED:
        return Refusal(layer, shown, library.REFUSED[cls])
    if not is_exactly(module, kind):
        return Refusal(layer, shown, f"is a class derived from {name}.{cls}, which may have changed what it computes")
    try:
        with converting():
            found = library.described(module)
            if runs:
                check(found, library.traces(module))
    except NotMappedError as reason:
        return Refusal(layer, shown, str(reason))
    return None


_fused_classes: dict[tuple[type, str], type] = {}


def _fused_class(cls: type, name: str) -> type:
    """A subclass whose forward runs on the kernels: parameters, state, hooks and isinstance are the library's."""
    key = cls, name
    if key not in _fused_classes:
        forward = _FORWARDS[name]

        def fused(self: Any, *args: Any, **options: Any) -> Any:
            try:
                return forward(self, *args, **options)
            except NotMappedError as reason:
                part = reason.module or self
                within = next(path for path, module in self.named_modules() if module is part)
                layer = ".".join(filter(None, (self.fused_layer, within)))
                raise AccelerationError([Refusal(layer, _shown(part), str(reason))], _EXPECTED) from None

        def reduced(self: Any, protocol: Any) -> tuple[Any, ...]:
            return _restored, key, self.__dict__

        fused.__doc__ = forward.__doc__
        fused.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
        own = {"forward": fused, "fused_from": cls, "fused_as": name, "fused_layer": "", "__reduce_ex__": reduced}
        _fused_classes[key] = type(f"Fused{cls.__name__}", (cls,), own)
    return _fused_classes[key]


def _restored(cls: type, name: str) -> Any:
    """An instance for pickle and copy, whose attributes come next."""
    fused: Any = _fused_class(cls, name)
    return fused.__new__(fused)


def _fuse(module: Any, name: str, layer: str) -> None:
    if not hasattr(type(module), "fused_from"):
        module.__class__ = _fused_class(type(module), name)
    module.fused_layer = layer


def _replace_layers(model: torch.nn.Module) -> None:
    """Lets the products of a model read spikes in time proportional to them, and its pools run on the kernels."""
    within = {part for module in model.modules() if kind_of(module) is not None for part in module.modules()}
    for module in model.modules():
        if module not in within and (found := counterpart(type(module))) is not None:
            module.__class__ = found
            if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
                module.exact = False
    hand_on(model)


def accelerate(model: Model, *, time_dim: int | None = None, exact: bool = False) -> Model:
    """The same model, whose neurons run on fused kernels over the whole time axis, in place.

    The model is one of snnTorch, sinabs, SpikingJelly or norse. Its spikes are those of the library, and its gradients
    those of the library's own rule, up to rounding: a membrane within rounding of its threshold may decide otherwise.
    Parameters, their names, states and hooks stay as they are.

    Args:
        model: modules that take all steps: sinabs (batch, time, ...), SpikingJelly in step mode "m" and norse
            (time, batch, ...). Or, with time_dim, a torch.nn.Sequential of snnTorch's neurons with init_hidden=True, or
            a norse SequentialState of cells, which take one step.
        time_dim: for those that take one step: 0 or 1. The model then takes all steps, with time on this axis, and
            returns what the loop over them, from rest, would stack. `model(x, steps=T)` repeats an input without time.
            It stays: a second call with the other one is refused.
        exact: leave torch.nn.Linear, Conv1d, Conv2d and pools as they are. They become those of `exodus_core.nn`:
            products take time in proportion to the spikes that they read and sum in another order; MaxPool2d and
            AvgPool2d and sinabs' SumPool2d compute the same in less time. So do those of SpikingJelly, which with its
            batch norms compute a single step where all are the same, as `x.expand(T, ...)` makes them of an image.

    Returns:
        model.

    Raises:
        ArgumentTypeError, ArgumentError: model is no module, or time_dim none of None, 0 and 1.
        AccelerationError: layers that cannot be computed the same, with the reasons, in `refusals`. Nothing has been
            changed.
    """
    if not isinstance(model, torch.nn.Module):
        raise ArgumentTypeError("model", "a torch.nn.Module", type(model).__name__)
    if time_dim not in (None, 0, 1):
        raise ArgumentError("time_dim", "None, 0 or 1", time_dim)
    found = [(name, module, kind) for name, module in model.named_modules() if (kind := kind_of(module)) is not None]
    if not found:
        known = ", ".join(LIBRARIES)
        raise AccelerationError([Refusal("", type(model).__name__, f"has no neurons of {known}")], _EXPECTED)
    refusals = [refusal for name, module, kind in found if (refusal := refusal_of(name, module, kind)) is not None]
    plan: Plan = []
    for name in dict.fromkeys(kind[0] for _, _, kind in found):
        layers = [(layer, module) for layer, module, kind in found if kind[0] == name]
        refusals += _PLANS[name](model, layers, time_dim, plan)
    if refusals:
        raise AccelerationError(refusals, _EXPECTED)
    for name in dict.fromkeys(kind[0] for _, _, kind in found):
        _warn_of_version(name)
    names = {id(module): name for name, module in model.named_modules()}
    for module, forward in plan:
        _fuse(module, forward, names[id(module)])
    if not exact:
        _replace_layers(model)
    return model


#: Modules, and the names of what their forward becomes.
Plan = list[tuple[torch.nn.Module, str]]
Layers = list[tuple[str, torch.nn.Module]]


def _plan_layers(library: str) -> Callable[[torch.nn.Module, Layers, int | None, Plan], list[Refusal]]:
    """For libraries whose layers take all steps."""

    def plan_them(model: torch.nn.Module, layers: Layers, time_dim: int | None, plan: Plan) -> list[Refusal]:
        if time_dim is not None:
            reason = "takes all steps as it is; leave out time_dim"
            return [Refusal("", type(model).__name__, reason)]
        plan += [(module, library) for _, module in layers]
        return []

    return plan_them


def _sequential_refusals(model: torch.nn.Module, layers: Layers, loop: str, kinds: tuple[type, ...]) -> list[Refusal]:
    """Reasons why a loop over the steps would compute something else: neurons that are not reached through Sequentials
    alone, and hooks and layers with two places, which it would call by turns."""
    neurons = {id(module): name for name, module in layers}
    forwards = [getattr(kind, "forward") for kind in kinds]  # noqa: B009
    places: dict[int, int] = {}
    refusals: list[Refusal] = []

    def walk(module: torch.nn.Module, path: str) -> None:
        places[id(module)] = places.get(id(module), 0) + 1
        if isinstance(module, kinds) and type(module).forward in forwards:
            for own, child in module._modules.items():
                if child is not None:
                    walk(child, f"{path}.{own}" if path else own)
        elif places[id(module)] == 2 and not over_time.folds(module):
            refusals.append(Refusal(path, type(module).__name__, "is there twice, and a loop would call it by turns"))
        elif id(module) in neurons and over_time.is_hooked(module):
            refusals.append(Refusal(path, type(module).__name__, "has hooks, which a loop calls in each step"))

    walk(model, "")
    for name, module in layers:
        if id(module) not in places or name == "":
            refusals.append(Refusal(name, type(module).__name__, loop))
    return refusals


def _over_time_snntorch(time_dim: int) -> Callable[..., Any]:
    def forward(self: Any, input: Tensor, steps: int | None = None) -> Any:
        """All steps of input, with time on the axis given to `accelerate`; or steps times an input without time."""
        if steps is None:
            outputs = over_time.run_snntorch(self, over_time.time_first(input, time_dim))
        else:
            x, passed = over_time.repeated(self, input, steps)
            outputs = over_time.run_snntorch(torch.nn.Sequential(*list(self)[passed:]), x)
        return over_time.moved_back(outputs, time_dim)

    return forward


def _over_time_norse(time_dim: int) -> Callable[..., Any]:
    def forward(self: Any, input_tensor: Tensor, state: Any = None) -> Any:
        """All steps of input_tensor, with time on the axis given to `accelerate`, and the last state of each layer."""
        outputs, states = over_time.run_norse(self, over_time.time_first(input_tensor, time_dim), state)
        return outputs.movedim(0, time_dim), states

    return forward


_FORWARDS: dict[str, Callable[..., Any]] = {
    "sinabs": sinabs.forward,
    "spikingjelly": spikingjelly.forward,
    "norse": norse.forward,
    "norse lift": norse.forward_of_lift,
    "norse folded lift": norse.forward_of_folded_lift,
    **{f"snntorch {time_dim}": _over_time_snntorch(time_dim) for time_dim in (0, 1)},
    **{f"norse {time_dim}": _over_time_norse(time_dim) for time_dim in (0, 1)},
}


def _refusals_again(model: Any, time_dim: int | None) -> list[Refusal]:
    """Of a model that is accelerated already, with a time_dim that it may not have been given then."""
    if time_dim is None or type(model).fused_as.endswith(f" {time_dim}"):
        return []
    reason = f"takes all steps already, and not for time_dim={time_dim}; its first time_dim stays"
    return [Refusal("", _shown(model), reason)]


def _plan_snntorch(model: torch.nn.Module, layers: Layers, time_dim: int | None, plan: Plan) -> list[Refusal]:
    if hasattr(type(model), "fused_from"):
        return _refusals_again(model, time_dim)
    if time_dim is None:
        return [Refusal(name, type(module).__name__, _SNNTORCH_LOOP) for name, module in layers]
    refusals = _sequential_refusals(model, layers, _SNNTORCH_LOOP, (torch.nn.Sequential,))
    last = _last(model)
    for name, module in layers:
        if not module.init_hidden:
            reason = "has init_hidden=False, so that it returns its state, which a Sequential hands on as input"
            refusals.append(Refusal(name, type(module).__name__, reason))
        elif module.output and module is not last:
            refusals.append(Refusal(name, type(module).__name__, "has output=True and is not the last layer"))

    plan.append((model, f"snntorch {time_dim}"))
    return refusals


def _last(model: torch.nn.Module) -> torch.nn.Module:
    while isinstance(model, torch.nn.Sequential) and len(model):
        model = model[-1]
    return model


def _plan_norse(model: torch.nn.Module, layers: Layers, time_dim: int | None, plan: Plan) -> list[Refusal]:
    if hasattr(type(model), "fused_from"):
        return _refusals_again(model, time_dim)
    package: Any = importlib.import_module("norse.torch")
    lifts: list[Any] = [
        part for part in model.modules() if getattr(type(part), "fused_from", type(part)) is package.Lift
    ]
    lifted = {id(part.lifted_module) for part in lifts}
    refusals: list[Refusal] = []
    looped: Layers = []
    for name, module in layers:
        if norse.is_over_time(module):
            plan.append((module, "norse"))
        elif id(module) not in lifted:
            looped.append((name, module))
    over = [name for name, module in layers if norse.is_over_time(module)]
    cells = {id(module) for _, module in layers if not norse.is_over_time(module)}
    for part in lifts:
        if id(part.lifted_module) in cells:
            plan.append((part, "norse lift"))
        elif over_time.folds(part.lifted_module):
            plan.append((part, "norse folded lift"))
    if time_dim is None:
        return [Refusal(name, type(module).__name__, _NORSE_LOOP) for name, module in looped]
    if over or lifts or not looped:
        return [Refusal("", type(model).__name__, "has layers that take all steps as they are; leave out time_dim")]
    refusals += _sequential_refusals(model, looped, _NORSE_LOOP, (package.SequentialState,))
    if getattr(model, "return_hidden", False):
        refusals.append(Refusal("", type(model).__name__, "has return_hidden=True; only the last output can be given"))
    plan.append((model, f"norse {time_dim}"))
    return refusals


_PLANS: dict[str, Callable[[torch.nn.Module, Layers, int | None, Plan], list[Refusal]]] = {
    "snntorch": _plan_snntorch,
    "sinabs": _plan_layers("sinabs"),
    "spikingjelly": _plan_layers("spikingjelly"),
    "norse": _plan_norse,
}
