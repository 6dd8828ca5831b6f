"""`client.gradients`: what it sends, what it gives back, and what it refuses before anything is sent."""

import asyncio
import copy
import pickle
import threading
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from client.conftest import Handler

from exodus_client import (
    IF,
    LIF,
    SRM,
    Exponential,
    ExponentialKernel,
    Future,
    Gradients,
    InvalidResponseError,
    Limits,
    RateLimitError,
    WireError,
)
from exodus_client.neuron import Operands
from exodus_client.wire import Message, Tensor, encode

U = np.linspace(-1, 2, 24, dtype=np.float32).reshape(2, 4, 3)
E = np.ones_like(U)


def gradients_of(membrane: np.ndarray[Any, Any], alpha: float) -> np.ndarray[Any, Any]:
    """lam[t] = f' g + (alpha - f') lam[t+1], threshold 1, reset by 1, g = 1."""
    slope, lam = np.exp(-np.abs(membrane.astype(float) - 1)), np.zeros((2, 5, 3))
    for t in (3, 2, 1, 0):
        lam[:, t] = slope[:, t] + (alpha - slope[:, t]) * lam[:, t + 1]
    return lam[:, :-1]


def test_a_membrane_and_a_gradient_give_the_gradient_of_the_input(service: Any) -> None:
    result = service.client().gradients(method="exodus", neuron=LIF(alpha=0.9), membrane=U, grad_output=E)
    np.testing.assert_allclose(result.grad_input, gradients_of(U, 0.9), rtol=1e-6)
    assert isinstance(result.grad_input, np.ndarray)
    assert result.grad_input.dtype == np.float32
    assert result.grad_input.flags.writeable
    assert result.grad_norms == {"grad_input": pytest.approx(np.linalg.norm(gradients_of(U, 0.9)))}
    assert (result.device, result.method) == ("fake", "exodus")
    assert result.timing["kernel"] == 2.25
    assert result.timing["decode"] == 1.0
    assert result.timing["round_trip"] > 0
    (request,) = service.requests
    assert request.url == "http://node:8000/v1/gradients/exodus"
    assert result.request_id == request.headers["X-Request-ID"]
    assert len(request.content) == int(request.headers["Content-Length"])
    assert service.messages[0].params == {
        "neuron": LIF(0.9).params(Operands()),
        "surrogate": {"kind": "exponential", "scale": 1.0},
        "time_dim": 1,
        "wrt": [],
        "return": [],
    }


@pytest.mark.parametrize("form", ["stream", "inline", "json"])
def test_every_form_gives_the_same_result(service: Any, form: Any) -> None:
    result = service.client().gradients(neuron=LIF(0.9), membrane=U, grad_output=E, form=form)
    np.testing.assert_allclose(result.grad_input, gradients_of(U, 0.9), rtol=1e-6)
    assert service.messages[0].form == form


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_torch_in_torch_out(service: Any, dtype: torch.dtype) -> None:
    membrane = torch.from_numpy(U).to(dtype).requires_grad_()
    result = service.client().gradients(neuron=LIF(0.9), membrane=membrane, grad_output=torch.ones_like(membrane))
    assert result.grad_input.dtype == dtype
    assert result.grad_input.device == membrane.device
    assert not result.grad_input.requires_grad
    torch.testing.assert_close(result.grad_input.double(), torch.from_numpy(gradients_of(U, 0.9)), rtol=0.02, atol=0.02)


