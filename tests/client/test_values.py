"""Neurons, surrogates, timeouts and the other values: what they travel as, and what they refuse."""

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

import exodus_client
from exodus_client import IF, LIF, SRM, AlphaKernel, Exponential, ExponentialKernel, Limits, Retries, Timeout
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
    full = IF(threshold=np.float32(0.5), reset="zero", reset_by=2, decay_reset=True, min_membrane=-1, max_spikes=3)
    assert full.params(operands) == {
        "model": "if",
        "threshold": 0.5,
        "reset": "zero",
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
        (lambda: LIF("0.9"), TypeError, "LIF.alpha: got '0.9', want a number or an array"),
        (lambda: LIF(True), TypeError, "LIF.alpha: got True"),
        (lambda: LIF(math.nan), ValueError, "LIF.alpha: got nan, want a finite number"),
        (lambda: IF(threshold=math.inf), ValueError, "IF.threshold: got inf"),
        (lambda: LIF(0.9, reset="soft"), ValueError, "reset: got 'soft', want one of subtract, zero, none"),
        (lambda: LIF(0.9, decay_reset=1), TypeError, "decay_reset: got 1, want True or False"),
        (lambda: LIF(0.9, max_spikes=0), ValueError, "max_spikes: got 0, want an integer >= 1"),
        (lambda: LIF(0.9, max_spikes=1.0), ValueError, "max_spikes: got 1.0"),
        (lambda: SRM(0.9), TypeError, "SRM.reset_kernel: got the number 0.9"),
        (lambda: SRM([1.0], threshold="1"), TypeError, "SRM.threshold: got '1'"),
        (lambda: ExponentialKernel([0.9]), TypeError, "ExponentialKernel.alpha: got list, want a number"),
        (lambda: AlphaKernel(0), ValueError, "AlphaKernel.tau: got 0, want a number above 0"),
        (lambda: Exponential("1"), TypeError, "Exponential.slope: got str, want a number"),
        (lambda: Exponential(scale=None), TypeError, "Exponential.scale: got NoneType"),
        (lambda: Exponential(scale=True), TypeError, "Exponential.scale: got bool"),
        (lambda: Exponential(math.inf), ValueError, "Exponential.slope: got inf, want a finite number"),
        (lambda: Timeout(read=0), ValueError, "Timeout.read: got 0, want a number of seconds above 0, or None"),
        (lambda: Timeout(total="1"), ValueError, "Timeout.total: got '1'"),
        (lambda: Timeout(connect=math.inf), ValueError, "Timeout.connect: got inf"),
        (lambda: Retries(count=-1), ValueError, "Retries.count: got -1, want an integer >= 0"),
        (lambda: Retries(jitter=2), ValueError, "Retries.jitter: got 2, want a number from 0 to 1"),
        (lambda: Retries(max_delay=math.nan), ValueError, "Retries.max_delay: got nan"),
        (lambda: Limits(max_in_flight=0), ValueError, "Limits.max_in_flight: got 0, want an integer >= 1"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_by_name(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        make()
    assert message in str(caught.value)


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
