"""One gradient request from body to body: decode, compute, encode. Runs on the computing thread.

The neurons of several requests may be computed together beforehand (`batching`); each goes on from there.
"""

from dataclasses import dataclass, field
from functools import cached_property

import torch

from exodus_client.wire import JSON_TYPE, Encoded, Message, Tensor, WireError, encode
from exodus_service.call import Call
from exodus_service.compute.scheduler import QueueFullError
from exodus_service.compute.transfers import to_host
from exodus_service.context import Timings
from exodus_service.gradients.batching import BatchKey, batch_key
from exodus_service.gradients.computation import Computation, Results, norm, prepare
from exodus_service.gradients.params import Method

#: Longest description, in bytes, of a request that may be computed with others: it waits as objects of Python, which
#: take 60 times as much.
LONGEST_DESCRIPTION = 4096


@dataclass(eq=False)
class GradientRequest:
    """A gradient call.

    Attributes:
        method: how gradients are computed.
        call: the request as it was received.
        neurons: results of the neurons, if they were computed with those of other requests.
    """

    method: Method
    call: Call
    neurons: Results | None = None
    _computation: Computation | None = field(default=None, init=False)

    def run(self) -> Encoded:
        """The body of the response, in the form of the request.

        Raises:
            ServiceError: the request is invalid, or there is no room for it once it is unpacked.
            WireError: its body is not a message.
        """
        try:
            computation = self.prepare()
            _, message = self.call.decode()
            with self.timings.phase("kernel"), torch.no_grad():
                results = computation.run() if self.neurons is None else computation.finish(self.neurons)
                norms = {name: norm(result) for name, result in results.items() if name.startswith("grad_")}
        finally:
            self._computation = self.neurons = None
        with self.timings.phase("encode"):
            dtype = computation.params.result_dtype
            if dtype is not None:
                # But the state: the next request goes on from it, and it must not be rounded.
                to = getattr(torch, dtype)
                results = {name: result if name == "state" else result.to(to) for name, result in results.items()}
            params = {"method": self.method, "device": str(self.call.device), "grad_norms": norms}
            answer = Message.of(
                params, (Tensor.of(name, tensor) for name, tensor in to_host(results, self.call.device).items())
            )
            return encode(answer, message.form, limits=self.call.limits)

    def prepare(self) -> Computation:
        """Decode and check the request; raises as `run` does."""
        if self._computation is None:
            _, message = self.call.decode()
            with self.timings.phase("decode"):
                limits = self.call.limits
                self._computation = prepare(self.method, message, device=self.call.device, max_bytes=limits.max_bytes)
        return self._computation

    # For batching.

    @property
    def timings(self) -> Timings:
        """Those of the call."""
        return self.call.timings

    @property
    def nbytes(self) -> int:
        """Bytes of tensors in the body, at least: the body without the longest header."""
        return len(self.call.body) - self.call.limits.max_header_bytes

    @cached_property
    def batch_key(self) -> BatchKey | None:
        """Key that compatible requests have in common.

        None if only unpacking or parsing the whole body would tell: it is compressed, or JSON. None, too, if the body
        is wrong or there is no room for it, which `run` says; and for a description that is longer than any that is
        needed.
        """
        if self.call.content_type == JSON_TYPE or self.call.content_encoding not in (None, "identity"):
            return None
        try:
            _, message = self.call.decode()
        except (WireError, QueueFullError):
            return None
        if len(self.call.body) - sum(tensor.nbytes for tensor in message.tensors.values()) > LONGEST_DESCRIPTION:
            self.call.forget()
            return None
        return batch_key(self.method, message, self.call.device)
