"""Network descriptions: what is filled in, what is known before anything is allocated, and what is refused where."""

import json
import sys
from typing import Any

import network_cases as cases
import numpy as np
import pytest

from exodus_core import network
from exodus_core.network.neurons import AlphaTaps, ExponentialTaps, Recurrent, SurrogateData
from exodus_core.schema import described, plain

LINEAR = {"kind": "linear", "out_features": 3}


@pytest.mark.parametrize("case", cases.CASES)
def test_a_description_and_its_data_are_each_others(case: str) -> None:
    description = network.parse(cases.describe(case))
    data = description.data
    assert network.parse(data) == description
    assert network.parse(json.loads(json.dumps(data))).data == data
    assert description.dtype == "float64"


def test_all_defaults_are_filled_in() -> None:
    data = network.parse({"layers": [{**LINEAR, "in_features": 4}, {"kind": "lif", "alpha": 0.9}]}).data
    assert data == {
        "input_shape": [4],
        "dtype": "float32",
        "layers": [
            {
                "kind": "linear",
                "name": "0",
                "inputs": ["input"],
                "out_features": 3,
                "in_features": 4,
                "bias": True,
                "gain": 1.0,
            },
            {
                "kind": "lif",
                "name": "1",
                "inputs": ["0"],
                "alpha": 0.9,
                "threshold": 1.0,
                "reset": "subtract",
                "reset_by": None,
                "decay_reset": False,
                "min_membrane": None,
                "max_spikes": 1,
                "surrogate": {"kind": "exponential", "slope": 1.0, "scale": 1.0},
                "method": "exodus",
                "trainable": [],
                "recurrent": None,
            },
        ],
    }


def test_sizes_are_known_before_anything_is_allocated() -> None:
    layers = [{"kind": "linear", "out_features": 2**30}, {"kind": "if", "recurrent": {}}]
    description = network.parse({"input_shape": [2**30], "layers": layers})
    assert description.nbytes == 4 * (2**60 + 2**30 + 2**60)
    assert description.activations == 2**31
    assert description.output_shape == (2**30,)


def test_the_mixed_network_has_the_shapes_one_expects() -> None:
    description = network.parse(cases.MIXED)
    assert description.shapes[:2] == ((3, 6, 7), (3, 6, 7))
    assert [description.shape_of(name) for name in ("input", "5", "7", "13")] == [(2, 6, 7), (3, 3, 3), (27,), (5,)]
    assert description.activations == sum([126, 126, 126, 126, 126, 27, 27, 27, 8, 8, 8, 8, 5, 5])


@pytest.mark.parametrize("kind", sorted(network.KINDS))
def test_every_field_has_a_meaning_and_a_default_that_fits(kind: Any) -> None:
    for field in described(network.KINDS[kind]):
        assert field.meaning
        if kind == "flatten" or not isinstance(field.default, str | int | float | bool | tuple):
            continue
        assert field.default == () or field.check.read(field.default, None) == field.default


def one(**layer: Any) -> dict[str, Any]:
    """One layer in a network that it fits in, beside what is wrong with it."""
    shapes = {"conv1d": [4, 6], "conv2d": [4, 6, 6], "sum_pool": [4, 6, 6], "avg_pool": [4, 6], "max_pool": [4, 6, 6]}
    shapes |= {"adaptive_avg_pool": [4, 6], "adaptive_max_pool": [4, 6, 6], "reshape": [4, 6]}
    return {"input_shape": shapes.get(layer["kind"], [3]), "layers": [layer]}


