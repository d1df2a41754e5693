"""Compile a submission in a sandbox of its own; how each language is compiled and run.

The artefact leaves that sandbox through the capped stdout pipe, never through a shared directory:
there is no path, link or special file that hostile input could plant for the agent to open.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from noj_agent.errors import SandboxError
from noj_agent.judge.verdict import explain
from noj_agent.sandbox.base import MIB, Engine, JobSandbox, Limits, Outcome, Slot
from noj_agent.sandbox.bubblewrap import sealed_copy
from noj_shared.language import Language
from noj_shared.verdict import Verdict
from noj_shared.wire import COMPILE_OUTPUT_LIMIT_BYTES, CompileResult

COMPILE_LIMITS = Limits(
    cpu_ms=20_000,
    wall_ms=41_000,
    memory_bytes=1024 * MIB,
    pids=64,
    stdout_bytes=64 * MIB,
    stderr_bytes=1 * MIB,
    file_bytes=64 * MIB,
    tmp_bytes=512 * MIB,
    tmp_inodes=16_384,
)

_PYTHON = "/usr/bin/python3"
_BYTE_COMPILE = """
import glob, sys
for name in sorted(glob.glob("**/*.py", recursive=True)):
    try:
        with open(name, "rb") as source:
            compile(source.read(), name, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as error:
        import traceback
        traceback.print_exception(error, limit=0)
        sys.exit(1)
"""


@dataclass(frozen=True)
class Toolchain:
    """How one language becomes a running program."""

    program: str
    """What must exist on the host."""
    version: tuple[str, ...]
    compile: tuple[str, ...]
    run: tuple[str, ...]
    makes_binary: bool


def _to_binary(compiler: str) -> tuple[str, ...]:
    # "./" keeps a file called "-x.c" from being an option.
    return ("/bin/sh", "-c", f"cd /w && {compiler} >&2 && exec cat /box/main")


TOOLCHAINS: Mapping[int, Toolchain] = {
    Language.C11: Toolchain(
        program="/usr/bin/gcc",
        version=("/usr/bin/gcc", "-dumpfullversion"),
        compile=_to_binary("gcc -std=c11 -O2 -DONLINE_JUDGE -o /box/main ./*.c -lm"),
        run=("/w/main",),
        makes_binary=True,
    ),
    Language.CPP17: Toolchain(
        program="/usr/bin/g++",
        version=("/usr/bin/g++", "-dumpfullversion"),
        compile=_to_binary("g++ -std=c++17 -O2 -DONLINE_JUDGE -o /box/main ./*.cpp"),
        run=("/w/main",),
        makes_binary=True,
    ),
    Language.PYTHON3: Toolchain(
        program=_PYTHON,
        version=(_PYTHON, "-c", "import platform; print(platform.python_version())"),
        compile=("/bin/sh", "-c", f"cd /w && exec {_PYTHON} -I -B -c '{_BYTE_COMPILE}'"),
        run=(_PYTHON, "-B", "/w/main.py"),
        makes_binary=False,
    ),
}


@dataclass(frozen=True)
class Compiled:
    """How compiling went, and the files (path in /w → bytes) to run if it went well."""

    result: CompileResult
    files: Mapping[str, bytes]


def lay_out(sandbox: JobSandbox, files: Mapping[str, bytes], *, executable: bool = False) -> None:
    """Put files into a sandbox's /w."""
    for path, content in files.items():
        with sealed_copy(content) as fd:
            sandbox.put(path, fd, executable=executable)


def compile_source(
    engine: Engine,
    slot: Slot,
    language: int,
    sources: Mapping[str, bytes],
    cancel: threading.Event,
) -> Compiled:
    """Compile `sources` (path → bytes). Raises SandboxError when this host lacks the language."""
    toolchain = TOOLCHAINS.get(language)
    if toolchain is None or not Path(toolchain.program).exists():
        raise SandboxError(f"language {language} cannot be judged on this machine")
    with engine.open_job(slot) as sandbox, Path(os.devnull).open("rb") as nothing:
        lay_out(sandbox, sources)
        seen = sandbox.run(
            toolchain.compile,
            stdin_fd=nothing.fileno(),
            limits=COMPILE_LIMITS,
            cancel=cancel,
            slot=slot,
        )
    good = seen.exit_code == 0 and not seen.oom_killed and seen.stop is None
    if good and toolchain.makes_binary and not seen.stdout:
        raise SandboxError("the compiler ended well but left no program")
    result = CompileResult(
        status=Verdict.AC if good else Verdict.CE,
        exitCode=seen.exit_code if seen.exit_code is not None else -1,
        execTime=round(seen.cpu_ms),
        output=report_text(seen.stderr, COMPILE_OUTPUT_LIMIT_BYTES),
        detail=None if good else _why(seen),
    )
    files = {"main": seen.stdout} if good and toolchain.makes_binary else sources
    return Compiled(result, files)


def _why(seen: Outcome) -> str | None:
    if seen.oom_killed:
        return f"the compiler needed more than {COMPILE_LIMITS.memory_bytes // MIB} MiB"
    if seen.stop is not None:
        return f"the compiler was stopped: {seen.stop.value}"
    return explain(seen, COMPILE_LIMITS) if seen.exit_code != 1 else None


def report_text(content: bytes, limit_bytes: int) -> str:
    """Bytes of a program as text for the report: cut, and what is no UTF-8 replaced."""
    return content[:limit_bytes].decode("utf-8", "replace")
