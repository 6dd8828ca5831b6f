"""Neurons, surrogates, timeouts and the other values: what they travel as, and what they refuse."""

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

import exodus_client
from exodus_client import (
    IF,
    LIF,
    SRM,
    AlphaKernel,
    Exponential,
    ExponentialKernel,
    Limits,
    Retries,
    SlayerRefractory,
    Timeout,
)
from exodus_client.neuron import Operands
from exodus_client.surrogate import KINDS, Surrogate


def test_a_neuron_of_numbers_travels_as_numbers() -> None:
    operands = Operands()
    assert LIF(0.9).params(operands) == {
        "model": "lif",
        "alpha": 0.9,
        "threshold": 1.0,
        "reset": "subtract",
        "decay_reset": False,
        "max_spikes": 1,
    }
    full = IF(threshold=np.float32(0.5), reset="none", reset_by=2, decay_reset=True, min_membrane=-1, max_spikes=3)
    assert full.params(operands) == {
        "model": "if",
        "threshold": 0.5,
        "reset": "none",
        "reset_by": 2.0,
        "decay_reset": True,
        "min_membrane": -1.0,
        "max_spikes": 3,
    }
    assert not operands.tensors


@pytest.mark.parametrize("array", [np.array([0.5, 0.9]), torch.tensor([0.5, 0.9]), [0.5, 0.9]])
def test_an_array_of_a_neuron_travels_as_a_tensor(array: Any) -> None:
    operands = Operands()
    params = LIF(array, threshold=array).params(operands)
    assert params["alpha"] == {"tensor": "alpha"}
    assert params["threshold"] == {"tensor": "threshold"}
    assert operands.tensors["alpha"].torch().tolist() == pytest.approx([0.5, 0.9])


def test_a_reset_kernel_travels_as_taps_or_by_its_name() -> None:
    operands = Operands()
    assert SRM(ExponentialKernel(0.9, -1)).params(operands)["reset_kernel"] == {
        "kind": "exponential",
        "alpha": 0.9,
        "amplitude": -1.0,
    }
    assert SRM(AlphaKernel(tau=3)).params(operands)["reset_kernel"] == {"kind": "alpha", "tau": 3.0, "amplitude": 1.0}
    assert SRM(SlayerRefractory(2, -3)).params(operands)["reset_kernel"] == {
        "kind": "slayer_refractory",
        "tau": 2.0,
        "amplitude": -3.0,
    }
    assert SRM(threshold=2).params(operands) == {"model": "srm", "threshold": 2.0}
    assert not operands.tensors
    assert SRM([-1.0, -0.5]).params(operands)["reset_kernel"] == {"tensor": "reset_kernel"}
    assert operands.tensors["reset_kernel"].shape == (2,)


@pytest.mark.parametrize("kind", KINDS)
def test_a_surrogate_travels_by_its_name(kind: str) -> None:
    assert KINDS[kind]().params() == {"kind": kind, "scale": 1.0}
    assert KINDS[kind](slope=2, scale=np.float32(0.5)).params() == {"kind": kind, "slope": 2.0, "scale": 0.5}
    assert getattr(exodus_client, KINDS[kind].__name__) is KINDS[kind]
    assert repr(KINDS[kind](2)) == f"{KINDS[kind].__name__}(slope=2, scale=1.0)"


