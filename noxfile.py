"""Every check and the demo, for CI and for people: `python3 noxfile.py` runs them all.

Started by a plain Python that has no nox, this file first makes itself an environment in
`.noxenv/` (nox and uv) and goes on in it. Debian packages that a session needs are installed when
they are missing, after saying so.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
NOXENV = ROOT / ".noxenv"
TOOLS = ("nox>=2025.2", "uv>=0.5")
NO_CACHE = ("-p", "no:cacheprovider")  # root's files do not belong in the user's clone
READY = NOXENV / "ready"

SANDBOX_PACKAGES = {
    "bwrap": "bubblewrap",
    "setpriv": "util-linux",
    "gcc": "gcc libc6-dev",
    "g++": "g++",
}
TEST_PACKAGES = {**SANDBOX_PACKAGES, "redis-server": "redis-server"}


# -- running without nox ----------------------------------------------------------------------


def fail(message: str) -> None:
    """End with a message for people."""
    sys.exit(f"noxfile.py: {message}")


def install_debian(packages: list[str]) -> None:
    """apt-get install, as root or through sudo; says what it does, or what a person must do."""
    wanted = " ".join(packages)
    if shutil.which("apt-get") is None:
        fail(f"please install (this is no Debian): {wanted}")
    prefix: list[str] = []
    if os.geteuid() != 0:
        if shutil.which("sudo") is None:
            fail(f"please run as root, once: apt-get install {wanted}")
        prefix = ["sudo", "--"]
    print(f"noxfile.py: installing Debian packages: {wanted}", flush=True)
    # Starting the packages' services is none of our business: tests start their own redis-server.
    quiet = ["env", "DEBIAN_FRONTEND=noninteractive", "RUNLEVEL=1"]
    for arguments in (
        ["update", "-qq"],
        ["install", "-y", "-qq", "--no-install-recommends", *packages],
    ):
        done = subprocess.run(
            [*prefix, *quiet, "apt-get", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            print("\n".join(done.stdout.splitlines()[-15:]), flush=True)
            fail(f"apt-get {arguments[0]} failed; please install by hand: {wanted}")


def make_noxenv() -> Path:
    """The Python of an environment that has nox and uv; made anew if it was left unfinished."""
    python = NOXENV / "bin" / "python"
    if READY.exists() and READY.read_text() == " ".join(TOOLS) and python.exists():
        return python
    print(f"noxfile.py: making an environment for nox in {NOXENV}", flush=True)
    shutil.rmtree(NOXENV, ignore_errors=True)
    if importlib.util.find_spec("ensurepip") is None:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        install_debian(["python3-venv", f"python{version}-venv"])
    made = subprocess.run([sys.executable, "-m", "venv", str(NOXENV)], check=False)
    if made.returncode != 0:
        fail(f"{sys.executable} -m venv failed; on Debian: apt-get install python3-venv")
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if subprocess.run([*pip, *TOOLS], check=False).returncode != 0:
        fail("cannot install nox and uv from PyPI; is there a network, a proxy to set?")
    READY.write_text(" ".join(TOOLS))
    return python


if __name__ == "__main__" and importlib.util.find_spec("nox") is None:
    if sys.version_info < (3, 11):  # noqa: UP036  # the only place an older Python may reach
        fail(f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}")
    os.environ["PATH"] = f"{NOXENV / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
    interpreter = str(make_noxenv())
    os.execv(interpreter, [interpreter, str(Path(__file__).resolve()), *sys.argv[1:]])

import nox  # noqa: E402  # only now is it sure to be there

nox.options.default_venv_backend = "uv"
nox.options.sessions = [
    *("lint", "types", "unit", "integration", "e2e", "isolation", "demo"),
]
nox.options.error_on_external_run = True
nox.options.reuse_venv = "yes"


# -- sessions ---------------------------------------------------------------------------------


def need_programs(packages: dict[str, str]) -> None:
    """Install the Debian packages of programs that are not there."""
    missing = [package for program, package in packages.items() if shutil.which(program) is None]
    if missing:
        install_debian(" ".join(missing).split())


def sync(session: nox.Session, group: str) -> None:
    """The workspace and one dependency group, exactly as uv.lock has them."""
    session.run_install(
        *("uv", "sync", "--locked", "--quiet", "--all-packages", "--no-default-groups"),
        *("--group", group, "--python", session.virtualenv.location),
        env={"UV_PROJECT_ENVIRONMENT": session.virtualenv.location},
        external=True,
    )


def run_as_root(session: nox.Session, program: str, *arguments: str) -> None:
    """Run a program of the session's environment as root or through sudo. Where there is neither
    it runs all the same: tests that need root are skipped, and say so; the demo says what it needs.
    """
    command = [str(Path(session.bin) / program), *arguments]
    if os.geteuid() != 0:
        sudo = shutil.which("sudo")
        if sudo is not None and subprocess.run([sudo, "-v"], check=False).returncode == 0:
            # sudo resets the environment; root's files must not stay in the user's folders.
            kept = [f"{name}={os.environ[name]}" for name in ("CI", "TERM") if name in os.environ]
            clean = ["PYTHONDONTWRITEBYTECODE=1", "HYPOTHESIS_STORAGE_DIRECTORY=/tmp/.hypothesis"]
            command = [sudo, "--", "env", *clean, *kept, *command]
        else:
            session.warn("neither root nor sudo: what needs root will say so")
    session.run(*command, external=True)


@nox.session
def lint(session: nox.Session) -> None:
    """ruff, its formatter, and who may import whom."""
    sync(session, "lint")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    """mypy, strict."""
    sync(session, "types")
    session.run("mypy")


@nox.session
def unit(session: nox.Session) -> None:
    """Tests of single parts; no process, no Redis but the embedded one."""
    sync(session, "test")
    session.run("pytest", "tests/unit", *session.posargs)


@nox.session
def integration(session: nox.Session) -> None:
    """A real redis-server, real sandboxes, real client against real app."""
    need_programs(TEST_PACKAGES)
    sync(session, "test")
    run_as_root(
        session, "pytest", *NO_CACHE, "tests/integration", "tests/contract", *session.posargs
    )


@nox.session
def e2e(session: nox.Session) -> None:
    """Real processes, killed for real."""
    need_programs(TEST_PACKAGES)
    sync(session, "test")
    run_as_root(session, "pytest", *NO_CACHE, "tests/e2e", *session.posargs)


AGENT_MUST_LACK = ("flask", "redis", "fakeredis", "gunicorn", "noj_server")
SERVER_MUST_LACK = ("noj_agent",)
ABSENT = """
import importlib.util, sys
found = [name for name in sys.argv[1:] if importlib.util.find_spec(name) is not None]
sys.exit(f"must not be installed here: {found}" if found else 0)
"""
PRESENT = """
import importlib.util, sys
from importlib.resources import files
missing = [name for name in sys.argv[1:] if not files(name.split("/")[0]).joinpath(
    *name.split("/")[1:]).is_file()]
