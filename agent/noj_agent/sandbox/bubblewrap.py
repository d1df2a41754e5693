"""The engine on bubblewrap: one bwrap per job, our init inside it, one reaper per case.

bwrap never runs as root (sandbox findings 0.1): util-linux' setpriv drops to the slot's uid first,
in the exec'd child, so the agent needs neither preexec_fn nor fork. bwrap gets no
--die-with-parent, which follows the spawning *thread*; init ends by itself when the agent's end
of the socket closes, also by kill -9.

No path of the host but /usr and three files of /etc is bound. The job's files are copied by init
into a tmpfs at /w, and init itself arrives through a descriptor, so the agent's directories
can stay 0700. See init.c for the protocol.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import functools
import logging
import os
import select
import shutil
import signal
import socket
import stat
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from noj_agent.errors import ConfigError, JobCancelled, SandboxError
from noj_agent.sandbox.base import MIB, Engine, Limits, Outcome, Slot, Stop
from noj_agent.sandbox.cgroup import CaseGroup, Cgroups, CgroupsMissing, case_group, find_cgroups
from noj_agent.sandbox.initbuild import build_init

log = logging.getLogger(__name__)

# struct request and struct reply of init.c
_REQUEST = struct.Struct("=IIIIQQQQQ")
_REPLY = struct.Struct("=IiiiQQQ")
_RUN, _PUT = 1, 2
_STARTED, _DONE, _KILLED, _PUT_DONE = 1, 2, 3, 4
_STAGE_EXEC = 8
_STAGES = (
    *("none", "request", "clone", "mount", "cgroup", "limit", "privilege", "seccomp"),
    *("exec", "file"),
)

_PIPE_BYTES = MIB
_READ_BYTES = MIB
_ANSWER_TIMEOUT_S = 20.0
"""How long init may take to start or to end a case; it takes milliseconds."""
_STOP_TIMEOUT_S = 5.0
_FIRST_LOOK_MS = 5.0
_LONGEST_NAP_MS = 100.0
_WORK_BYTES = 256 * MIB
_STDERR_SHOWN = 500

ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": "/box",
    "TMPDIR": "/tmp",
    "LANG": "C.UTF-8",
    "ONLINE_JUDGE": "1",
}

_FLAGS = (
    *("--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup"),
    *("--unshare-net", "--disable-userns"),
    *("--uid", "1000", "--gid", "1000", "--hostname", "judge", "--clearenv"),
    *("--cap-add", "ALL", "--as-pid-1", "--new-session"),
    *("--ro-bind", "/usr", "/usr"),
    *("--symlink", "usr/bin", "/bin", "--symlink", "usr/lib", "/lib"),
    *("--symlink", "usr/lib64", "/lib64"),
    *("--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"),
    *("--ro-bind-try", "/etc/alternatives", "/etc/alternatives"),
    *("--tmpfs", "/usr/local", "--remount-ro", "/usr/local"),
    *("--proc", "/proc", "--dev", "/dev", "--dir", "/tmp", "--dir", "/box"),
    *("--size", str(_WORK_BYTES), "--tmpfs", "/w"),
)


@dataclass
class BubblewrapEngine(Engine):
    """See the module. Make it with `open_bubblewrap`."""

    bwrap: str
    setpriv: str
    init: Path
    cgroups: Cgroups | None
    version: str
    weak_limits: bool = False

    @contextmanager
    def open_job(self, slot: Slot) -> Iterator[BubblewrapJob]:
        """One bwrap with init in it; SandboxError when it does not come up."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ExitStack() as stack:
            stack.callback(ours.close)
            errors = stack.enter_context(tempfile.TemporaryFile())
            with theirs, self.init.open("rb") as init:
                process = self._spawn(slot, theirs.fileno(), init.fileno(), errors)
            job = BubblewrapJob(self.cgroups, ours, process, errors)
            try:
                yield job
            finally:
                job.close(slot)

    def _spawn(
        self, slot: Slot, sock_fd: int, init_fd: int, errors: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        argv = [self.setpriv, "--no-new-privs"]
        if os.geteuid() == 0:
            argv += [f"--reuid={slot.uid}", f"--regid={slot.gid}", "--clear-groups"]
        argv += [self.bwrap, *_FLAGS]
        if not Path("/lib64").exists():
            at = argv.index("usr/lib64")
            del argv[at - 1 : at + 2]
        argv += ["--perms", "0555", "--ro-bind-data", str(init_fd), "/init"]
        argv += ["--remount-ro", "/dev", "--remount-ro", "/"]
        argv += ["--chdir", "/", "--", "/init", str(sock_fd)]
        try:
            return subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env={"PATH": "/usr/bin:/bin"},
                cwd="/",
                pass_fds=(sock_fd, init_fd),
            )
        except OSError as error:
            raise SandboxError(f"cannot start {argv[0]}: {error}") from error

    def describe(self) -> dict[str, str]:
        """What sandboxes are made of here."""
        limits = "rlimits only (weak)" if self.cgroups is None else self.cgroups.describe()
        return {"sandbox": f"bubblewrap {self.version}", "limits": limits, "init": self.init.name}

    def sweep_leftovers(self, slots: Sequence[Slot]) -> int:
        """Kill processes under our reserved uids, then remove their cgroups."""
        ended = _kill_uids({slot.uid for slot in slots}) if os.geteuid() == 0 else 0
        return ended + (self.cgroups.sweep(slots) if self.cgroups is not None else 0)


