"""The server's settings: flag > environment `NOJ_SERVER_*` > default. Read once, passed down."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from redis import Redis, RedisError

from noj_server.job_queue import QueueSettings

MIB = 1024 * 1024
RESERVED_THREADS = 32
"""Threads that are never given to parked polls, so that heartbeats always get one."""
DEFAULT_HEARTBEAT_S = 15.0


def _heartbeat_default(given: dict[str, Any]) -> float:
    return float(min(DEFAULT_HEARTBEAT_S, given.get("lease_ttl_s", 2 * DEFAULT_HEARTBEAT_S) / 2))


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
    heartbeat_interval_s: float = Field(
        default_factory=_heartbeat_default, gt=0, description="at most half the lease TTL"
    )
    poll_interval_s: float = Field(default=3, gt=0)
    max_attempts: int = Field(default=3, ge=1, le=100)
    max_concurrent_jobs: int = Field(default=8, ge=1, le=1024, description="per runner")
    retention_s: int = Field(default=30 * 86_400, ge=60, description="of landed submissions")
    threads: int = Field(default=256, ge=RESERVED_THREADS + 1, le=4096)
    client_timeout_s: int = Field(
        default=30, ge=1, description="silence in the middle of a request that ends it"
    )
    upload_limit_bytes: int = Field(default=512 * MIB, ge=MIB, description="a problem package")
    report_limit_bytes: int = Field(default=32 * MIB, ge=MIB, description="a runner's report")
    log_format: Literal["auto", "rich", "json"] = Field(
        default="auto", description="auto: rich on a terminal, else JSON lines"
    )

    @field_validator("redis_url")
    @classmethod
    def _is_redis_url(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                Redis.from_url(value).connection_pool.make_connection()  # which does not connect
            except (ValueError, TypeError, RedisError) as error:
                raise ValueError(f"is no Redis URL such as redis://host:6379/0: {error}") from error
        return value

    @field_validator("heartbeat_interval_s")
    @classmethod
    def _renews_in_time(cls, value: float, info: ValidationInfo) -> float:
        lease_ttl_s = info.data.get("lease_ttl_s", 2 * value)
        if value > lease_ttl_s / 2:
            raise ValueError(
                f"{value:g} s is more than half of NOJ_SERVER_LEASE_TTL_S ({lease_ttl_s:g} s):"
                " one late heartbeat would lose a job"
            )
        return value

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
