"""Trains one network: gradients accumulate until an optimiser step, and a call that fails changes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from exodus_core import losses
from exodus_core.errors import ArgumentError, ArgumentTypeError, must_be
from exodus_core.losses import Loss, LossValue, counted_steps
from exodus_core.network import Network
from exodus_core.training import flat_parameters, states
from exodus_core.training.accumulation import CALLS, Count
from exodus_core.training.errors import ContextStaleError, NonFiniteError
from exodus_core.training.flat_parameters import Scalars
from exodus_core.training.graphs import Graphs, Inputs, Value
from exodus_core.training.optimizer import parse_optimizer
from exodus_core.training.parameter_groups import regrouped
from exodus_core.training.parameter_options import ParameterOptions
from exodus_core.training.pure_forward import Changes, Forward, PureForward
from exodus_core.training.update import Update
from exodus_core.training.weights import LoadedWeights, fitting

LossFunction = Callable[[Tensor, Any], LossValue]
AnyLoss = LossFunction | str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]]


class StepResult(NamedTuple):
    """Metrics of the loss, and the norm of each parameter's gradient and of all together ("total")."""

    metrics: dict[str, float]
    grad_norms: dict[str, float]


@dataclass(frozen=True)
class _Computed:
    """Gradients of one call, and its numbers before they are read: the total norm, all norms, and values by name."""

    gradients: Sequence[Tensor]
    changes: Changes
    names: Sequence[str]
    scalars: Scalars


@dataclass(frozen=True)
class _Found:
    """Gradients of one call, before they count; if they are lent, the next call may overwrite them."""

    gradients: Sequence[Tensor]
    changes: Changes
    result: StepResult
    lent: bool = False


