"""Control groups, v2 and v1: find where they can be made, limit a case, read what it used.

A case gets a fresh cgroup (v1: one per controller) named `noj-u<uid>-<instance>-<n>`; the
uid is reserved for this agent (uids.py), so a name with it is ours. Programs join by writing "0"
to a `cgroup.procs` descriptor that was opened here, as root (sandbox findings 0.4).

v2 forbids processes beside child groups: under systemd (`Delegate=yes`) the agent moves itself
into the leaf `agent` of its own cgroup; started by hand as root it uses `/noj-agent` at the
top instead.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import re
import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from noj_agent.errors import SandboxError
from noj_agent.sandbox.base import Limits, Slot

log = logging.getLogger(__name__)

NAME = "noj-agent"
V1_CONTROLLERS = ("memory", "pids", "cpuacct")
V2_CONTROLLERS = ("memory", "pids")
_CASE = re.compile(r"noj-u(\d+)-[0-9a-f]+-\d+")
_INSTANCE = secrets.token_hex(3)
"""Tells apart agents that share cgroups but not the directory of the uid locks (containers)."""
_RMDIR_TRIES = 200


class CgroupsMissing(Exception):
    """No cgroup hierarchy can be written here; the message says what was tried and what helps."""


class CaseGroup(ABC):
    """The cgroup of one case."""

    procs_fds: list[int]

    @abstractmethod
    def cpu_ms(self) -> float:
        """CPU used by all processes so far, user and system."""

    @abstractmethod
    def oom_kills(self) -> int:
        """How many processes the kernel killed for memory."""

    @abstractmethod
    def peak_bytes(self) -> int:
        """The most memory it held (0 where the kernel is too old to tell)."""

    @abstractmethod
    def close(self) -> None:
        """Close descriptors and remove the cgroup; its processes must be gone."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Cgroups(ABC):
    """A place where cgroups for cases can be made."""

    @abstractmethod
    def new_case(self, slot: Slot, limits: Limits) -> CaseGroup:
        """A fresh, limited cgroup. Raises SandboxError."""

    @abstractmethod
    def bases(self) -> list[Path]:
        """The directories that hold the case cgroups."""

    @abstractmethod
    def describe(self) -> str:
        """One line for people."""

    def sweep(self, slots: Sequence[Slot]) -> int:
        """Remove case cgroups of these slots (their processes are gone); how many."""
        uids = {slot.uid for slot in slots}
        removed = 0
        for base in self.bases():
            for path in base.iterdir():
                match = _CASE.fullmatch(path.name)
                if match and int(match[1]) in uids:
                    try:
                        path.rmdir()
                        removed += 1
                    except OSError as error:
                        log.warning("cannot remove the leftover %s: %s", path, error)
        return removed


_numbers = itertools.count(1)


def _case_name(slot: Slot) -> str:
    return f"noj-u{slot.uid}-{_INSTANCE}-{next(_numbers)}"


