"""Settings of the service: environment variables with the prefix EXODUS_, or flags of `exodus-service serve`."""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

MIB = 1024 * 1024


class Settings(BaseSettings):
    """Settings, read from the environment when constructed; keyword arguments take precedence."""

    model_config = SettingsConfigDict(env_prefix="EXODUS_", extra="forbid", frozen=True, allow_inf_nan=False)

    host: str = Field(default="127.0.0.1", description="Address to listen on; 0.0.0.0 for every interface.")
    port: int = Field(default=8000, ge=0, le=65535, description="TCP port to listen on; 0 takes a free one.")
    uds: Path | None = Field(
        default=None,
        description="Path of a Unix socket to listen on, instead of host and port; a stale socket is replaced.",
    )
    uds_mode: str = Field(default="600", pattern="^[0-7]{3}$", description="Permissions of the Unix socket, in octal.")
    shared_memory: bool = Field(
        default=False,
        description="Exchange bodies through shared memory with clients of the same user and machine.",
    )
    device: str = Field(
        default="cpu", description="Device to compute on: cpu, cuda or cuda:N. One process serves one device."
    )
    threads: int | None = Field(
        default=None, ge=1, description="CPU threads per computation; unset: PyTorch's default."
    )
    graphs: bool = Field(
        default=True,
        description="On a GPU, replay repeated training steps of small networks from CUDA graphs, whose memory counts.",
    )
    upload_bytes: int = Field(
        default=256 * MIB,
        ge=0,
        description="On a GPU, bytes of inputs of waiting calls on models that are uploaded ahead; 0: none are.",
    )
    keep_memory: int = Field(
        default=512 * MIB,
        ge=0,
        description="Bytes of freed memory to cache, for kernel outputs and again for the heap; 0 disables caching.",
    )

    max_body_bytes: int = Field(
        default=256 * MIB,
        ge=1,
        description="Largest request body in bytes, as sent and decoded, and largest product of spikes and weight.",
    )
    max_queue: int = Field(
        default=256,
        ge=1,
        description="Most requests admitted at a time (uploading, queued, computing); others get 429.",
    )
    max_queue_bytes: int = Field(
        default=1024 * MIB, ge=1, description="Most bytes of admitted requests and their results."
    )
    max_batch: int = Field(default=32, ge=1, description="Most requests per batch; 1 disables batching.")
    max_batch_bytes: int = Field(
        default=MIB // 2,
        ge=1,
        description="Most bytes of traces and loss gradients per batch; a larger request is computed alone.",
    )
    batch_delay_ms: float = Field(
        default=0.0,
        ge=0,
        description="Longest wait for a batch to fill, in milliseconds; 0 batches what is already queued.",
    )
    retry_after_s: int = Field(default=1, ge=0, description="Retry-After of 429 and 503 responses, in seconds.")

    state_dir: Path | None = Field(
        default=None,
        description="Folder for checkpoints of models; unset: models are lost when the process ends.",
    )
    models_memory_bytes: int = Field(
        default=4096 * MIB,
        ge=1,
        description="Bytes of models in memory, with their cached answers; the least recently used are evicted.",
    )
    models_disk_bytes: int = Field(
        default=16384 * MIB, ge=1, description="Most bytes of checkpoints in state_dir, of all owners together."
    )
    max_model_bytes: int = Field(
        default=1024 * MIB, ge=1, description="Largest model, in bytes of its weights and running statistics."
    )
    max_layers: int = Field(default=1024, ge=1, description="Most layers of a network.")
    max_description_bytes: int = Field(
        default=56 * 1024,
        ge=1,
        description="Largest description of a network, in bytes as msgpack; with all defaults it has at most 57344.",
    )
    max_activation_bytes: int = Field(
        default=8192 * MIB,
        ge=1,
        description="Most bytes of activations in one call on a model, by an upper bound.",
    )
    context_bytes: int = Field(
        default=256 * MIB,
        ge=1,
        description="Bytes of saved activations (contexts) per owner; the least recently used are evicted.",
    )
    context_ttl_s: float = Field(default=300.0, gt=0, description="Lifetime of an unused context, in seconds.")
    answer_bytes: int = Field(
        default=64 * MIB, ge=0, description="Bytes of answers cached per model, to answer retried calls."
    )
    sequence_wait_s: float = Field(
        default=10.0, ge=0, description="Longest wait of a call for those with lower sequence numbers, in seconds."
    )
    result_ttl_s: float = Field(
        default=300.0, gt=0, description="Lifetime of the result of a call answered with 202, in seconds."
    )

    stall_timeout_s: float = Field(
        default=30.0,
        gt=0,
        description="Longest time without progress while a client sends or receives a body, in seconds.",
    )
    min_upload_rate: int = Field(default=16384, ge=1, description="Slowest upload accepted, in bytes per second.")
    min_download_rate: int = Field(
        default=4096,
        ge=1,
        description="Slowest download accepted, in bytes per second; slower clients are disconnected.",
    )
    keep_alive_s: int = Field(
        default=75,
        ge=1,
        description="Longest time to idle, and to send the head of a request, in seconds.",
    )
    drain_delay_s: float = Field(
        default=0.0,
        ge=0,
        description="After SIGTERM: seconds to go on serving with /readyz at 503, so that load balancers notice.",
    )
    shutdown_timeout_s: int = Field(
        default=30,
        ge=0,
        description="After the drain: seconds for running requests to finish before they are cancelled.",
    )

    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        default=(),
        description="Comma-separated API keys for /v1; without keys, and without a key file, it is open to everyone.",
    )
    api_keys_file: Path | None = Field(
        default=None,
        description="File with one API key per line (# starts a comment), in addition to EXODUS_API_KEYS.",
    )

    log_format: Literal["plain", "json"] = Field(default="plain", description="Format of log lines: text or JSON.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="Lowest level logged.")

    @field_validator("host", "uds", "state_dir", "api_keys_file", mode="before")
    @classmethod
    def _not_empty(cls, value: object) -> object:
        """Refuse a blank variable: an empty path means the current folder, an empty host every interface."""
        if isinstance(value, str | Path) and not str(value).strip():
            raise PydanticCustomError("empty", "non-empty, or unset")
        return value

    @field_validator("api_keys", mode="before")
    @classmethod
    def _split(cls, keys: object) -> object:
        if not isinstance(keys, str):
            return keys
        split = tuple(key.strip() for key in keys.split(",") if key.strip())
        if not split:  # an empty secret must not open the service to everyone
            raise PydanticCustomError("empty", "at least one key, or unset")
        return split


#: Variables of the product that are not settings of the service.
_NOT_SETTINGS = re.compile(
    "EXODUS_(API_KEY|DATA|TEST_DEVICE|PUBLISH|INSTRUCTION_SET|SPARSE|SANITIZE|FORCE_CUDA|CUDA_.*|EMULATE.*)",
    re.IGNORECASE,
)


def unknown_variables(names: Iterable[str]) -> dict[str, str | None]:
    """Names with the prefix of settings that are not settings, each with the most similar setting, if any."""
    known = [f"EXODUS_{name.upper()}" for name in Settings.model_fields]
    unknown = [n for n in names if n.upper().startswith("EXODUS_") and n.upper() not in known]
    return {
        name: next(iter(get_close_matches(name.upper(), known, 1, 0.8)), None)
        for name in unknown
        if not _NOT_SETTINGS.fullmatch(name)
    }


def settings_table() -> str:
    """Markdown table of all settings: variable, default, meaning."""
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = "" if field.default in (None, ()) else f"`{field.default}`"
        rows.append(f"| `EXODUS_{name.upper()}` | {default} | {field.description} |")
    return "\n".join(rows)
