"""Sizes on both sides of every edge of the kernels: vector, row, tile, block, warp and chunk, in lanes and in time.

On the CPU a tile has up to 1,024 lanes and time goes in blocks of 64. The CUDA kernels have vectors of 4 lanes, blocks
of 32 to 128 lanes, stage 64 lanes of less than 32 neighbours for 32 steps, and cut long times into chunks of 64 and
passes of 1,024 steps.
"""

import pytest
import torch

import exodus_core
from agreement import assert_agrees, gradients, leaves, lif_parameters, name_of
from exodus_core import AlphaKernel, reference
from exodus_core.surrogate import Arctan, Tanh

IN_LANES = [(1, 5, n) for n in (2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 516, 1023, 1024, 1025, 2064)]
OUTER = [(b, 5, n) for b, n in ((65, 1), (64, 1), (63, 1), (33, 2), (22, 3), (9, 31), (5, 32), (4, 33))]
IN_TIME = [(2, t, n) for t in (1, 31, 32, 33, 63, 64, 65, 128, 511, 512, 1023, 1024, 1025, 2050) for n in (1, 33)]


@pytest.mark.parametrize("shape", [*IN_LANES, *OUTER, *IN_TIME], ids=name_of)
@pytest.mark.parametrize("with_parameters", [True, False], ids=["all gradients", "input only"])
def test_lif_is_exact_at_every_edge(shape, with_parameters):
    arguments = lif_parameters(shape, 1, torch.float64)
    if not with_parameters:
        arguments = {"alpha": 0.9, "min_membrane": -1.0}
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


@pytest.mark.parametrize("shape", [(1, 5, 129), (1, 5, 1025), (65, 5, 1), (22, 33, 3), (2, 130, 33)], ids=name_of)
@pytest.mark.parametrize(
    "taps", [None, 1, 3, 120, 400], ids=["alpha kernel", "1 tap", "3 taps", "120 taps", "400 taps"]
)
def test_srm_and_filter_are_exact_at_every_edge(shape, taps):
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


def test_a_product_that_overflows_does_not_become_nan():
    # a = alpha - rho f' is about -3.9 at every step: over 2,000 steps the product of slopes has no finite value in
    # float64, and with chunks of 64 steps none in float32; a gradient that ends in zeros must still be finite.
    membrane = torch.ones(1, 2000, 3)
    g = torch.zeros_like(membrane)
    g[:, 30] = 1.0
    found = exodus_core.lif_gradient(membrane, g, 0.9, reset_by=1.0, surrogate=Tanh(1.0, 6.0)).input
    assert found.isfinite().all()
    assert not found[:, 31:].any()
    # dL/dx[30] = f' g, and before it a factor a = alpha - rho f' a step
    expected = 6.0 * (0.9 - 6.0) ** torch.arange(30, -1, -1, dtype=torch.float64)
    torch.testing.assert_close(found[0, :31, 0].double(), expected, rtol=1e-5, atol=0)
