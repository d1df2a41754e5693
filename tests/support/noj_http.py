"""What tests of the HTTP side share: problem packages, reports, an app on an embedded Redis."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fakeredis
from flask import Flask
from noj_testing import make_zip
from pydantic import SecretStr

from noj_server.app import create_app
from noj_server.redis_client import RedisClients
from noj_server.settings import ServerSettings

ADMIN_KEY = "ak_the-first-key-of-these-tests"
REGISTRATION_TOKEN = "the registration token"
SECRET_KEY = "what signs code urls in these tests"
SHAPE = ((60, 2), (40, 1))
"""Two tasks: 60 points for two cases, 40 points for one."""


def make_meta(shape: Sequence[tuple[int, int]] = SHAPE) -> dict[str, Any]:
    """A meta of (score, cases) tasks."""
    return {
        "tasks": [
            {"taskScore": score, "memoryLimit": 65536, "timeLimit": 1000, "caseCount": cases}
            for score, cases in shape
        ]
    }


def make_package(shape: Sequence[tuple[int, int]] = SHAPE, *, answer: str = "3\n") -> bytes:
    """A problem package with a meta.json."""
    files: dict[str, str | bytes] = {"meta.json": json.dumps(make_meta(shape))}
    for task, (_, cases) in enumerate(shape):
        for case in range(cases):
            files[f"{task:02d}{case:02d}.in"] = "1 2\n"
            files[f"{task:02d}{case:02d}.out"] = answer
    return make_zip(files)


def make_case(status: int = 0, **changes: Any) -> dict[str, Any]:
    """One case of a report, required fields only."""
    return {
        "status": status,
        "exitCode": 0,
        "execTime": 7,
        "memoryUsage": 900,
        "stdout": "3\n",
        "stderr": "",
        **changes,
    }


def make_report(shape: Sequence[tuple[int, int]] = SHAPE, status: int = 0) -> dict[str, Any]:
    """A report of that shape, all cases alike."""
    return {"tasks": [[make_case(status) for _ in range(cases)] for _, cases in shape]}


def make_settings(data_dir: Path, **changes: Any) -> ServerSettings:
    """Settings with all secrets set."""
    values: dict[str, Any] = {
        "data_dir": data_dir,
        "admin_key": SecretStr(ADMIN_KEY),
        "registration_token": SecretStr(REGISTRATION_TOKEN),
        "secret_key": SecretStr(SECRET_KEY),
        **changes,
    }
    return ServerSettings(**values)


def make_app(data_dir: Path, **changes: Any) -> Flask:
    """An app on an empty embedded Redis of its own; its threads are not started."""
    fake = fakeredis.FakeRedis(server=fakeredis.FakeServer(), decode_responses=True)
    clients = RedisClients(main=fake, claims=fake, embedded=True)
    return create_app(make_settings(data_dir, **changes), clients)
