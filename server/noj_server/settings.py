"""The server's settings: flag > environment `NOJ_SERVER_*` > default. Read once, passed down."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from noj_server.job_queue import QueueSettings

MIB = 1024 * 1024
RESERVED_THREADS = 32
"""Threads that are never given to parked polls, so that heartbeats always get one."""


class ServerSettings(BaseSettings):
    """What a sysadmin can set. Secrets have no default: unset means refuse."""

    model_config = SettingsConfigDict(env_prefix="NOJ_SERVER_", frozen=True, extra="ignore")

    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=8000, ge=1, le=65535)
    redis_url: str | None = Field(
        default=None, description="redis://…; unset: embedded, nothing survives a restart"
    )
    data_dir: Path = Field(
        default=Path("/var/lib/noj-server"), description="test data, code, results"
    )
    registration_token: SecretStr | None = Field(
        default=None, description="what agents register with; unset: every registration is 401"
    )
    admin_key: SecretStr | None = Field(
        default=None, description="the first API key (role operator); at least 24 characters"
    )
    secret_key: SecretStr | None = Field(
        default=None, description="signs code URLs; at least 24 characters"
    )
    public_url: str | None = Field(
        default=None, description="base of code URLs, if agents reach the server by another name"
    )
    lease_ttl_s: float = Field(default=30, gt=0)
    heartbeat_interval_s: float = Field(default=15, gt=0)
    poll_interval_s: float = Field(default=3, gt=0)
    max_attempts: int = Field(default=3, ge=1, le=100)
    max_concurrent_jobs: int = Field(default=8, ge=1, le=1024, description="per runner")
    retention_s: int = Field(default=30 * 86_400, ge=60, description="of landed submissions")
    threads: int = Field(default=256, ge=RESERVED_THREADS + 1, le=4096)
    upload_limit_bytes: int = Field(default=512 * MIB, ge=MIB, description="a problem package")
    report_limit_bytes: int = Field(default=32 * MIB, ge=MIB, description="a runner's report")
    log_format: Literal["auto", "rich", "json"] = Field(
        default="auto", description="auto: rich on a terminal, else JSON lines"
    )

    @property
    def queue(self) -> QueueSettings:
        """What of this concerns the queue."""
        return QueueSettings(
            lease_ttl_s=self.lease_ttl_s,
            max_attempts=self.max_attempts,
            retention_s=self.retention_s,
            tick_s=min(1.0, self.lease_ttl_s / 10),
        )

    @property
    def parking_capacity(self) -> int:
        """How many polls may be parked at once."""
        return self.threads - RESERVED_THREADS


def missing_secrets(settings: ServerSettings) -> list[str]:
    """What `serve` must refuse to start without, as sentences that say what to do."""
    faults = []
    for name, secret in (("ADMIN_KEY", settings.admin_key), ("SECRET_KEY", settings.secret_key)):
        if secret is None or len(secret.get_secret_value()) < 24:
            state = "is not set" if secret is None else "is shorter than 24 characters"
            faults.append(
                f"NOJ_SERVER_{name} {state}. Make one:"
                " python3 -c 'import secrets; print(secrets.token_urlsafe(32))'"
            )
    return faults
