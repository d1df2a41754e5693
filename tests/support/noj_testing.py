"""What tests of every kind share: waiting without sleeping, free ports, real processes.

Every process started here is in its own process group, logs to a file of its own, and is
ended by its pid. Loopback only.
"""

from __future__ import annotations

import io
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeVar

import httpx
import psutil
import redis

T = TypeVar("T")
LOOPBACK = "127.0.0.1"
BIN = Path(sys.executable).parent
AGENT_UIDS = range(60100, 60900)
"""Where agents take the uids of their slots from."""


def wait_until(
    condition: Callable[[], T | Literal[False] | None],
    *,
    what: str,
    timeout_s: float = 15.0,
    poll_s: float = 0.02,
) -> T:
    """The first truthy value of `condition`; AssertionError naming `what` when time is up."""
    pause = threading.Event()
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s} s in vain until {what}; last: {value!r}")
        pause.wait(poll_s)


def make_zip(files: Mapping[str, str | bytes]) -> bytes:
    """A zip of these files; the same bytes every time."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def free_port() -> int:
    """A TCP port on loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def listening(port: int) -> bool:
    """Whether something accepts connections on that loopback port."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((LOOPBACK, port)) == 0


def processes_of(uids: Container[int]) -> list[psutil.Process]:
    """Living processes whose real uid is one of these: what is left of sandboxes."""
    found = []
    for process in psutil.process_iter(["uids", "status"]):
        ids = process.info["uids"]
        if ids is not None and ids.real in uids and process.info["status"] != "zombie":
            found.append(process)
    return found


def cgroups_of(uids: Container[int]) -> list[Path]:
    """Cgroups of cases under these uids, in whatever hierarchy."""
    return [
        path
        for base in Path("/sys/fs/cgroup").rglob("noj-agent")
        for path in base.iterdir()
        if path.name.startswith("noj-u") and int(path.name.split("-")[1][1:]) in uids
    ]


@dataclass
class Process:
    """A real child process with a log file; ended for good when the block is left."""

    argv: list[str]
    log: Path
    env: Mapping[str, str] = field(default_factory=dict)
    popen: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Start it (again); output is appended to the log."""
        with self.log.open("ab") as out:
            self.popen = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **self.env},
                start_new_session=True,
            )
        return self

    @property
    def pid(self) -> int:
        """Its process id; it must have been started."""
        assert self.popen is not None
        return self.popen.pid

    def send(self, signum: int) -> None:
        """Send a signal to it alone."""
        assert self.popen is not None
        self.popen.send_signal(signum)

    def wait(self, timeout_s: float = 30) -> int:
        """Its exit status; subprocess.TimeoutExpired when it does not end."""
        assert self.popen is not None
        return self.popen.wait(timeout_s)

    def kill9(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.send(signal.SIGKILL)
        self.wait()

    def stop(self, timeout_s: float = 20) -> int | None:
        """SIGTERM, wait, SIGKILL; its exit status. Does nothing if it never ran."""
        if self.popen is None:
            return None
        if self.popen.poll() is None:
            self.popen.terminate()
            try:
                self.popen.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.kill9()
        return self.popen.returncode

    def output(self) -> str:
        """Everything it has printed so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


class RedisServer(Process):
    """A private redis-server with an append-only file, in its own directory."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        binary = shutil.which("redis-server")
        assert binary is not None, "redis-server is not installed: apt-get install redis-server"
        super().__init__(
            argv=[
                binary,
                *("--port", str(self.port), "--bind", LOOPBACK, "--dir", str(directory)),
                *("--appendonly", "yes", "--appendfsync", "everysec", "--save", ""),
                *("--maxmemory-policy", "noeviction"),
            ],
            log=directory / "redis.log",
        )

    @property
    def url(self) -> str:
        """Where clients find it."""
        return f"redis://{LOOPBACK}:{self.port}/0"

    def start(self) -> Self:
        """Start it and wait until it has loaded its file and answers."""
        super().start()
        with redis.Redis(host=LOOPBACK, port=self.port, socket_timeout=5) as client:
            wait_until(lambda: _pings(client), what="redis-server answers PING")
        return self


def _pings(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.exceptions.RedisError:
        return False


class Server(Process):
    """A real `noj-server serve` on a free loopback port, with its own secrets."""

    def __init__(
        self, directory: Path, *, redis_url: str | None, env: Mapping[str, str] | None = None
    ) -> None:
        self.port = free_port()
        self.admin_key = f"ak_{secrets.token_urlsafe(32)}"
        self.registration_token = secrets.token_urlsafe(24)
        settings = {
            "NOJ_SERVER_HOST": LOOPBACK,
            "NOJ_SERVER_PORT": str(self.port),
            "NOJ_SERVER_DATA_DIR": str(directory / "data"),
            "NOJ_SERVER_ADMIN_KEY": self.admin_key,
            "NOJ_SERVER_REGISTRATION_TOKEN": self.registration_token,
            "NOJ_SERVER_SECRET_KEY": secrets.token_urlsafe(32),
        }
        if redis_url is not None:
            settings["NOJ_SERVER_REDIS_URL"] = redis_url
        super().__init__(
            argv=[str(BIN / "noj-server"), "serve"],
            log=directory / "server.log",
            env={**settings, **(env or {})},
        )

    @property
    def url(self) -> str:
        """Its base URL."""
        return f"http://{LOOPBACK}:{self.port}"

    def start(self) -> Self:
        """Start it and wait until it is ready (Redis included)."""
        super().start()
        self.wait_ready()
        return self

    def wait_ready(self, timeout_s: float = 30) -> None:
        """Wait until `/readyz` answers 200."""
        wait_until(self._ready, what=f"{self.url}/readyz answers 200", timeout_s=timeout_s)

    def _ready(self) -> bool:
        assert self.popen is None or self.popen.poll() is None, self.output()
        try:
            return httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200
        except httpx.TransportError:
            return False


class Agent(Process):
    """A real `noj-agent start` with its own state directory."""

    def __init__(
        self,
        directory: Path,
        *,
        server: Server,
        name: str,
        slots: int = 1,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.state_dir = directory / f"state-{name}"
        super().__init__(
            argv=[str(BIN / "noj-agent"), "start"],
            log=directory / f"agent-{name}.log",
            env={
                "NOJ_AGENT_SERVER_URL": server.url,
                "NOJ_AGENT_REGISTRATION_TOKEN": server.registration_token,
                "NOJ_AGENT_STATE_DIR": str(self.state_dir),
                "NOJ_AGENT_NAME": name,
                "NOJ_AGENT_SLOTS": str(slots),
                **(env or {}),
            },
        )