class Trainer:
    """A network, its optimiser and its accumulated gradients.

    With the same data, seed and calls the bits are those of the plain torch loop (forward, `loss.backward()`,
    `optimizer.step()`, `zero_grad()`), in which `net.neuron_parameters()` are a group without weight decay. A call that
    raises has changed nothing: weights, running statistics, generator and accumulated gradients are as before. The one
    exception is an optimiser of torch that itself fails within its step, as for want of memory.

    Args:
        net: a network of `exodus_core.network.build`, or what `torch.compile` makes of one; its parameters' `.grad` are
            the accumulated gradients.
        optimizer: "sgd", "adam" or "adamw", or {"kind", "lr", ...} with the options by torch's names, and "frozen",
            "lr_scale" and "lr_of" by the names of layers or parameters.
        graphs: on a GPU, replay repeated calls of `step` and `forward_backward` from CUDA graphs (docs/cuda.md), with
            the same bits. None: those of which a step takes at most a GiB; True: larger ones too; False: none.

    Attributes:
        net: the network.
        optimizer: the torch optimiser.
        optimizer_data: the description of the optimiser with all defaults.
        graphs: as given; may be changed.

    Raises:
        OptimizerError: the optimiser's description does not fit.
        TypeError: net is another module, whose changes by a call are unknown and cannot be undone.
        ValueError: the network has no parameters.
    """

    def __init__(self, net: Network, optimizer: str | Mapping[str, Any], *, graphs: bool | None = None) -> None:
        self._kind = parse_optimizer(optimizer)
        plain = getattr(net, "_orig_mod", net)  # of torch.compile, which gives parameters other names
        if not isinstance(plain, Network):
            raise ArgumentTypeError("net", "a network of exodus_core.network.build", type(net).__name__)
        compiled, net = net, plain
        self.net = net
        self.optimizer_data = self._kind.data
        self._named = dict(net.named_parameters())
        self._parameters = list(self._named.values())
        if not self._parameters:
            raise ArgumentError("net", "a network with at least one parameter", "one without")
        self.graphs = graphs
        self._pure_forward = PureForward(net, compiled)
        # torch.compile may recompile whenever it is called.
        self._graphs = Graphs(net, self._pure_forward.draws) if compiled is net else None
        self.optimizer = self._kind.made(net)
        self._options = self._kind.of_parameters(list(self._named))
        self._count = Count()
        net.train()

    @property
    def weights_version(self) -> int:
        """A number that grows with every change of the weights."""
        return sum(p._version for p in self._parameters)

    def forward(self, x: Tensor, *, train: bool = False) -> Tensor:
        """The outputs, shape (batch, time, *output_shape), without a graph; `train`: as in training.

        Nothing changes: batch norms keep their statistics, and the masks drawn are drawn again by the next call.

        Raises:
            TypeError, ValueError: x does not fit the network.
        """
        return self._pure_forward.evaluate(x, train)

    def begin(self, x: Tensor) -> Forward:
        """A forward pass in training that keeps its graph for `backward` and changes nothing yet.

        Raises:
            TypeError, ValueError: x does not fit the network.
        """
        version = self.weights_version
        outputs, changes, nbytes = self._pure_forward.run_counted(x)
        return Forward(outputs.detach().requires_grad_(), nbytes, version, outputs, changes)

    def backward(
        self,
        forward: Forward,
        grad_outputs: Tensor,
        *,
        frozen: Sequence[str] | None = None,
        accumulate: str = CALLS,
        allow_non_finite: bool = False,
    ) -> dict[str, float]:
        """Adds the gradients of a forward pass, given dL/doutputs; its batch statistics and masks then count.

        A call that raises leaves `forward` as it was; one that succeeds releases it. `frozen`, `accumulate`: as of
        `forward_backward`.

        Returns:
            The norms of the gradients added, and "total".

        Raises:
            ContextStaleError: the weights have changed since.
            NonFiniteError: a gradient, or its sum with those accumulated, is not finite.
            TypeError, ValueError: grad_outputs does not fit, or the forward pass has been used.
        """
        outputs = forward._graph
        if outputs is None:
            raise ArgumentError("forward", "unused", "one that a backward pass has used")
        if forward.weights_version != self.weights_version:
            expected = f"of the present weights, version {self.weights_version}"
            raise ContextStaleError(must_be("forward", expected, f"one of version {forward.weights_version}"))
        kept = self.resolved(frozen=frozen).frozen
        weight = self._weight(accumulate, outputs)
        flat_parameters.check("grad_outputs", grad_outputs, outputs.shape)
        given = grad_outputs.detach().to(outputs.device, outputs.dtype)
        gradients = self._differentiate(outputs, given, kept, keep=True)
        found = self._found(gradients, forward._changes, kept, allow_non_finite)
        self._accumulate(found, accumulate, weight, kept, allow_non_finite)
        forward._graph = None
        return found.result.grad_norms

    def forward_backward(
        self,
        x: Tensor,
        targets: Tensor | None,
        loss: AnyLoss,
        *,
        lengths: Tensor | None = None,
        mask: Tensor | None = None,
        frozen: Sequence[str] | None = None,
        accumulate: str = CALLS,
        allow_non_finite: bool = False,
    ) -> StepResult:
        """Adds the gradients of a loss to those accumulated.

        Args:
            x: shape (batch, time, *input_shape).
            targets: what the loss takes; None if it takes none.
            loss: of `exodus_core.losses`, or what `losses.parse` takes; or any function of outputs and targets that
                returns a `LossValue`.
            lengths: how many steps of each sample count, from the first on: integers, shape (batch,), from 1 to time;
                or
            mask: true where a step counts, bool, shape (batch, time), at least one of each sample. Loss and gradients
                are then the means over samples of those of each alone.
            frozen: layers or parameters whose gradients are not computed and count as 0, in place of the optimiser's.
            accumulate: what the call counts as, by which its gradients are multiplied: "calls" for 1, "samples" for the
                number of its samples; the same in all calls up to a step of the optimiser.
            allow_non_finite: add gradients that are infinite or not numbers too.

        Raises:
            LossError: there is no such loss, or outputs, targets, lengths or mask do not fit it.
            NonFiniteError: the loss, a gradient, or its sum with those accumulated, is not finite.
            TypeError, ValueError: x does not fit the network; or lengths or a mask are given to a network with batch
                norm, whose statistics are of all steps, or with a loss that is a function.
        """
        kept = self.resolved(frozen=frozen).frozen
        weight = self._weight(accumulate, x)
        found = self._compute(x, targets, loss, lengths, mask, kept, allow_non_finite)
        self._accumulate(found, accumulate, weight, kept, allow_non_finite)
        return found.result

    def optim_step(
        self,
        *,
        lr: float | None = None,
        weight_decay: float | None = None,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        frozen: Sequence[str] | None = None,
        lr_scale: Mapping[str, float] | None = None,
        lr_of: Mapping[str, float] | None = None,
        average: bool = False,
        gradients: Tensor | None = None,
        allow_non_finite: bool = False,
    ) -> dict[str, float]:
        """Changes the weights by the accumulated gradients and clears these; without any, changes nothing.

        Args:
            lr, weight_decay: instead of the optimiser's, for this step.
            clip_norm: largest norm of all gradients together; then
            clip_value: largest magnitude of each element.
            frozen: layers or parameters that this step leaves as they are, in place of the optimiser's: their gradient
                counts as 0, and their part of the optimiser's state stays too.
            lr_scale: factors on the learning rate, by layer or parameter, and
            lr_of: rates in its place; the two together in place of the optimiser's. A parameter's own comes before its
                layer's.
            average: divide the accumulated gradients by what the calls count as, all together.
            gradients: all parameters' gradients, flat and in order, instead of those accumulated.
            allow_non_finite: go on if a gradient is infinite or not a number.

        Returns:
            The norms of the gradients before clipping, and "total".

        Raises:
            NonFiniteError: a gradient is not finite.
            OptimizerError, TypeError, ValueError: an argument does not fit.
        """
        update = Update(
            lr=lr,
            weight_decay=weight_decay,
            clip_norm=clip_norm,
            clip_value=clip_value,
            frozen=frozen,
            lr_scale=lr_scale,
            lr_of=lr_of,
        )
        options = self._resolved(update)
        if gradients is not None:
            if average:
                raise ArgumentError("average", "false with gradients that are given", average)
            used: Sequence[Tensor] = flat_parameters.split("gradients", gradients, self._parameters)
        elif self._accumulated:
            divisor = self._count.divisor(average)
            used = _divided(self._sums([torch.zeros_like(p) for p in self._parameters]), divisor)
        else:
            return dict.fromkeys([*self._named, "total"], 0.0)
        used = self._without(used, options.frozen)
        found = self._found(used, Changes(), options.frozen, allow_non_finite)
        self._apply(update, options, used, found.result.grad_norms["total"])
        return found.result.grad_norms

    def step(
        self,
        x: Tensor,
        targets: Tensor | None,
        loss: AnyLoss,
        *,
        lengths: Tensor | None = None,
        mask: Tensor | None = None,
        lr: float | None = None,
        weight_decay: float | None = None,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        frozen: Sequence[str] | None = None,
        lr_scale: Mapping[str, float] | None = None,
        lr_of: Mapping[str, float] | None = None,
        accumulate: str = CALLS,
        average: bool = False,
        allow_non_finite: bool = False,
    ) -> StepResult:
        """`forward_backward` and `optim_step` in one; the norms are those of this call's gradients.

        Raises:
            What the two raise; then neither has happened.
        """
        update = Update(
            lr=lr,
            weight_decay=weight_decay,
            clip_norm=clip_norm,
            clip_value=clip_value,
            frozen=frozen,
            lr_scale=lr_scale,
            lr_of=lr_of,
        )
        options = self._resolved(update)
        weight = self._weight(accumulate, x)
        divisor = self._count.added(accumulate, weight).divisor(average)
        found = self._compute(x, targets, loss, lengths, mask, options.frozen, allow_non_finite)
        used, total = found.gradients, found.result.grad_norms["total"]
        if self._accumulated or weight != 1 or divisor != 1:
            sums = self._sums(_times(found.gradients, weight))
            used = self._without(_divided(sums, divisor), options.frozen)
            total = self._found(used, found.changes, options.frozen, allow_non_finite).result.grad_norms["total"]
        self._apply(update, options, used, total)
        self._pure_forward.commit(found.changes)
        return found.result

    def gradients(self, *, average: bool = False) -> Tensor:
        """A flat copy of the accumulated gradients, all parameters in order; zeros if there are none.

        `average`: as of `optim_step`.
        """
        divisor = self._count.divisor(average) if self._accumulated else 1
        found = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters]
        return flat_parameters.join(_divided(found, divisor))

    def weights(self) -> Tensor:
        """A flat copy of all parameters in order."""
        return flat_parameters.join(self._parameters)

    def set_weights(self, weights: Tensor) -> None:
        """Replaces all parameters by a flat tensor, as `weights` returns it.

        Raises:
            TypeError, ValueError: it does not fit.
        """
        parts = flat_parameters.split("weights", weights, self._parameters)
        with torch.no_grad():
            for parameter, part in zip(self._parameters, parts, strict=True):
                parameter.copy_(part)

    def state(self) -> dict[str, Tensor]:
        """Everything that the next call depends on, as clones.

        Named "weights.NAME" (parameters and running statistics), "optimizer.NAME.SLOT", "gradients.NAME" if
        accumulated, with their "gradients.count", int64, and "random", the generator's state, uint8.
        """
        return states.collect(self.net, self.optimizer, self._count)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from a state that `state` returned.

        Raises:
            StateError: it is not of this network and optimiser; says the first tensor that does not fit. Nothing has
                changed.
            TypeError: it is no mapping by names.
        """
        self._count = states.load(state, self.net, self.optimizer, self._kind.slots)

    def load_weights(
        self, weights: Mapping[str, Tensor], *, names: Sequence[str] | None = None, partial: bool = False
    ) -> LoadedWeights:
        """Replaces weights and running statistics by name; the optimiser's state starts anew, gradients are cleared.

        The generator stays as it is. Floats of another dtype are rounded to the network's; alpha and threshold are then
        brought into their range, as after a step.

        Args:
            weights: by the names of the network, or as in a state, "weights.NAME", whose other tensors are left aside.
            names: layers or weights to take; None: all.
            partial: take those that there are; otherwise all that are wanted have to be there and, without names, no
                others.

        Returns:
            The names of what was loaded, of what was missing, and of what the network does not have.

        Raises:
            StateError: a weight is missing or unknown, none is there, or one has another shape or dtype or is not
                finite in the dtype of the network. Nothing has changed.
            TypeError: weights are no mapping by names, or names no list of str.
            ValueError: the network has no layer or weight of a name.
        """
        taken, result = fitting(weights, self.net, names, partial)
        own = self.net.state_dict()
        with torch.no_grad():
            for name, value in taken.items():
                own[name].copy_(value)
        self.net.constrain()
        self.optimizer.state.clear()
        for parameter in self._parameters:
            parameter.grad = None
        self._count = Count()
        return result

    def tensors(self) -> list[Tensor]:
        """The tensors themselves that a call changes: weights, running statistics, gradients, the optimiser's state."""
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        slots = [slot for of_one in self.optimizer.state.values() for slot in of_one.values()]
        state = [slot for slot in slots if isinstance(slot, Tensor)]  # plain SGD keeps a None
        return [*self._parameters, *self._pure_forward.buffers(), *gradients, *state]

    @property
    def nbytes(self) -> int:
        """Bytes of weights, running statistics, the optimiser's state and accumulated gradients."""
        return states.nbytes(self.net, self.optimizer)

    @property
    def graph_nbytes(self) -> int:
        """Bytes of the GPU's memory that CUDA graphs keep from one call to the next."""
        return 0 if self._graphs is None else self._graphs.nbytes

    def check_average(self, average: bool) -> None:
        """Checks that gradients can be averaged once a further call has been accumulated. Raises ArgumentError."""
        if self._accumulated:
            self._count.divisor(average)

    def resolved(
        self,
        *,
        frozen: Sequence[str] | None = None,
        lr_scale: Mapping[str, float] | None = None,
        lr_of: Mapping[str, float] | None = None,
    ) -> ParameterOptions:
        """The options of single parameters that a call with these arguments has. Raises OptimizerError."""
        return self._resolved(Update(frozen=frozen, lr_scale=lr_scale, lr_of=lr_of))

    def _resolved(self, update: Update) -> ParameterOptions:
        return update.of_parameters(self._kind, list(self._named)) or self._options

    def _without(self, gradients: Sequence[Tensor], frozen: frozenset[str]) -> Sequence[Tensor]:
        """Gradients with zeros for frozen parameters."""
        if not frozen:
            return gradients
        return [torch.zeros_like(g) if name in frozen else g for name, g in zip(self._named, gradients, strict=True)]

    def _apply(self, update: Update, options: ParameterOptions, gradients: Sequence[Tensor], total: float) -> None:
        groups = None
        if not options.grouped_as(self._options):  # else they stay, with rates that a scheduler may have set
            groups = regrouped(self.optimizer.param_groups, self.net, options)
        used = [None if name in options.frozen else g for name, g in zip(self._named, gradients, strict=True)]
        update.apply(self.optimizer, self._parameters, used, total, groups)
        self._count = Count()

    def _differentiate(
        self, outputs: Tensor, grad_outputs: Tensor | None, frozen: frozenset[str], keep: bool
    ) -> Sequence[Tensor]:
        # Autocast is for forward passes: a backward pass has the dtypes of its own.
        device = outputs.device.type
        trained = [parameter for name, parameter in self._named.items() if name not in frozen]
        with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext():
            found = torch.autograd.grad(
                outputs, trained, grad_outputs, retain_graph=keep, allow_unused=True, materialize_grads=True
            )
        # Their norms must not depend on how autograd laid them out: a state on disk does not keep that.
        gradients = iter([gradient.contiguous() for gradient in found])
        return [torch.zeros_like(p) if name in frozen else next(gradients) for name, p in self._named.items()]

    def _compute(
        self,
        x: Tensor,
        targets: Tensor | None,
        loss: AnyLoss,
        lengths: Tensor | None,
        mask: Tensor | None,
        frozen: frozenset[str],
        allow_non_finite: bool,
    ) -> _Found:
        function = loss if callable(loss) else losses.parse(loss)
        inputs = Inputs(x, targets, self._counted(x, function, lengths, mask))
        value = _value_of(function)
        compute, lent = partial(self._computed, frozen), False
        if self._graphs is None or self.graphs is False:
            computed = compute(inputs, value)
        else:
            large = self.graphs is True
            computed, lent = self._graphs.run(compute, inputs, function, value, variant=frozen, large=large)
        return self._read(computed, allow_non_finite, lent)

    def _counted(self, x: Tensor, loss: LossFunction, lengths: Tensor | None, mask: Tensor | None) -> Tensor | None:
        """The steps that count; None: all of them."""
        if lengths is None and mask is None:
            return None
        name = "mask" if lengths is None else "lengths"
        if not isinstance(loss, Loss):
            raise ArgumentError(name, "None with a loss that is a function", "a tensor", "count steps in the function")
        if self._pure_forward.buffer_names:
            expected = "None for a network with batch norm, whose statistics are of all steps"
            raise ArgumentError(name, expected, "a tensor")
        if not isinstance(x, Tensor) or x.dim() < 2:
            return None  # the network refuses it
        return counted_steps(x.shape[:2], lengths, mask)

    def _computed(self, frozen: frozenset[str], inputs: Inputs, value_of: Value) -> _Computed:
        """Forward pass, loss, gradients and norms; changes nothing."""
        outputs, changes = self._pure_forward.run(inputs.x)
        with torch.enable_grad():
            given = value_of(outputs, inputs.targets, inputs.steps)
        if not isinstance(given, tuple) or len(given) != 2:
            raise ArgumentTypeError(
                "loss", "a function that returns a LossValue", f"one that returns {type(given).__name__}"
            )
        value, metrics = given
        gradients = self._differentiate(value, None, frozen, keep=False)
        return self._with_norms(gradients, changes, {"loss": value.detach(), **metrics}, frozen)

    def _with_norms(
        self, gradients: Sequence[Tensor], changes: Changes, values: Mapping[str, Tensor], frozen: frozenset[str]
    ) -> _Computed:
        norms = list(torch._foreach_norm([*gradients, *changes.buffers]))
        # Zeros among them could round their sum otherwise.
        trained = [norm for name, norm in zip(self._named, norms, strict=False) if name not in frozen]
        total_norm = torch.linalg.vector_norm(torch.stack(trained))
        return _Computed(gradients, changes, list(values), Scalars.of([total_norm, *norms, *values.values()]))

    def _read(self, computed: _Computed, allow_non_finite: bool, lent: bool = False) -> _Found:
        """Norms and metrics, read from the device together, and checked."""
        changes, values = computed.changes, computed.names
        total, *read = computed.scalars.read()
        names = [*self._named, *(self._pure_forward.buffer_names if changes.buffers else ())]
        by_name = dict(zip(names, read, strict=False))
        metrics = dict(zip(values, read[len(read) - len(values) :], strict=True))
        if not allow_non_finite:
            suspects = ({"loss": metrics["loss"]} if "loss" in metrics else {}) | by_name | {"total": total}
            for name, value in suspects.items():
                if not math.isfinite(value):
                    raise NonFiniteError(name, value)
        metrics.pop("loss", None)
        grad_norms = {name: by_name[name] for name in self._named} | {"total": total}
        return _Found(computed.gradients, changes, StepResult(metrics, grad_norms), lent)

    def _found(
        self, gradients: Sequence[Tensor], changes: Changes, frozen: frozenset[str], allow_non_finite: bool
    ) -> _Found:
        """Gradients that are there already, with their norms, checked."""
        return self._read(self._with_norms(gradients, changes, {}, frozen), allow_non_finite)

    @property
    def _accumulated(self) -> bool:
        return any(p.grad is not None for p in self._parameters)

    def _sums(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        pairs = zip(self._parameters, gradients, strict=True)
        return [g if p.grad is None else p.grad + g for p, g in pairs]

    def _weight(self, accumulate: str, x: Tensor) -> int:
        """The count of a call with this input. Raises ArgumentError."""
        if not self._accumulated:  # whoever has cleared them
            self._count = Count()
        samples = x.shape[0] if isinstance(x, Tensor) and x.dim() else 1  # the network refuses what is no batch
        return self._count.weight(accumulate, samples)

    def _accumulate(
        self, found: _Found, accumulate: str, weight: int, frozen: frozenset[str], allow_non_finite: bool
    ) -> None:
        """Adds gradients to those accumulated. Raises NonFiniteError: a sum is not finite; nothing has changed."""
        sums = self._sums(_times(found.gradients, weight))
        if not allow_non_finite and (weight != 1 or self._accumulated):
            self._found(self._without(sums, frozen), Changes(), frozen, allow_non_finite)
        for parameter, total, gradient in zip(self._parameters, sums, found.gradients, strict=True):
            parameter.grad = total.clone() if found.lent and total is gradient else total
        self._count = self._count.added(accumulate, weight)
        self._pure_forward.commit(found.changes)


def _times(gradients: Sequence[Tensor], weight: int) -> Sequence[Tensor]:
    return gradients if weight == 1 else torch._foreach_mul(list(gradients), weight)


def _divided(gradients: Sequence[Tensor], divisor: int) -> Sequence[Tensor]:
    return gradients if divisor == 1 else torch._foreach_div(list(gradients), divisor)


def _value_of(loss: LossFunction) -> Value:
    """The value of a loss for outputs, targets and the steps that count, with all checks."""

    def value(outputs: Tensor, targets: Tensor | None, steps: Tensor | None) -> Any:
        return loss(outputs, targets) if steps is None else cast(Loss, loss)(outputs, targets, mask=steps)

    return value
