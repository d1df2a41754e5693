"""What a sandbox engine offers: the values it takes and gives, whatever it is built on.

An Engine belongs to an agent and opens one JobSandbox per job (and one per compilation); a
JobSandbox runs cases. Must not know submissions, verdicts or the wire.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

MIB = 1024 * 1024


@dataclass(frozen=True)
class Slot:
    """One unit of CPU, and the unprivileged uid and gid that its sandboxes run as."""

    index: int
    uid: int
    gid: int


@dataclass(frozen=True)
class Limits:
    """What one case may use. CPU counts every process of the case, user and system."""

    cpu_ms: int
    wall_ms: int
    memory_bytes: int
    pids: int = 32
    stdout_bytes: int = 64 * MIB
    stderr_bytes: int = 1 * MIB
    file_bytes: int = 64 * MIB
    tmp_bytes: int = 256 * MIB
    """Size of each of /tmp, /box and /dev/shm; what is written there counts as memory."""
    tmp_inodes: int = 4096


class Stop(Enum):
    """Why the agent ended a case; the first reason in time counts."""

    OUTPUT = "output"
    CPU = "cpu"
    WALL = "wall"
    OOM = "oom"


@dataclass(frozen=True)
class Outcome:
    """What was observed of one case; what it means is decided elsewhere.

    Exactly one of `exit_code` and `signal` is set, unless the case was stopped from outside or
    `exec_errno` tells why the program could not be started.
    """

    exit_code: int | None
    signal: int | None
    cpu_ms: float
    wall_ms: float
    memory_bytes: int
    oom_killed: bool
    stop: Stop | None
    stdout: bytes
    stderr: bytes
    exec_errno: int | None = None


class JobSandbox(Protocol):
    """The sandbox of one job; several threads may run cases in it at once."""

    def put(self, path: str, source_fd: int, *, executable: bool = False) -> None:
        """Copy a file to `/w/<path>` (read-only for programs). SandboxError if it cannot."""

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin_fd: int,
        limits: Limits,
        cancel: threading.Event,
        slot: Slot,
    ) -> Outcome:
        """Run one program to its end, in fresh namespaces, tmpfs and cgroups; cwd is `/box`.

        Blocks; when it returns or raises, no process of the case is left. Raises JobCancelled
        when `cancel` is set, SandboxError when the sandbox failed. `slot` lends the CPU.
        """


class Engine(ABC):
    """A way to build sandboxes on this host. Thread-safe."""

    weak_limits: bool

    @abstractmethod
    def open_job(self, slot: Slot) -> AbstractContextManager[JobSandbox]:
        """A sandbox under the slot's uid; leaving the block ends everything in it."""

    @abstractmethod
    def describe(self) -> dict[str, str]:
        """What it is made of, for logs and status, e.g. {"sandbox": "bubblewrap 0.8.0"}."""

    @abstractmethod
    def sweep_leftovers(self, slots: Sequence[Slot]) -> int:
        """End and remove what a killed predecessor left under these slots; how many things."""
