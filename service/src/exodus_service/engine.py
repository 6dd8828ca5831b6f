"""The service without HTTP: a device, the thread that computes on it, its models, and the phase of its life."""

import asyncio
from collections.abc import Mapping
from enum import Enum
from typing import Any

import torch
from pydantic import BaseModel, Field

import exodus_core
from exodus_client.wire import DTYPES, ENCODINGS, VERSION, Limits
from exodus_core import losses, network
from exodus_core.arguments import METHODS, NEURONS
from exodus_core.training import OPTIMIZERS
from exodus_service import __version__
from exodus_service.call import CONTENT_ENCODINGS, CONTENT_TYPES
from exodus_service.compute.scheduler import Scheduler
from exodus_service.compute.transfers import CudaCopies, Uploads
from exodus_service.errors import ServiceError
from exodus_service.gradients.batching import Batcher
from exodus_service.gradients.selftest import self_test
from exodus_service.models.store import Store
from exodus_service.settings import Settings


class Phase(Enum):
    """Phases of the service's life. Requests are served while READY and DRAINING."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"


class Capabilities(BaseModel):
    """Abilities and limits of this service."""

    version: str = Field(description="Version of the service.")
    wire_versions: list[int] = Field(description="Versions of the wire format that are understood.")
    methods: list[str] = Field(description="Values of {method} in /v1/gradients/{method}.")
    neurons: list[str] = Field(description="Values of params.neuron.model.")
    surrogates: list[str] = Field(description="Values of params.surrogate.kind.")
    layers: list[str] = Field(description="Kinds of layers of a network.")
    losses: list[str] = Field(description="Values of params.loss, or of its kind.")
    optimizers: list[str] = Field(description="Values of params.optimizer.kind.")
    durable: bool = Field(description="Whether models are saved, and outlive the process.")
    dtypes: list[str] = Field(description="Element types of tensors.")
    encodings: list[str] = Field(description="Encodings of tensors.")
    content_types: list[str] = Field(description="Content types of bodies.")
    content_encodings: list[str] = Field(description="Values of Content-Encoding.")
    devices: list[str] = Field(description="Devices that compute.")
    limits: dict[str, int] = Field(description="Sizes beyond which a request is refused.")
    core: dict[str, object] = Field(description="Versions, devices and libraries of exodus_core.")


class Engine:
    """One device, its scheduler and its models.

    Attributes:
        store: the models; whoever serves them starts and closes it.
        uploads: copies inputs of calls that wait to a GPU.

    Raises:
        ValueError: the device of the settings does not exist.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.device = _device(settings.device)
        self.limits = Limits(max_bytes=settings.max_body_bytes)
        self.phase = Phase.STARTING
        self.scheduler = Scheduler(
            f"exodus-{self.device}",
            max_requests=settings.max_queue,
            max_bytes=settings.max_queue_bytes,
            initializer=self._prepare_thread,
            batching=Batcher(
                max_requests=settings.max_batch,
                max_bytes=settings.max_batch_bytes,
                delay=settings.batch_delay_ms / 1e3,
            ),
        )
        self.uploads = Uploads(settings.upload_bytes, CudaCopies(self.device) if self.device.type == "cuda" else None)
        self.store = Store(settings, self.device, self.scheduler.execute)

    async def start(self) -> None:
        """Run the self-test; the engine is ready afterwards. Raises SelfTestError."""
        self._set_threads()  # for work that the event loop does itself
        await asyncio.wrap_future(self.scheduler.execute(lambda: self_test(self.device)))
        if self.phase is Phase.STARTING:  # and not told to end meanwhile
            self.phase = Phase.READY

    def close(self) -> None:
        """Take no more work. A computation under way goes on to its end."""
        self.phase = Phase.STOPPING
        self.scheduler.close()

    def require_ready(self) -> None:
        """Raise a ServiceError while the service is starting or stopping. A draining service still serves."""
        if self.phase is Phase.STARTING:
            raise ServiceError("not_ready", "the self-test is running")
        if self.phase is Phase.STOPPING:
            raise ServiceError("draining", "the service is stopping; another instance may answer")

    def capabilities(self) -> Capabilities:
        settings, limits = self.settings, self.limits
        return Capabilities(
            version=__version__,
            wire_versions=[VERSION],
            methods=list(METHODS),
            neurons=list(NEURONS),
            surrogates=list(exodus_core.surrogate.KINDS),
            layers=list(network.KINDS),
            losses=list(losses.KINDS),
            optimizers=list(OPTIMIZERS),
            durable=settings.state_dir is not None,
            dtypes=list(DTYPES),
            encodings=list(ENCODINGS),
            content_types=list(CONTENT_TYPES),
            content_encodings=list(CONTENT_ENCODINGS),
            devices=[str(self.device)],
            limits={
                "max_body_bytes": settings.max_body_bytes,
                "max_json_bytes": limits.max_json_bytes,
                "max_header_bytes": limits.max_header_bytes,
                "max_tensors": limits.max_tensors,
                "max_ndim": limits.max_ndim,
                "max_queue": settings.max_queue,
                "max_queue_bytes": settings.max_queue_bytes,
                "max_model_bytes": settings.max_model_bytes,
                "max_layers": settings.max_layers,
                "max_description_bytes": settings.max_description_bytes,
                "max_activation_bytes": settings.max_activation_bytes,
                "models_memory_bytes": settings.models_memory_bytes,
                "models_disk_bytes": settings.models_disk_bytes,
                "context_bytes": settings.context_bytes,
                "answer_bytes": settings.answer_bytes,
            },
            core=exodus_core.capabilities(),
        )

    def _prepare_thread(self) -> None:
        self._set_threads()
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
            torch.cuda.set_stream(torch.cuda.Stream(self.device))

    def _set_threads(self) -> None:
        if self.settings.threads is not None:
            torch.set_num_threads(self.settings.threads)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device must be cpu, cuda or cuda:N, got {name!r}") from error
    told = exodus_core.capabilities()
    known = {device.partition(":")[0] for device in told["devices"]}
    if device.type not in known:
        raise ValueError(f"device must be one of {', '.join(sorted(known))}, got {name!r}{_why_not(device, told)}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device must be one of {torch.cuda.device_count()} CUDA devices, got {name!r}")
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def _why_not(device: torch.device, told: Mapping[str, Any]) -> str:
    """Why there is no CUDA here; nothing to say of what is never there."""
    if device.type != "cuda":
        return ""
    return f": {told['cuda_library']['reason'] or 'PyTorch sees no CUDA device'}"