def open_bubblewrap(*, state_dir: Path, allow_weak_limits: bool) -> BubblewrapEngine:
    """Find everything the engine needs. Raises ConfigError: what is missing, and what to do."""
    bwrap, setpriv = _program("bwrap", "bubblewrap"), _program("setpriv", "util-linux")
    mode = Path(bwrap).stat().st_mode
    if mode & stat.S_ISUID:
        raise ConfigError(
            f"{bwrap} is setuid root, which opens more than it closes (CVE-2026-41163);"
            f" run: chmod u-s {bwrap}"
        )
    version = _bwrap_version(bwrap)
    cgroups: Cgroups | None = None
    try:
        cgroups = find_cgroups()
    except CgroupsMissing as error:
        if not allow_weak_limits:
            raise ConfigError(
                f"no cgroup can be written here ({error}). Run as root or as a systemd service"
                " with Delegate=yes; or accept limits that hostile code can dodge with"
                " --allow-weak-limits"
            ) from error
        log.warning("WEAK LIMITS: memory and CPU are bounded per process only (%s)", error)
    return BubblewrapEngine(
        bwrap=bwrap,
        setpriv=setpriv,
        init=build_init(state_dir / "sandbox"),
        cgroups=cgroups,
        version=version,
        weak_limits=cgroups is None,
    )


