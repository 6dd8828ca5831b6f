"""Sizes on both sides of every edge of the kernels: vector, row, tile, block, warp and chunk, in lanes and in time.

On the CPU a strip has up to 16 lanes, a tile up to 4,096 (128 where they are copied to rows), and time goes in blocks
of 128 steps, 4 of them at a time, 6 where parameters have gradients. The CUDA kernels have rows of up to 16 bytes and
blocks of 64 threads, with groups of 1 to 4 steps in a ring of 8; blocks of 32 lanes that have less than 32 neighbours,
staged for 64 bytes of time; and cut long times into chunks of 64 and passes of 1,024 steps.
"""

import os
from typing import Any

import pytest
import torch
from torch import Tensor

import exodus_core
from assertions import DTYPES, assert_agrees, gradients, leaves, lif_parameters, name_of
from exodus_core import AlphaKernel, reference
from exodus_core.surrogate import Arctan, Tanh

IN_LANES = [(1, 5, n) for n in (2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 516, 1023, 1024, 1025, 2064)]
IN_LANES += [(1, 5, n) for n in (4095, 4096, 4097, 4111, 4113, 8200)]
OUTER = [(b, 5, n) for b, n in ((65, 1), (64, 1), (63, 1), (33, 2), (22, 3), (9, 31), (5, 32), (4, 33))]
OUTER += [(127, 5, 1), (129, 5, 1), (897, 5, 1), (911, 130, 1), (100, 5, 5), (17, 66, 1), (40, 131, 1), (20, 140, 2)]
TIMES = (*range(1, 10), 15, 16, 17, *range(27, 34), 63, 64, 65, 127, 128, 129, 257, 511, 512, 1023, 1024, 1025, 2050)
IN_TIME = [(2, t, n) for t in TIMES for n in (1, 33)]


@pytest.mark.parametrize("shape", [*IN_LANES, *OUTER, *IN_TIME], ids=name_of)
@pytest.mark.parametrize("kind", ["all gradients", "input only", "bound after the reset"])
def test_lif_is_exact_at_every_edge(shape: tuple[int, ...], kind: str) -> None:
    arguments = lif_parameters(shape, 1, torch.float64)
    if kind == "input only":
        arguments = {"alpha": 0.9, "min_membrane": -1.0}
    if kind == "bound after the reset":
        arguments["bound_after_reset"] = True
    arguments["x"] = torch.randn(shape, dtype=torch.float64)
    weights = tuple(torch.randn(shape, dtype=torch.float64) for _ in range(2))
    given = leaves(arguments)
    outputs = exodus_core.lif(**given, decay_reset=True, surrogate=Arctan())
    found = gradients(outputs, weights, given)
    exact = leaves({name: value for name, value in arguments.items() if name != "x"})
    x, *pinned = reference.lif_on_trace(outputs[1], **exact, decay_reset=True, surrogate=Arctan())
    assert torch.equal(outputs[0], pinned[0])
    for name, expected in gradients(tuple(pinned), weights, {**exact, "x": x}).items():
        assert_agrees(name, found[name], expected)


@pytest.mark.parametrize("reset", ["subtract", "none"])
def test_lif_is_exact_where_no_bound_ends_the_gradient_and_it_comes_undiminished_from_far(reset: str) -> None:
    # A clipped membrane would make the slope of a chunk of time zero, and hide what is wrong with slopes.
    x = 0.2 * torch.randn(1, 700, 3, dtype=torch.float64)
    weights = tuple(torch.randn(x.shape, dtype=torch.float64) for _ in range(2))
    given = leaves({"x": x, "alpha": torch.tensor(0.999, dtype=torch.float64)})
    outputs = exodus_core.lif(**given, reset=reset, surrogate=Arctan())
    exact = leaves({"alpha": given["alpha"]})
    leaf, *pinned = reference.lif_on_trace(outputs[1].detach(), **exact, reset=reset, surrogate=Arctan())
    found = gradients(outputs, weights, given)
    for name, expected in gradients(tuple(pinned), weights, {**exact, "x": leaf}).items():
        assert_agrees(name, found[name], expected)


@pytest.mark.parametrize("shape", [(1, 5, 129), (1, 5, 1025), (65, 5, 1), (22, 33, 3), (2, 130, 33)], ids=name_of)
@pytest.mark.parametrize(
    "taps", [None, 1, 3, 120, 400], ids=["alpha kernel", "1 tap", "3 taps", "120 taps", "400 taps"]
)
def test_srm_and_filter_are_exact_at_every_edge(shape: tuple[int, ...], taps: Any) -> None:
    kernel = AlphaKernel(4.0, -1.2) if taps is None else -0.5 * torch.rand(taps, dtype=torch.float64)
    arguments = {"z": torch.randn(shape, dtype=torch.float64), "reset_kernel": kernel}
    weights = tuple(torch.randn(shape, dtype=torch.float64) for _ in range(2))
    given = leaves(arguments)
    outputs = exodus_core.srm(**given)
    found = gradients(outputs, weights, given)
    exact = leaves({"reset_kernel": kernel})
    z, *pinned = reference.srm_on_trace(outputs[1], **exact)
    for name, expected in gradients(tuple(pinned), weights, {**exact, "z": z}).items():
        assert_agrees(name, found[name], expected)
    assert_agrees("filter", exodus_core.filter(arguments["z"], kernel), reference.filter(arguments["z"], kernel))


