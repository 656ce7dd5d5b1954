"""Settings of gateway and worker, from environment variables `MASKBIT_*`; the command line overrides them."""

import ipaddress
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.jobs.job import QueueLimits
from service.jobs.redis_url import check_url
from service.logs import Format, Level

MIB = 1 << 20
TRITON_SCHEMES = ("grpc://", "http://")
_PREFIX = "MASKBIT_"
_OF_CLIENTS = {"MASKBIT_API_KEY"}
_NEAR = 0.75  # alike to such a part, two names are taken for the same


def default_state_dir() -> Path:
    """Folder for the embedded Redis' data, after the XDG convention."""
    return Path("~/.local/state/maskbit").expanduser()


class Settings(BaseSettings):
    """Names carry units; sizes are bytes, times seconds. Unknown keyword arguments are errors."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX, extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True
    )

    bundle: str = Field("fruit", description="for a gateway several, with commas between them")
    redis_url: str | None = None
    state_dir: Path = Field(default_factory=default_state_dir)

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    allowed_hosts: str | None = Field(
        None,
        description="names in Host that are answered, with commas between; * is any. "
        "By default any, or localhost alone when listening on loopback; addresses always are",
    )
    max_connections: int = Field(
        2000, ge=1, description="beyond it the one that has been idle longest is closed"
    )
    trusted_proxies: str = Field("", description="addresses and networks whose X-Forwarded-For is believed")
    api_keys: str | None = Field(None, description="NAME:SHA256[:FIELD=NUMBER]…, several with commas between")
    api_keys_file: Path | None = Field(None, description="TOML; read again when it changes")
    log_format: Format = "text"
    log_level: Level = "info"
    metrics_port: int | None = Field(
        None, ge=0, le=65535, description="the worker's own /metrics and probes; none by default"
    )

    max_images: int = Field(16, ge=1, le=256)
    upload_bytes: int = Field(20 * MIB, ge=1)
    body_bytes: int = Field(32 * MIB, ge=1, description="JSON and multipart bodies")
    upload_pixels: int = Field(40_000_000, ge=1)
    bodies_bytes: int = Field(256 * MIB, ge=1, description="all bodies that are being received, together")
    header_timeout_s: float = Field(10, gt=0)
    body_timeout_s: float = Field(30, gt=0)
    decoders: int = Field(1, ge=1, le=64, description="processes that decode uploads")

    open_jobs: int = Field(1000, ge=1)
    tenant_jobs: int = Field(1000, ge=1)
    result_ttl_s: float = Field(600, gt=0)
    lease_s: float = Field(15, gt=0)

    runtime: Literal["auto", "torch", "onnx", "tensorrt", "triton", "noop"] = "auto"
    triton_url: str | None = Field(None, description="grpc://host:8001 or http://host:8000")
    triton_timeout_s: float = Field(60, gt=0, description="for one try of a call")
    triton_deadline_s: float = Field(120, gt=0, description="for a call while a server is away or slow")
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    deterministic: Literal["default", "strict"] = "default"
    slots: int = Field(16, ge=1, le=1024, description="pictures that a worker draws at the same time")
    threads: int = Field(0, ge=0, description="CPU threads of a worker; 0 = the runtime's choice")
    drain_s: float = Field(25, ge=0, description="time for running jobs between SIGTERM and their release")

    @field_validator("redis_url")
    @classmethod
    def _readable_redis_url(cls, url: str | None) -> str | None:
        if url is not None:
            check_url(url)
        return url

    @field_validator("triton_url", mode="before")
    @classmethod
    def _none_if_empty(cls, url: object) -> object:
        return None if url == "" else url

    @field_validator("triton_url")
    @classmethod
    def _triton_scheme(cls, url: str | None) -> str | None:
        if url is not None and not url.startswith(TRITON_SCHEMES):
            raise ValueError(f"it must begin with {' or '.join(TRITON_SCHEMES)}")
        return url

    @field_validator("trusted_proxies")
    @classmethod
    def _addresses(cls, text: str) -> str:
        for part in _parts(text):
            ipaddress.ip_network(part)
        return text

    @property
    def proxies(self) -> list[str]:
        """`trusted_proxies` one by one."""
        return _parts(self.trusted_proxies)

    @property
    def bundles(self) -> tuple[str, ...]:
        """The bundles that `bundle` names; the first is the default model."""
        return tuple(_parts(self.bundle)) or (self.bundle,)

    def queue_limits(self) -> QueueLimits:
        """The bounds of the queue, which every process of a deployment must share."""
        return QueueLimits(
            open_jobs=self.open_jobs,
            tenant_jobs=self.tenant_jobs,
            result_ttl_s=self.result_ttl_s,
            lease_s=self.lease_s,
        )


def misspelt(names: Iterable[str]) -> dict[str, str]:
    """Of the `names` of environment variables those that are nearly one of a setting, with that one."""
    settings = [name.upper() for name in Settings.model_fields]
    found = {}
    for name in sorted({name.upper() for name in names} - _OF_CLIENTS):
        rest = name.removeprefix(_PREFIX)
        near = get_close_matches(rest, settings, 1, _NEAR) if name.startswith(_PREFIX) else []
        if near and near[0] != rest:
            found[name] = _PREFIX + near[0]
    return found


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
