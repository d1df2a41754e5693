"""The agent's settings: flag > environment `NOJ_AGENT_*` > TOML file > default.

Read once, passed down. Secrets come from the environment or a file, never from argv.
"""

from __future__ import annotations

import os
import socket
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from noj_agent.errors import ConfigError
from noj_agent.sandbox.uids import DEFAULT_FIRST_UID

ENV_PREFIX = "NOJ_AGENT_"
GIB = 1024**3


class AgentSettings(BaseSettings):
    """What a sysadmin can set."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="forbid")

    server_url: str = Field(description="where noj-server is, e.g. https://judge.example.org")
    registration_token: SecretStr | None = Field(
        default=None, description="what the server lets agents register with"
    )
    registration_token_file: Path | None = Field(
        default=None, description="a file that holds it (systemd credential, secret mount)"
    )
    state_dir: Path = Field(default=Path("/var/lib/noj-agent"), description="identity, outbox, …")
    name: str = Field(default_factory=socket.gethostname, description="shown to operators")
    slots: int = Field(
        default_factory=lambda: len(os.sched_getaffinity(0)),
        ge=1,
        le=256,
        description="programs that run at once; default one per core",
    )
    allow_weak_limits: bool = Field(
        default=False, description="judge without cgroups; hostile code can dodge the limits"
    )
    first_uid: int = Field(
        default=DEFAULT_FIRST_UID, ge=1000, description="sandboxes use free uids from here up"
    )
    disk_floor_bytes: int = Field(
        default=GIB, ge=0, description="below this much free space no work is taken"
    )
    cache_limit_bytes: int = Field(default=8 * GIB, ge=0, description="test data kept on disk")
    tags: tuple[str, ...] = Field(default=(), description="shown to operators")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["auto", "rich", "json"] = Field(
        default="auto", description="auto: rich on a terminal, else JSON lines"
    )

    @field_validator("server_url")
    @classmethod
    def _is_http(cls, value: str) -> str:
        if not value.startswith(("http://", "https://")):
            raise ValueError("must begin with http:// or https://")
        return value.rstrip("/")

    def read_registration_token(self) -> SecretStr:
        """The token from the setting or from its file. Raises ConfigError."""
        token = self.registration_token or SecretStr("")
        if not token and self.registration_token_file is not None:
            try:
                token = SecretStr(self.registration_token_file.read_text().strip())
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"{ENV_PREFIX}REGISTRATION_TOKEN_FILE: {error}") from error
        if not token:
            raise ConfigError(
                f"no registration token: set {ENV_PREFIX}REGISTRATION_TOKEN_FILE"
                f" (or {ENV_PREFIX}REGISTRATION_TOKEN) to what the server has as"
                " NOJ_SERVER_REGISTRATION_TOKEN"
            )
        return token


def load_settings(config: Path | None, flags: dict[str, Any]) -> AgentSettings:
    """Settings from all sources; `config` falls back to NOJ_AGENT_CONFIG. Raises ConfigError that
    names every wrong setting."""
    from_env = os.environ.get(f"{ENV_PREFIX}CONFIG")
    path = config or (Path(from_env) if from_env else None)
    values = _read_toml(path) if path is not None else {}

    class Loaded(AgentSettings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, InitSettingsSource(settings_cls, values)

    given: Any = {name: value for name, value in flags.items() if value is not None}
    try:
        return Loaded(**given)
    except ValidationError as error:
        raise ConfigError("\n".join(_fault(item, path) for item in error.errors())) from error


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


def _fault(item: Any, path: Path | None) -> str:
    name = ".".join(map(str, item["loc"]))
    if item["type"] == "extra_forbidden":
        return f"{path}: unknown setting {name}"
    message = item["msg"].removeprefix("Value error, ")
    return f"{name}: {message} (flag, {ENV_PREFIX}{name.upper()}, or {name} in the TOML file)"