sys.exit(f"missing in the wheel: {missing}" if missing else 0)
"""


@nox.session(reuse_venv=False)
def isolation(session: nox.Session) -> None:
    """An agent-only install carries nothing of the server, and the other way round; wheels carry
    their data files. Installed from the folders, as `pip install ./shared ./agent` does."""
    session.install("./shared", "./agent")
    session.run("python", "-c", ABSENT, *AGENT_MUST_LACK)
    session.run(
        *("python", "-c", PRESENT),
        *("noj_agent/sandbox/init.c", "noj_agent/py.typed", "noj_shared/py.typed"),
    )
    session.run("noj-agent", "--help", silent=True)
    session.run("uv", "pip", "uninstall", "--quiet", "noj-agent", external=True)
    for name in ("httpx", "typer"):  # the server brings its own
        session.run("uv", "pip", "uninstall", "--quiet", name, external=True)
    session.install("./shared", "./server")
    session.run("python", "-c", ABSENT, *SERVER_MUST_LACK)
    session.run(
        *("python", "-c", PRESENT),
        *("noj_server/lua/claim.lua", "noj_server/golden/golden.toml", "noj_server/py.typed"),
    )
    session.run("noj-server", "--help", silent=True)
    session.install("./shared", "./server", "./agent")
    session.run("noj-agent", "--help", silent=True)


@nox.session
def demo(session: nox.Session) -> None:
    """The whole path in one command; `-- --keep` leaves it running."""
    need_programs(SANDBOX_PACKAGES)
    sync(session, "demo")
    run_as_root(session, "noj-server", "demo", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Benchmarks, each beside its baseline, as ratios. Not part of CI."""
    need_programs(TEST_PACKAGES)
    sync(session, "test")
    for script in sorted((ROOT / "tests" / "bench").glob("bench_*.py")):
        session.run("python", str(script), *session.posargs)


if __name__ == "__main__":
    nox.main()