LIF = {"kind": "lif", "alpha": 0.9}
CONV = {"kind": "conv2d", "out_channels": 2, "kernel_size": 3}
SRM = {"kind": "srm", "reset_kernel": [-1.0]}
REFUSED = [
    (3, "", "an object or a list of layers", "3"),
    ([], "/layers", "a list of one layer or more", "[]"),
    ([{"kind": "Linear", "in_features": 20, "out_features": 2}], "/layers/0/kind", "one of linear", "'Linear'"),
    ({"layers": [{"kind": 5, "in_features": 20}]}, "/layers/0/kind", "one of linear", "5"),
    ({"layers": [{"in_features": 20}]}, "/layers/0/kind", "one of linear", "nothing"),
    ({"layers": ["linear"]}, "/layers/0", "an object", "'linear'"),
    (
        {"layers": [{"kind": "conv2d", "out_channels": 1}]},
        "/input_shape",
        "null if the first layer is linear",
        "None",
    ),
    ({"layers": [{**LINEAR, "in_features": "3"}]}, "/layers/0/in_features", "an integer of at least 1", "'3'"),
    ({"layers": [{**LINEAR, "in_features": np.array([3])}]}, "/layers/0/in_features", "an integer", "array([3])"),
    ({"layers": [LINEAR], "extra": 1}, "/extra", "absent (the fields are", "1"),
    (one(**LINEAR) | {"checkpoint_steps": 0}, "/checkpoint_steps", "an integer of at least 1", "0"),
    (one(**LINEAR) | {"checkpoint_steps": 2.5}, "/checkpoint_steps", "an integer of at least 1", "2.5"),
    (one(**LINEAR) | {"checkpoint_steps": True}, "/checkpoint_steps", "an integer of at least 1", "True"),
    (
        one(kind="batch_norm") | {"checkpoint_steps": 5},
        "/checkpoint_steps",
        "null with a layer of kind batch_norm: in training its statistics are those of all steps",
        "5",
    ),
    (
        one(**SRM) | {"checkpoint_steps": 5},
        "/checkpoint_steps",
        "null with a layer of kind srm: its state is the whole history of its spikes",
        "5",
    ),
    ({"layers": []}, "/layers", "a list of one layer or more", "[]"),
    ({}, "/layers", "a list of one layer or more", "None"),
    ({"layers": [LINEAR]}, "/input_shape", "null if the first layer is linear with in_features", "None"),
    ({"layers": [{**LINEAR, "in_features": 0}]}, "/layers/0/in_features", "an integer of at least 1", "0"),
    ({"input_shape": [], "layers": [LINEAR]}, "/input_shape", "a list of one or more", "[]"),
    ({"input_shape": [0], "layers": [LINEAR]}, "/input_shape/0", "an integer of at least 1", "0"),
    ({"input_shape": [True], "layers": [LINEAR]}, "/input_shape/0", "an integer", "True"),
    ({"input_shape": [2**31], "layers": [LINEAR]}, "/input_shape/0", "an integer from 1 to 2147483647", str(2**31)),
    ({"input_shape": [3], "dtype": "float16", "layers": [LINEAR]}, "/dtype", "float32, float64", "'float16'"),
    ({"input_shape": [3], "layers": [3]}, "/layers/0", "an object", "3"),
    ({"input_shape": [3], "layers": [{}]}, "/layers/0/kind", "one of linear, conv1d", "nothing"),
    (one(kind="lstm"), "/layers/0/kind", "one of linear, conv1d", "'lstm'"),
    (one(**LINEAR, name="input"), "/layers/0/name", "other than input", "'input'"),
    (one(**LINEAR, name="a.b"), "/layers/0/name", "a name of 1 to 32 letters", "'a.b'"),
    (one(**LINEAR, name="a\n"), "/layers/0/name", "a name of 1 to 32 letters", r"'a\n'"),
    (one(**LINEAR, name="a" * 33), "/layers/0/name", "a name of 1 to 32 letters", "'aaa"),
    (one(**LINEAR, name=3), "/layers/0/name", "a name of 1 to 32 letters", "3"),
    (
        {"input_shape": [3], "layers": [{**LINEAR, "name": "1"}, LINEAR]},
        "/layers/1/name",
        "a name that no layer before has",
        "'1'",
    ),
    (one(**LINEAR, inputs=["0"]), "/layers/0/inputs/0", "the name of a layer before this one", "'0'"),
    (one(**LINEAR, inputs=["input", "input"]), "/layers/0/inputs", "a list of one name", "['input', 'input']"),
    (one(**LINEAR, inputs="input"), "/layers/0/inputs", "a list of one name", "'input'"),
    (one(**LINEAR, inputs=[]), "/layers/0/inputs", "a list of one name", "[]"),
    (one(kind="add"), "/layers/0/inputs", "a list of two names or more", "['input']"),
    (
        {"input_shape": [4], "layers": [LINEAR, {"kind": "add", "inputs": ["0", "input"]}]},
        "/layers/1/inputs/1",
        "an input of shape [3]",
        "[4]",
    ),
    (
        {"input_shape": [3], "layers": [{**LINEAR, "name": "lost"}, {**LINEAR, "inputs": ["input"]}]},
        "/layers/0",
        "a layer that leads to the last one",
        "lost, which no layer takes as input",
    ),
    (one(kind="linear"), "/layers/0/out_features", "an integer of at least 1", "nothing"),
    (one(kind="linear", out_features=0), "/layers/0/out_features", "an integer of at least 1", "0"),
    (one(kind="linear", out_features=2.0), "/layers/0/out_features", "an integer of at least 1", "2.0"),
    (one(**LINEAR, in_features=4), "/layers/0/in_features", "3, as its input has", "4"),
    (one(**LINEAR, bias=1), "/layers/0/bias", "true or false", "1"),
    (one(**LINEAR, gain="1"), "/layers/0/gain", "a number", "'1'"),
    (one(**LINEAR, gain=float("nan")), "/layers/0/gain", "a number", "nan"),
    (one(**LINEAR, gain=10**400), "/layers/0/gain", "a number", "1000"),
    (one(**LINEAR, **{"a/b~": 1}), "/layers/0/a~1b~0", "absent (the fields are kind, name, inputs, out_", "1"),
    ({"input_shape": [2, 3], "layers": [LINEAR]}, "/layers/0/inputs", "an input of shape [features]", "[2, 3]"),
    ({"input_shape": [3], "layers": [CONV]}, "/layers/0/inputs", "[channels, height, width]", "[3]"),
    (one(**CONV, in_channels=3), "/layers/0/in_channels", "4, as its input has", "3"),
    (one(**CONV, groups=3), "/layers/0/groups", "a divisor of the 4 channels of input", "3"),
    (one(**CONV, groups=4), "/layers/0/groups", "a divisor of the 2 channels of out_channels", "4"),
    (one(**{**CONV, "kernel_size": 7}), "/layers/0/kernel_size", "that fits in an input of shape [4, 6, 6]", "larger"),
    (one(**{**CONV, "kernel_size": [1, 2, 3]}), "/layers/0/kernel_size", "a list of 2", "[1, 2, 3]"),
    (one(**CONV, stride=0), "/layers/0/stride", "an integer of at least 1", "0"),
    (one(**CONV, padding=[0, -1]), "/layers/0/padding/1", "an integer of at least 0", "-1"),
    (one(**CONV, padding="same"), "/layers/0/padding", "an integer of at least 0", "'same'"),
    (one(kind="sum_pool", kernel_size=[2]), "/layers/0/kernel_size", "a list of 2", "[2]"),
    (one(kind="avg_pool", kernel_size=2, stride=[1, 1]), "/layers/0/stride", "a list of 1", "[1, 1]"),
    (one(kind="avg_pool", kernel_size=7), "/layers/0/kernel_size", "that fits", "larger"),
    (one(kind="max_pool"), "/layers/0/kernel_size", "a list with one for each dimension", "nothing"),
    (one(kind="max_pool", kernel_size=2, padding=2), "/layers/0/padding", "at most half of kernel_size, 2", "2"),
    (one(kind="max_pool", kernel_size=[4, 2], padding=[2, 2]), "/layers/0/padding", "half of kernel_size, 2", "2"),
    (one(kind="max_pool", kernel_size=2, padding=[1]), "/layers/0/padding", "a number, or a list of 2", "[1]"),
    (one(kind="max_pool", kernel_size=[2]), "/layers/0/kernel_size", "a number, or a list of 2", "[2]"),
    (one(kind="max_pool", kernel_size=9, padding=1), "/layers/0/kernel_size", "that fits", "larger"),
    (one(kind="max_pool", kernel_size=2, ceil_mode=True), "/layers/0/ceil_mode", "absent (the fields are", "True"),
    (one(kind="adaptive_avg_pool", output_size=4), "/layers/0/output_size", "a divisor of 6, so that all", "4"),
    (one(kind="adaptive_max_pool", output_size=[7, 1]), "/layers/0/output_size", "a divisor of 6", "7"),
    (one(kind="adaptive_max_pool", output_size=[1]), "/layers/0/output_size", "a number, or a list of 2", "[1]"),
    (one(kind="adaptive_avg_pool"), "/layers/0/output_size", "an integer of at least 1", "nothing"),
    ({"input_shape": [3], "layers": [{"kind": "max_pool", "kernel_size": 1}]}, "/layers/0/inputs", "[channels", "[3]"),
    (one(kind="reshape", shape=[5, 5]), "/layers/0/shape", "of 24 elements, as the input [4, 6]", "[5, 5]"),
    (one(kind="reshape", shape=[24, -1]), "/layers/0/shape/1", "an integer of at least 1", "-1"),
    (one(kind="reshape", shape=[24, *[1] * 8]), "/layers/0/shape", "a list of at most 8 sizes", "one of 9"),
    (one(kind="concat"), "/layers/0/inputs", "a list of two names or more", "['input']"),
    (one(kind="concat", inputs=["input"] * 2, axis=1), "/layers/0/axis", "an axis of the first input, [3]", "1"),
    (one(kind="concat", inputs=["input"] * 2, axis=-1), "/layers/0/axis", "an integer of at least 0", "-1"),
    (
        {
            "input_shape": [2, 6],
            "layers": [
                {"kind": "avg_pool", "kernel_size": 2, "name": "half"},
                {"kind": "concat", "inputs": ["input", "half"]},
            ],
        },
        "/layers/1/inputs/1",
        "an input of shape [2, 6] but for axis 0",
        "[2, 3]",
    ),
    (
        {"input_shape": [2, 6], "layers": [{"kind": "flatten"}, {"kind": "concat", "inputs": ["input", "0"]}]},
        "/layers/1/inputs/1",
        "an input of shape [2, 6] but for axis 0",
        "[12]",
    ),
    (one(kind="dropout", p=1.5), "/layers/0/p", "a number in [0, 1]", "1.5"),
    (one(kind="batch_norm", eps=0), "/layers/0/eps", "a number above 0", "0"),
    (one(kind="lif"), "/layers/0/alpha", "a number in [0, 1], or a list of such", "nothing"),
    (one(kind="lif", alpha=1.1), "/layers/0/alpha", "a number in [0, 1]", "1.1"),
    (one(kind="lif", alpha=[0.5, 0.5, -1]), "/layers/0/alpha/2", "a number in [0, 1]", "-1"),
    (one(kind="lif", alpha=[0.5, 0.5]), "/layers/0/alpha", "broadcast to the neurons, [3]", "shape [2]"),
    (one(kind="lif", alpha=[[0.5]]), "/layers/0/alpha", "broadcast to the neurons, [3]", "shape [1, 1]"),
    (one(kind="lif", alpha=[[0.5], [0.5, 0.5]]), "/layers/0/alpha/1", "as many values as", "[0.5, 0.5]"),
    (one(kind="lif", alpha=[]), "/layers/0/alpha", "a number in [0, 1]", "[]"),
    (one(kind="if", alpha=0.9), "/layers/0/alpha", "absent (the fields are", "0.9"),
    (one(**LIF, threshold=0), "/layers/0/threshold", "a number above 0", "0"),
    (one(**LIF, threshold=[1, 1]), "/layers/0/threshold", "broadcast", "shape [2]"),
    (one(**LIF, reset="half"), "/layers/0/reset", "one of subtract, zero, none", "'half'"),
    (one(**LIF, reset=["zero"]), "/layers/0/reset", "one of subtract, zero, none", "['zero']"),
    (one(**LIF, max_spikes=0), "/layers/0/max_spikes", "an integer of at least 1", "0"),
    (one(**LIF, max_spikes=2, reset="zero"), "/layers/0/max_spikes", "1 with reset zero", "2"),
    (one(**LIF, min_membrane="0"), "/layers/0/min_membrane", "a number", "'0'"),
    (one(**LIF, bound_after_reset=1), "/layers/0/bound_after_reset", "true or false", "1"),
    *(
        (one(**neuron, bound_after_reset=True), "/layers/0/bound_after_reset", "false with reset value, a det", "True")
        for neuron in (
            {**LIF, "reset": "value", "reset_to": 0.1},
            {**LIF, "reset": "zero", "detach_reset": True},
            {**LIF, "refractory": 1},
            {**LIF, "kind": "cuba_lif", "synapse_alpha": 0.5},
            {**LIF, "kind": "alif", "adapt_alpha": 0.5},
        )
    ),
    (one(**LIF, surrogate="arctan"), "/layers/0/surrogate", "an object", "'arctan'"),
    (one(**LIF, surrogate={"kind": "relu"}), "/layers/0/surrogate/kind", "one of exponential, boxcar", "'relu'"),
    (one(**LIF, surrogate={"slope": 0}), "/layers/0/surrogate/slope", "a number above 0", "0"),
    (one(**LIF, method="rtrl"), "/layers/0/method", "one of exodus, slayer, bptt", "'rtrl'"),
    (one(**LIF, trainable=["beta"]), "/layers/0/trainable/0", "one of alpha, threshold, reset_by", "'beta'"),
    (one(**LIF, trainable=["alpha", "alpha"]), "/layers/0/trainable/1", "each once", "'alpha'"),
    (one(**LIF, trainable="alpha"), "/layers/0/trainable", "a list of names", "'alpha'"),
    (one(kind="if", trainable=["alpha"]), "/layers/0/trainable/0", "one of threshold, reset_by", "'alpha'"),
    (
        one(**LIF, trainable=["reset_by"]),
        "/layers/0/trainable",
        "a list with reset_by only if that has a value",
        "reset_by",
    ),
    (one(**LIF, recurrent=True), "/layers/0/recurrent", "an object", "True"),
    (one(**LIF, recurrent={"weight": 1}), "/layers/0/recurrent/weight", "absent (the fields are", "1"),
    (one(kind="srm"), "/layers/0/reset_kernel", "a list of taps, or an object", "nothing"),
    (one(kind="srm", reset_kernel=-1.0), "/layers/0/reset_kernel", "a list of taps, or an object", "-1.0"),
    (one(kind="srm", reset_kernel=[]), "/layers/0/reset_kernel", "a list of one or more", "[]"),
    (one(kind="srm", reset_kernel=[0.1, None]), "/layers/0/reset_kernel/1", "a number", "None"),
    (one(kind="srm", reset_kernel={"kind": "x"}), "/layers/0/reset_kernel/kind", "exponential, alpha", "'x'"),
    (one(kind="srm", reset_kernel={"kind": []}), "/layers/0/reset_kernel/kind", "exponential, alpha", "[]"),
    (one(kind="srm", reset_kernel={"kind": "alpha"}), "/layers/0/reset_kernel/tau", "a number above 0", "nothing"),
    (one(**SRM, response_kernel={"kind": "alpha", "tau": 0}), "/layers/0/response_kernel/tau", "above 0", "0"),
    (one(**SRM, threshold=[1, 2]), "/layers/0/threshold", "broadcast", "shape [2]"),
    (one(kind="delay"), "/layers/0/delays", "a number of at least 0, or a list of such, if not trained", "None"),
    (one(kind="delay", delays=-1), "/layers/0/delays", "a number of at least 0", "-1"),
    (one(kind="delay", delays=[1, 2]), "/layers/0/delays", "broadcast to the input, [3]", "shape [2]"),
    (one(kind="delay", delays=[1, 2, 3.5], max_delay=3), "/layers/0/delays", "at most 3, the max_delay", "3.5"),
    (one(kind="delay", delays=1, max_delay=0), "/layers/0/max_delay", "an integer from 1 to", "0"),
    (one(kind="delay", delays=1e9), "/layers/0/max_delay", "an integer from 1 to 1048576", "1000000000"),
    (one(kind="delay", trainable=["delays"]), "/layers/0/max_delay", "if delays are trained", "None"),
    (one(kind="delayed_linear", out_features=2), "/layers/0/max_delay", "an integer from 1 to", "nothing"),
    (
        one(kind="delayed_linear", out_features=2, max_delay=3, trainable=[]),
        "/layers/0/delays",
        "if not trained",
        "None",
    ),
    (
        one(kind="delayed_linear", out_features=2, max_delay=3, delays=[[1, 2]]),
        "/layers/0/delays",
        "broadcast to the weights, [2, 3]",
        "shape [1, 2]",
    ),
    (one(kind="delayed_linear", out_features=2, max_delay=3, width=0), "/layers/0/width", "a number above 0", "0"),
    (one(kind="delayed_linear", out_features=2, max_delay=3, in_features=4), "/layers/0/in_features", "3", "4"),
    (
        {"input_shape": [2, 3], "layers": [{"kind": "delayed_linear", "out_features": 2, "max_delay": 3}]},
        "/layers/0/inputs",
        "an input of shape [features]",
        "[2, 3]",
    ),
    (one(kind="exp_leak", alpha=0.9, trainable=["threshold"]), "/layers/0/trainable/0", "alpha", "'threshold'"),
]


