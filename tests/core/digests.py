"""Digests of the kernels' results, to be compared between processes: `python digests.py` prints them as JSON.

Where EXODUS_LAST_CACHE is small, outputs of these sizes are written past the caches.
"""

import hashlib
import json
from collections.abc import Iterator

import torch
from sparse_cases import KINDS, bits_of, spikes
from torch import Tensor

import exodus_core
from assertions import DTYPES, KERNELS, SURROGATES, name_of
from exodus_core import ExponentialKernel, PackedSpikes, ops
from exodus_core.functional import lif_packed, lif_with_last
from exodus_core.surrogate import Sigmoid, Surrogate

# (outer, time, inner): time last in one block and in several, the last of one step, in one tile and in several, the
# last one wider; neighbouring lanes in whole strips and not.
SHAPES = [(300, 3, 1), (897, 100, 1), (37, 129, 1), (911, 250, 1), (5, 257, 1), (2, 140, 5), (2, 140, 64), (2, 33, 259)]


FILTERS = {"filter": KERNELS["alpha"](None), "slow filter": ExponentialKernel((0.9999, 0.99), (1.0, -0.5))}


def results_of(neuron: str, x: Tensor, weight: Tensor, surrogate: exodus_core.surrogate.Surrogate) -> list[Tensor]:
    """Outputs and gradients."""
    x = x.clone().requires_grad_()
    if neuron in FILTERS:
        output = exodus_core.filter(x, FILTERS[neuron])
        return [output.detach(), *torch.autograd.grad(output, x, weight)]
    parameter: Tensor | None = torch.tensor(0.9, dtype=torch.promote_types(x.dtype, torch.float32), requires_grad=True)
    if neuron == "lif of one step":
        step = x[:, :, :1]
        outputs = lif_with_last(step.expand_as(x), parameter, one_step=step, surrogate=surrogate, time_dim=2)
        return [*(t.detach() for t in outputs), *torch.autograd.grad(outputs[:2], [x, parameter], (weight, -weight))]
    if neuron == "srm":
        outputs = exodus_core.srm(x, KERNELS["exponential"](None), threshold=parameter, surrogate=surrogate)
    elif neuron == "lif":
        outputs = exodus_core.lif(x, parameter, decay_reset=True, min_membrane=-1.0, surrogate=surrogate)
    else:
        parameter, outputs = None, exodus_core.lif(x, 0.9, reset="zero", surrogate=surrogate)
    leaves = [x] if parameter is None else [x, parameter]
    return [*(t.detach() for t in outputs), *torch.autograd.grad(outputs, leaves, (weight, -weight))]


def product_of(size: tuple[int, int, int], kind: str, dtype: torch.dtype) -> list[Tensor]:
    """The bits of spikes, the bits that a LIF layer writes, a product, and the gradient of its weight."""
    rows, columns, outputs = size
    x = spikes((rows, columns), 0.2, kind, dtype)
    weight, bias, grad = (torch.randn(shape).to(dtype) for shape in ((outputs, columns), (outputs,), (rows, outputs)))
    packed = lif_packed(torch.randn(3, 50, outputs + 16).to(dtype), 0.9)
    assert isinstance(packed, PackedSpikes)
    bits, values = bits_of(x)
    y = ops.spike_linear(bits, values, weight, bias)
    return [bits, packed.bits, packed.unpack(dtype), y, ops.spike_linear_weight(bits, values, grad, columns)]


