"""What the sandbox costs: one hello in C, bare and sandboxed, in turns in one run.

Prints medians in ms, the difference a case, and ratios. Run it as root: `nox -s bench`.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from noj_agent.judge.compile import compile_source, lay_out
from noj_agent.sandbox import Limits, open_engine, reserve_slots
from noj_agent.sandbox.base import MIB
from noj_shared.language import Language

ROUNDS = 300
JOBS = 30
HELLO = b'#include <stdio.h>\nint main(void) { puts("hello"); }\n'
LIMITS = Limits(cpu_ms=1000, wall_ms=3000, memory_bytes=64 * MIB)


def timed_ms(work: Callable[[], object]) -> float:
    """How long one call takes."""
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1000


def main() -> None:
    """Measure and print."""
    never = threading.Event()
    with (
        tempfile.TemporaryDirectory() as folder,
        reserve_slots(1) as slots,
        Path(os.devnull).open("rb") as nothing,
    ):
        engine, slot = open_engine(state_dir=Path(folder), allow_weak_limits=False), slots[0]
        files = compile_source(engine, slot, Language.C11, {"main.c": HELLO}, never).files
        program = Path(folder) / "hello"
        program.write_bytes(files["main"])
        program.chmod(0o755)

        def bare() -> None:
            subprocess.run([program], stdin=nothing, capture_output=True, check=True)

        with engine.open_job(slot) as sandbox:
            lay_out(sandbox, files, executable=True)

            def sandboxed() -> None:
                sandbox.run(
                    ["/w/main"], stdin_fd=nothing.fileno(), limits=LIMITS, cancel=never, slot=slot
                )

            pairs = [(timed_ms(bare), timed_ms(sandboxed)) for _ in range(ROUNDS)]

        def job() -> None:
            with engine.open_job(slot) as empty:
                lay_out(empty, files, executable=True)

        jobs = [timed_ms(job) for _ in range(JOBS)]
    bare_ms = statistics.median(pair[0] for pair in pairs)
    case_ms = statistics.median(pair[1] for pair in pairs)
    job_ms = statistics.median(jobs)
    print(f"bare program          {bare_ms:6.2f} ms")
    print(f"case in the sandbox   {case_ms:6.2f} ms   {case_ms / bare_ms:.2f} × bare")
    print(f"  beyond the bare one {case_ms - bare_ms:6.2f} ms")
    print(f"job sandbox, up+down  {job_ms:6.2f} ms   {job_ms / bare_ms:.2f} × bare")


if __name__ == "__main__":
    main()
