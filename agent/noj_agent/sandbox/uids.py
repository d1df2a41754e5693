"""Reserve a uid per slot, so that two agents on one machine never share one.

A uid is ours while we hold the lock on its file; the kernel drops it when we die, however.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from noj_agent.errors import ConfigError
from noj_agent.sandbox.base import Slot

DEFAULT_FIRST_UID = 60100
DEFAULT_LOCK_DIR = Path("/run/noj-agent")
_SEARCHED = 800


@contextmanager
def reserve_slots(
    count: int, *, first_uid: int = DEFAULT_FIRST_UID, lock_dir: Path = DEFAULT_LOCK_DIR
) -> Iterator[list[Slot]]:
    """Slots with uids of their own (gid = uid); not root: all carry the agent's own.

    Raises ConfigError when the range holds too few free uids or the locks cannot be made.
    """
    if os.geteuid() != 0:
        yield [Slot(index, os.getuid(), os.getgid()) for index in range(count)]
        return
    with ExitStack() as stack:
        slots: list[Slot] = []
        try:
            lock_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            for uid in range(first_uid, first_uid + _SEARCHED):
                if len(slots) == count:
                    break
                if _lock(stack, lock_dir / f"uid-{uid}.lock"):
                    slots.append(Slot(len(slots), uid, uid))
        except OSError as error:
            raise ConfigError(f"cannot reserve uids in {lock_dir}: {error}") from error
        if len(slots) < count:
            raise ConfigError(
                f"only {len(slots)} of {count} uids from {first_uid} up are free;"
                " lower the number of slots or set another first uid"
            )
        yield slots


def _lock(stack: ExitStack, path: Path) -> bool:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return False
    stack.callback(os.close, fd)
    return True
