"""Compile the sandbox's init once with this machine's gcc, into the state directory.

The binary's name carries a digest of its source, so a new version never runs an old init.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from importlib import resources
from pathlib import Path

from noj_agent.errors import ConfigError

_TIMEOUT_S = 120


def build_init(directory: Path) -> Path:
    """The path of a compiled init (made if it is not there). Raises ConfigError."""
    source = (resources.files("noj_agent") / "sandbox" / "init.c").read_bytes()
    target = directory / f"init-{hashlib.sha256(source).hexdigest()[:16]}"
    if target.is_file():
        return target
    compiler = shutil.which("gcc")
    if compiler is None:
        raise ConfigError(
            "gcc is missing: the sandbox's init cannot be compiled; apt-get install gcc libc6-dev"
        )
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    unfinished = directory / f".{target.name}.{os.getpid()}"
    built = subprocess.run(
        [compiler, "-std=gnu11", "-O2", "-static", "-x", "c", "-o", str(unfinished), "-"],
        input=source,
        capture_output=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    if built.returncode != 0:
        raise ConfigError(
            f"{compiler} cannot compile the sandbox's init (is libc6-dev installed?):"
            f" {built.stderr.decode(errors='replace')[-500:]}"
        )
    unfinished.chmod(0o700)
    unfinished.rename(target)
    return target
