"""Sends the training calls of one model, and sends them again until the server has done them."""

from __future__ import annotations

import dataclasses
import logging
import re
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future as Running
from functools import partial

from exodus_client import _constants as defaults
from exodus_client._config import Retries
from exodus_client._errors import (
    APIConnectionError,
    APIStatusError,
    AuthenticationError,
    ExodusError,
    InvalidResponseError,
    ModelClosedError,
    NotFoundError,
    PermissionDeniedError,
    StateLostError,
)
from exodus_client._models.messages import StepResult, training_body
from exodus_client._models.replay_log import Call, ReplayLog, fail, has_result
from exodus_client._threads import DaemonThreadPool
from exodus_client._transport.retry import Polling, RetryBudget, Watch, is_retryable, parse_retry_after
from exodus_client._transport.session import Answer, read_number
from exodus_client.wire import Encoded

_log = logging.getLogger("exodus_client")

_PREFER = {"Prefer": f"wait={defaults.PREFER_WAIT}"}
_UNBOUNDED = 2**31

#: Where the answer to a call will be found; a server behind a proxy says its own prefix too.
_REQUEST = re.compile(r"(?:/(?!/)[!-~]*?)?(/v1/requests/[A-Za-z0-9_-]{1,64})")


#: One attempt of a request: method, path, body, headers.
Request = Callable[[str, str, Encoded | None, Mapping[str, str]], Answer]