def test_everything_that_is_asked_for_is_an_attribute(service: Any) -> None:
    result = service.client().gradients(
        neuron=LIF(alpha=np.full(3, 0.9), threshold=1.0, reset_by=0.5),
        surrogate=Exponential(slope=1.0),
        input=U,
        grad_output=E,
        grad_membrane=E,
        initial_membrane=np.ones((2, 3), np.float32),
        initial_spikes=0.0,
        wrt=("alpha", "threshold", "reset_by", "initial_membrane", "alpha"),
        return_=["spikes", "membrane"],
        result_dtype="float64",
        time_dim=-2,
        output_filter=0.5,
    )
    assert list(result.arrays) == [
        *(f"grad_{name}" for name in ("input", "alpha", "threshold", "reset_by", "initial_membrane")),
        "spikes",
        "membrane",
    ]
    assert result.grad_alpha.shape == (3,)
    assert result.grad_threshold.shape == ()
    assert result.membrane.dtype == np.float64
    assert {"spikes", "grad_alpha", "timing"} <= set(dir(result))
    (message,) = service.messages
    assert message.params["neuron"]["initial_membrane"] == {"tensor": "initial_membrane"}
    assert message.params["neuron"]["initial_spikes"] == 0.0
    assert message.params["output_filter"] == {"alpha": 0.5}
    assert message.params["result_dtype"] == "float64"
    assert message.params["wrt"] == ["alpha", "threshold", "reset_by", "initial_membrane"]
    with pytest.raises(AttributeError, match=r"'grad_spikes' was not returned; the answer has grad_input, .*wrt="):
        _ = result.grad_spikes
    assert repr(result).startswith("Gradients(grad_input (2, 4, 3), grad_alpha (3,)")
    assert repr(result).endswith("; exodus on fake)")


def test_a_result_can_be_copied_and_pickled(service: Any) -> None:
    result = service.client().gradients(neuron=LIF(0.9), membrane=U, grad_output=E)
    for twin in (copy.deepcopy(result), pickle.loads(pickle.dumps(result))):
        np.testing.assert_array_equal(twin.grad_input, result.grad_input)


def test_a_forward_pass_alone_needs_no_gradient(service: Any) -> None:
    service.handler = lambda request: answer({"spikes": U})
    result = service.client().gradients(neuron=IF(), input=U, return_=("spikes",))
    assert list(result.arrays) == ["spikes"]
    assert list(service.messages[0].tensors) == ["input"]
    assert service.messages[0].params["neuron"]["model"] == "if"


S = (np.arange(40).reshape(2, 4, 5) % 3 == 0).astype(np.float32)
W = np.linspace(-0.2, 0.2, 15, dtype=np.float32).reshape(3, 5)


@pytest.mark.parametrize(
    ("spikes", "encoding", "sent"),
    [
        (S, "auto", "bits"),
        (S.astype(bool), "auto", "bits"),
        (torch.from_numpy(S), "auto", "bits"),
        (2 * S, "auto", "raw"),
        (S, "raw", "raw"),
        (S.astype(np.uint8), "bits", "bits"),
        (S, "events", "events"),
    ],
)
def test_spikes_travel_in_the_smallest_form(service: Any, spikes: Any, encoding: Any, sent: str) -> None:
    result = service.client().gradients(neuron=LIF(0.9), spikes=spikes, weight=W, grad_output=E, encoding=encoding)
    assert service.messages[0].tensors["spikes"].encoding == sent
    np.testing.assert_array_equal(service.messages[0].tensors["spikes"].numpy(), spikes)
    assert result.grad_weight.shape == W.shape
    assert result.grad_spikes.shape == S.shape
    assert type(result.grad_weight) is type(spikes)


def test_an_srm_travels_with_its_kernel_whoever_brings_it(service: Any) -> None:
    service.handler = lambda request: answer({"grad_psp": U})
    client = service.client()
    taps = np.array([-1.0, -0.5], np.float32)
    assert client.gradients(neuron=SRM(taps), psp=U, grad_output=E).grad_psp.shape == U.shape
    client.gradients(neuron=SRM(), membrane=U, reset_kernel=taps, grad_output=E)
    client.gradients(neuron=SRM(threshold=np.ones(3)), psp=U, reset_kernel=ExponentialKernel(0.9), grad_membrane=E)
    first, second, third = service.messages
    assert set(first.tensors) == {"psp", "grad_output", "reset_kernel"}
    assert set(second.tensors) == {"membrane", "grad_output", "reset_kernel"}
    assert second.params["neuron"]["reset_kernel"] == {"tensor": "reset_kernel"}
    assert third.params["neuron"]["reset_kernel"]["kind"] == "exponential"
    assert set(third.tensors) == {"psp", "grad_membrane", "threshold"}