def everything_of(x: Tensor, weight: Tensor, **settings: Any) -> tuple[Tensor, ...]:
    """Outputs and gradients, one element a lane and step."""
    leaf = x.detach().requires_grad_()
    spikes, membrane = exodus_core.lif(leaf, 0.9, decay_reset=True, min_membrane=-1.0, **settings)
    (gradient,) = torch.autograd.grad(spikes, leaf, weight)
    return spikes.detach(), membrane.detach(), gradient


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize(
    "shape", [(37, 70, 1), (9, 70, 5), (2, 70, 16), (3, 70, 33), (3, 71, 512), (2, 70, 4100)], ids=name_of
)
@pytest.mark.parametrize("after", [False, True], ids=["bound before spikes", "bound after reset"])
def test_a_lane_has_the_same_bits_whatever_its_neighbours(
    shape: tuple[int, ...], dtype: torch.dtype, after: bool
) -> None:
    x, weight = torch.randn(2, *shape).to(dtype)
    together = everything_of(x, weight, bound_after_reset=after)
    batch, _, width = shape
    for lanes in (slice(0, 1), slice(width // 2, width // 2 + 1), slice(max(0, width - 18), width)):
        for outer in (slice(0, 1), slice(batch - 1, batch)):
            alone = everything_of(x[outer, :, lanes], weight[outer, :, lanes], bound_after_reset=after)
            for all_lanes, lane in zip(together, alone, strict=True):
                assert torch.equal(all_lanes[outer, :, lanes], lane)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name_of)
@pytest.mark.parametrize("width", [4096, 4099])
def test_outputs_beyond_the_caches_have_the_same_bits(width: int, dtype: torch.dtype) -> None:
    # 120 MB for three arrays of 4-byte elements: more than the last cache that a core of nearly any processor reaches.
    # A width of 4,096 may be written past the caches, rows of 4,099 are not aligned and may not.
    x, weight = torch.randn(2, 1, 2500, width).to(dtype)
    together = everything_of(x, weight)
    for lanes in torch.arange(width).split(512):
        part = slice(int(lanes[0]), int(lanes[-1]) + 1)
        for all_lanes, some in zip(together, everything_of(x[..., part], weight[..., part]), strict=True):
            assert torch.equal(all_lanes[..., part], some)


@pytest.mark.skipif(
    exodus_core.capabilities()["instruction_set"] != "emulated CUDA"
    and os.environ.get("EXODUS_TEST_DEVICE", "cpu") != "cuda",
    reason="the CPU's kernels have no such choices",
)
@pytest.mark.parametrize(
    ("name", "value"),
    [("EXODUS_CUDA_ROW_BYTES", "3"), ("EXODUS_CUDA_ROW_BYTES", "wide"), ("EXODUS_CUDA_BACKWARD", "chunk")],
)
def test_a_choice_of_kernels_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(RuntimeError, match=f"{name} must be .*, got {value}"):
        exodus_core.lif_gradient(torch.ones(1, 4, 64), torch.ones(1, 4, 64), 0.9)


# The second size fills every chunk and lane of a block of the GPU: none of their products is finite.
@pytest.mark.parametrize(("steps", "lanes"), [(2000, 3), (2048, 16)])
def test_a_product_that_overflows_does_not_become_nan(steps: int, lanes: int) -> None:
    # a = alpha - rho f' is about -3.9 at every step: over so many steps the product of slopes has no finite value in
    # float64, and with chunks of 64 steps none in float32; a gradient that ends in zeros must still be finite.
    membrane = torch.ones(1, steps, lanes)
    g = torch.zeros_like(membrane)
    g[:, 30] = 1.0
    found = exodus_core.lif_gradient(membrane, g, 0.9, reset_by=1.0, surrogate=Tanh(1.0, 6.0)).input
    assert found.isfinite().all()
    assert not found[:, 31:].any()
    # dL/dx[30] = f' g, and before it a factor a = alpha - rho f' a step
    expected = 6.0 * (0.9 - 6.0) ** torch.arange(30, -1, -1, dtype=torch.float64)
    torch.testing.assert_close(found[0, :31, 0].double(), expected, rtol=1e-5, atol=0)
