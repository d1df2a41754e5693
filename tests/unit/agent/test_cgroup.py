"""Finding and reading cgroups, on made-up directory trees of each kind of host."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from noj_agent.errors import ConfigError
from noj_agent.sandbox.base import MIB, Limits, Slot
from noj_agent.sandbox.cgroup import V1, V2, CgroupsMissing, Mounts, find_cgroups, read_mounts
from noj_agent.sandbox.uids import reserve_slots

LIMITS = Limits(cpu_ms=1000, wall_ms=3000, memory_bytes=64 * MIB, pids=7)
SLOT = Slot(0, 60100, 60100)


def v2_tree(
    root: Path, own: str = "/", procs: str = "", controllers: str = "cpu memory pids"
) -> Mounts:
    """A unified hierarchy in which this process is in `own`."""
    path = root / own.lstrip("/")
    path.mkdir(parents=True, exist_ok=True)
    for folder in {root, path}:
        (folder / "cgroup.controllers").write_text(controllers)
        (folder / "cgroup.subtree_control").write_text("")
        (folder / "cgroup.procs").write_text(procs)
    return Mounts(v2=root, v2_self=own, v1={}, v1_self={})


def test_delegated_v2_moves_the_agent_into_a_leaf(tmp_path: Path) -> None:
    """Under systemd with Delegate=yes: own cgroup, the agent in a leaf, controllers enabled."""
    own = tmp_path / "system.slice/noj-agent.service"
    (own / "agent").mkdir(parents=True)
    (own / "agent/cgroup.procs").write_text("")
    mounts = v2_tree(tmp_path, "/system.slice/noj-agent.service", procs=f"{os.getpid()}\n")
    assert find_cgroups(mounts) == V2(own)
    assert (own / "agent/cgroup.procs").read_text() == str(os.getpid())
    assert (own / "cgroup.subtree_control").read_text() == "+memory +pids"


def test_v2_started_by_hand_uses_the_top(tmp_path: Path) -> None:
    """In a session's cgroup, with other processes, root works at the top instead."""
    (tmp_path / "noj-agent").mkdir()
    (tmp_path / "noj-agent/cgroup.subtree_control").write_text("")
    mounts = v2_tree(tmp_path, "/user.slice/session-1.scope", procs=f"1234\n{os.getpid()}\n")
    assert find_cgroups(mounts) == V2(tmp_path / "noj-agent")


def test_hybrid_host_uses_v1(tmp_path: Path) -> None:
    """A v2 tree without controllers beside v1 hierarchies: v1 it is."""
    mounts = v2_tree(tmp_path / "unified", controllers="")
    v1 = {name: tmp_path / name for name in ("memory", "pids", "cpuacct")}
    for path in v1.values():
        path.mkdir()
    found = find_cgroups(Mounts(mounts.v2, "/", v1, dict.fromkeys(v1, "/")))
    assert found == V1({name: path / "noj-agent" for name, path in v1.items()})


def test_nothing_to_write_says_everything_that_was_tried(tmp_path: Path) -> None:
    """The error has one reason per kind of cgroup."""
    with pytest.raises(CgroupsMissing, match=r"v2: .*lacks.*v1: memory, pids, cpuacct not mounted"):
        find_cgroups(v2_tree(tmp_path, controllers="cpu"))


def test_mountinfo_and_cgroup_are_parsed(tmp_path: Path) -> None:
    """Co-mounted v1 controllers and the unified hierarchy are found, with our place in each."""
    (tmp_path / "mountinfo").write_text(
        "30 23 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
        "31 23 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
        "32 23 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
        "33 23 0:29 / / rw - ext4 /dev/vda rw\n"
    )
    (tmp_path / "cgroup").write_text("5:memory:/a\n4:cpu,cpuacct:/b\n0::/c\n")
    mounts = read_mounts(tmp_path)
    assert mounts.v2 == Path("/sys/fs/cgroup/unified")
    assert mounts.v2_self == "/c"
    assert mounts.v1["cpuacct"] == Path("/sys/fs/cgroup/cpu,cpuacct")
    assert mounts.v1_self["cpuacct"] == "/b"
    assert mounts.v1_self["memory"] == "/a"


def test_v2_case_is_limited_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each limit goes into its file, each figure comes from its file."""
    made: list[Path] = []
    real_mkdir = Path.mkdir

    def mkdir_like_the_kernel(self: Path, *args: Any, **kwargs: Any) -> None:
        real_mkdir(self, *args, **kwargs)
        made.append(self)
        for name in ("memory.max", "memory.oom.group", "pids.max", "cgroup.procs"):
            (self / name).write_text("")

    monkeypatch.setattr(Path, "mkdir", mkdir_like_the_kernel)
    case = V2(tmp_path).new_case(SLOT, LIMITS)
    monkeypatch.undo()
    (path,) = made
    assert path.name.startswith("noj-u60100-")
    assert (path / "memory.max").read_text() == str(64 * MIB)
    assert (path / "pids.max").read_text() == "7"
    assert (path / "memory.oom.group").read_text() == "1"
    (path / "cpu.stat").write_text("usage_usec 1500\nuser_usec 1\n")
    (path / "memory.events").write_text("low 0\noom 2\noom_kill 1\n")
    assert case.cpu_ms() == 1.5
    assert case.oom_kills() == 1
    assert case.peak_bytes() == 0  # a kernel before 5.19
    (path / "memory.peak").write_text("4096\n")
    assert case.peak_bytes() == 4096
    assert len(case.procs_fds) == 1
    for file in path.iterdir():
        file.unlink()
    case.close()
    assert not path.exists()


def test_sweep_removes_only_our_slots_leftovers(tmp_path: Path) -> None:
    """A killed predecessor's cgroups go; those of another live agent's uid stay."""
    for name in ("noj-u60100-a1-1", "noj-u60100-b2-22", "noj-u60101-c3-1", "agent"):
        (tmp_path / name).mkdir()
    assert V2(tmp_path).sweep([SLOT]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["agent", "noj-u60101-c3-1"]


@pytest.mark.root
def test_two_agents_never_share_a_uid(tmp_path: Path) -> None:
    """A uid that somebody holds is skipped; it is free again when its holder has gone."""
    with reserve_slots(2, first_uid=60100, lock_dir=tmp_path) as first:
        with reserve_slots(1, first_uid=60100, lock_dir=tmp_path) as second:
            assert [slot.uid for slot in [*first, *second]] == [60100, 60101, 60102]
        with pytest.raises(ConfigError, match="free"), reserve_slots(900, lock_dir=tmp_path):
            pass
    with reserve_slots(1, first_uid=60100, lock_dir=tmp_path) as again:
        assert again[0].uid == 60100