@pytest.mark.parametrize(
    ("data", "pointer", "expected", "got"), REFUSED, ids=[f"{i}{r[1]}" for i, r in enumerate(REFUSED)]
)
def test_what_does_not_fit_is_refused_with_pointer_expected_and_got(
    data: Any, pointer: str, expected: str, got: str
) -> None:
    with pytest.raises(network.NetworkError) as caught:
        network.parse(data)
    error = caught.value
    assert error.pointer == pointer
    assert expected in error.expected
    assert got in error.got
    assert len(error.got) < 100
    assert all(part in str(error) for part in (error.pointer, error.expected, error.got))


def test_numbers_of_numpy_are_numbers() -> None:
    layers = [
        {"kind": "linear", "in_features": np.int64(3), "out_features": np.uint8(2), "gain": np.float32(0.5)},
        {"kind": "lif", "alpha": np.float64(0.9), "max_spikes": np.int32(2)},
    ]
    data = network.parse(layers).data
    assert data == json.loads(json.dumps(data))
    assert data["input_shape"] == [3]
    assert data["layers"][0]["gain"] == 0.5
    with pytest.raises(network.NetworkError, match=r"/layers/0/bias must be true or false, got"):
        network.parse([{**layers[0], "bias": np.bool_(True)}])


def test_layers_alone_are_a_description() -> None:
    layers = [{**LINEAR, "in_features": 3}, LIF]
    assert network.parse(layers) == network.parse({"layers": layers})
    assert network.build(layers).description == network.parse(layers)


