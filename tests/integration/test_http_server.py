"""The real `noj-server serve` on a real redis-server: stops, hang-ups, storms and kill -9."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
import redis
from noj_http import make_package, make_report
from noj_testing import RedisServer, Server, listening, wait_until

from noj_server.client import Client, ServerUnreachableError
from noj_shared.ids import new_submission_id
from noj_shared.wire import SubmissionState

THREADS = 64
CAPACITY = 32
CLIENT_TIMEOUT_S = 1


class Runner:
    """A registered runner on a real server."""

    def __init__(self, server: Server, http_client: httpx.Client) -> None:
        self._http = http_client
        self._port = server.port
        body = {"registration_token": server.registration_token, "name": "alpha"}
        reply = http_client.post("/runners/register", json=body)
        assert reply.status_code == 201, reply.text
        self.path = f"/runners/{reply.json()['runner_id']}"
        self.headers = {"Authorization": f"Bearer {reply.json()['token']}"}

    def poll(self, wait_s: int = 0) -> httpx.Response:
        """Ask for a job."""
        return self._http.get(
            f"{self.path}/next-job", headers={**self.headers, "Prefer": f"wait={wait_s}"}
        )

    def park(self, wait_s: int = 20) -> http.client.HTTPConnection:
        """Send a poll on a connection of its own; do not read the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        headers = {**self.headers, "Prefer": f"wait={wait_s}"}
        connection.request("GET", f"{self.path}/next-job", headers=headers)
        return connection

    def beat(self) -> int:
        """A heartbeat's status."""
        body: dict[str, list[str]] = {"active_job_ids": []}
        return self._http.post(
            f"{self.path}/heartbeat", json=body, headers=self.headers
        ).status_code

    def land(self, job_id: str) -> int:
        """Report AC."""
        return self._http.put(
            f"{self.path}/jobs/{job_id}/complete", json=make_report(), headers=self.headers
        ).status_code


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The shared redis-server, emptied."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
    return redis_server.url


@pytest.fixture
def server(redis_url: str, tmp_path: Path) -> Iterator[Server]:
    """A server with few threads, so that parking fills up."""
    env = {
        "NOJ_SERVER_THREADS": str(THREADS),
        "NOJ_SERVER_CLIENT_TIMEOUT_S": str(CLIENT_TIMEOUT_S),
    }
    with Server(tmp_path, redis_url=redis_url, env=env) as running:
        yield running


@pytest.fixture
def web(server: Server) -> Iterator[httpx.Client]:
    """Many connections to it."""
    limits = httpx.Limits(max_connections=None)
    with httpx.Client(base_url=server.url, timeout=30, limits=limits) as client:
        yield client


@pytest.fixture
def backend(server: Server) -> Iterator[Client]:
    """Its operator's client; the problem p1 is stored."""
    with Client(server.url, server.admin_key) as client:
        client.put_problem("p1", make_package())
        yield client


def submit(backend: Client) -> str:
    """A new submission; its job id."""
    return backend.submit(problem_id="p1", language=0, code=b"int main(){}").job_id


def parked(backend: Client) -> int:
    """How many polls the server holds."""
    return backend.queue().parked_polls


def await_parked(backend: Client, count: int) -> None:
    """Wait until so many polls are parked."""
    wait_until(lambda: parked(backend) == count, what=f"{count} polls are parked")


def worker(server: Server) -> int | None:
    """The pid of the gunicorn worker under the master, if there is one just now."""
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    return int(children[0]) if children else None


def test_a_parked_poll_gets_work_at_once(
    server: Server, web: httpx.Client, backend: Client
) -> None:
    """No polling anywhere: a job reaches who waits for it in well under the re-check's time."""
    runner = Runner(server, web)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(runner.poll, 20)
        await_parked(backend, 1)
        started = time.monotonic()
        job_id = submit(backend)
        assert answer.result(10).json()["job_id"] == job_id
        assert time.monotonic() - started < 2


def test_a_burst_reaches_every_parked_poll(
    server: Server, web: httpx.Client, backend: Client
) -> None:
    """As many jobs as pollers, in quick succession: none waits for a re-check."""
    runners = [Runner(server, web) for _ in range(10)]
    with ThreadPoolExecutor(20) as pool:
        answers = [pool.submit(runner.poll, 20) for runner in runners]
        await_parked(backend, 10)
        started = time.monotonic()
        jobs = {job.result() for job in [pool.submit(submit, backend) for _ in runners]}
        assert {answer.result(10).json()["job_id"] for answer in answers} == jobs
        assert time.monotonic() - started < 4


