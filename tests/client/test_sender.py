"""How a call that takes long is waited for."""

from collections.abc import Mapping

import pytest

from exodus_client import APIConnectionError, NotFoundError, Retries
from exodus_client._models.replay_log import ReplayLog
from exodus_client._models.sender import Sender
from exodus_client._transport.session import Answer
from exodus_client.wire import Encoded


def test_a_request_that_the_server_has_forgotten_counts_as_no_answer() -> None:
    def request(method: str, path: str, encoded: Encoded | None, headers: Mapping[str, str]) -> Answer:
        if method == "POST":
            return Answer(202, {"location": "/prefix/v1/requests/x"}, memoryview(b""), "id", 0.0)
        assert path == "/v1/requests/x"
        raise NotFoundError(404, {}, request_id="id", retry_after=None)

    calls = ReplayLog(0, None, ahead=1, width=1)
    sender = Sender(request, "m", calls, writer="w", retries=Retries(), patience=1.0, report=lambda result: None)
    with pytest.raises(APIConnectionError, match="/v1/requests/x is not known any more"):
        sender._exchange("/v1/models/m/step", Encoded("t", 0, []))
