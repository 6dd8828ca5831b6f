"""The memory that passes through networks take is at most what their description says, and not much less."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from exodus_core import network

LEARN = {"kind": "exp_leak", "alpha": 0.9, "trainable": ["alpha"]}  # what is behind it has a gradient of its input
LIF = {"kind": "lif", "alpha": 0.9, "trainable": ["alpha", "threshold"]}
EVERY_LIF = LIF | {"alpha": [0.9] * 500, "reset_by": [0.5] * 500, "min_membrane": -1.0}
EVERY_LIF |= {"decay_reset": True, "max_spikes": 3}
EXPONENTIAL = {"kind": "exponential", "alpha": 0.9, "amplitude": -1.0}
LINEAR = {"kind": "linear", "out_features": 500}
CUBA = {"kind": "cuba_lif", "alpha": 0.9, "synapse_alpha": 0.8, "trainable": ["alpha", "synapse_alpha"]}
ALIF = {"kind": "alif", "alpha": 0.9, "adapt_alpha": 0.95, "adapt_threshold": 0.2, "refractory": 2}
DELAY = {"kind": "delay", "max_delay": 20, "trainable": ["delays"]}
DELAYED = {"kind": "delayed_linear", "out_features": 300, "max_delay": 10}
CONV = {"kind": "conv2d", "out_channels": 8, "kernel_size": 3}
FIVE = CONV | {"out_channels": 32, "kernel_size": [1, 5]}
# Sparse products of few spikes, and of as many as are few; above 0.25, most convolutions are dense.
SHARES = (0.001, 0.14, 0.29)
SPARSE: dict[str, tuple[Any, ...]] = {
    "one linear": ([1000], 20, 100, [LINEAR]),
    "wide linear": ([20000], 2, 20, [LINEAR | {"out_features": 128}, LIF, LINEAR | {"out_features": 2000}]),
    "wide convolution": ([128, 6, 6], 2, 20, [CONV | {"out_channels": 128}, LIF, CONV | {"out_channels": 128}]),
    "large images": ([2, 40, 40], 5, 20, [CONV, LIF, CONV]),
    "two readers": (
        [500],
        20,
        100,
        [LINEAR, LIF | {"name": "s"}, LINEAR, LINEAR | {"inputs": ["s"]}, {"kind": "add", "inputs": ["2", "3"]}],
    ),
}
READOUT = [{"kind": "linear", "out_features": 4}, {"kind": "exp_leak", "alpha": 0.9}]
# Shape of a sample, batch, time, layers: some MiB each; perhaps checkpoint_steps, and the share of ones, else 0.3.
CASES: dict[str, tuple[Any, ...]] = {
    "linear": ([500], 20, 50, [LINEAR] * 3),
    "deep": ([500], 20, 50, [LINEAR, LIF] * 4),
    "conv1d": ([4, 500], 10, 30, [LEARN, {"kind": "conv1d", "out_channels": 8, "kernel_size": 9}]),
    "conv2d": ([2, 32, 32], 10, 30, [LEARN, CONV]),
    "conv2d of odd channels": ([17, 24, 24], 5, 20, [LEARN, CONV | {"out_channels": 17}]),
    "conv2d first": ([2, 32, 32], 10, 30, [CONV]),
    "conv2d strided": ([4, 64, 64], 5, 10, [CONV | {"stride": 3, "padding": 2}]),
    "conv2d dilated": ([4, 32, 32], 10, 20, [LEARN, CONV | {"dilation": 2}]),
    "conv2d in groups": ([8, 32, 32], 5, 20, [LEARN, CONV | {"groups": 4}]),
    "conv2d of five taps": ([16, 16, 16], 10, 20, [FIVE, LIF, FIVE]),
    "conv2d behind a max pool": ([4, 20, 20], 10, 20, [FIVE, LIF, FIVE, {"kind": "max_pool", "kernel_size": 2}, LIF]),
    "conv2d of few images": ([16, 12, 12], 16, 1, [FIVE, LIF, FIVE, {"kind": "max_pool", "kernel_size": 2}, LIF]),
    "conv2d of a large kernel": ([1, 80, 80], 1, 4, [CONV | {"out_channels": 1, "kernel_size": 30}]),
    "pool": ([4, 32, 32], 10, 30, [LEARN, {"kind": "sum_pool", "kernel_size": 2}]),
    "max_pool": ([4, 32, 32], 10, 30, [LEARN, {"kind": "max_pool", "kernel_size": 2}]),
    "max_pool of steps of one": (
        [4, 32, 32],
        10,
        30,
        [LEARN, {"kind": "max_pool", "kernel_size": 3, "stride": 1, "padding": 1}],
    ),
    "adaptive pools": (
        [8, 32, 32],
        10,
        30,
        [LEARN, {"kind": "adaptive_avg_pool", "output_size": 8}, {"kind": "adaptive_max_pool", "output_size": 1}],
    ),
    "flatten": ([4, 500], 10, 50, [LEARN, {"kind": "flatten"}]),
    "reshape": ([4, 500], 10, 50, [LEARN, {"kind": "reshape", "shape": [2, 1000]}]),
    "dropout": ([1000], 500, 2, [LEARN, {"kind": "dropout"}]),
    "batch_norm": ([4, 32, 16], 10, 50, [LEARN, {"kind": "batch_norm"}]),
    "add": ([1000], 20, 50, [LEARN | {"name": "a"}, {"kind": "add", "inputs": ["a", "input", "a"]}]),
    "concat": ([1000], 20, 50, [LEARN | {"name": "a"}, {"kind": "concat", "inputs": ["a", "input", "a"]}]),
    "concat of branches": (
        [500],
        20,
        50,
        [
            *[LINEAR | {"inputs": ["input"], "name": name} for name in ("a", "b", "c")],
            {"kind": "concat", "inputs": ["a", "b", "c"]},
            LIF,
        ],
    ),
    "concat of channels": (
        [4, 16, 16],
        10,
        30,
        [LEARN | {"name": "a"}, LEARN, {"kind": "concat", "axis": 2, "inputs": ["a", "1", "a"]}, CONV],
    ),
    "exp_leak": ([1000], 20, 50, [LEARN]),
    "delay": ([1000], 20, 50, [LEARN, {"kind": "delay", "delays": [2.5] * 1000}]),
    "delay of a number": ([1000], 20, 50, [LEARN, {"kind": "delay", "delays": 2.5}]),
    "delay trained": ([1000], 20, 50, [LEARN, DELAY]),
    "delays of one sample": ([20], 1, 10000, [LEARN, DELAY]),
    "delayed_linear": ([300], 10, 100, [LEARN, DELAYED]),
    "delayed_linear first": ([300], 10, 100, [DELAYED]),
    "delayed_linear of few steps": ([300], 5, 8, [LEARN, DELAYED | {"out_features": 400}]),
    "delayed_linear of a density": ([200], 10, 100, [LEARN, DELAYED | {"width": 2.0}]),
    "delayed_linear of one neuron": ([1], 1, 3000, [LEARN, DELAYED | {"out_features": 1, "max_delay": 1000}]),
    "pieces of delays": ([500], 10, 400, [LINEAR, LIF, DELAY, LINEAR, LIF], 20),
    "pieces of delayed_linear": ([300], 10, 400, [DELAYED, LIF], 40),
    "lif": ([1000], 20, 50, [LIF]),
    "lif of one step": ([500], 2000, 1, [EVERY_LIF]),
    "lif bptt": ([500], 10, 50, [EVERY_LIF | {"method": "bptt"}]),
    "lif bptt of one neuron": ([1], 1, 1000, [LIF | {"method": "bptt"}]),
    "recurrent": ([500], 10, 100, [EVERY_LIF | {"recurrent": {"bias": True}}]),
    "recurrent of one neuron": ([1], 1, 10000, [LIF | {"recurrent": {}}]),
    "recurrent bptt": ([500], 10, 25, [EVERY_LIF | {"recurrent": {"bias": True}, "method": "bptt"}]),
    "recurrent bptt of one neuron": ([1], 1, 600, [LIF | {"recurrent": {}, "method": "bptt"}]),
    "second-order": ([500], 20, 100, [LINEAR, CUBA, LINEAR, CUBA]),
    "second-order, recurrent": ([500], 10, 100, [CUBA | {"recurrent": {"bias": True}}]),
    "second-order bptt": ([500], 10, 50, [CUBA | {"method": "bptt"}]),
    "second-order bptt, recurrent": ([500], 10, 25, [CUBA | {"recurrent": {}, "method": "bptt"}]),
    "adaptive": ([500], 20, 100, [LINEAR, ALIF, LINEAR, ALIF]),
    "adaptive of many parameters": (
        [500],
        20,
        100,
        [
            LEARN,
            ALIF | {"adapt_alpha": [0.9] * 500, "synapse_alpha": 0.5, "trainable": ["adapt_alpha", "synapse_gain"]},
        ],
    ),
    "adaptive, recurrent, of one neuron": ([1], 1, 5000, [ALIF | {"recurrent": {}}]),
    "pieces of adaptive": ([500], 20, 400, [LINEAR, ALIF], 20),
    "srm": ([1000], 20, 50, [LEARN, {"kind": "srm", "reset_kernel": EXPONENTIAL, "response_kernel": [1.0] * 5}]),
    "srm bptt": ([500], 5, 50, [LEARN, {"kind": "srm", "reset_kernel": EXPONENTIAL, "method": "bptt"}]),
    "srm bptt of many steps": ([100], 2, 1000, [LEARN, {"kind": "srm", "reset_kernel": EXPONENTIAL, "method": "bptt"}]),
    "srm bptt of more taps than steps": (
        [500],
        5,
        50,
        [LEARN, {"kind": "srm", "reset_kernel": [-1.0] * 100, "method": "bptt"}],
    ),
    "srm bptt of few neurons and many taps": (
        [50],
        2,
        400,
        [LEARN, {"kind": "srm", "reset_kernel": [-1.0] * 100, "method": "bptt"}],
    ),
    "srm bptt of taps": ([500], 5, 50, [LEARN, {"kind": "srm", "reset_kernel": [-1.0] * 5, "method": "bptt"}]),
    "srm bptt of one neuron": ([1], 1, 500, [LEARN, {"kind": "srm", "reset_kernel": EXPONENTIAL, "method": "bptt"}]),
    "weights": ([1000], 1, 1, [{"kind": "linear", "out_features": 1000}] * 3),
    "pieces": ([500], 10, 400, [LINEAR, LIF] * 3, 20),
    "one piece": ([500], 20, 50, [LINEAR, LIF] * 3, 100),
    "pieces with a readout": ([500], 10, 400, [*[LINEAR, LIF] * 3, *READOUT], 20),
    "pieces of one step": ([500], 10, 100, [LINEAR, LIF] * 3, 1),
    "pieces of images": ([2, 32, 32], 4, 100, [CONV, LIF, CONV, LIF], 10),
    "pieces with dropout": ([1000], 100, 20, [LEARN, {"kind": "dropout"}], 3),
    "pieces of recurrent": ([500], 10, 100, [EVERY_LIF | {"recurrent": {"bias": True}}], 10),
    "pieces of bptt": ([500], 10, 200, [EVERY_LIF | {"method": "bptt"}], 10),
    "many pieces of one neuron": ([1], 1, 10000, [LIF], 10),
    "weights in pieces": ([1000], 1, 10, [{"kind": "linear", "out_features": 1000}, LIF] * 3, 2),
    **{f"{name} of {share} spikes": (*case, None, share) for name, case in SPARSE.items() for share in SHARES},
}


def described(case: str, dtype: str) -> dict[str, Any]:
    shape, _, _, layers, *steps = CASES[case]
    return {"input_shape": shape, "dtype": dtype, "layers": layers, "checkpoint_steps": steps[0] if steps else None}


# Runs every case by itself and prints the most that a forward pass and training calls added to the process. What is
# freed goes back to the system at once: blocks of 16 KiB and more are mapped each by itself, because those on the heap
# fill its holes differently from run to run (the same case took 13 to 31 MiB). Of two forward passes the lesser
# counts: pages that the process takes now and then are not of a pass, and add up to 4 MiB to one of 4.
MEASURE = """
import ctypes, gc, json, sys
import torch, exodus_core
from exodus_core import network, training

