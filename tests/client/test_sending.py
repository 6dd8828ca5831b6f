"""How a call that takes long is waited for."""

from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from exodus_client import APIConnectionError, NotFoundError, Retries
from exodus_client._models.replay_log import Calls
from exodus_client._models.sender import Sender
from exodus_client._transport.session import Answer
from exodus_client.wire import Encoded


def test_a_request_that_the_server_has_forgotten_counts_as_no_answer() -> None:
    def post(path: str, encoded: Encoded, headers: Any) -> Answer:
        return Answer(202, httpx.Headers({"Location": "/prefix/v1/requests/x"}), memoryview(b""), "id", 0.0)

    def get(path: str, headers: Any) -> Answer:
        assert path == "/v1/requests/x"
        raise NotFoundError(404, {}, request_id="id", retry_after=None)

    link: Any = SimpleNamespace(post=post, get=get)
    calls = Calls(0, None, ahead=1, width=1)
    sender = Sender(link, "m", calls, writer="w", retries=Retries(), patience=1.0, report=lambda result: None)
    with pytest.raises(APIConnectionError, match="/v1/requests/x is not known any more"):
        sender._exchange("/v1/models/m/step", Encoded("t", 0, []))