def _program(name: str, package: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise ConfigError(f"{name} is missing: apt-get install {package}")
    return found


def _bwrap_version(bwrap: str) -> str:
    """Its version; flags are probed, not versions compared."""
    usage = subprocess.run([bwrap, "--help"], capture_output=True, text=True, check=False).stdout
    for flag in ("--disable-userns", "--size", "--perms", "--clearenv", "--ro-bind-data"):
        if flag not in usage:
            raise ConfigError(f"{bwrap} does not know {flag}; bubblewrap 0.8 or newer is needed")
    shown = subprocess.run([bwrap, "--version"], capture_output=True, text=True, check=False)
    return shown.stdout.split()[-1] if shown.stdout else "unknown"


def _kill_uids(uids: set[int]) -> int:
    """SIGKILL every process with one of these real uids; only ours have them."""
    ended = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                if entry.stat().st_uid in uids or _real_uid(entry) in uids:
                    os.kill(int(entry.name), signal.SIGKILL)
                    ended += 1
    return ended


def _real_uid(entry: Path) -> int:
    """A non-dumpable process' directory belongs to root: its status tells the real uid."""
    for line in (entry / "status").read_text().splitlines():
        if line.startswith("Uid:"):
            return int(line.split()[1])
    return -1


class BubblewrapJob:
    """A running bwrap with our init; thread-safe (one message is one request)."""

    def __init__(
        self,
        cgroups: Cgroups | None,
        sock: socket.socket,
        process: subprocess.Popen[bytes],
        errors: IO[bytes],
    ) -> None:
        self._cgroups = cgroups
        self._sock = sock
        self._process = process
        self._errors = errors

    def put(self, path: str, source_fd: int, *, executable: bool = False) -> None:
        """Copy a file into /w; its name must be a plain relative path."""
        mode = 0o555 if executable else 0o444
        with self._request(_PUT, [path], {}, [source_fd], mode=mode) as reply:
            kind, error, stage, *_ = self._answer(reply, time.monotonic() + _ANSWER_TIMEOUT_S)
            if kind != _PUT_DONE or error != 0:
                raise SandboxError(f"cannot lay out {path}: {_failure(stage, error)}")

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin_fd: int,
        limits: Limits,
        cancel: threading.Event,
        slot: Slot,
    ) -> Outcome:
        """See JobSandbox.run."""
        with (
            case_group(self._cgroups, slot, limits) as group,
            _Pipe(slot, limits.stdout_bytes) as stdout,
            _Pipe(slot, limits.stderr_bytes) as stderr,
        ):
            fds = [stdin_fd, stdout.writer, stderr.writer, *(group.procs_fds if group else [])]
            with self._request(_RUN, argv, ENVIRONMENT, fds, limits=limits) as reply:
                stdout.close_writer()
                stderr.close_writer()
                case = _Case(self, reply, stdout, stderr, group, limits, cancel)
                return case.follow()

    @contextmanager
    def _request(
        self,
        kind: int,
        argv: Sequence[str],
        env: dict[str, str],
        fds: list[int],
        *,
        limits: Limits | None = None,
        mode: int = 0,
    ) -> Iterator[socket.socket]:
        """Send a request with a reply socket of its own; gives our end of that."""
        numbers = (0, 0, 0, 0, 0)
        if limits is not None:
            cpu_s = -(-limits.cpu_ms // 1000) + 1
            numbers = (
                cpu_s,
                limits.file_bytes,
                limits.memory_bytes,
                limits.tmp_bytes,
                limits.tmp_inodes,
            )
        strings = [*argv, *(f"{key}={value}" for key, value in env.items())]
        head = _REQUEST.pack(kind, len(argv), len(env), mode, *numbers)
        message = head + b"".join(text.encode() + b"\0" for text in strings)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            with theirs:
                passed = array.array("i", [theirs.fileno(), *fds])
                try:
                    self._sock.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)])
                except OSError as error:
                    raise self.dead() from error
            yield ours

    def _answer(self, reply: socket.socket, deadline: float) -> tuple[int, ...]:
        """The next answer on a reply socket, as numbers; SandboxError if none comes."""
        reply.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
            data = reply.recv(_REPLY.size)
        except OSError as error:
            raise SandboxError(f"init does not answer: {error}") from error
        if len(data) != _REPLY.size:
            raise self.dead()
        return _REPLY.unpack(data)

    def dead(self) -> SandboxError:
        """Why the sandbox has gone, as bwrap tells it."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        self._errors.seek(0)
        words = self._errors.read(_STDERR_SHOWN).decode(errors="replace").strip()
        return SandboxError(
            f"bubblewrap ended (status {self._process.returncode}): {words or 'no message'}"
            f"{_advice(words)}"
        )

    def close(self, slot: Slot) -> None:
        """End init, and with it all that is left of the job; wait until it is gone."""
        self._sock.close()
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            if os.geteuid() == 0:
                _kill_uids({slot.uid})
            self._process.kill()
            self._process.wait(_STOP_TIMEOUT_S)


def _advice(words: str) -> str:
    if "setting up uid map" in words or "RTM_NEWADDR" in words:
        return (
            "; on Ubuntu 24.04 allow it an AppArmor profile with `userns,` or set"
            " kernel.apparmor_restrict_unprivileged_userns=0 (docs/sandbox.md)"
        )
    if "namespace" in words:
        return "; unprivileged user namespaces must be allowed on this host (docs/sandbox.md)"
    return ""


def _failure(stage: int, error: int) -> str:
    name = _STAGES[stage] if 0 <= stage < len(_STAGES) else str(stage)
    return f"{name}: {os.strerror(error)}"


@dataclass
class _Pipe:
    """A pipe the program writes and we read, up to a cap; what comes after is thrown away."""

    slot: Slot
    cap_bytes: int
    reader: int = -1
    writer: int = -1
    chunks: list[bytes] = field(default_factory=list)
    size: int = 0
    ended: bool = False

    def __enter__(self) -> _Pipe:
        self.reader, self.writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.reader, False)
        if os.geteuid() == 0:
            # Programs may open /dev/stdout, which asks for permission on the pipe itself.
            os.fchown(self.writer, self.slot.uid, self.slot.gid)
            _enlarge(self.writer)
        return self

    def close_writer(self) -> None:
        """Close our copy, so that end of file means that the program's are closed."""
        if self.writer >= 0:
            os.close(self.writer)
            self.writer = -1

    @property
    def over(self) -> bool:
        """Whether more came than fits."""
        return self.size > self.cap_bytes

    def drain(self) -> None:
        """Read what is there without blocking."""
        while not self.ended:
            try:
                chunk = os.read(self.reader, _READ_BYTES)
            except BlockingIOError:
                return
            if not chunk:
                self.ended = True
                return
            room = self.cap_bytes - self.size
            if room > 0:
                self.chunks.append(chunk if len(chunk) <= room else chunk[:room])
            self.size += len(chunk)
            if self.over:
                return

    def content(self) -> bytes:
        """What was kept."""
        return b"".join(self.chunks)

    def __exit__(self, *_: object) -> None:
        self.close_writer()
        os.close(self.reader)


