"""How a call that takes long is waited for."""

import threading
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from exodus_client import APIConnectionError, NotFoundError
from exodus_client._sending import Sender
from exodus_client._session import Answer
from exodus_client.wire import Encoded


def test_a_request_that_the_server_has_forgotten_counts_as_no_answer() -> None:
    def post(path: str, encoded: Encoded, headers: Any) -> Answer:
        return Answer(202, httpx.Headers({"Location": "/v1/requests/x"}), memoryview(b""), "id", 0.0)

    def get(path: str, headers: Any) -> Answer:
        raise NotFoundError(404, {}, request_id="id", retry_after=None)

    sender = object.__new__(Sender)
    sender._link = SimpleNamespace(post=post, get=get)  # type: ignore[assignment]
    sender._closing = threading.Event()
    with pytest.raises(APIConnectionError, match="/v1/requests/x is not known any more"):
        sender._exchange("/v1/models/m/step", Encoded("t", 0, []))
