"""The operators as PyTorch sees them: opcheck, torch.compile, threads, instruction sets, repeated runs."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import exodus_core
from assertions import KERNELS
from exodus_core import AlphaKernel, ExponentialKernel, ops

NEURON = (0.9, 1.0, 1.0, -1.0, 1.0)
NONE6 = (None,) * 6


def operator_calls() -> dict[str, Any]:
    """One call of each operator with plain numbers, and one with every tensor that it can take."""
    x, g, h = torch.randn(3, 2, 6, 5)
    vector, lanes = torch.rand(5), torch.rand(2, 5)
    tensors = (vector, vector + 0.5, vector, -vector, lanes, lanes)
    ops = torch.ops.exodus
    taps: tuple[Any, ...] = (torch.randn(3), [], [], [])
    modes = (None, [0.9, 0.5], [1.0, 0.0], [0.0, 2.0])
    surrogate = (0, 1.0, 1.0)
    return {
        "lif_forward": (ops.lif_forward, (x, *NEURON, *NONE6, 1, False, 1)),
        "lif_forward with tensors": (ops.lif_forward, (x, *NEURON, *tensors, 3, True, 1)),
        "lif_backward": (ops.lif_backward, (x, g, None, *NEURON, *NONE6, 1, False, *surrogate, 0, False, 1)),
        "lif_backward with tensors": (ops.lif_backward, (x, g, h, *NEURON, *tensors, 2, True, *surrogate, 1, True, 1)),
        "srm_forward": (ops.srm_forward, (x, *modes, 1.0, None, 1)),
        "srm_forward with taps": (ops.srm_forward, (x, *taps, 1.0, vector, 1)),
        "srm_backward": (ops.srm_backward, (x, None, h, *modes, 1.0, None, *surrogate, 0, False, 1)),
        "srm_backward with taps": (ops.srm_backward, (x, g, h, *taps, 1.0, vector, *surrogate, 0, True, 1)),
        "filter": (ops.filter, (x, *modes, False, 0)),
        "filter with taps": (ops.filter, (x, *taps, True, 1)),
        "taps_gradient": (ops.taps_gradient, (x, g, 4, 1, 1)),
    }


@pytest.mark.parametrize("name", operator_calls())
def test_operator_passes_opcheck(name: str) -> None:
    operator, arguments = operator_calls()[name]
    results = torch.library.opcheck(operator, arguments)
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("name", operator_calls())
def test_fake_operator_has_the_shapes_and_dtypes_of_the_real_one(name: str) -> None:
    operator, arguments = operator_calls()[name]
    real = operator(*arguments)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        fake = operator(*(torch.empty_like(a) if isinstance(a, torch.Tensor) else a for a in arguments))
    if isinstance(real, torch.Tensor):
        real, fake = (real,), (fake,)
    assert [(r.shape, r.dtype) for r in real] == [(f.shape, f.dtype) for f in fake]


# torch's own tracer makes an instance of autograd.Function, which torch deprecates.
traced = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


@traced
@pytest.mark.parametrize("bound", [{}, {"min_membrane": -0.2, "bound_after_reset": True}])
@pytest.mark.parametrize("method", ["exodus", "slayer"])
def test_lif_compiles_as_one_graph(method: str, bound: dict[str, Any]) -> None:
    def network(x: Tensor, alpha: Tensor, weight: Tensor) -> Tensor:
        spikes, membrane = exodus_core.lif(x @ weight, alpha, method=method, decay_reset=True, **bound)
        return spikes.sum() + membrane.square().sum()

    x, alpha, weight = torch.randn(2, 9, 4), torch.rand(3), torch.randn(4, 3)
    found = []
    for function in (network, torch.compile(network, fullgraph=True, backend="aot_eager")):
        leaves = [t.clone().requires_grad_() for t in (x, alpha, weight)]
        function(*leaves).backward()
        found.append([leaf.grad for leaf in leaves])
    for eager, compiled in zip(*found, strict=True):
        assert torch.equal(eager, compiled)


@traced
@pytest.mark.parametrize("kernel", ["taps", "alpha"])
def test_srm_and_filter_compile_as_one_graph(kernel: Any) -> None:
    nu = KERNELS[kernel](torch.float32)

    def network(z: Tensor) -> Tensor:
        return exodus_core.srm(exodus_core.filter(z, nu), nu)[0].sum()

    found = []
    for function in (network, torch.compile(network, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(0)
        z = torch.randn(2, 9, 4, requires_grad=True)
        function(z).backward()
        found.append(z.grad)
    assert torch.equal(*found)


@traced
def test_module_compiles_as_one_graph() -> None:
    layer = exodus_core.nn.LIF(0.9, trainable=("alpha", "threshold"))  # reset_by is the threshold too
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 9, 4)
    found = []
    for function in (layer, compiled):
        layer.zero_grad()
        spikes = function(x)
        spikes.sum().backward()
        found.append([spikes, layer.alpha.grad, layer.threshold.grad])
    for eager, traced_once in zip(*found, strict=True):
        assert torch.equal(eager, traced_once)


@traced
def test_shapes_and_numbers_may_be_dynamic_when_compiled() -> None:
    def network(x: Tensor) -> Tensor:
        spikes, membrane = exodus_core.lif(x, 0.9, threshold=torch.ones(x.shape[2:]), min_membrane=-1.0)
        return exodus_core.srm(exodus_core.filter(spikes + membrane, ExponentialKernel(0.9)), AlphaKernel(3.0, -1.0))[1]

    compiled = torch.compile(network, fullgraph=True, backend="aot_eager", dynamic=True)
    for shape in [(2, 9, 4), (3, 9, 4), (3, 70, 5), (1, 1, 1)]:
        x = torch.randn(shape)
        torch.testing.assert_close(compiled(x), network(x))


NEURONS = {
    "lif": lambda: exodus_core.nn.LIF(0.9),
    "learnt": lambda: exodus_core.nn.LIF(0.9, trainable=("alpha", "threshold")),
    "exp_leak": lambda: exodus_core.nn.ExpLeak(0.8),
    "srm": lambda: exodus_core.nn.SRM(
        AlphaKernel(3.0, -1.0), response_kernel=ExponentialKernel((0.9, 0.5), (1.0, -1.0))
    ),
    "bptt": lambda: exodus_core.nn.LIF(0.9, method="bptt"),
}


@traced
@pytest.mark.parametrize("make", NEURONS.values(), ids=NEURONS)
def test_several_layers_compile_with_dynamic_numbers(make: Callable[..., Any]) -> None:
    torch._dynamo.reset()
    network = torch.nn.Sequential(make(), torch.nn.Linear(4, 4), make(), make())
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager", dynamic=True)
    for shape in [(2, 9, 4), (3, 9, 4)] if make is not NEURONS["bptt"] else [(2, 3, 4)]:  # its loop is unrolled
        leaves = [torch.linspace(-1, 2, math.prod(shape)).view(shape).requires_grad_() for _ in range(2)]
        for function, leaf in zip((network, compiled), leaves, strict=True):
            function(leaf).sum().backward()
        torch.testing.assert_close(*[leaf.grad for leaf in leaves])


@traced
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_stateful_module_compiles_as_one_graph(dtype: torch.dtype) -> None:
    torch._dynamo.reset()
    layer, eager = (exodus_core.nn.LIF(0.9, stateful=True) for _ in range(2))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for _ in range(3):
        leaves = [torch.linspace(-1, 2, 72).view(2, 9, 4).to(dtype).requires_grad_() for _ in range(2)]
        spikes = [function(leaf) for function, leaf in zip((compiled, eager), leaves, strict=True)]
        assert torch.equal(*spikes)
        for each in spikes:
            each.sum().backward()
        assert torch.equal(*[leaf.grad for leaf in leaves])
        layer.detach_state()
        eager.detach_state()


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own, on entering the level
def test_forward_mode_differentiation_is_refused_and_not_zero() -> None:
    x = torch.randn(2, 9, 4)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        for call in (
            lambda: exodus_core.lif(dual, 0.9),
            lambda: exodus_core.srm(dual, AlphaKernel(3.0)),
            lambda: exodus_core.filter(dual, AlphaKernel(3.0)),
        ):
            with pytest.raises(NotImplementedError, match="forward mode"):
                call()


def test_calls_from_several_threads_do_not_disturb_each_other() -> None:
    def run(_: Any) -> Any:
        x = torch.linspace(-1, 2, 3 * 130 * 70).view(3, 130, 70).requires_grad_()
        alpha = torch.full((70,), 0.9, requires_grad=True)
        spikes, membrane = exodus_core.lif(x, alpha)
        return torch.autograd.grad((spikes * membrane).sum(), [x, alpha])

    alone = run(None)
    with ThreadPoolExecutor(4) as pool:
        for gradients in pool.map(run, range(20)):
            assert all(torch.equal(ours, theirs) for ours, theirs in zip(gradients, alone, strict=True))


def everything(shape: tuple[int, ...] = (3, 130, 70)) -> list[Tensor]:
    """Bits of all outputs and gradients of a few calls, to be compared between runs."""
    torch.manual_seed(7)
    x = torch.randn(shape, requires_grad=True)
    alpha = torch.rand(shape[2:], requires_grad=True)
    taps = torch.randn(5, requires_grad=True)
    spikes, membrane = exodus_core.lif(x, alpha, decay_reset=True)
    threshold = (0.5 + torch.rand(shape[2:])).requires_grad_()
    more, _ = exodus_core.srm(exodus_core.filter(membrane, taps), KERNELS["alpha"](None), threshold=threshold)
    loss = (spikes * membrane).sum() + (more * x).sum()
    gradients = torch.autograd.grad(loss, [x, alpha, taps, threshold])
    return [t.detach() for t in (spikes, membrane, more, *gradients)]


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(everything())
    finally:
        torch.set_num_threads(threads)
    for results in found[1:]:
        for first, other in zip(found[0], results, strict=True):
            assert torch.equal(first, other)


def test_results_are_the_same_bits_from_run_to_run() -> None:
    for first, second in zip(everything(), everything(), strict=True):
        assert torch.equal(first, second)


@pytest.mark.slow
def test_results_are_the_same_bits_on_every_instruction_set_and_past_the_caches() -> None:
    folder = os.path.dirname(__file__)
    reports = {}
    for name in ("portable", "avx2", "avx512"):
        for cache in ("1", str(2**40)):  # everything is written past the caches, or nothing
            environment = {
                **os.environ,
                "EXODUS_INSTRUCTION_SET": name,
                "EXODUS_LAST_CACHE": cache,
                "PYTHONPATH": os.pathsep.join((folder, os.path.dirname(folder))),
            }
            run = subprocess.run(
                [sys.executable, os.path.join(folder, "digests.py")],
                env=environment,
                capture_output=True,
                text=True,
                check=True,
            )
            digests = json.loads(run.stdout)
            reports[digests.pop("instruction_set"), cache] = digests
    assert ("portable", "1") in reports
    expected = reports["portable", str(2**40)]
    for which, digests in reports.items():
        assert [name for name in expected if digests[name] != expected[name]] == [], which


@pytest.mark.skipif(
    exodus_core.capabilities()["instruction_set"] == "emulated CUDA", reason="no kernel of the CPU is in this build"
)
def test_a_size_of_the_last_cache_that_is_none_is_refused() -> None:
    code = "import torch, exodus_core; exodus_core.lif(torch.zeros(1, 1, 1), 0.5)"
    for given in ("32M", "0"):
        environment = {**os.environ, "EXODUS_LAST_CACHE": given}
        run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert run.returncode != 0
        assert f"EXODUS_LAST_CACHE must be a number of bytes, at least 1, got {given}" in run.stderr


def test_an_unknown_instruction_set_is_named() -> None:
    environment = {**os.environ, "EXODUS_INSTRUCTION_SET": "sse9"}
    run = subprocess.run([sys.executable, "-c", "import exodus_core"], env=environment, capture_output=True, text=True)
    assert run.returncode != 0
    assert "EXODUS_INSTRUCTION_SET must be one of portable, avx2, avx512, got 'sse9'" in run.stderr


def test_the_instruction_set_is_chosen_at_import() -> None:
    code = (
        "import os, exodus_core; os.environ['EXODUS_INSTRUCTION_SET'] = 'sse9';"
        "print(exodus_core.capabilities()['instruction_set'])"
    )
    environment = {**os.environ, "EXODUS_INSTRUCTION_SET": "portable"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "portable"


def available_gigabytes() -> float:
    with open("/proc/meminfo") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) / 2**20


@pytest.mark.slow
def test_elements_beyond_two_to_the_31_are_reached() -> None:
    if not os.path.exists("/proc/meminfo") or available_gigabytes() < 12:
        pytest.skip("needs 12 GB of free memory")
    torch.use_deterministic_algorithms(False)  # filling the outputs with NaN would take as long as the test
    shape = (1, 2**21 + 3, 1024)
    # numpy's zeros are pages that do not exist until written to
    x = torch.from_numpy(np.zeros(shape, np.int16)).view(torch.bfloat16)
    x[0, -2, -5:] = 1.0
    spikes, membrane = exodus_core.lif(x, 0.5)
    assert spikes[0, -2:].sum() == 5
    assert spikes[0, :: 2**14].sum() == 0
    assert membrane[0, -1, -5:].tolist() == [-0.5] * 5
    del spikes
    gradient = exodus_core.lif_gradient(membrane, x, 0.5).input
    assert (gradient[0, -2, -5:] > 0.5).all()
    assert (gradient[0, 0, -5:] == 0).all()


def test_a_gpu_without_room_raises_what_torch_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnGpu(torch.Tensor):
        is_cuda = True

    def full(tensor: Tensor) -> Tensor:
        raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {tensor.nbytes} bytes.")

    x = torch.randn(2, 3, 4, device="cpu").as_subclass(OnGpu)
    called: list[Any] = []
    operator = ops.with_room(lambda *given: called.append(given), outputs=2)
    operator(x, 1)
    assert len(called) == 1
    monkeypatch.setattr(torch, "empty_like", full)
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate 96 bytes"):
        operator(x, 1)
    operator(x.as_subclass(Tensor), 1)
    assert len(called) == 2


def test_room_for_sums_and_the_past_of_long_kernels_is_what_the_operators_allocate() -> None:
    """The bytes of what an operator allocates beside its outputs: lane gradients, and a value a tap and lane."""
    membrane, taps = torch.randn(2, 300, 7, dtype=torch.float64), torch.randn(200, dtype=torch.float64)
    kernel: tuple[Any, ...] = (taps, [], [], [])
    surrogate = (0, 1.0, 1.0, 0)
    lanes = 2 * 7
    for wanted in (False, True):
        neuron = (0.9, 1.0, 1.0, -math.inf, 1.0, *[None] * 6, 1, False, *surrogate, wanted, 1)
        _, sums = ops.lif_backward(membrane, membrane, None, *neuron)
        assert ops._lane_gradient_bytes(6)(membrane, membrane, None, *neuron) == sums.nbytes == wanted * 6 * lanes * 8
        srm = (*kernel, 1.0, None, *surrogate, wanted, 1)
        _, sums = ops.srm_backward(membrane, membrane, None, *srm)
        assert ops._srm_backward_bytes(membrane, membrane, None, *srm) == sums.nbytes + 200 * lanes * 8
    assert ops._past_bytes(membrane, *kernel, False, 1) == 200 * lanes * 8
    assert ops._past_bytes(membrane, torch.randn(500), [], [], [], False, 1) == 300 * lanes * 8
    assert ops._past_bytes(membrane, taps[:40], [], [], [], False, 1) == 0  # fits in the memory of a block
    assert ops._past_bytes(membrane, None, [0.5], [1.0], [0.0], False, 1) == 0