def _enlarge(fd: int) -> None:

    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


@dataclass
class _Case:
    """Follows one running case to its end (sandbox findings 4.5, 5)."""

    job: BubblewrapJob
    reply: socket.socket
    stdout: _Pipe
    stderr: _Pipe
    group: CaseGroup | None
    limits: Limits
    cancel: threading.Event
    pidfd: int = -1
    stop: Stop | None = None
    cancelled: bool = False
    wall_ms: float = 0.0

    def follow(self) -> Outcome:
        """Wait for the end, watching output, CPU, wall clock, memory and cancellation."""
        try:
            done = self._started() or self._watch()
            return self._outcome(done)
        finally:
            if self.pidfd >= 0:
                os.close(self.pidfd)

    def _started(self) -> tuple[int, ...] | None:
        """Take the reaper's pidfd; the final answer instead if the case never started."""
        self.reply.settimeout(_ANSWER_TIMEOUT_S)
        try:
            data, fds, _flags, _addr = socket.recv_fds(self.reply, _REPLY.size, 1)
        except OSError as error:
            raise SandboxError(f"init does not start the case: {error}") from error
        if len(data) != _REPLY.size:
            raise self.job.dead()
        answer = _REPLY.unpack(data)
        if fds:
            self.pidfd = fds[0]
            return None
        return answer

    def _watch(self) -> tuple[int, ...]:
        started = time.monotonic()
        poller = select.poll()
        poller.register(self.reply, select.POLLIN)
        poller.register(self.stdout.reader, select.POLLIN)
        poller.register(self.stderr.reader, select.POLLIN)
        pipes = {self.stdout.reader: self.stdout, self.stderr.reader: self.stderr}
        nap_ms = _FIRST_LOOK_MS
        killed_at: float | None = None
        while True:
            ready = poller.poll(nap_ms)
            for fd, _ in ready:
                pipe = pipes.get(fd)
                if pipe is None:
                    answer = self._final()
                    self.stdout.drain()
                    self.stderr.drain()
                    return answer
                self._read(pipe, poller)
            if killed_at is None:
                nap_ms = self._check(started)
                if self.stop is not None or self.cancelled:
                    with contextlib.suppress(ProcessLookupError):  # it ended by itself just now
                        signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
                    killed_at = time.monotonic()
                    nap_ms = _LONGEST_NAP_MS
            elif time.monotonic() - killed_at > _ANSWER_TIMEOUT_S:
                raise SandboxError("a killed case does not end: a process of it is stuck")

    def _final(self) -> tuple[int, ...]:
        data = self.reply.recv(_REPLY.size)
        if len(data) != _REPLY.size:
            raise self.job.dead()
        return _REPLY.unpack(data)

    def _read(self, pipe: _Pipe, poller: select.poll) -> None:
        """Read a pipe. Over its cap: stdout ends the case; stderr goes on into the void."""
        pipe.drain()
        if pipe.ended:
            poller.unregister(pipe.reader)
        elif pipe.over and pipe is self.stdout:
            self.stop = self.stop or Stop.OUTPUT
            poller.unregister(pipe.reader)

    def _check(self, started: float) -> float:
        """Compare with the limits; how long to sleep until the next look, in ms."""
        self.wall_ms = (time.monotonic() - started) * 1000
        left_ms = self.limits.wall_ms - self.wall_ms
        if self.stop is None and self.group is not None:
            cpu_ms = self.group.cpu_ms()
            if cpu_ms > self.limits.cpu_ms:
                self.stop = Stop.CPU
            elif self.group.oom_kills() > 0:
                self.stop = Stop.OOM
            left_ms = min(left_ms, (self.limits.cpu_ms - cpu_ms) / _cpus())
        if self.stop is None and self.wall_ms > self.limits.wall_ms:
            self.stop = Stop.WALL
        self.cancelled = self.cancel.is_set()
        return min(max(left_ms, _FIRST_LOOK_MS), _LONGEST_NAP_MS)

    def _outcome(self, answer: tuple[int, ...]) -> Outcome:
        kind, error, stage, wait_status, wall_us, cpu_us, maxrss_kib = answer
        if self.cancelled:
            raise JobCancelled("cancelled while a case was running")
        if kind == _DONE and error != 0 and stage != _STAGE_EXEC:
            raise SandboxError(f"a case could not be set up: {_failure(stage, error)}")
        if kind == _KILLED and self.stop is None:
            raise SandboxError("a case's reaper was killed by somebody else")
        ended = kind == _DONE and self.stop is None
        exit_code = os.waitstatus_to_exitcode(wait_status) if ended else None
        peak = self.group.peak_bytes() if self.group else 0
        return Outcome(
            exit_code=exit_code if exit_code is not None and exit_code >= 0 else None,
            signal=-exit_code if exit_code is not None and exit_code < 0 else None,
            cpu_ms=self.group.cpu_ms() if self.group else cpu_us / 1000,
            wall_ms=wall_us / 1000 if ended else self.wall_ms,
            memory_bytes=min(max(peak, maxrss_kib * 1024), self.limits.memory_bytes),
            oom_killed=self.group is not None and self.group.oom_kills() > 0,
            stop=self.stop or (Stop.OUTPUT if self.stdout.over else None),
            stdout=self.stdout.content(),
            stderr=self.stderr.content(),
            exec_errno=error if stage == _STAGE_EXEC and error else None,
        )


@functools.cache
def _cpus() -> int:
    return max(os.cpu_count() or 1, 1)


@contextmanager
def sealed_copy(content: bytes) -> Iterator[int]:
    """A read-only memfd with this content; a program cannot write it through /proc/self/fd."""
    fd = os.memfd_create("noj-input", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        os.lseek(fd, 0, os.SEEK_SET)
        fcntl.fcntl(
            fd,
            fcntl.F_ADD_SEALS,
            fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL,
        )
        yield fd
    finally:
        os.close(fd)