def test_every_object_within_a_description_has_meanings() -> None:
    for cls in (SurrogateData, Recurrent, ExponentialTaps, AlphaTaps):
        assert all(field.meaning for field in described(cls))
    assert plain(AlphaTaps(3.0)) == {"kind": "alpha", "tau": 3.0, "amplitude": 1.0}


def instructions(count: int) -> Any:
    """Python instructions that a network of so many layers takes, parsed and built: a time that no load changes."""
    layers = [{"kind": "if"}] * count
    seen = 0

    def trace(frame: Any, event: Any, _: Any) -> Any:
        nonlocal seen
        frame.f_trace_opcodes = True
        seen += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        network.build({"input_shape": [3], "layers": layers})
    finally:
        sys.settrace(before)
    return seen


def test_layers_take_time_in_proportion_to_their_number() -> None:
    few, more, many = (instructions(count) for count in (100, 200, 400))
    assert many - more < 2.2 * (more - few)


def test_layers_are_as_many_as_the_limit_says_and_no_more() -> None:
    layers = [{"kind": "flatten"}] * (network.MAX_LAYERS + 1)
    assert len(network.parse({"input_shape": [3], "layers": layers[1:]}).layers) == network.MAX_LAYERS
    with pytest.raises(network.NetworkError) as caught:
        network.parse({"input_shape": [3], "layers": layers})
    error = caught.value
    assert error.pointer == "/layers"
    assert error.expected == f"a list of at most {network.MAX_LAYERS} layers (MAX_LAYERS)"
    assert error.got == f"one of {len(layers)}"


