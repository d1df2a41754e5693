"""Sandboxes: how strangers' programs are run on this host. See docs/sandbox.md.

`base` says what an engine offers, `bubblewrap` is the engine, `cgroup` limits and measures,
`uids` reserves a uid per slot, `init.c` runs inside. Other engines are further modules here.
"""

from __future__ import annotations

from noj_agent.sandbox.base import Engine, JobSandbox, Limits, Outcome, Slot, Stop
from noj_agent.sandbox.bubblewrap import open_bubblewrap as open_engine
from noj_agent.sandbox.uids import reserve_slots

__all__ = [
    "Engine",
    "JobSandbox",
    "Limits",
    "Outcome",
    "Slot",
    "Stop",
    "open_engine",
    "reserve_slots",
]