def test_sigterm_answers_parked_polls_at_once(
    server: Server, web: httpx.Client, backend: Client
) -> None:
    """204 for all of them, and the process ends soon, with status 0."""
    runners = [Runner(server, web) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(runner.poll, 25) for runner in runners]
        await_parked(backend, 8)
        started = time.monotonic()
        server.send(signal.SIGTERM)
        assert [answer.result(10).status_code for answer in answers] == [204] * 8
        assert time.monotonic() - started < 3
    assert server.wait(15) == 0, server.output()
    assert time.monotonic() - started < 10


def test_a_client_that_hung_up_gets_no_job(
    server: Server, web: httpx.Client, backend: Client
) -> None:
    """20 trials: close a parked connection, then enqueue; the job goes to a live poller, or
    stays pending while there is none."""
    for trial in range(20):
        gone, live = Runner(server, web), Runner(server, web)
        before = parked(backend)
        connection = gone.park()
        await_parked(backend, before + 1)
        connection.close()
        job_id = submit(backend)
        if trial % 2:
            assert live.poll(10).json()["job_id"] == job_id
        else:
            wait_until(lambda: parked(backend) == 0, what="the gone client's poll is given up")
            assert not backend.queue().leases
            assert live.poll().json()["job_id"] == job_id
        assert [lease.job_id for lease in backend.queue().leases] == [job_id]
        assert live.land(job_id) == 204


def test_heartbeats_during_a_poll_storm(server: Server, web: httpx.Client, backend: Client) -> None:
    """More pollers than the cap: those beyond it are sent home at once, and every one of 100
    heartbeats is answered soon."""
    runners = [Runner(server, web) for _ in range(CAPACITY + 28)]
    with ThreadPoolExecutor(len(runners)) as pool:
        polls = [pool.submit(runner.poll, 25) for runner in runners]
        wait_until(lambda: parked(backend) == CAPACITY, what="the parking is full")
        wait_until(lambda: sum(poll.done() for poll in polls) == 28, what="the rest is sent home")
        for poll in polls:
            if poll.done():
                assert poll.result().status_code == 204
                assert int(poll.result().headers["Retry-After"]) >= 1
        with ThreadPoolExecutor(16) as hearts:
            started = time.monotonic()
            beats = [hearts.submit(runners[i % len(runners)].beat) for i in range(100)]
            assert [beat.result(10) for beat in beats] == [204] * 100
            assert time.monotonic() - started < 5
        assert parked(backend) == CAPACITY
        server.send(signal.SIGTERM)
        wait(polls, timeout=10)


HALVES = {
    "body": (b"Content-Length: 100\r\n\r\n{", b" 408 "),
    "chunk": (b"Transfer-Encoding: chunked\r\n\r\n5\r\n{", b" 408 "),
    "head": (b"Content-Le", b""),
}


@pytest.mark.parametrize("half", HALVES)
def test_half_requests_hold_no_threads(
    server: Server, backend: Client, web: httpx.Client, half: str
) -> None:
    """As many stalled clients as there are threads: they are cut off, and whoever knows how to
    finish a request is answered."""
    sent, answer = HALVES[half]
    head = b"POST /runners/register HTTP/1.1\r\nHost: x\r\n"
    with ExitStack() as stack:
        stalled = [
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=30))
            for _ in range(THREADS)
        ]
        for connection in stalled:
            connection.sendall(head + sent)
        assert Runner(server, web).beat() == 204
        for connection in stalled:
            received = connection.makefile("rb").read()
            assert answer in received
            assert (b"request_timeout" in received) == bool(answer)
    assert "Traceback" not in server.output()


def test_a_misframed_body(server: Server) -> None:
    """400 in the one shape, and no traceback in the log."""
    head = b"POST /runners/register HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(head + b"nonsense\r\n{}\r\n0\r\n\r\n")
        received = connection.makefile("rb").read()
    assert b" 400 " in received
    assert b"bad_request" in received
    assert "Traceback" not in server.output()


