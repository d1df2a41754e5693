"""The state directory: modes, the lock against a twin, writes that a crash cannot tear."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest
from noj_testing import Process, wait_until

from noj_agent.errors import ConfigError
from noj_agent.state import StateDir, locked, open_state, read_json, running_pid, write_json

HOLDER = """
import sys, threading
from pathlib import Path
from noj_agent.state import locked, open_state
with locked(open_state(Path(sys.argv[1]))):
    print("locked", flush=True)
    threading.Event().wait(60)
"""


def mode(path: Path) -> int:
    """Its permission bits."""
    return stat.S_IMODE(path.stat().st_mode)


def test_only_its_owner_reads_it(tmp_path: Path) -> None:
    """Folders 0700, also one that lay open before; files 0600."""
    root = tmp_path / "state"
    root.mkdir(mode=0o755)
    state = open_state(root)
    write_json(state.identity, {"token": "x"})
    assert {mode(path) for path in (root, state.jobs, state.outbox, state.testdata)} == {0o700}
    assert mode(state.identity) == 0o600


def test_a_place_that_cannot_be_used(tmp_path: Path) -> None:
    """ConfigError names the path."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot use the state directory"):
        open_state(tmp_path / "file" / "state")


def test_a_twin_is_refused(state: StateDir) -> None:
    """The message names the pid and the setting; afterwards the place is free again."""
    assert running_pid(state) is None
    with locked(state):
        assert running_pid(state) == os.getpid()
        with pytest.raises(ConfigError) as error, locked(state):
            pytest.fail("two agents in one directory")
        assert str(os.getpid()) in str(error.value)
        assert "NOJ_AGENT_STATE_DIR" in str(error.value)
    assert running_pid(state) is None
    with locked(state):
        pass


def test_a_killed_holder_frees_the_lock(state: StateDir, tmp_path: Path) -> None:
    """After kill -9 nobody has to remove a lock file by hand."""
    argv = [sys.executable, "-c", HOLDER, str(state.root)]
    with Process(argv=argv, log=tmp_path / "holder.log") as holder:
        wait_until(lambda: "locked" in holder.output(), what="the lock is taken")
        assert running_pid(state) == holder.pid
        with pytest.raises(ConfigError, match=str(holder.pid)), locked(state):
            pytest.fail("two agents in one directory")
        holder.kill9()
        assert running_pid(state) is None
        with locked(state):
            assert running_pid(state) == os.getpid()


def test_a_write_replaces_all_or_nothing(state: StateDir) -> None:
    """What cannot be written leaves the old content, and nothing beside it."""
    path = state.root / "agent.json"
    write_json(path, {"n": 1})
    with pytest.raises(TypeError):
        write_json(path, {"n": object()})
    assert read_json(path) == {"n": 1}
    assert list(state.root.glob(".part-*")) == []


@pytest.mark.parametrize("durable", [True, False])
def test_durable_means_fsync_of_file_and_folder(
    state: StateDir, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    """INV7 rests on it: the file before the rename, the folder after it."""
    synced: list[bool] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append(stat.S_ISDIR(os.fstat(fd).st_mode))
        assert (state.root / "x.json").exists() == synced[-1]
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    write_json(state.root / "x.json", {}, durable=durable)
    assert synced == ([False, True] if durable else [])


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff"])
def test_what_cannot_be_read_is_none(state: StateDir, content: bytes | None) -> None:
    """A missing or damaged file is no crash."""
    path = state.root / "x.json"
    if content is not None:
        path.write_bytes(content)
    assert read_json(path) is None
