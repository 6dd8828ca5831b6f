"""Gradients over HTTP: every kind of input gives those of autograd through the plain loop."""

import json
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from service.conftest import Answer, Caller

import exodus_core
from exodus_client.wire import Encoded, Encoding, Form, Message, Tensor, encode
from exodus_core import reference
from exodus_core.surrogate import KINDS, Exponential, Surrogate
from exodus_service.gradients.request import GradientRequest

LIF = {"model": "lif", "alpha": 0.9}
METHODS = ["exodus", "slayer", "bptt"]
RESETS: list[dict[str, Any]] = [
    {"reset": "subtract"},
    {"reset": "subtract", "decay_reset": True, "reset_by": 0.7},
    {"reset": "zero"},
    {"reset": "none"},
    {"min_membrane": -0.2},
    {"min_membrane": -0.2, "bound_after_reset": True, "max_spikes": 2},
    {"max_spikes": 3},
    {"initial_membrane": 0.4, "initial_spikes": 1.0},
]


def drive(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return (torch.randn(shape, dtype=torch.float64) + 0.3).to(dtype)


def loop_gradient(
    x: torch.Tensor, grad_output: torch.Tensor, neuron: Callable[..., Any] = reference.lif, **arguments: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """dL/dx by autograd through the time loop, and the outputs of the loop."""
    leaf = x.clone().requires_grad_()
    spikes, membrane = neuron(leaf, **arguments)
    (gradient,) = torch.autograd.grad(spikes, leaf, grad_output)
    return gradient, spikes.detach(), membrane.detach()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("neuron", RESETS, ids=str)
def test_a_membrane_trace_gives_the_gradient_of_the_loop(
    caller: Caller, ask: Callable[..., Message], method: str, neuron: dict[str, Any]
) -> None:
    x, grad_output = drive(3, 7, 5), drive(3, 7, 5)
    expected, _, membrane = loop_gradient(x, grad_output, alpha=0.9, method=method, **neuron)
    answer = caller.gradients(ask(LIF | neuron, membrane=membrane, grad_output=grad_output), method)
    torch.testing.assert_close(answer.tensor("grad_input"), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("neuron", RESETS, ids=str)
def test_an_input_current_gives_the_gradient_and_the_traces_of_the_loop(
    caller: Caller, ask: Callable[..., Message], method: str, neuron: dict[str, Any]
) -> None:
    x, grad_output = drive(3, 7, 5), drive(3, 7, 5)
    expected, spikes, membrane = loop_gradient(x, grad_output, alpha=0.9, method=method, **neuron)
    request = ask(LIF | neuron, input=x, grad_output=grad_output, return_=["spikes", "membrane"])
    answer = caller.gradients(request, method)
    torch.testing.assert_close(answer.tensor("grad_input"), expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(answer.tensor("spikes"), spikes)
    torch.testing.assert_close(answer.tensor("membrane"), membrane)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("encoding", ["raw", "bits", "events"])
def test_spikes_and_weight_give_the_gradients_of_both(caller: Caller, method: str, encoding: Encoding) -> None:
    spikes = (torch.rand(2, 9, 4) < 0.4).to(torch.float64)
    weight, grad_output = drive(3, 4), drive(2, 9, 3)
    leaves = spikes.clone().requires_grad_(), weight.clone().requires_grad_()
    fired, _ = reference.lif(leaves[0] @ leaves[1].T, 0.9, method=method)
    expected_spikes, expected_weight = torch.autograd.grad(fired, leaves, grad_output)
    tensors = [
        Tensor.of("spikes", spikes, encoding),
        Tensor.of("weight", weight),
        Tensor.of("grad_output", grad_output),
    ]
    answer = caller.gradients(Message.of({"neuron": LIF}, tensors), method)
    torch.testing.assert_close(answer.tensor("grad_weight"), expected_weight)
    torch.testing.assert_close(answer.tensor("grad_spikes"), expected_spikes)
    assert answer.tensor("grad_input").shape == grad_output.shape


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("source", ["psp", "membrane"])
@pytest.mark.parametrize("kernel", ["tensor", "exponential", "alpha", "slayer_refractory"])
def test_srm_gives_the_gradient_of_the_loop_for_every_reset_kernel(
    caller: Caller, ask: Callable[..., Message], method: str, source: str, kernel: str
) -> None:
    psp, grad_output = drive(2, 11, 3), drive(2, 11, 3)
    taps = torch.tensor([-1.0, 0.2, -0.3], dtype=torch.float64)
    kernels: dict[str, tuple[dict[str, Any], Any, dict[str, Any]]] = {
        "tensor": ({}, taps, {"reset_kernel": taps}),
        "exponential": (
            {"reset_kernel": {"kind": "exponential", "alpha": 0.8, "amplitude": -1.0}},
            exodus_core.ExponentialKernel(0.8, -1.0),
            {},
        ),
        "alpha": (
            {"reset_kernel": {"kind": "alpha", "tau": 2.5, "amplitude": -1.0}},
            exodus_core.AlphaKernel(2.5, -1.0),
            {},
        ),
        "slayer_refractory": (
            {"reset_kernel": {"kind": "slayer_refractory", "tau": 1.5, "amplitude": -1.0}},
            exodus_core.SlayerRefractory(1.5, -1.0),
            {},
        ),
    }
    spoken, meant, tensors = kernels[kernel]
    expected, spikes, membrane = loop_gradient(psp, grad_output, reference.srm, reset_kernel=meant, method=method)
    given = {"psp": psp} if source == "psp" else {"membrane": membrane}
    request = ask({"model": "srm", **spoken}, grad_output=grad_output, return_=["spikes"], **given, **tensors)
    answer = caller.gradients(request, method)
    torch.testing.assert_close(answer.tensor("grad_psp"), expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(answer.tensor("spikes"), spikes)


@pytest.mark.parametrize("method", METHODS)
def test_gradients_of_parameters_come_in_the_shape_of_the_parameter(
    caller: Caller, ask: Callable[..., Message], method: str
) -> None:
    x, grad_output, alpha = drive(2, 8, 3), drive(2, 8, 3), torch.tensor([0.9, 0.5, 0.7], dtype=torch.float64)
    leaf, threshold, initial = (
        alpha.clone().requires_grad_(),
        torch.tensor(1.1, dtype=torch.float64, requires_grad=True),
        torch.zeros((), dtype=torch.float64, requires_grad=True),
    )
    spikes, membrane = reference.lif(x, leaf, threshold=threshold, initial_membrane=initial, method=method)
    expected = torch.autograd.grad(spikes, (leaf, threshold, initial), grad_output)
    neuron = {"model": "lif", "alpha": {"tensor": "decays"}, "threshold": 1.1}
    request = ask(
        neuron,
        membrane=membrane.detach(),
        grad_output=grad_output,
        decays=alpha,
        wrt=["alpha", "threshold", "initial_membrane"],
    )
    answer = caller.gradients(request, method)
    for name, gradient in zip(("alpha", "threshold", "initial_membrane"), expected, strict=True):
        torch.testing.assert_close(answer.tensor(f"grad_{name}"), gradient)


def test_an_output_filter_means_a_loss_on_the_filtered_spikes(caller: Caller, ask: Callable[..., Message]) -> None:
    x, grad_filtered = drive(2, 9, 3), drive(2, 9, 3)
    leaf = x.clone().requires_grad_()
    spikes, membrane = reference.lif(leaf, 0.9)
    filtered = reference.filter(spikes, exodus_core.ExponentialKernel(0.8))
    (expected,) = torch.autograd.grad(filtered, leaf, grad_filtered)
    request = ask(LIF, membrane=membrane.detach(), grad_output=grad_filtered, output_filter={"alpha": 0.8})
    torch.testing.assert_close(caller.gradients(request).tensor("grad_input"), expected)


def test_a_gradient_of_the_membrane_is_added(caller: Caller, ask: Callable[..., Message]) -> None:
    x, grad_output, grad_membrane = drive(2, 9, 3), drive(2, 9, 3), drive(2, 9, 3)
    leaf = x.clone().requires_grad_()
    traces = reference.lif(leaf, 0.9)
    (both,) = torch.autograd.grad(traces, leaf, (grad_output, grad_membrane), retain_graph=True)
    (alone,) = torch.autograd.grad(traces[1], leaf, grad_membrane)
    membrane = traces[1].detach()
    request = ask(LIF, membrane=membrane, grad_output=grad_output, grad_membrane=grad_membrane)
    torch.testing.assert_close(caller.gradients(request).tensor("grad_input"), both)
    request = ask(LIF, membrane=membrane, grad_membrane=grad_membrane)
    torch.testing.assert_close(caller.gradients(request).tensor("grad_input"), alone)


@pytest.mark.parametrize("time_dim", [0, 1, 2, -1, -3])
def test_time_may_be_any_axis(caller: Caller, ask: Callable[..., Message], time_dim: int) -> None:
    x, grad_output = drive(4, 5, 6), drive(4, 5, 6)
    expected, _, membrane = loop_gradient(x, grad_output, alpha=0.9, time_dim=time_dim)
    request = ask(LIF, membrane=membrane, grad_output=grad_output, time_dim=time_dim, output_filter=None)
    torch.testing.assert_close(caller.gradients(request).tensor("grad_input"), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_every_surrogate_is_served_with_its_slope_and_scale(
    caller: Caller, ask: Callable[..., Message], kind: str
) -> None:
    x, grad_output = drive(2, 6, 3), drive(2, 6, 3)
    cases: list[tuple[dict[str, Any], Surrogate]] = [
        ({"slope": 1.5, "scale": 0.5}, KINDS[kind](1.5, 0.5)),
        ({}, KINDS[kind]()),
    ]
    for spoken, meant in cases:
        expected, _, membrane = loop_gradient(x, grad_output, alpha=0.9, surrogate=meant)
        request = ask(LIF, membrane=membrane, grad_output=grad_output, surrogate={"kind": kind, **spoken})
        torch.testing.assert_close(caller.gradients(request).tensor("grad_input"), expected)


def test_integrate_and_fire_does_not_decay(caller: Caller, ask: Callable[..., Message]) -> None:
    x, grad_output = drive(2, 6, 3), drive(2, 6, 3)
    expected, _, membrane = loop_gradient(x, grad_output, alpha=1.0)
    for neuron in ({"model": "if"}, {"model": "if", "alpha": 1}):
        request = ask(neuron, membrane=membrane, grad_output=grad_output)
        torch.testing.assert_close(caller.gradients(request).tensor("grad_input"), expected)


@pytest.mark.parametrize("method", METHODS)
def test_the_forward_pass_alone_needs_no_loss(caller: Caller, ask: Callable[..., Message], method: str) -> None:
    x = drive(2, 6, 3)
    spikes, membrane = reference.lif(x, 0.9)
    answer = caller.gradients(ask(LIF, input=x, return_=["membrane", "spikes"]), method)
    assert list(answer.message.tensors) == ["spikes", "membrane"]
    torch.testing.assert_close(answer.tensor("spikes"), spikes)
    torch.testing.assert_close(answer.tensor("membrane"), membrane)


def test_spikes_of_a_given_trace_can_be_asked_for(caller: Caller, ask: Callable[..., Message]) -> None:
    _, spikes, membrane = loop_gradient(drive(2, 6, 3) * 3, drive(2, 6, 3), alpha=0.9, max_spikes=2)
    request = ask(LIF | {"max_spikes": 2}, membrane=membrane, grad_output=membrane, return_=["spikes"])
    torch.testing.assert_close(caller.gradients(request).tensor("spikes"), spikes)
    assert spikes.max() == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_results_have_the_dtype_of_the_trace_or_the_one_asked_for(
    caller: Caller, ask: Callable[..., Message], dtype: torch.dtype
) -> None:
    membrane, grad_output = drive(2, 6, 3, dtype=dtype), drive(2, 6, 3, dtype=dtype)
    own = caller.gradients(ask(LIF, membrane=membrane, grad_output=grad_output)).tensor("grad_input")
    assert own.dtype == dtype
    wide = caller.gradients(ask(LIF, membrane=membrane, grad_output=grad_output, result_dtype="float64"))
    assert wide.tensor("grad_input").dtype == torch.float64
    torch.testing.assert_close(wide.tensor("grad_input").to(dtype), own)


def test_the_answer_names_method_device_and_norms(caller: Caller, ask: Callable[..., Message]) -> None:
    membrane, grad_output = drive(2, 6, 3), drive(2, 6, 3)
    answer = caller.gradients(ask(LIF, membrane=membrane, grad_output=grad_output, wrt=["alpha"]), "slayer")
    assert answer.message.params["method"] == "slayer"
    assert answer.message.params["device"] == "cpu"
    norms = answer.message.params["grad_norms"]
    assert norms.keys() == {"grad_input", "grad_alpha"}
    for name, norm in norms.items():
        assert norm == pytest.approx(float(answer.tensor(name).norm()))


@pytest.mark.parametrize("form", ["stream", "inline", "json"])
def test_the_answer_comes_in_the_form_of_the_request(caller: Caller, good: Message, form: Form) -> None:
    expected = caller.gradients(good).tensor("grad_input")
    answer = caller.gradients(good, form=form)
    assert answer.message.form == form
    assert answer.headers["content-type"] == ("application/json" if form == "json" else "application/vnd.msgpack")
    torch.testing.assert_close(answer.tensor("grad_input"), expected)


@pytest.mark.parametrize("content_type", ["application/msgpack", "application/x-msgpack"])
def test_the_other_names_of_msgpack_are_understood(caller: Caller, good: Message, content_type: str) -> None:
    assert caller.post(b"".join(encode(good).chunks), content_type).status == 200


def test_bodies_may_be_compressed(caller: Caller, good: Message) -> None:
    import zstandard

    body = zstandard.ZstdCompressor().compress(b"".join(encode(good).chunks))
    answer = caller.post(body, "application/vnd.msgpack", headers={"Content-Encoding": "zstd"})
    torch.testing.assert_close(answer.tensor("grad_input"), caller.gradients(good).tensor("grad_input"))


def test_numbers_that_are_not_finite_pass_through(caller: Caller, ask: Callable[..., Message]) -> None:
    membrane = torch.tensor([[[0.5], [float("nan")], [0.2]]])
    request = ask(LIF, membrane=membrane, grad_output=torch.ones(1, 3, 1))
    forms: tuple[Form, ...] = ("stream", "json")
    for form in forms:
        answer = caller.gradients(request, form=form)
        assert answer.tensor("grad_input").isnan().any()


def test_large_results_arrive_whole(caller: Caller, ask: Callable[..., Message]) -> None:
    membrane, grad_output = torch.rand(16, 64, 1500), torch.rand(16, 64, 1500)
    answer = caller.gradients(ask(LIF, membrane=membrane, grad_output=grad_output))
    expected = exodus_core.lif_gradient(membrane, grad_output, 0.9, surrogate=Exponential()).input
    assert torch.equal(answer.tensor("grad_input"), expected)


@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 0, 3), (2, 4, 0), (5,)])
def test_empty_and_flat_tensors_are_served(caller: Caller, ask: Callable[..., Message], shape: tuple[int, ...]) -> None:
    request = ask(LIF, membrane=torch.rand(shape), grad_output=torch.rand(shape), time_dim=len(shape) // 2)
    assert caller.gradients(request).tensor("grad_input").shape == shape


@pytest.mark.parametrize(("n_in", "n_out"), [(0, 4), (3, 0), (0, 0)])
def test_a_layer_without_neurons_on_one_side_is_a_layer(
    caller: Caller, ask: Callable[..., Message], n_in: int, n_out: int
) -> None:
    request = ask(
        LIF, spikes=torch.rand(2, 5, n_in), weight=torch.rand(n_out, n_in), grad_output=torch.rand(2, 5, n_out)
    )
    answer = caller.gradients(request)
    assert torch.equal(answer.tensor("grad_weight"), torch.zeros(n_out, n_in))
    assert answer.tensor("grad_spikes").shape == (2, 5, n_in)


def test_an_answer_of_very_many_numbers_is_no_json(caller: Caller) -> None:
    def ask_for(count: int) -> Answer:
        spikes = Tensor.of("spikes", np.zeros((1, count // 8, 1), bool), "events")
        request = {"neuron": LIF, "return": ["spikes"]}
        entries = [
            {"name": "spikes", "dtype": "bool", "shape": list(spikes.shape), "encoding": "events", "data": []},
            {"name": "weight", "dtype": "float32", "shape": [8, 1], "data": [[0.5]] * 8},
        ]
        return caller.post(json.dumps({"v": 1, "params": request, "tensors": entries}).encode(), "application/json")

    most = (1 << 20) // 2
    assert ask_for(most).status == 200
    refused = ask_for(most + 8)
    assert (refused.status, refused.problem["code"]) == (413, "too_large")
    assert "use msgpack" in refused.problem["detail"]


WEIGHTED = {"spikes": torch.ones(1, 500, 1), "weight": torch.ones(800, 1)}  # 400,000 neuron-steps of 5 KiB


@pytest.mark.parametrize(
    ("method", "tensors", "at_once"),
    [
        ("exodus", {"membrane": torch.zeros(1, 8, 16), "grad_output": torch.zeros(1, 8, 16)}, True),
        ("slayer", {"input": torch.zeros(1, 8, 16)}, True),
        ("bptt", {"membrane": torch.zeros(1, 8, 16), "grad_output": torch.zeros(1, 8, 16)}, False),  # a loop over time
        ("exodus", WEIGHTED, False),
        ("exodus", {"input": torch.zeros(1, 8, 1024)}, False),
    ],
    ids=["small", "forward", "bptt", "a small body of many neurons", "large"],
)
def test_the_event_loop_computes_what_is_brief_and_nothing_else(
    caller: Caller,
    ask: Callable[..., Message],
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    tensors: dict[str, torch.Tensor],
    at_once: bool,
) -> None:
    run, threads = GradientRequest.run, list[str]()

    def recording(request: GradientRequest) -> Encoded:
        threads.append(threading.current_thread().name)
        return run(request)

    monkeypatch.setattr(GradientRequest, "run", recording)
    assert caller.gradients(ask(LIF, **tensors, return_=["spikes"]), method).status == 200
    assert [name.startswith("exodus-cpu") for name in threads] == [not at_once]
