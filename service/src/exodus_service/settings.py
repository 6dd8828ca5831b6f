"""Every setting of the service: environment variables with the prefix EXODUS_, or flags of `exodus-service serve`."""

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
    """Values are read from the environment when the object is made; keyword arguments take precedence."""

    model_config = SettingsConfigDict(env_prefix="EXODUS_", extra="forbid", frozen=True, allow_inf_nan=False)

    host: str = Field(default="127.0.0.1", description="Address to listen on; 0.0.0.0 for every interface.")
    port: int = Field(default=8000, ge=0, le=65535, description="TCP port to listen on; 0 takes a free one.")
    uds: Path | None = Field(
        default=None,
        description="Path of a Unix socket to listen on, in place of host and port; a dead server's is replaced.",
    )
    uds_mode: str = Field(
        default="600", pattern="^[0-7]{3}$", description="Permissions of the Unix socket, in octal digits."
    )
    shared_memory: bool = Field(
        default=False, description="Take bodies through shared memory from clients of the same user on this machine."
    )
    device: str = Field(
        default="cpu", description="Device that computes: cpu, cuda or cuda:N. One process serves one device."
    )
    threads: int | None = Field(
        default=None, ge=1, description="CPU threads of a computation; unset: PyTorch's choice."
    )
    keep_memory: int = Field(
        default=512 * MIB,
        ge=0,
        description="Bytes of freed memory kept for later computations, of outputs and of all else each; 0 for none.",
    )

    max_body_bytes: int = Field(
        default=256 * MIB,
        ge=1,
        description="Largest request body in bytes, as sent and decoded, and largest tensor made of spikes and weight.",
    )
    max_queue: int = Field(
        default=256, ge=1, description="Requests admitted at a time: uploading, waiting or computing."
    )
    max_queue_bytes: int = Field(
        default=1024 * MIB, ge=1, description="Sum of the sizes in bytes of the requests admitted and of their results."
    )
    max_batch: int = Field(default=32, ge=1, description="Most requests computed together; 1 computes each alone.")
    max_batch_bytes: int = Field(
        default=MIB // 2,
        ge=1,
        description="Most bytes of traces and loss gradients computed together; a larger request is computed alone.",
    )
    batch_delay_ms: float = Field(
        default=0.0,
        ge=0,
        description="Longest wait for requests to compute together with, in milliseconds; 0 takes those that wait.",
    )
    retry_after_s: int = Field(default=1, ge=0, description="Retry-After of 429 and 503 answers, in seconds.")

    state_dir: Path | None = Field(
        default=None,
        description="Folder that models are saved in and come back from; unset: they live in memory alone.",
    )
    models_memory_bytes: int = Field(
        default=4096 * MIB,
        ge=1,
        description="Bytes of models in memory, their kept answers included; beyond, the least recently used leave it.",
    )
    models_disk_bytes: int = Field(
        default=16384 * MIB, ge=1, description="Bytes of saved models in state_dir, all owners together."
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
        description="Most bytes that a network may take for one call beside its weights, by an upper bound.",
    )
    context_bytes: int = Field(
        default=256 * MIB,
        ge=1,
        description="Bytes of contexts kept between forward and backward, an owner; the least recently used go first.",
    )
    context_ttl_s: float = Field(default=300.0, gt=0, description="How long an unused context is kept, in seconds.")
    answer_bytes: int = Field(
        default=64 * MIB, ge=0, description="Bytes of answers kept for each model, for calls that are sent again."
    )
    sequence_wait_s: float = Field(
        default=10.0, ge=0, description="How long a call waits for those numbered before it, in seconds."
    )
    result_ttl_s: float = Field(
        default=300.0, gt=0, description="How long the result of a call answered with 202 is kept, in seconds."
    )

    stall_timeout_s: float = Field(
        default=30.0,
        gt=0,
        description="Longest wait for a client to send or take the next piece of a body, in seconds.",
    )
    min_upload_rate: int = Field(default=16384, ge=1, description="Slowest upload accepted, in bytes a second.")
    min_download_rate: int = Field(
        default=4096,
        ge=1,
        description="Slowest client that an answer is sent to, in bytes a second on average; slower ones are cut off.",
    )
    keep_alive_s: int = Field(
        default=75, ge=1, description="How long a connection may idle, and the head of a request may take, in seconds."
    )
    drain_delay_s: float = Field(
        default=0.0,
        ge=0,
        description="After SIGTERM: seconds to serve on with /readyz at 503, so that load balancers notice.",
    )
    shutdown_timeout_s: int = Field(
        default=30,
        ge=0,
        description="After the drain: seconds that running requests have to finish before they are cut off.",
    )

    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        default=(),
        description="Comma-separated API keys that may use /v1; with none, and no key file, every caller may.",
    )
    api_keys_file: Path | None = Field(
        default=None,
        description="File with one API key a line (lines starting with # are comments), added to the above.",
    )

    log_format: Literal["plain", "json"] = Field(default="plain", description="Log lines for people or for machines.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe level logged."
    )

    @field_validator("host", "uds", "state_dir", "api_keys_file", mode="before")
    @classmethod
    def _not_empty(cls, value: object) -> object:
        """An empty path would be the present folder, an empty host every interface: a variable that was forgotten."""
        if isinstance(value, str | Path) and not str(value).strip():
            raise PydanticCustomError("empty", "non-empty, or unset")
        return value

    @field_validator("api_keys", mode="before")
    @classmethod
    def _split(cls, keys: object) -> object:
        if not isinstance(keys, str):
            return keys
        split = tuple(key.strip() for key in keys.split(",") if key.strip())
        if not split:  # a secret that came out empty must not open the service to everyone
            raise PydanticCustomError("empty", "at least one key, or unset")
        return split


#: Variables of the product that are no settings of the service.
_OTHERS = re.compile(
    "EXODUS_(API_KEY|DATA|TEST_DEVICE|PUBLISH|INSTRUCTION_SET|SANITIZE|FORCE_CUDA|CUDA_.*|EMULATE.*)", re.IGNORECASE
)


def unknown_variables(names: Iterable[str]) -> dict[str, str | None]:
    """Of the names of variables those that begin as settings do and are none, each with the setting next to it."""
    known = [f"EXODUS_{name.upper()}" for name in Settings.model_fields]
    strange = [n for n in names if n.upper().startswith("EXODUS_") and n.upper() not in known]
    return {
        name: next(iter(get_close_matches(name.upper(), known, 1, 0.8)), None)
        for name in strange
        if not _OTHERS.fullmatch(name)
    }


def settings_table() -> str:
    """Every setting with its default and meaning, as a Markdown table."""
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = "" if field.default in (None, ()) else f"`{field.default}`"
        rows.append(f"| `EXODUS_{name.upper()}` | {default} | {field.description} |")
    return "\n".join(rows)