def test_a_chunked_body_over_the_limit(server: Server) -> None:
    """413 as with a Content-Length, not "this is no JSON"."""
    with httpx.Client(base_url=server.url, timeout=30) as web:
        reply = web.post("/runners/register", content=iter([b" " * 100_000] * 4))
    assert (reply.status_code, reply.json()["code"]) == (413, "too_large")


@pytest.mark.parametrize("who", ["worker", "master"])
def test_kill9_loses_no_submission(
    server: Server, web: httpx.Client, backend: Client, who: str
) -> None:
    """INV1, INV6: kill -9 in the middle of submitting and judging. What was acknowledged is
    there, a held job lands under its old lease, and parked polls work again."""
    runner = Runner(server, web)
    held = submit(backend)
    assert runner.poll().json()["job_id"] == held
    acknowledged: list[str] = []

    def keep_submitting() -> None:
        # Bounded: a worker without its master serves its open connections a while longer.
        while len(acknowledged) < 150:
            wanted = new_submission_id()
            try:
                backend.submit(problem_id="p1", language=0, code=b"x", submission_id=wanted)
            except ServerUnreachableError:
                return
            acknowledged.append(wanted)

    with ThreadPoolExecutor(1) as pool:
        submitting = pool.submit(keep_submitting)
        wait_until(lambda: len(acknowledged) >= 20, what="some have been submitted")
        killed = worker(server)
        assert killed is not None
        if who == "worker":
            os.kill(killed, signal.SIGKILL)
        else:
            server.kill9()
        submitting.result(30)
    if who == "worker":
        wait_until(lambda: worker(server) not in (None, killed), what="the master has a new worker")
        server.wait_ready()
    else:
        wait_until(lambda: not listening(server.port), what="the orphaned worker has ended")
        server.start()
    assert {backend.status(sid).state for sid in acknowledged} == {SubmissionState.PENDING}
    assert runner.land(held) == 204
    judge_all(runner, backend)
    for sid in acknowledged:
        assert backend.status(sid).state is SubmissionState.DONE
    park_and_serve(runner, backend)


def judge_all(runner: Runner, backend: Client) -> None:
    """Land whatever is pending."""
    while (reply := runner.poll()).status_code == 200:
        assert runner.land(reply.json()["job_id"]) == 204
    assert backend.queue().depth == 0


def park_and_serve(runner: Runner, backend: Client) -> None:
    """A parked poll is woken by a new job."""
    with ThreadPoolExecutor(1) as pool:
        answer: Future[httpx.Response] = pool.submit(runner.poll, 20)
        await_parked(backend, 1)
        job_id = submit(backend)
        assert answer.result(10).json()["job_id"] == job_id


def test_redis_killed_and_back(tmp_path: Path) -> None:
    """Redis dies with -9 under parked polls and comes back: 503 meanwhile, then the same server
    process goes on by itself; nothing acknowledged is lost, no attempt is burnt (INV6)."""
    with (
        RedisServer(tmp_path) as store,
        Server(tmp_path, redis_url=store.url) as server,
        httpx.Client(base_url=server.url, timeout=30) as web,
        Client(server.url, server.admin_key) as backend,
    ):
        backend.put_problem("p1", make_package())
        runner, parker = Runner(server, web), Runner(server, web)
        held = submit(backend)
        assert runner.poll().json()["job_id"] == held
        connection = parker.park(25)
        await_parked(backend, 1)
        waiting = [submit(backend) for _ in range(2)]
        assert connection.getresponse().status == 200
        connection.close()
        pid = worker(server)

        store.kill9()
        assert runner.beat() == 503
        away = web.get("/readyz")
        assert away.status_code == 503
        assert [c["name"] for c in away.json()["checks"] if not c["ok"]] == ["redis"]
        assert web.get("/healthz").status_code == 200

        store.start()
        server.wait_ready()
        assert worker(server) == pid
        assert runner.beat() == 204
        assert runner.land(held) == 204
        leased = [lease.job_id for lease in backend.queue().leases]
        assert len(leased) == 1
        assert parker.land(leased[0]) == 204
        (left,) = set(waiting) - set(leased)
        last = runner.poll().json()
        assert (last["job_id"], last["attempts"]) == (left, 1)
        assert runner.land(left) == 204
        park_and_serve(runner, backend)