class Sender:
    """Threads that send the calls of a replay log.

    Args:
        request: makes one attempt of a request. Raises ExodusError.
        path: of the model.
        calls: the log.
        writer: names the handle.
        retries: the waits between attempts; their number is bounded by `patience`.
        patience: seconds without any answer after which the calls fail; also of waits for a server that answers, and
            asks for the same again and again.
        report: called with each result, in order.
    """

    def __init__(
        self,
        request: Request,
        path: str,
        calls: ReplayLog,
        *,
        writer: str,
        retries: Retries,
        patience: float,
        report: Callable[[StepResult], None],
    ) -> None:
        self._request = request
        self._path = path
        self.calls = calls
        self._writer = writer
        # `patience`, not `Retries`, limits how long Retry-After is honoured.
        longest = max(patience, retries.max_retry_after)
        self._retries = dataclasses.replace(retries, count=_UNBOUNDED, max_retry_after=longest)
        self._patience = patience
        self._report = report
        self._reporting = threading.Lock()
        self._closing = threading.Event()
        self._budget = self._new_budget()
        self.watch = Watch(path, patience, self._closing)
        self._pool = DaemonThreadPool(defaults.CALLS_UNDER_WAY, "exodus-model")

    def submit(self, make: Callable[[int], Call]) -> Call:
        """Number a call, and send it in its turn. Raises ExodusError: what has ended the log."""
        call = self.calls.append(make)
        self.pump()
        return call

    def pump(self) -> None:
        """Start what can be sent now."""
        while (call := self.calls.next()) is not None:
            try:
                running = self._pool.submit(partial(self._run, call))
            except RuntimeError as error:  # closed meanwhile, or no thread can be started
                ended = _closed() if self._closing.is_set() else ExodusError(f"{self._path}: {error}")
                self.calls.end(ended)
                fail(call, ended)  # which was under way already, if the log was ended before
                return
            running.add_done_callback(partial(_fail_dropped, call))

    def close(self, *, wait: bool = True) -> None:
        """Fail what was not sent yet; wait for what is under way, which is not sent again, or fail that too.

        A callback does not wait for itself.
        """
        self._closing.set()
        self.calls.end(_closed(), under_way=not wait)
        self._pool.close(wait=wait)

    def lost(self, error: ExodusError, kept_after: int) -> bool:
        """True if an answer says that the server has fewer calls than it had; they are sent again then.

        `kept_after` is that of the log from before the request.

        Raises:
            StateLostError: they are not kept any more.
        """
        expected = expected_number(error)
        if expected is None:
            return False
        self.rewind(expected - 1, kept_after)
        self.pump()
        return True

    def rewind(self, done: int, kept_after: int) -> None:
        """Send again what the server has lost. Raises StateLostError."""
        try:
            again = self.calls.rewind(done, kept_after)
        except StateLostError as error:
            self.calls.end(error)
            raise
        if again:
            _log.info("%s: the server came back with %d calls done, %d are sent again", self._path, done, again)

    def budget(self) -> RetryBudget:
        """The budget of something else that may be repeated."""
        return self._new_budget()

    def polling(self) -> Polling:
        """Bounded waits between repetitions of something that was answered."""
        return Polling(self._retries, self._patience, self._closing)

    def stalled(self) -> ExodusError:
        """The error that ends the training if the server stays behind what it has answered."""
        return ExodusError(
            f"{self._path}: training ended after patience={self._patience:g} seconds of waits: the server keeps asking "
            "for calls that it has done, or were sent. resync() goes on from what is on the server"
        )

    def _new_budget(self) -> RetryBudget:
        return RetryBudget(self._retries, self._patience, self._closing, self._path)

    def _run(self, call: Call) -> None:
        if call.cancelled:
            self._make_empty(call)
        try:
            with self.watch.waits(f"training call {call.sequence}"):
                self._attempt(call)
        except BaseException as error:  # noqa: BLE001  (of the caller's loss; what is not passed on leaves it waiting)
            self._give_up(call, error)
        if self.calls.error is not None:
            fail(call, self.calls.error)
        self.pump()

    def _attempt(self, call: Call) -> None:
        kept_after = self.calls.kept_after
        try:
            if call.body is None and not self._made(call):
                return
            assert call.body is not None
            answered = self._exchange(call.path, call.body)
        except InvalidResponseError as error:  # the server has answered: the call was done, or others will tell
            self.watch.answered()
            self._done(call, self.calls.durable, error)
        except ExodusError as error:
            self._failed(call, error, kept_after)
        else:
            self.watch.answered()
            self._budget = self._new_budget()
            self._answered(call, answered)

    def _made(self, call: Call) -> bool:
        """Make the body of a call; whether there is one to be sent now. Raises ExodusError: the forward pass failed."""
        assert call.make is not None, "a call without a body makes one"
        try:
            call.make(call)
        except InvalidResponseError as error:  # of the forward pass: the call itself was not sent
            self._give_up(call, error)
            return False
        return True

    def _answered(self, call: Call, answered: Answer) -> None:
        if call.read is None:
            self._done(call, self.calls.durable, None)
            return
        try:
            result = call.read(answered)
        except Exception as error:  # noqa: BLE001  (also of the device that arrays go to: the number is consumed)
            self._done(call, self.calls.durable, error)
        else:
            self._done(call, result.durable, result)

    def _done(self, call: Call, durable: int | None, came: StepResult | Exception | None) -> None:
        """The number is consumed; the caller gets what came."""
        self.calls.done(call, durable, came)
        self.pump()  # before callbacks, which may wait for the calls behind this one
        self._tell()
        self.calls.limit(self._save, self._path)

    def _exchange(self, path: str, body: Encoded) -> Answer:
        """Send a call and wait for its end, which a server that takes long is asked for."""
        answered = self._request("POST", path, body, _PREFER)
        polling = self.polling()
        while answered.status == 202:
            self.watch.answered()
            where = _REQUEST.fullmatch(answered.headers.get("location", ""))
            if where is None:
                got = answered.headers.get("location", "")
                raise InvalidResponseError(f"202 without a Location, got {got!r:.80}", request_id=answered.request_id)
            wanted = parse_retry_after(answered.headers.get("retry-after")) or 0.0
            if not polling.left(took=answered.round_trip / 1e3, at_least=wanted):
                raise self._unfinished(where[1])
            try:
                answered = self._request("GET", where[1], None, _PREFER)
            except NotFoundError as error:
                # The call itself is sent again: it was done, or it was not.
                raise APIConnectionError(f"{where[1]} is not known any more", request_id=error.request_id) from error
        return answered

    def _unfinished(self, where: str) -> ExodusError:
        """The error for a call that the server did not end, or that is not waited for any more."""
        if self._closing.is_set():
            return _closed()
        error = ExodusError(
            f"{self._path}: training ended after patience={self._patience:g} seconds of waits for {where}, which the "
            "server says is running. resync() goes on from what is on the server"
        )
        self.calls.end(error)
        return error

    def _failed(self, call: Call, error: ExodusError, kept_after: int) -> None:
        if self.calls.error is not None:
            return  # every call has been told
        code = error.code if isinstance(error, APIStatusError) else ""
        if is_retryable(error):
            self.watch.failed(error)
        else:
            self.watch.answered()
        try:
            if expected_number(error) is not None:
                self._missing(call, error, kept_after)
            elif code == "context_expired" and call.fallback is not None:
                call.body, call.fallback = call.fallback, None
                self.calls.requeue(call)
            elif code == "answer_expired":
                self._done(call, self.calls.durable, error)
            elif is_retryable(error):
                self._recover(call, error)
            elif code == "sequence_conflict" or isinstance(
                error, NotFoundError | AuthenticationError | PermissionDeniedError
            ):
                self.calls.end(error)
            else:
                self._give_up(call, error)
        except StateLostError:
            pass  # every call has been told

    def _missing(self, call: Call, error: ExodusError, kept_after: int) -> None:
        """Send it again after the calls before it, which the server says are missing. Raises StateLostError."""
        call.polling = call.polling or self.polling()
        if call.polling.left():
            self.calls.requeue(call, in_turn=True)
            self.lost(error, kept_after)
        else:
            self.calls.end(self.stalled())

    def _recover(self, call: Call, error: ExodusError) -> None:
        """Wait for the server, ask how far it is, and queue the call again."""
        while True:
            budget = self._budget
            if not budget.left(error):
                self.calls.end(budget.last(error))
                return
            kept_after = self.calls.kept_after
            try:
                done = read_number(self._request("GET", self._path, None, {}), "sequence")
            except ExodusError as still:
                error = still
                self.watch.failed(error)
                continue
            self.calls.requeue(call)
            self.rewind(done, kept_after)
            return

    def _give_up(self, call: Call, error: BaseException) -> None:
        """The call fails for good; an empty one takes its number.

        Where that one fails, or a call of which the caller was told that it was done, nothing can be made of it.
        """
        if call.read is None or has_result(call):
            self.calls.end(error if isinstance(error, ExodusError) else ExodusError(repr(error)))
            return
        fail(call, error)
        self._make_empty(call)
        self.calls.requeue(call)

    def _make_empty(self, call: Call) -> None:
        call.path = f"{self._path}/optim_step"
        call.body = training_body({"skip": True}, (), sequence=call.sequence, writer=self._writer)
        call.make = call.fallback = call.read = None

    def _tell(self) -> None:
        # A thread that is busy with this takes over what comes meanwhile: callbacks may wait for calls of their own,
        # and must not keep all threads from sending them.
        while self.calls.to_report and self._reporting.acquire(blocking=False):
            try:
                for result in self.calls.reports():
                    self._tell_of(result)
            finally:
                self._reporting.release()

    def _tell_of(self, result: StepResult) -> None:
        try:
            self._report(result)
        except BaseException:  # noqa: BLE001  (a callback must not harm the training)
            _log.exception("%s: a callback failed at call %d", self._path, result.sequence)

    def _save(self) -> int:
        return read_number(self._request("POST", f"{self._path}/save", None, {}), "durable")


def _closed() -> ModelClosedError:
    return ModelClosedError("the model was closed before the call was answered")


def _fail_dropped(call: Call, running: Running[None]) -> None:
    if running.cancelled():
        fail(call, _closed())


def expected_number(error: ExodusError) -> int | None:
    """The number that the server waits for, where it says that one is missing."""
    if not isinstance(error, APIStatusError) or error.code != "sequence_gap":
        return None
    # The digits of 63 bits: int() refuses thousands, and there are no such calls.
    digits = (fault.expected for fault in error.errors if fault.expected.isascii() and fault.expected.isdecimal())
    return next((int(number) for number in digits if len(number) < 20), None)
