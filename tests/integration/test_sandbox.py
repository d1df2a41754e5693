"""Hostile programs in the real sandbox: each gets its verdict, and nothing of it stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from noj_testing import cgroups_of, processes_of, wait_until

from noj_agent.errors import JobCancelled
from noj_agent.judge.compile import TOOLCHAINS, compile_source, lay_out
from noj_agent.judge.verdict import decide
from noj_agent.sandbox import Engine, Limits, Outcome, Slot, open_engine, reserve_slots
from noj_agent.sandbox.base import MIB
from noj_agent.sandbox.bubblewrap import sealed_copy
from noj_shared.language import Language
from noj_shared.verdict import Verdict

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]

LIMITS = Limits(cpu_ms=500, wall_ms=1500, memory_bytes=64 * MIB, pids=16, stdout_bytes=16 * MIB)
C, CPP, PY = Language.C11, Language.CPP17, Language.PYTHON3
HEAD = """
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
"""


@dataclass(frozen=True)
class Host:
    """An engine and two slots, shared by the tests of this module."""

    engine: Engine
    slots: list[Slot]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """The real engine, with uids that no agent on this machine has."""
    with reserve_slots(2) as slots:
        engine = open_engine(state_dir=tmp_path_factory.mktemp("state"), allow_weak_limits=False)
        engine.sweep_leftovers(slots)  # of an agent that was killed here, as every agent does
        yield Host(engine, slots)


def run(
    host: Host,
    language: Language,
    source: str,
    *,
    limits: Limits = LIMITS,
    stdin: bytes = b"hello\n",
    argv: tuple[str, ...] = (),
) -> Outcome:
    """Compile and run one program."""
    slot = host.slots[0]
    never = threading.Event()
    code = source if language is PY else HEAD + source
    compiled = compile_source(
        host.engine, slot, language, {language.source_name: code.encode()}, never
    )
    assert compiled.result.status is Verdict.AC, compiled.result.output
    toolchain = TOOLCHAINS[language]
    with host.engine.open_job(slot) as sandbox, sealed_copy(stdin) as stdin_fd:
        lay_out(sandbox, compiled.files, executable=toolchain.makes_binary)
        return sandbox.run(
            [*toolchain.run, *argv], stdin_fd=stdin_fd, limits=limits, cancel=never, slot=slot
        )


def verdict(seen: Outcome, limits: Limits = LIMITS) -> Verdict:
    """What it would be judged, if its output were right."""
    return decide(seen, limits=limits, accepted=lambda: True)


@pytest.fixture(autouse=True)
def nothing_stays_behind(host: Host) -> Iterator[None]:
    """After each test: no process, mount or cgroup; and a right program is still AC."""
    uids = {slot.uid for slot in host.slots}
    mounts = Path("/proc/mounts").read_text()
    yield
    wait_until(lambda: not processes_of(uids), what="no process is left", timeout_s=5)
    assert cgroups_of(uids) == []
    assert Path("/proc/mounts").read_text() == mounts
    seen = run(host, C, 'int main(void) { char s[9]; scanf("%8s", s); puts(s); }')
    assert (verdict(seen), seen.stdout) == (Verdict.AC, b"hello\n")


ANY_LIMIT = {Verdict.TLE, Verdict.RE, Verdict.MLE}
ENDS = {
    "fork bomb": (C, "int main(void) { for (;;) fork(); }", ANY_LIMIT),
    "setsid storm": (C, "int main(void) { for (;;) if (fork() == 0) setsid(); }", ANY_LIMIT),
    "thread storm": (
        C,
        "void *f(void *x) { pause(); return x; } int main(void) { pthread_t t; int n = 0;"
        " while (pthread_create(&t, 0, f, 0) == 0) n++; return n >= 16; }",
        {Verdict.AC},
    ),
    "heap bomb": (
        C,
        "int main(void) { for (;;) { char *p = malloc(1 << 20); if (p) memset(p, 1, 1 << 20); } }",
        {Verdict.MLE},
    ),
    "child out of memory, parent exits 0": (
        C,
        "int main(void) { if (fork() == 0) for (;;) memset(malloc(1 << 20), 1, 1 << 20);"
        ' wait(0); puts("right"); return 0; }',
        {Verdict.MLE},
    ),
    "child out of memory, parent pauses": (
        C,
        "int main(void) { if (fork() == 0) for (;;) memset(malloc(1 << 20), 1, 1 << 20);"
        " for (;;) pause(); }",
        {Verdict.MLE},
    ),
    "memfd bomb": (
        C,
        "int main(void) { static char b[1 << 20]; memset(b, 1, sizeof b);"
        ' int fd = memfd_create("x", 0), g = 0; for (;;) { if (write(fd, b, sizeof b) < 0)'
        ' fd = memfd_create("y", 0); g++; } }',
        {Verdict.MLE},
    ),
    "tmpfs bomb": (
        PY,
        "import os\nn = 0\nwhile True:\n    for d in ('/tmp', '/box', '/dev/shm'):\n"
        "        with open(f'{d}/f{n}', 'wb') as f:\n            f.write(b'x' * (4 << 20))\n"
        "    n += 1\n",
        {Verdict.MLE},
    ),
    "inode bomb": (
        PY,
        "try:\n    for n in range(10**6):\n        open(f'/tmp/{n}', 'w').close()\n"
        "except OSError as e:\n    print(n < 5000)\n",
        {Verdict.AC},
    ),
    "CPU split over children": (
        C,
        "int main(void) { for (int i = 0; i < 4; i++) if (fork() == 0) for (;;);"
        " for (;;) pause(); }",
        {Verdict.TLE},
    ),
    "stdout flood": (C, 'int main(void) { for (;;) puts("xxxxxxxxxxxxxxxx"); }', {Verdict.OLE}),
    "right answer, then a flood": (
        PY,
        "import sys\nprint('right')\nwhile True: sys.stdout.write('x' * 65536)\n",
        {Verdict.OLE},
    ),
    "stderr flood": (C, 'int main(void) { for (;;) fputs("xxxxxxxx", stderr); }', {Verdict.TLE}),
    "huge file": (
        C,
        'int main(void) { int fd = open("/tmp/f", O_CREAT | O_WRONLY, 0600);'
        ' lseek(fd, 2000000000, SEEK_SET); write(fd, "x", 1); return 0; }',
        {Verdict.OLE},
    ),
    "spin": (C, "int main(void) { for (;;); }", {Verdict.TLE}),
    "sleep": (PY, "import time\ntime.sleep(100)\n", {Verdict.TLE}),
    "stops itself": (C, "int main(void) { raise(SIGSTOP); }", {Verdict.TLE}),
    "abort": (C, "int main(void) { abort(); }", {Verdict.RE}),
    "exit 139": (C, "int main(void) { return 139; }", {Verdict.RE}),
    "recursion in Python": (PY, "def f(): f()\nf()\n", {Verdict.RE}),
    "64 GB static array": (
        C,
        "static volatile char a[64L << 30]; int main(void)"
        " { for (long i = 0; i < 64L << 30; i += 4096) a[i] = 1; }",
        {Verdict.RE, Verdict.MLE},
    ),
    "4 GB static array, untouched": (
        C,
        "static char a[4L << 30]; int main(void) { return a[0]; }",
        {Verdict.AC},
    ),
    "one refused allocation": (PY, "x = [0] * (1 << 34)\n", {Verdict.RE, Verdict.MLE}),
    "SysV shared memory bomb": (
        C,
        "#include <sys/shm.h>\nint main(void) { for (int i = 0; i < 64; i++) {"
        " char *p = shmat(shmget(IPC_PRIVATE, 16 << 20, IPC_CREAT | 0600), 0, 0);"
        " if (p != (char *)-1) memset(p, 1, 16 << 20); } return 0; }",
        {Verdict.MLE},
    ),
    "pipe bomb": (
        C,
        "int main(void) { static char b[65536]; int p[2]; while (pipe2(p, O_NONBLOCK) == 0)"
        " { fcntl(p[1], F_SETPIPE_SZ, 1 << 20); while (write(p[1], b, sizeof b) > 0); }"
        " for (;;) pause(); }",
        {Verdict.MLE, Verdict.TLE},
    ),
    "grandchild burns after its parent": (
        C,
        "int main(void) { if (fork() == 0) { setsid(); if (fork() == 0) for (;;); _exit(0); }"
        " wait(0); for (;;) pause(); }",
        {Verdict.TLE},
    ),
    "vfork that never returns": (
        C,
        "int main(void) { if (vfork() == 0) for (;;) pause(); return 0; }",
        {Verdict.TLE},
    ),
    "executes itself": (
        C,
        'int main(int n, char **v) { execv("/proc/self/exe", v); return n; }',
        {Verdict.TLE},
    ),
    "ignores every signal": (
        C,
        "int main(void) { for (int i = 1; i < 65; i++) signal(i, SIG_IGN); for (;;); }",
        {Verdict.TLE},
    ),
    "child outlives main": (
        C,
        'int main(void) { if (fork() == 0) { setsid(); for (;;) pause(); } puts("right"); }',
        {Verdict.AC},
    ),
}


@pytest.mark.parametrize("name", ENDS)
def test_how_it_ends(host: Host, name: str) -> None:
    """The verdict of a program that eats, floods, sleeps or dies."""
    language, source, allowed = ENDS[name]
    limits = LIMITS
    if "memory" in name or "bomb" in name:
        limits = Limits(cpu_ms=3000, wall_ms=7000, memory_bytes=64 * MIB, pids=16)
    seen = run(host, language, source, limits=limits)
    assert verdict(seen, limits) in allowed, seen


REFUSED = {
    "kill(1)": "kill(1, 9); kill(1, 19); return 0;",
    "kill(-1)": "return kill(-1, 9) == 0;",
    "ptrace of init": "return ptrace(PTRACE_ATTACH, 1, 0, 0) == 0;",
    "memory of init": 'return open("/proc/1/mem", O_RDWR) >= 0;',
    "environment of init": 'return open("/proc/1/environ", O_RDONLY) >= 0;',
    "unknown processes": "int n = 0; for (int p = 3; p < 30000; p++) n += kill(p, 0) == 0;"
    " return n;",
    "write to the input": 'int fd = open("/proc/self/fd/0", O_RDWR);'
    ' return fd >= 0 && write(fd, "x", 1) > 0;',
    "/etc/shadow": 'return open("/etc/shadow", O_RDONLY) >= 0;',
    "/etc/passwd": 'return open("/etc/passwd", O_RDONLY) >= 0;',
    "/root": 'return open("/root", O_RDONLY) >= 0;',
    "the agent's state": 'return open("/var/lib/noj-agent", O_RDONLY) >= 0;',
    "write to /w": 'return open("/w/x", O_CREAT | O_WRONLY, 0600) >= 0;',
    "write to /": 'return open("/x", O_CREAT | O_WRONLY, 0600) >= 0;',
    "write to /usr": 'return open("/usr/bin/x", O_CREAT | O_WRONLY, 0600) >= 0;',
    "write to /dev": 'return open("/dev/x", O_CREAT | O_WRONLY, 0600) >= 0;',
    "kernel settings": 'return open("/proc/sys/kernel/core_pattern", O_WRONLY) >= 0;',
    "inet socket": "return socket(AF_INET, SOCK_STREAM, 0) >= 0;",
    "netlink socket": "return socket(AF_NETLINK, SOCK_RAW, 0) >= 0;",
    "new user namespace": "return unshare(CLONE_NEWUSER) == 0;",
    "clone into a user namespace": "return syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0) >= 0;",
    "clone3": "struct clone_args a = {.flags = CLONE_NEWUSER, .exit_signal = SIGCHLD};"
    " return syscall(SYS_clone3, &a, sizeof a) >= 0;",
    "mount": 'return mount("t", "/tmp", "tmpfs", 0, 0) == 0;',
    "umount": 'return umount("/proc") == 0;',
    "chroot": 'return chroot("/tmp") == 0;',
    "keyring": 'return syscall(SYS_add_key, "user", "a", "b", 1, -3) >= 0;',
    "io_uring": "char p[256] = {0}; return syscall(SYS_io_uring_setup, 1, p) >= 0;",
    "bpf": "char p[256] = {0}; return syscall(SYS_bpf, 0, p, 120) >= 0;",
    "terminal injection": 'return ioctl(0, 0x5412, "x") == 0 || errno != EPERM;',
    "terminal injection, high bits": "return syscall(SYS_ioctl, 0, 0x100005412UL, 0) == 0"
    " || errno != EPERM;",
    "the clock": "struct timespec t = {0}; return clock_settime(CLOCK_REALTIME, &t) == 0;",
    "higher priority": "return nice(-5) != -1;",
    "more memory for the stack": "struct rlimit l = {RLIM_INFINITY, RLIM_INFINITY};"
    " return setrlimit(RLIMIT_CPU, &l) == 0;",
    "setuid": "return setuid(0) == 0;",
    "reboot": "return syscall(SYS_reboot, 0xfee1dead, 672274793, 0x1234567, 0) == 0;",
    "other socket families": "int f[] = {16, 17, 38, 40}; for (int i = 0; i < 4; i++)"
    " if (socket(f[i], SOCK_RAW, 0) >= 0) return 1; return 0;",
    "userfaultfd": "return syscall(SYS_userfaultfd, 0) >= 0 || syscall(SYS_userfaultfd, 1) >= 0;",
    "performance counters": "unsigned p[32] = {0, 128};"
    " return syscall(SYS_perf_event_open, p, 0, -1, -1, 0) >= 0;",
    "memory of init by system call": "char b[8]; struct { void *at; size_t n; } l = {b, 8},"
    " r = {(void *)0x400000, 8}; return syscall(SYS_process_vm_readv, 1, &l, 1, &r, 1, 0) >= 0;",
    "descriptors of init": "char p[64]; for (int i = 0; i < 64; i++) {"
    ' sprintf(p, "/proc/1/fd/%d", i); if (open(p, O_RDONLY) >= 0) return 1; }'
    " int f = syscall(SYS_pidfd_open, 1, 0);"
    " return f >= 0 && syscall(SYS_pidfd_getfd, f, 0, 0) >= 0;",
    "namespaces of init": 'return open("/proc/1/ns/net", O_RDONLY) >= 0;',
    "another namespace": "return unshare(CLONE_NEWNS) == 0 || unshare(CLONE_NEWPID) == 0"
    " || unshare(CLONE_NEWNET) == 0 || unshare(CLONE_NEWIPC) == 0;",
    "not the first to be killed for memory": 'int f = open("/proc/self/oom_score_adj", O_WRONLY);'
    ' return f >= 0 && write(f, "-500", 4) > 0;',
    "core dumps": "struct rlimit l; getrlimit(RLIMIT_CORE, &l); return l.rlim_max != 0;",
    "foreign descriptors": "for (int i = 3; i < 1024; i++) if (fcntl(i, F_GETFD) >= 0) return 1;"
    " return 0;",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(host: Host, name: str) -> None:
    """INV8 and more: each attempt fails, and the program lives on to say so."""
    seen = run(host, C, f"int main(void) {{ {REFUSED[name]} }}")
    assert seen.exit_code == 0, seen


@pytest.mark.parametrize(
    "call",
    [
        '__asm__ volatile("int $0x80" : "=a"(r) : "a"(20) : "memory");',
        "r = syscall(0x40000000 | SYS_getpid);",
    ],
    ids=["32 bit", "x32"],
)
def test_the_filter_knows_one_abi(host: Host, call: str) -> None:
    """Another ABI numbers system calls otherwise, past the filter: the program is killed."""
    seen = run(host, C, f"int main(void) {{ long r; {call} return r > 0; }}")
    assert seen.signal == signal.SIGSYS, seen


def test_std_streams_may_be_opened_by_name(host: Host) -> None:
    """/dev/stdin and /dev/stdout work, as programs of contestants expect."""
    seen = run(host, PY, "open('/dev/stdout', 'w').write(open('/dev/stdin').read())\n")
    assert (verdict(seen), seen.stdout) == (Verdict.AC, b"hello\n")


def test_inv8_no_answer_is_in_sight(host: Host, tmp_path: Path) -> None:
    """INV8: a walk over everything readable finds no word of a secret kept on the host."""
    (tmp_path / "0000.out").write_text("the-secret-answer")
    source = (
        "import os\n"
        "for base, folders, files in os.walk('/'):\n"
        "    if base == '/': folders[:] = set(folders) - {'proc', 'usr', 'dev'}\n"
        "    for f in files:\n"
        "        try: data = open(os.path.join(base, f), 'rb').read(1 << 20)\n"
        "        except OSError: continue\n"
        "        if b'the-secret' + b'-answer' in data: print(base, f)\n"
        "print(os.path.exists(" + repr(str(tmp_path)) + "))\n"
    )
    seen = run(host, PY, source)
    assert seen.stdout == b"False\n", seen


def test_no_state_goes_from_case_to_case(host: Host) -> None:
    """Files, shared memory and SysV objects of one case are not there in the next."""
    source = (
        "#include <sys/ipc.h>\n#include <sys/shm.h>\n"
        "int main(void) { int old = shmget(7, 4096, 0) >= 0;"
        ' const char *names[] = {"/tmp/f", "/box/f", "/dev/shm/f"};'
        " for (int i = 0; i < 3; i++) { if (access(names[i], F_OK) == 0) old++;"
        " close(open(names[i], O_CREAT | O_WRONLY, 0600)); }"
        " shmget(7, 4096, IPC_CREAT | 0600); return old; }"
    )
    slot, never = host.slots[0], threading.Event()
    compiled = compile_source(host.engine, slot, C, {"main.c": (HEAD + source).encode()}, never)
    with host.engine.open_job(slot) as sandbox, Path(os.devnull).open("rb") as nothing:
        lay_out(sandbox, compiled.files, executable=True)
        for _ in range(3):
            seen = sandbox.run(
                ["/w/main"], stdin_fd=nothing.fileno(), limits=LIMITS, cancel=never, slot=slot
            )
            assert seen.exit_code == 0, seen


def test_exit_139_is_not_a_segmentation_fault(host: Host) -> None:
    """Exit code and signal come out apart."""
    assert run(host, C, "int main(void) { return 139; }").exit_code == 139
    assert run(host, C, "int main(void) { raise(SIGSEGV); }").signal == signal.SIGSEGV


COMPILE_BOMBS = {
    "endless include": (C, '#include "/dev/zero"\n'),
    "includes itself": (C, '#include "main.c"\n'),
    "incbin of a host file": (C, '__asm__(".incbin \\"/etc/passwd\\""); int main(void) {}\n'),
    "answers": (C, '#include "/w/../0000.out"\nint main(void) {}\n'),
    "endless template": (
        CPP,
        "template<int N> struct A { static const int v = A<N + 1>::v; };"
        " int main() { return A<0>::v; }\n",
    ),
    "3 GB initialised array": (C, "char a[3L << 30] = {1}; int main(void) {}\n"),
    "error flood": (C, "#define A(x) x x x x x x x x\n" + "A(A(A(A(A(y +)))))\n"),
    "binary": (C, "\x7fELF\x00\x01\x02"),
}


@pytest.mark.parametrize("name", COMPILE_BOMBS)
def test_hostile_compilation_is_a_compile_error(host: Host, name: str) -> None:
    """The compiler is sandboxed too, and its output capped."""
    language, source = COMPILE_BOMBS[name]
    compiled = compile_source(
        host.engine,
        host.slots[0],
        language,
        {language.source_name: source.encode()},
        threading.Event(),
    )
    assert compiled.result.status is Verdict.CE
    assert len(compiled.result.output) <= 64 * 1024
    assert "root:" not in compiled.result.output


def test_a_source_named_like_an_option_is_a_file(host: Host) -> None:
    """`-o` and friends in a zip stay file names."""
    files = {
        "main.c": b"int f(void); int main(void) { return f(); }",
        "-v.c": b"int f(void) { return 0; }",
    }
    compiled = compile_source(host.engine, host.slots[0], C, files, threading.Event())
    assert compiled.result.status is Verdict.AC, compiled.result.output


def test_cancel_takes_effect_at_once(host: Host) -> None:
    """A cancelled case ends within a second, with all its processes."""
    cancel = threading.Event()
    slot = host.slots[0]
    threading.Timer(0.3, cancel.set).start()
    limits = Limits(cpu_ms=60_000, wall_ms=120_000, memory_bytes=64 * MIB)
    with (
        host.engine.open_job(slot) as sandbox,
        Path(os.devnull).open("rb") as nothing,
        pytest.raises(JobCancelled),
    ):
        sandbox.run(
            ["/bin/sh", "-c", "sleep 100 & sleep 100"],
            stdin_fd=nothing.fileno(),
            limits=limits,
            cancel=cancel,
            slot=slot,
        )


def test_many_cases_at_once_do_not_mix(host: Host) -> None:
    """Forty cases on four threads in one job: each gets its own output back."""
    slot, never = host.slots[0], threading.Event()
    wrong: list[bytes] = []
    with host.engine.open_job(slot) as sandbox:

        def work(first: int) -> None:
            for number in range(first, first + 10):
                with sealed_copy(str(number).encode()) as stdin_fd:
                    seen = sandbox.run(
                        ["/bin/cat"], stdin_fd=stdin_fd, limits=LIMITS, cancel=never, slot=slot
                    )
                if seen.stdout != str(number).encode():
                    wrong.append(seen.stdout)

        threads = [threading.Thread(target=work, args=(100 * n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert wrong == []


DRIVER = """
import os, sys, threading
from pathlib import Path
from noj_agent.sandbox import Limits, Slot, open_engine
uid = int(sys.argv[2])
slot = Slot(0, uid, uid)
engine = open_engine(state_dir=Path(sys.argv[1]), allow_weak_limits=False)
with engine.open_job(slot) as sandbox:
    print("up", flush=True)
    sandbox.run(["/bin/sh", "-c", "sleep 100 & sleep 100"], stdin_fd=os.open(os.devnull, 0),
                limits=Limits(cpu_ms=60000, wall_ms=120000, memory_bytes=1 << 26),
                cancel=threading.Event(), slot=slot)
"""


def test_killed_agent_leaves_nothing_running(host: Host, tmp_path: Path) -> None:
    """kill -9 of the agent ends its sandboxes; the next start removes their cgroups."""
    slot = host.slots[1]
    argv = [sys.executable, "-c", DRIVER, str(tmp_path), str(slot.uid)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == b"up\n"
        wait_until(
            lambda: sum("sleep" in p.name() for p in processes_of({slot.uid})) >= 2,
            what="the case runs",
        )
        driver.kill()
    wait_until(lambda: not processes_of({slot.uid}), what="its sandbox has ended", timeout_s=3)
    assert cgroups_of({slot.uid}) != []
    assert host.engine.sweep_leftovers([slot]) >= 1
    assert cgroups_of({slot.uid}) == []