HUGE = 2**31 - 1
TOO_LARGE = [
    ([HUGE] * 470, [{"kind": "flatten"}, LINEAR], "/input_shape"),
    ([HUGE, 2], [{"kind": "flatten"}, LINEAR], "/input_shape"),
    ([10**5000], [{"kind": "if"}], "/input_shape/0"),
    ([1] * 9, [{"kind": "flatten"}], "/input_shape"),
    ([1, HUGE], [{"kind": "conv1d", "out_channels": 2, "kernel_size": 1}], "/layers/0"),
    ([HUGE], [{"kind": "concat", "inputs": ["input", "input"]}], "/layers/0"),
    ([1, 1, 1], [{"kind": "conv2d", "out_channels": 1, "kernel_size": 1, "padding": HUGE}], "/layers/0"),
    ([3], [{"kind": "linear", "out_features": 10**5000}], "/layers/0/out_features"),
    ([3], [{"kind": "lif", "alpha": [0.5, 0.5, 10**5000]}], "/layers/0/alpha/2"),
    ([3], [{"kind": "lif", "alpha": 0.9, "max_spikes": -(10**5000)}], "/layers/0/max_spikes"),
    ([3], [{**LINEAR, "name": 10**5000}], "/layers/0/name"),
    ([3], [{**LINEAR, "inputs": [10**5000]}], "/layers/0/inputs/0"),
    ([3], [{"kind": 10**5000}], "/layers/0/kind"),
    ([3], [{**LINEAR, "more": [[10**5000]]}], "/layers/0/more"),
]