def _write(path: Path, value: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def _read_int(path: Path) -> int:
    return int(path.read_text())


def _field(path: Path, name: str) -> int:
    """A number out of a flat-keyed file (`oom_kill 1`); 0 if it is not there."""
    for line in path.read_text().splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0


def _remove(path: Path) -> None:
    """rmdir a cgroup; a process that is still dying makes it busy for a moment."""
    for _ in range(_RMDIR_TRIES):
        try:
            path.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise SandboxError(f"cannot remove cgroup {path}: {error}") from error
            os.sched_yield()
        else:
            return
    raise SandboxError(f"cgroup {path} stays busy: a process in it does not end")


# -- v2 -----------------------------------------------------------------------------------------


@dataclass
class V2Case(CaseGroup):
    """One directory with the memory and pids controllers."""

    path: Path
    procs_fds: list[int] = field(default_factory=list)

    def cpu_ms(self) -> float:
        return _field(self.path / "cpu.stat", "usage_usec") / 1000

    def oom_kills(self) -> int:
        return _field(self.path / "memory.events", "oom_kill")

    def peak_bytes(self) -> int:
        with suppress(FileNotFoundError):  # before Linux 5.19
            return _read_int(self.path / "memory.peak")
        return 0

    def close(self) -> None:
        while self.procs_fds:
            os.close(self.procs_fds.pop())
        _remove(self.path)


@dataclass(frozen=True)
class V2(Cgroups):
    """The unified hierarchy."""

    base: Path

    def new_case(self, slot: Slot, limits: Limits) -> CaseGroup:
        path = self.base / _case_name(slot)
        try:
            path.mkdir()
            _write(path / "memory.max", str(limits.memory_bytes))
            with suppress(FileNotFoundError):  # a kernel without swap
                _write(path / "memory.swap.max", "0")
            _write(path / "memory.oom.group", "1")
            _write(path / "pids.max", str(limits.pids))
            return V2Case(path, [os.open(path / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)])
        except OSError as error:
            with suppress(OSError):
                path.rmdir()
            raise SandboxError(f"cannot make cgroup {path}: {error}") from error

    def bases(self) -> list[Path]:
        return [self.base]

    def describe(self) -> str:
        return f"cgroup v2 at {self.base}"


# -- v1 -----------------------------------------------------------------------------------------


@dataclass
class V1Case(CaseGroup):
    """One directory per hierarchy; memory, pids and cpuacct may share one."""

    paths: dict[str, Path]
    procs_fds: list[int] = field(default_factory=list)

    def cpu_ms(self) -> float:
        return _read_int(self.paths["cpuacct"] / "cpuacct.usage") / 1e6

    def oom_kills(self) -> int:
        return _field(self.paths["memory"] / "memory.oom_control", "oom_kill")

    def peak_bytes(self) -> int:
        return _read_int(self.paths["memory"] / "memory.max_usage_in_bytes")

    def close(self) -> None:
        while self.procs_fds:
            os.close(self.procs_fds.pop())
        for path in set(self.paths.values()):
            _remove(path)


@dataclass(frozen=True)
class V1(Cgroups):
    """The legacy hierarchies, by controller."""

    by_controller: dict[str, Path]

    def new_case(self, slot: Slot, limits: Limits) -> CaseGroup:
        name = _case_name(slot)
        paths = {controller: base / name for controller, base in self.by_controller.items()}
        case = V1Case(paths)
        try:
            for path in set(paths.values()):
                path.mkdir()
            memory = paths["memory"]
            _write(memory / "memory.limit_in_bytes", str(limits.memory_bytes))
            with suppress(FileNotFoundError):  # swap accounting is off
                _write(memory / "memory.memsw.limit_in_bytes", str(limits.memory_bytes))
            _write(paths["pids"] / "pids.max", str(limits.pids))
            for path in set(paths.values()):
                case.procs_fds.append(os.open(path / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC))
        except OSError as error:
            for path in set(paths.values()):
                with suppress(OSError):
                    path.rmdir()
            for fd in case.procs_fds:
                os.close(fd)
            raise SandboxError(f"cannot make cgroup {name}: {error}") from error
        return case

    def bases(self) -> list[Path]:
        return sorted(set(self.by_controller.values()))

    def describe(self) -> str:
        return f"cgroup v1 ({', '.join(sorted(self.by_controller))})"


# -- finding them ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Mounts:
    """Where the hierarchies are mounted, and where this process is in each."""

    v2: Path | None
    v2_self: str
    v1: dict[str, Path]
    v1_self: dict[str, str]


def read_mounts(proc: Path = Path("/proc/self")) -> Mounts:
    """Parse `mountinfo` and `cgroup` of a process directory (proc(5), cgroups(7))."""
    v2: Path | None = None
    v1: dict[str, Path] = {}
    for line in (proc / "mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, _source, options = after.split(" ", 2)
        where = Path(before.split(" ")[4])
        if kind == "cgroup2":
            v2 = v2 or where
        elif kind == "cgroup":
            for controller in set(options.split(",")) & set(V1_CONTROLLERS):
                v1.setdefault(controller, where)
    v2_self = "/"
    v1_self: dict[str, str] = {}
    for line in (proc / "cgroup").read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            v2_self = path
        else:
            v1_self |= dict.fromkeys(controllers.split(","), path)
    return Mounts(v2=v2, v2_self=v2_self, v1=v1, v1_self=v1_self)


def find_cgroups(mounts: Mounts | None = None, *, name: str = NAME) -> Cgroups:
    """The cgroups of this host, v2 before v1. Raises CgroupsMissing with every reason."""
    mounts = mounts or read_mounts()
    reasons: list[str] = []
    if mounts.v2 is not None:
        for attempt in (_delegated_v2, _top_v2):
            try:
                return V2(attempt(mounts.v2, mounts.v2_self, name))
            except (OSError, CgroupsMissing) as error:
                reasons.append(f"v2: {error}")
    missing = [controller for controller in V1_CONTROLLERS if controller not in mounts.v1]
    if missing:
        reasons.append(f"v1: {', '.join(missing)} not mounted")
    else:
        try:
            return V1(_v1_bases(mounts, name))
        except OSError as error:
            reasons.append(f"v1: {error}")
    raise CgroupsMissing("; ".join(reasons))


def _has_controllers(path: Path) -> None:
    available = (path / "cgroup.controllers").read_text().split()
    missing = [c for c in V2_CONTROLLERS if c not in available]
    if missing:
        raise CgroupsMissing(f"{path} lacks the controllers {', '.join(missing)}")


def _enable(path: Path) -> None:
    """Give the children of `path` the controllers; EBUSY while a process is in it itself."""
    _write(path / "cgroup.subtree_control", " ".join(f"+{c}" for c in V2_CONTROLLERS))


def _delegated_v2(mount: Path, own: str, _name: str) -> Path:
    """The agent's own cgroup, as systemd delegates it; the agent moves into a leaf of it."""
    path = mount / own.lstrip("/")
    if path.name == "agent" and (path.parent / "cgroup.subtree_control").exists():
        path = path.parent  # started again by exec, already in the leaf
    if path == mount:
        raise CgroupsMissing(f"{path} is the root: not the agent's own")
    _has_controllers(path)
    others = set((path / "cgroup.procs").read_text().split()) - {str(os.getpid())}
    if others:
        raise CgroupsMissing(
            f"{path} holds other processes too ({len(others)}); run the agent as a systemd"
            " service with Delegate=yes"
        )
    leaf = path / "agent"
    leaf.mkdir(exist_ok=True)
    _write(leaf / "cgroup.procs", str(os.getpid()))
    _enable(path)
    return path


def _top_v2(mount: Path, _own: str, name: str) -> Path:
    """A cgroup of our own at the top, for an agent that root starts by hand."""
    _has_controllers(mount)
    _enable(mount)
    path = mount / name
    path.mkdir(exist_ok=True)
    _enable(path)
    return path


def _v1_bases(mounts: Mounts, name: str) -> dict[str, Path]:
    bases = {}
    for controller in V1_CONTROLLERS:
        own = mounts.v1_self.get(controller, "/").lstrip("/")
        parent = mounts.v1[controller] / own
        if not parent.is_dir():  # inside a container the path is the host's
            parent = mounts.v1[controller]
        base = parent / name
        base.mkdir(exist_ok=True)
        with suppress(OSError):  # gone on kernels that know only hierarchical memory
            _write(base / "memory.use_hierarchy", "1")
        bases[controller] = base
    return bases


@contextmanager
def case_group(cgroups: Cgroups | None, slot: Slot, limits: Limits) -> Iterator[CaseGroup | None]:
    """A case's cgroup for the length of a block; None where limits are weak."""
    if cgroups is None:
        yield None
        return
    with cgroups.new_case(slot, limits) as group:
        yield group
