"""Client of the Exodus service: gradients of spiking neural networks, computed on a remote node.

    from exodus_client import Client, LIF

    with Client("http://gpu-node:8000") as client:
        result = client.gradients(neuron=LIF(alpha=0.95), membrane=u, grad_output=e)
        result.grad_input

`exodus_client.torch` has layers whose forward and backward run on the server; it is imported at its first use.
"""

import importlib
from types import ModuleType

from exodus_client._client import Client, Ping
from exodus_client._config import Limits, Retries, Timeout
from exodus_client._data_parallel.client import ShardedClient
from exodus_client._data_parallel.model import ShardedModel
from exodus_client._errors import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    ClientClosedError,
    ConflictError,
    DeadlineExceededError,
    ExodusError,
    Fault,
    GoneError,
    InternalServerError,
    InvalidResponseError,
    LengthRequiredError,
    ModelClosedError,
    NotFoundError,
    PayloadTooLargeError,
    PermissionDeniedError,
    RateLimitError,
    RequestTimeoutError,
    ServerOutOfMemoryError,
    ServerStorageFullError,
    ServiceUnavailableError,
    StateLostError,
    UnprocessableError,
    UnsupportedMediaTypeError,
)
from exodus_client._gradients.result import Gradients
from exodus_client._models.messages import ModelInfo, Outputs, StepResult
from exodus_client._models.model import Model
from exodus_client._models.recording import LayerStatistics
from exodus_client._models.state import IncompatibleKeys, LoadedWeights
from exodus_client._threads import Future
from exodus_client.neuron import ALIF, IF, LIF, SRM, AlphaKernel, CubaLIF, ExponentialKernel, SlayerRefractory
from exodus_client.surrogate import (
    Arctan,
    Boxcar,
    Exponential,
    FastSigmoid,
    Gaussian,
    Sigmoid,
    Surrogate,
    Tanh,
    Triangle,
)
from exodus_client.wire import WireError

__all__ = [
    "ALIF",
    "IF",
    "LIF",
    "SRM",
    "APIConnectionError",
    "APIStatusError",
    "APITimeoutError",
    "AlphaKernel",
    "Arctan",
    "AuthenticationError",
    "BadRequestError",
    "Boxcar",
    "Client",
    "ClientClosedError",
    "ConflictError",
    "CubaLIF",
    "DeadlineExceededError",
    "ExodusError",
    "Exponential",
    "ExponentialKernel",
    "FastSigmoid",
    "Fault",
    "Future",
    "Gaussian",
    "GoneError",
    "Gradients",
    "IncompatibleKeys",
    "InternalServerError",
    "InvalidResponseError",
    "LayerStatistics",
    "LengthRequiredError",
    "Limits",
    "LoadedWeights",
    "Model",
    "ModelClosedError",
    "ModelInfo",
    "NotFoundError",
    "Outputs",
    "PayloadTooLargeError",
    "PermissionDeniedError",
    "Ping",
    "RateLimitError",
    "RequestTimeoutError",
    "Retries",
    "ServerOutOfMemoryError",
    "ServerStorageFullError",
    "ServiceUnavailableError",
    "ShardedClient",
    "ShardedModel",
    "Sigmoid",
    "SlayerRefractory",
    "StateLostError",
    "StepResult",
    "Surrogate",
    "Tanh",
    "Timeout",
    "Triangle",
    "UnprocessableError",
    "UnsupportedMediaTypeError",
    "WireError",
]


def __getattr__(name: str) -> ModuleType:
    if name == "torch":
        return importlib.import_module(".torch", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