def test_values_are_equal_by_value_and_cannot_be_changed() -> None:
    assert LIF(0.9) == LIF(alpha=0.9)
    assert Exponential(1) != KINDS["tanh"](1)
    with pytest.raises(AttributeError):
        LIF(0.9).alpha = 0.5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: LIF("0.9"), TypeError, "LIF.alpha must be a number or an array of numbers, got '0.9'"),
        (lambda: LIF(True), TypeError, "LIF.alpha must be a number or an array of numbers, got True"),
        (lambda: LIF(None), TypeError, "got NoneType"),
        (lambda: LIF(1j), TypeError, "got complex"),
        (lambda: LIF(math.nan), ValueError, "LIF.alpha must be a finite number, got nan"),
        (lambda: LIF(20), ValueError, "LIF.alpha must be in [0, 1], got 20"),
        (lambda: LIF(np.float32(-0.5)), ValueError, "LIF.alpha must be in [0, 1], got -0.5"),
        (lambda: LIF(10**400), ValueError, "LIF.alpha must be a finite number, got an integer of 1329 bits"),
        (lambda: LIF([0.5, math.nan]), ValueError, "LIF.alpha must be in [0, 1], got nan at [1]"),
        (lambda: LIF(np.array([[0.5], [1.5]])), ValueError, "LIF.alpha must be in [0, 1], got 1.5 at [1, 0]"),
        (lambda: LIF(torch.tensor(1.5)), ValueError, "LIF.alpha must be in [0, 1], got 1.5"),
        (lambda: LIF(torch.tensor([1.5], dtype=torch.bfloat16)), ValueError, "got 1.5 at [0]"),
        (lambda: LIF(torch.tensor([1.5], requires_grad=True)), ValueError, "got 1.5 at [0]"),
        (lambda: LIF(torch.eye(2).to_sparse()), TypeError, "got a sparse_coo tensor of torch.float32"),
        (lambda: LIF(torch.ones(2, device="meta")), TypeError, "got a strided tensor of torch.float32"),
        (lambda: LIF(np.array([0.5j])), TypeError, "got an array of complex128"),
        (lambda: LIF(np.array([None])), TypeError, "got an array of object"),
        (lambda: LIF(np.array([True])), TypeError, "got an array of bool"),
        (lambda: LIF([[0.5], [0.5, 0.6]]), TypeError, "got list"),
        (lambda: IF(threshold=math.inf), ValueError, "IF.threshold must be a finite number, got inf"),
        (lambda: IF(threshold=None), TypeError, "IF.threshold must be a number"),
        (lambda: IF(threshold=-1, max_spikes=2), ValueError, "IF.threshold must be above 0, got -1"),
        (lambda: IF(threshold=[1, 0], max_spikes=2), ValueError, "IF.threshold must be above 0, got 0 at [1]"),
        (lambda: IF(reset_by=[math.nan]), ValueError, "IF.reset_by must be a number, got nan at [0]"),
        (lambda: IF(min_membrane=math.nan), ValueError, "IF.min_membrane must be a finite number, got nan"),
        (
            lambda: LIF(0.9, reset="soft"),
            ValueError,
            "LIF.reset must be one of subtract, zero, none, value, got 'soft'",
        ),
        (
            lambda: LIF(0.9, reset=["zero"]),
            ValueError,
            "LIF.reset must be one of subtract, zero, none, value, got list",
        ),
        (lambda: LIF(0.9, decay_reset=1), TypeError, "LIF.decay_reset must be True or False, got 1"),
        (lambda: LIF(0.9, max_spikes=0), ValueError, "LIF.max_spikes must be an integer from 1 to 2147483647, got 0"),
        (lambda: LIF(0.9, max_spikes=2**31), ValueError, "LIF.max_spikes must be an integer from 1 to 2147483647"),
        (lambda: LIF(0.9, max_spikes=1.0), TypeError, "LIF.max_spikes must be an integer of at least 1, got 1.0"),
        (lambda: LIF(0.9, max_spikes=2, reset="zero"), ValueError, "must be 1 with reset 'zero', got 2"),
        (lambda: SRM(0.9), TypeError, "SRM.reset_kernel must be taps or a kernel, got 0.9"),
        (lambda: SRM([]), ValueError, "SRM.reset_kernel must be taps of shape (K,), got shape (0,)"),
        (lambda: SRM([[1.0]]), ValueError, "SRM.reset_kernel must be taps of shape (K,), got shape (1, 1)"),
        (lambda: SRM([1.0, math.nan]), ValueError, "SRM.reset_kernel must be a number, got nan at [1]"),
        (
            lambda: SRM([1.0], threshold="1"),
            TypeError,
            "SRM.threshold must be a number or an array",
        ),
        (lambda: ExponentialKernel([0.9]), TypeError, "ExponentialKernel.alpha must be a number, got list"),
        (lambda: ExponentialKernel(1.5), ValueError, "ExponentialKernel.alpha must be in [0, 1], got 1.5"),
        (lambda: ExponentialKernel(1, math.inf), ValueError, "ExponentialKernel.amplitude must be a finite number"),
        (lambda: AlphaKernel(0), ValueError, "AlphaKernel.tau must be above 0, got 0"),
        (lambda: SlayerRefractory(0, -1), ValueError, "SlayerRefractory.tau must be above 0, got 0"),
        (lambda: AlphaKernel(1, True), TypeError, "AlphaKernel.amplitude must be a number, got True"),
        (lambda: Exponential("1"), TypeError, "Exponential.slope must be a number, got '1'"),
        (lambda: Exponential(0), ValueError, "Exponential.slope must be above 0, got 0"),
        (lambda: Exponential(torch.tensor(1.0)), TypeError, "Exponential.slope must be a number, got Tensor"),
        (lambda: Exponential(scale=None), TypeError, "Exponential.scale must be a number, got NoneType"),
        (lambda: Exponential(scale=True), TypeError, "Exponential.scale must be a number, got True"),
        (lambda: Exponential(math.inf), ValueError, "Exponential.slope must be a finite number, got inf"),
        (lambda: Timeout(read=0), ValueError, "Timeout.read must be a number of seconds above 0, up to 1e+09, or None"),
        (lambda: Timeout(total="1" * 99), ValueError, f"None, got '{'1' * 79}..."),
        (lambda: Timeout(connect=math.inf), ValueError, "None, got inf"),
        (lambda: Timeout(total=1e10), ValueError, "None, got 10000000000.0"),
        (lambda: Retries(count=-1), ValueError, "Retries.count must be an integer from 0 to"),
        (lambda: Retries(jitter=2), ValueError, "Retries.jitter must be a number from 0 to 1, got 2"),
        (lambda: Retries(max_delay=math.nan), ValueError, "Retries.max_delay must be a number from 0 to inf, got nan"),
        (lambda: Retries(max_delay=10**400), ValueError, "got an integer of 1329 bits"),
        (lambda: Limits(max_in_flight=0), ValueError, "Limits.max_in_flight must be an integer from 1 to"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_by_name(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        make()
    assert message in str(caught.value)


def test_numbers_of_numpy_are_as_good_as_those_of_python() -> None:
    neuron = LIF(np.float32(0.5), threshold=np.int64(2), max_spikes=np.uint8(2), decay_reset=np.bool_(True))
    params = neuron.params(Operands())
    assert params == LIF(0.5, threshold=2, max_spikes=2, decay_reset=True).params(Operands())
    assert {type(value) for value in params.values()} == {str, bool, int, float}
    assert ExponentialKernel(np.float16(0.5), np.int8(-1)).params() == ExponentialKernel(0.5, -1).params()
    kept = (Timeout(read=np.float32(2)).read, Retries(first_delay=np.float16(2)).first_delay)
    assert [type(number) for number in kept] == [float, float]
    kept = (Retries(count=np.uint64(2)).count, Limits(max_in_flight=np.int16(2)).max_in_flight)
    assert [type(number) for number in kept] == [int, int]


def test_integers_of_a_neuron_travel_as_floats() -> None:
    operands = Operands()
    LIF([0, 1], threshold=np.array([1, 2], np.uint16), min_membrane=[-math.inf, -1]).params(operands)
    assert {name: tensor.dtype for name, tensor in operands.tensors.items()} == {
        "alpha": "float64",
        "threshold": "float64",
        "min_membrane": "float64",
    }
    operands.value("initial_spikes", np.array([True, False]))
    assert operands.tensors["initial_spikes"].numpy().tolist() == [1.0, 0.0]


def test_no_waiting_time_means_waiting_without_end() -> None:
    assert Timeout(connect=None, read=None, write=None).read is None


def test_the_torch_layers_come_with_the_package_and_nothing_else_does() -> None:
    ask = "import exodus_client, sys; print('torch' in sys.modules, exodus_client.torch.RemoteLIF.__name__)"
    shown = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True).stdout
    assert shown.split() == ["False", "RemoteLIF"]
    assert exodus_client.__getattr__("torch") is sys.modules["exodus_client.torch"]
    with pytest.raises(AttributeError, match="no attribute 'jax'"):
        exodus_client.jax  # noqa: B018
    assert issubclass(Exponential, Surrogate)
    assert set(exodus_client.__all__) <= set(dir(exodus_client))