LIF_ = {"neuron": LIF(0.9)}
SRM_ = {"neuron": SRM(np.ones(2))}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"membrne": U}, TypeError, "unexpected keyword argument 'membrne'"),
        ({}, TypeError, "neuron must be LIF(...), IF(...), CubaLIF(...), ALIF(...) or SRM(...), got NoneType"),
        ({"neuron": "lif"}, TypeError, "SRM(...), got str"),
        (LIF_, TypeError, "arrays for LIF must be membrane; or input; or spikes and weight, got none of them"),
        (LIF_ | {"psp": U}, TypeError, "got psp"),
        (LIF_ | {"spikes": S}, TypeError, "got spikes"),
        (LIF_ | {"membrane": U, "input": U}, TypeError, "got membrane and input"),
        (SRM_ | {"input": U}, TypeError, "arrays for SRM must be membrane; or psp, got input"),
        (
            LIF_ | {"membrane": U, "reset_kernel": [1.0]},
            TypeError,
            "neuron must be SRM(...) with reset_kernel, got LIF",
        ),
        (SRM_ | {"membrane": U, "reset_kernel": [1.0]}, TypeError, "reset_kernel must be given once"),
        ({"neuron": SRM(), "membrane": U}, TypeError, "reset_kernel must be given once"),
        (
            SRM_ | {"membrane": U, "initial_membrane": 0},
            TypeError,
            "neuron must be LIF(...), IF(...), CubaLIF(...) or ALIF(...) with initial_membrane",
        ),
        (SRM_ | {"membrane": U, "grad_output": E, "wrt": ["alpha"]}, TypeError, "wrt must be empty for SRM, got alpha"),
        (LIF_ | {"membrane": U}, TypeError, "grad_output must be given"),
        (LIF_ | {"input": U}, TypeError, "grad_output must be given"),
        (LIF_ | {"membrane": U, "return_": ["spikes"]}, TypeError, "grad_output must be given"),
        (
            LIF_ | {"input": U, "return_": ["spikes"], "wrt": ["alpha"]},
            TypeError,
            "wrt must be empty without grad_output",
        ),
        (
            LIF_ | {"membrane": U, "grad_output": E[:1]},
            ValueError,
            "grad_output must be of shape [2, 4, 3] to go with membrane, got [1, 4, 3]",
        ),
        (LIF_ | {"input": U, "grad_membrane": E[:1]}, ValueError, "to go with input, got [1, 4, 3]"),
        (LIF_ | {"membrane": U.astype(int)}, TypeError, "dtype of membrane must be one of float32"),
        (LIF_ | {"membrane": U, "grad_output": E > 0}, TypeError, "bfloat16, got bool"),
        (LIF_ | {"membrane": ["a"]}, TypeError, "dtype of 'membrane' must be"),
        (LIF_ | {"spikes": S, "weight": W.T, "grad_output": E}, ValueError, "weight must be of shape (N_out, N_in)"),
        (LIF_ | {"spikes": S[0, 0], "weight": W, "grad_output": E}, ValueError, "weight must be of shape"),
        (LIF_ | {"spikes": S, "weight": W[0], "grad_output": E}, ValueError, "weight must be of shape"),
        (LIF_ | {"spikes": S, "weight": W, "grad_output": S}, ValueError, "to go with spikes and weight"),
        (LIF_ | {"spikes": S, "weight": W, "grad_output": E, "time_dim": 2}, ValueError, "that of the neurons, got 2"),
        (LIF_ | {"spikes": 2 * S, "weight": W, "encoding": "bits"}, ValueError, "must be zeros and ones"),
        (
            LIF_ | {"spikes": S, "weight": W, "encoding": "csr"},
            ValueError,
            "encoding must be one of auto, raw, bits, events, got 'csr'",
        ),
        (
            LIF_ | {"membrane": U, "grad_output": E, "time_dim": 3},
            ValueError,
            "time_dim must be an integer from",
        ),
        (
            LIF_ | {"membrane": U, "grad_output": E, "time_dim": 1.0},
            TypeError,
            "integer from -3 to 2, got 1.0",
        ),
        (
            LIF_ | {"membrane": U, "grad_output": E, "method": "adjoint"},
            ValueError,
            "method must be one of exodus, slayer, bptt, got 'adjoint'",
        ),
        (LIF_ | {"membrane": U, "grad_output": E, "method": ["exodus"]}, ValueError, "bptt, got list"),
        (LIF_ | {"membrane": U, "grad_output": E, "form": "xml"}, ValueError, "json, got 'xml'"),
        (LIF_ | {"membrane": U, "grad_output": E, "wrt": "alpha"}, TypeError, "such as ('alpha',)"),
        (LIF_ | {"membrane": U, "grad_output": E, "wrt": ["beta"]}, ValueError, "initial_membrane, got 'beta'"),
        (
            LIF_ | {"membrane": U, "grad_output": E, "return_": ["u"]},
            ValueError,
            "return_ must be one of spikes, membrane, state, got 'u'",
        ),
        (
            LIF_ | {"membrane": U, "grad_output": E, "surrogate": "tanh"},
            TypeError,
            "exodus_client.surrogate, got 'tanh'",
        ),
        (
            LIF_ | {"membrane": U, "grad_output": E, "output_filter": "a"},
            TypeError,
            "output_filter must be a number",
        ),
        (
            LIF_ | {"membrane": U, "grad_output": E, "output_filter": True},
            TypeError,
            "a number, got True",
        ),
        (
            LIF_ | {"membrane": U, "grad_output": E, "output_filter": np.inf},
            ValueError,
            "must be a finite number",
        ),
        (LIF_ | {"membrane": U, "grad_output": E, "output_filter": 1.5}, ValueError, "output_filter must be in [0, 1]"),
        (LIF_ | {"membrane": U[0, 0, 0], "grad_output": E}, ValueError, "membrane must have an axis of time"),
        (LIF_ | {"membrane": U, "grad_output": E, "initial_spikes": np.nan}, ValueError, "initial_spikes must be a"),
        (LIF_ | {"membrane": U, "grad_output": E, "initial_membrane": 1j}, TypeError, "bool, got complex128"),
        (LIF_ | {"membrane": torch.from_numpy(U).to_sparse()}, TypeError, "must be dense, got a sparse_coo tensor"),
        (LIF_ | {"spikes": np.array([[2**63]], np.uint64), "weight": W}, ValueError, "below 2**63"),
        (LIF_ | {"membrane": U, "grad_output": E, "result_dtype": "int8"}, ValueError, "bfloat16, got 'int8'"),
        (
            LIF_ | {"membrane": U, "grad_output": E, "result_dtype": "bfloat16"},
            ValueError,
            "result_dtype must be a dtype of numpy, got bfloat16",
        ),
        (LIF_ | {"membrane": U[(None,) * 6], "grad_output": E[(None,) * 6]}, WireError, "at most 8 dimensions"),
    ],
)
def test_arguments_that_cannot_be_right_are_refused_before_anything_is_sent(
    service: Any, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        service.client().gradients(**arguments)
    assert message in str(caught.value)
    assert not service.requests


def answer(tensors: dict[str, Any], params: Any = None, **headers: str) -> httpx.Response:
    params = {"device": "cpu", "method": "exodus", "grad_norms": {}} if params is None else params
    encoded = encode(Message.of(params, [Tensor.of(name, array) for name, array in tensors.items()]))
    headers = {"Content-Type": encoded.content_type} | headers
    return httpx.Response(200, content=b"".join(encoded.chunks), headers=headers)


@pytest.mark.parametrize(
    "wrong",
    [
        httpx.Response(200, content=b"not msgpack", headers={"Content-Type": "application/msgpack"}),
        httpx.Response(200, content=b"<html>", headers={"Content-Type": "text/html"}),
        httpx.Response(200, content=b"<html>"),
        answer({"grad_input": U}, **{"Content-Encoding": "br"}),
        answer({"grad_input": U}, {}),
        answer({"grad_input": U}, {"device": "cpu", "method": "exodus", "grad_norms": {"grad_input": "large"}}),
        answer({"grad_input": U}, {"device": "cpu", "method": "exodus", "grad_norms": {"grad_input": None}}),
        answer({"grad_input": U}, {"device": "cpu", "method": 1, "grad_norms": {}}),
        answer({"grad_input": U}, {"device": None, "method": "exodus", "grad_norms": {}}),
        answer({"grad_input": np.zeros(2000, np.float32)}),
    ],
)
def test_an_answer_that_is_not_what_the_api_promises_is_an_error_of_its_own(service: Any, wrong: Any) -> None:
    service.handler = lambda request: wrong
    with pytest.raises(InvalidResponseError) as caught:
        service.client(limits=Limits(max_response_bytes=4000)).gradients(neuron=LIF(0.9), membrane=U, grad_output=E)
    assert len(service.requests) == 1
    assert caught.value.request_id == service.requests[0].headers["X-Request-ID"]


def test_norms_that_json_cannot_carry_arrive_as_numbers(service: Any) -> None:
    norms = {"a": float("inf"), "b": float("nan"), "c": 1}
    message = Message.of({"device": "cpu", "method": "exodus", "grad_norms": norms}, [Tensor.of("grad_input", U)])
    encoded = encode(message, "json")
    service.handler = lambda request: httpx.Response(
        200, content=b"".join(encoded.chunks), headers={"Content-Type": encoded.content_type}
    )
    found = service.client().gradients(neuron=LIF(0.9), membrane=U, grad_output=E).grad_norms
    assert found["a"] == np.inf
    assert np.isnan(found["b"])
    assert found["c"] == 1.0


class TestFuture:
    def test_several_requests_are_under_way_at_once(self, service: Any) -> None:
        together = threading.Barrier(3, timeout=10)
        handler: Handler = service.handler

        def meet(request: httpx.Request) -> httpx.Response:
            together.wait()
            return handler(request)

        service.handler = meet
        client = service.client()
        futures = [client.gradients(neuron=LIF(0.9), membrane=U * i, grad_output=E, wait=False) for i in range(3)]
        assert all(isinstance(future, Future) for future in futures)
        for i, future in enumerate(futures):
            np.testing.assert_allclose(future.result(10).grad_input, gradients_of(U * i, 0.9), rtol=1e-5)
            assert future.done()
            assert not future.cancel()

    def test_a_future_can_be_awaited(self, service: Any) -> None:
        client = service.client()

        async def both() -> list[Gradients]:
            return list(
                await asyncio.gather(
                    *(client.gradients(neuron=LIF(0.9), membrane=U, grad_output=E, wait=False) for _ in range(2))
                )
            )

        for result in asyncio.run(both()):
            np.testing.assert_allclose(result.grad_input, gradients_of(U, 0.9), rtol=1e-6)

    def test_a_future_raises_what_the_call_would_have_raised(self, service: Any) -> None:
        service.handler = lambda request: httpx.Response(429, headers={"Retry-After": "1000"})
        future = service.client().gradients(neuron=LIF(0.9), membrane=U, grad_output=E, wait=False)
        with pytest.raises(RateLimitError):
            future.result()

    def test_a_wait_for_a_future_can_end_early(self, service: Any) -> None:
        arrived, release = threading.Event(), threading.Event()
        handler: Handler = service.handler

        def hold(request: httpx.Request) -> httpx.Response:
            arrived.set()
            assert release.wait(10)
            return handler(request)

        service.handler = hold
        client = service.client(limits=Limits(max_in_flight=1))
        first, second = (client.gradients(neuron=LIF(0.9), membrane=U, grad_output=E, wait=False) for _ in range(2))
        assert arrived.wait(10)
        with pytest.raises(TimeoutError):
            first.result(timeout=0.001)
        assert second.cancel()
        release.set()
        first.result(10)
        assert len(service.requests) == 1

    def test_wrong_arguments_are_raised_at_once(self, service: Any) -> None:
        with pytest.raises(TypeError, match="grad_output must be given"):
            service.client().gradients(neuron=LIF(0.9), membrane=U, wait=False)