def convolution_of(channels: tuple[int, int, int], kind: str, dtype: torch.dtype) -> list[Tensor]:
    """Convolutions with and without a stride, and the gradients of their weights."""
    inputs, outputs, groups = channels
    x = spikes((70, inputs, 7, 9), 0.2, kind, dtype)
    weight, bias = torch.randn(outputs, inputs // groups, 3, 2).to(dtype), torch.randn(outputs).to(dtype)
    bits, values = bits_of(x.flatten(1))
    found = []
    for stride in ((2, 1), (1, 1)):
        windows = ((7, 9), stride, (1, 0), (1, 2), groups)
        y = ops.spike_convolution(bits, values, weight, bias, *windows)
        grad = torch.randn(y.shape).to(dtype)
        found += [y, *ops.spike_convolution_weight(bits, values, grad, weight, *windows)]
    return found


def many_spikes_of(channels: tuple[int, int, int], dtype: torch.dtype) -> list[Tensor]:
    """A convolution of images with few and with many spikes."""
    inputs, outputs, groups = channels
    x = (torch.rand(60, inputs, 7, 12) < torch.rand(60, 1, 1, 1)).to(dtype)
    weight, bias = torch.randn(outputs, inputs // groups, 3, 5).to(dtype), torch.randn(outputs).to(dtype)
    bits, _ = bits_of(x.flatten(1))
    return [ops.spike_convolution(bits, None, weight, bias, (7, 12), (1, 1), (1, 2), (1, 1), groups)]


def sparse_gradient_of(channels: tuple[int, int], dtype: torch.dtype) -> list[Tensor]:
    """dL/ds of convolutions from a gradient that is mostly zero."""
    inputs, outputs = channels
    weight, grad = torch.randn(outputs, inputs, 3, 2).to(dtype), spikes((20, outputs, 4, 8), 0.2, "values", dtype)
    bits, _ = bits_of(grad.flatten(1))
    return [ops.sparse_gradient_convolution(bits, grad, weight, [7, 9], [2, 1], [1, 0])]


def pools_of(windows: tuple[list[int], ...], dtype: torch.dtype) -> list[Tensor]:
    """The largest values and the means of windows, and their gradients."""
    x = torch.randn(30, 2, 13, 41).to(dtype)
    y, places = ops.max_pool2d(x, *windows, True)
    grad = torch.randn(y.shape).to(dtype)
    means = ops.avg_pool2d(x, *windows, 0)
    found = [y, places, ops.max_pool2d_backward(grad, places, [13, 41], *windows), means]
    return [*found, ops.avg_pool2d_backward(grad, [13, 41], *windows, 0)]


def digest_of(results: list[Tensor]) -> str:
    found = hashlib.sha256()
    for result in results:
        found.update(result.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def digests() -> Iterator[tuple[str, str]]:
    torch.manual_seed(7)
    cases: list[tuple[torch.dtype, tuple[int, ...], Surrogate]]
    cases = [(dtype, shape, Sigmoid()) for dtype in DTYPES for shape in SHAPES]
    cases += [(dtype, (3, 20, 33), surrogate) for dtype in DTYPES[:2] for surrogate in SURROGATES]
    for dtype, shape, surrogate in cases:
        x, weight = torch.randn(2, *shape).to(dtype)
        broken = x.clone()
        broken.view(-1)[x.numel() // 2] = torch.nan
        signals = {"": x, " of subnormal numbers": x * 1e-39, " with NaN": broken}
        for neuron in ("lif", "lif, input only", "lif of one step", "srm", *FILTERS):
            for name, signal in signals.items():
                found = hashlib.sha256()
                for result in results_of(neuron, signal, weight, surrogate):
                    numbers = result.nan_to_num(12.0)  # which NaN it is, is nobody's business
                    found.update(numbers.reshape(-1).view(torch.uint8).numpy().tobytes())
                yield f"{neuron}{name}, {name_of(dtype)}, {name_of(shape)}, {name_of(surrogate)}", found.hexdigest()
    for dtype in DTYPES:
        for kind in KINDS:
            products = {size: product_of(size, kind, dtype) for size in ((70, 33, 9), (600, 65, 300))}
            products |= {size: convolution_of(size, kind, dtype) for size in ((2, 140, 1), (6, 9, 3))}
            for size, results in products.items():
                yield f"product, {name_of(dtype)}, {name_of(size)}, {kind}", digest_of(results)
        for many in ((5, 40, 1), (4, 48, 2)):
            yield f"many spikes, {name_of(dtype)}, {many}", digest_of(many_spikes_of(many, dtype))
        for channels in ((5, 40), (130, 9)):
            yield f"gradient, {name_of(dtype)}, {channels}", digest_of(sparse_gradient_of(channels, dtype))
        for pool in (([2, 2], [2, 2], [0, 0]), ([3, 3], [2, 2], [1, 1]), ([2, 4], [1, 3], [0, 2])):
            yield f"pools, {name_of(dtype)}, {pool}", digest_of(pools_of(pool, dtype))


if __name__ == "__main__":
    print(json.dumps({"instruction_set": exodus_core.capabilities()["instruction_set"], **dict(digests())}))
