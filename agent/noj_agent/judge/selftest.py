"""Judge known programs in the real sandbox: which languages work on this host, and do they."""

from __future__ import annotations

import logging
import subprocess
import threading
from pathlib import Path

from noj_agent.errors import SandboxError
from noj_agent.judge.compile import TOOLCHAINS, compile_source, lay_out
from noj_agent.judge.verdict import decide
from noj_agent.sandbox.base import MIB, Engine, Limits, Slot
from noj_agent.sandbox.bubblewrap import sealed_copy
from noj_shared.language import Language
from noj_shared.verdict import Verdict
from noj_shared.wire import LanguageInfo

log = logging.getLogger(__name__)

_LIMITS = Limits(cpu_ms=10_000, wall_ms=21_000, memory_bytes=256 * MIB)
_WORD = b"dispatch\n"
_ECHO = {
    Language.C11: b"#include <stdio.h>\nint main(void)"
    b'{ char s[64]; return scanf("%63s", s) == 1 ? puts(s) < 0 : 1; }\n',
    Language.CPP17: b"#include <iostream>\nint main()"
    b"{ std::string s; std::cin >> s; std::cout << s << std::endl; }\n",
    Language.PYTHON3: b"print(input())\n",
}


def self_test(engine: Engine, slot: Slot) -> list[LanguageInfo]:
    """Run an echo program in each language; those that work, with their versions.

    A language whose compiler is not installed is left out. Raises SandboxError when no language is
    left, or when an installed one gives anything but AC: then this host must not judge.
    """
    working = []
    for language, source in _ECHO.items():
        toolchain = TOOLCHAINS[language]
        if not Path(toolchain.program).exists():
            log.warning("%s is not judged here: %s is missing", language.title, toolchain.program)
            continue
        _echo(engine, slot, language, source)
        working.append(LanguageInfo(language=language, version=_version(toolchain.version)))
    if not working:
        raise SandboxError("no compiler or interpreter is installed: apt-get install gcc g++")
    return working


def _echo(engine: Engine, slot: Slot, language: Language, source: bytes) -> None:
    never = threading.Event()
    compiled = compile_source(engine, slot, language, {language.source_name: source}, never)
    if compiled.result.status is not Verdict.AC:
        raise SandboxError(
            f"self-test: {language.title} does not compile:"
            f" {compiled.result.detail or compiled.result.output[:300]}"
        )
    toolchain = TOOLCHAINS[language]
    with engine.open_job(slot) as sandbox, sealed_copy(_WORD) as stdin_fd:
        lay_out(sandbox, compiled.files, executable=toolchain.makes_binary)
        seen = sandbox.run(
            toolchain.run, stdin_fd=stdin_fd, limits=_LIMITS, cancel=never, slot=slot
        )
    verdict = decide(seen, limits=_LIMITS, accepted=lambda: seen.stdout == _WORD)
    if verdict is not Verdict.AC:
        raise SandboxError(
            f"self-test: a right {language.title} program gets {verdict.name}"
            f" ({seen.stderr[:300].decode(errors='replace').strip() or seen})"
        )


def _version(command: tuple[str, ...]) -> str:
    shown = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return shown.stdout.strip()[:200]
