"""A real agent process with a judge that needs no sandbox: `noj_fake_agent.py URL STATE_DIR MODE`.

MODE is how it judges: `instant`, `blocking` (until it is cancelled) or `stubborn` (for a minute,
whatever is asked of it).
"""

from __future__ import annotations

import logging
import sys
import threading
from pathlib import Path

from noj_machine import FakeJudge, make_pool, make_settings

from noj_agent.api import ServerApi
from noj_agent.errors import JobCancelled
from noj_agent.retry import Outage
from noj_agent.session import Session
from noj_agent.state import locked, open_state
from noj_agent.worker import Agent
from noj_shared.wire import Job

LIMIT_S = 60.0


def block(_job: Job, cancel: threading.Event) -> None:
    """Judge until cancelled."""
    cancel.wait(LIMIT_S)
    raise JobCancelled("cancelled")


def ignore(_job: Job, _cancel: threading.Event) -> None:
    """Judge on, whatever comes."""
    threading.Event().wait(LIMIT_S)


def main(url: str, state_dir: Path, mode: str) -> int:
    """Run the agent; its exit status."""
    logging.basicConfig(level="INFO", format="%(threadName)s: %(message)s")
    settings = make_settings(state_dir, server_url=url)
    state = open_state(state_dir)
    judge = FakeJudge()
    if mode != "instant":
        judge.behave = block if mode == "blocking" else ignore
    api, heartbeat_api = ServerApi(url), ServerApi(url)
    with locked(state):
        return Agent(
            settings,
            state,
            session=Session(settings, state, api, Outage(), []),
            api=api,
            heartbeat_api=heartbeat_api,
            slots=make_pool(),
            judge=judge,
            self_test=lambda: None,
            facts={},
        ).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3]))
