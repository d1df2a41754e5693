"""The state directory: where things lie, how they are written so that a crash loses nothing.

agent.lock          flock against a twin; holds the pid
agent.json          what `noj-agent status` shows, rewritten every second
identity.json       runner id and token
jobs/<jb>/job.json  work in hand
outbox/<jb>.json    finished, not yet acknowledged (INV7)
testdata/<sha256>/  unpacked test data
sandbox/            the compiled init
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from noj_agent.errors import ConfigError


class StateDir:
    """Paths below one directory of mode 0700. Make it with `open_state`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lock = root / "agent.lock"
        self.status = root / "agent.json"
        self.identity = root / "identity.json"
        self.jobs = root / "jobs"
        self.outbox = root / "outbox"
        self.testdata = root / "testdata"

    def free_bytes(self) -> int:
        """Space left on its disk."""
        return shutil.disk_usage(self.root).free


def open_state(root: Path) -> StateDir:
    """The directory, made if it is not there. Raises ConfigError."""
    state = StateDir(root)
    try:
        for folder in (root, state.jobs, state.outbox, state.testdata):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        root.chmod(0o700)
    except OSError as error:
        raise ConfigError(f"cannot use the state directory {root}: {error}") from error
    return state


@contextmanager
def locked(state: StateDir) -> Iterator[None]:
    """Hold the directory for one process. Raises ConfigError naming the pid that has it."""
    fd = os.open(state.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"another noj-agent (pid {_pid(state)}) uses {state.root};"
                " give this one its own NOJ_AGENT_STATE_DIR"
            ) from error
        os.ftruncate(fd, 0)
        os.write(fd, str(os.getpid()).encode())
        yield
    finally:
        os.close(fd)


def running_pid(state: StateDir) -> int | None:
    """The pid of the agent that holds the directory now; None if none does."""
    try:
        fd = os.open(state.lock, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return _pid(state)
    else:
        return None
    finally:
        os.close(fd)


def _pid(state: StateDir) -> int:
    with suppress(OSError, ValueError):
        return int(state.lock.read_text())
    return 0


def write_json(path: Path, data: Any, *, durable: bool = True) -> None:
    """Replace a file of mode 0600 at once; `durable`: on the disk when this returns."""
    fd, unfinished = tempfile.mkstemp(dir=path.parent, prefix=".part-")
    try:
        with os.fdopen(fd, "w") as stream:
            json.dump(data, stream)
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        Path(unfinished).replace(path)
    except BaseException:
        with suppress(FileNotFoundError):
            Path(unfinished).unlink()
        raise
    if durable:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """fsync a folder, so that a rename or removal in it survives a power loss."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read_json(path: Path) -> Any:
    """A file's JSON; None if it is not there or was damaged."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