exodus_core.keep_memory(0)
torch.set_num_threads(1)
ctypes.CDLL(None).mallopt(-3, 16384)
cases = json.loads(sys.stdin.read())

def status(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))

def peak(function):
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = status("VmRSS")
    function()
    return status("VmHWM") - before

for name, (description, batch, time, *share) in cases.items():
    shape = description["input_shape"]
    net = network.build(description)
    trainer = training.Trainer(net, "adam")
    x = torch.rand(batch, time, *shape) < (share or [0.3])[0]
    targets = torch.ones(batch, time, *net.description.output_shape)
    trainer.step(x[:2, :3], targets[:2, :3], "spike_train_mse")
    forward = min(peak(lambda: trainer.forward(x)) for _ in range(2))
    calls = [
        lambda: trainer.backward(trainer.begin(x), targets),
        lambda: trainer.step(x, targets, {"kind": "van_rossum", "alpha": 0.9}, clip_norm=1.0),
    ]
    print(json.dumps([name, forward, max(map(peak, calls))]), flush=True)
"""
MIB = 2**20
# What libraries take once, and what a process has around its tensors.
BESIDE = 4 * MIB


@pytest.fixture(scope="module", params=["float32", "float64"])
def measured(request: pytest.FixtureRequest) -> Any:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("there is no /proc to measure with")
    cases = {
        case: (described(case, request.param), batch, time, *more[1:])
        for case, (_, batch, time, _, *more) in CASES.items()
    }
    run = subprocess.run(
        [sys.executable, "-c", MEASURE],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        check=True,
    )
    return request.param, {name: peaks for name, *peaks in map(json.loads, run.stdout.splitlines())}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_pass_takes_at_most_what_the_description_says_and_not_much_less(measured: Any, case: str) -> None:
    dtype, peaks = measured
    _, batch, time, *_ = CASES[case]
    description = network.parse(described(case, dtype))
    for training, peak in zip((False, True), peaks[case], strict=True):
        bound = description.memory(batch, time, training=training)
        assert peak <= bound + BESIDE, f"training={training}: {peak / MIB:.1f} MiB, at most {bound / MIB:.1f} said"
        assert bound <= 6 * peak + 2 * BESIDE, f"training={training}: {peak / MIB:.1f} MiB, {bound / MIB:.1f} said"


def test_every_kind_of_layer_has_a_bound() -> None:
    kinds = {layer["kind"] for _, _, _, layers, *_ in CASES.values() for layer in layers}
    assert kinds | {"if", "avg_pool"} == set(network.KINDS)


def test_a_large_kernel_in_float64_is_known_to_take_what_it_takes() -> None:
    layers = [{"kind": "conv2d", "out_channels": 1, "kernel_size": 60}]
    description = network.parse({"input_shape": [1, 200, 200], "dtype": "float64", "layers": layers})
    assert description.memory(1, 2, training=False) > 1090 * MIB


def test_memory_grows_with_batch_and_time_and_a_long_way_beyond_64_bits() -> None:
    layers = [{"kind": "linear", "out_features": 8}, {"kind": "if", "recurrent": {}, "method": "bptt"}]
    description = network.parse({"input_shape": [8], "layers": layers})
    sizes = [description.memory(b, t, training=True) for b, t in [(1, 1), (2**20, 1), (2**20, 2), (2**31, 2**31)]]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == 4
    assert sizes[-1] > 2**64
    assert description.memory(2**20, 1, training=False) < sizes[1]


def test_a_long_sequence_in_pieces_takes_little_more_than_a_short_one() -> None:
    layers = [LINEAR, LIF, {"kind": "dropout"}, LINEAR, LIF, *READOUT]
    whole, pieces = (
        network.parse({"input_shape": [500], "layers": layers, "checkpoint_steps": steps}) for steps in (None, 250)
    )
    for training in (False, True):
        assert pieces.memory(8, 250, training=training) == whole.memory(8, 250, training=training)
        assert pieces.memory(8, 100_000, training=training) < whole.memory(8, 100_000, training=training) / 30
    assert pieces.graph(250) == whole.graph(250)
    assert whole.graph(250) == whole.graph(100_000) < pieces.graph(100_000)