@pytest.mark.parametrize(("shape", "layers", "pointer"), TOO_LARGE, ids=[f"{i}{t[2]}" for i, t in enumerate(TOO_LARGE)])
def test_numbers_of_any_size_are_refused_where_they_stand(shape: tuple[int, ...], layers: Any, pointer: str) -> None:
    with pytest.raises(network.NetworkError) as caught:
        network.parse({"input_shape": shape, "layers": layers})
    assert caught.value.pointer == pointer
    assert len(str(caught.value)) < 400


def test_the_largest_sizes_are_described_and_come_back() -> None:
    layers = [{"kind": "flatten"}, {"kind": "linear", "out_features": HUGE}, {"kind": "if", "recurrent": {}}]
    description = network.parse({"input_shape": [2**30, 1], "layers": layers})
    assert network.parse(description.data) == description
    assert description.nbytes == 4 * (2**30 * HUGE + HUGE + HUGE**2)


def test_values_of_any_depth_are_shown_short() -> None:
    deep: list[Any] = []
    for _ in range(10_000):
        deep = [deep]
    for value in (deep, {"a": deep}, [deep] * 10, "x" * 10**6, [0.5] * 10**6):
        with pytest.raises(network.NetworkError) as caught:
            network.parse([{**LINEAR, "in_features": value}])
        assert len(caught.value.got) < 100


def test_checkpoint_steps_are_in_the_data_where_they_are_not_null() -> None:
    data = one(**LIF)
    assert network.parse(data | {"checkpoint_steps": None}) == network.parse(data)
    assert "checkpoint_steps" not in network.parse(data).data
    description = network.parse(data | {"checkpoint_steps": np.int64(7)})
    assert description.checkpoint_steps == description.data["checkpoint_steps"] == 7
    assert network.parse(description.data) == description != network.parse(data)
