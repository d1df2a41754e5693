"""Parked requests: who is woken, who is released, and that no wake-up is wasted on the gone."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import fakeredis
import pytest
from noj_testing import wait_until
from redis import Redis

from noj_server import keys
from noj_server.waiting import RESULTS_TOPIC, Parking, ParkingFullError, Waiter, client_gone

C = "0"
PYTHON = "2"


class Lot:
    """A parking with a pile of work that waiters take from."""

    def __init__(self, parking: Parking) -> None:
        self.parking = parking
        self.work: deque[str] = deque()
        self.pool = ThreadPoolExecutor(max_workers=16)

    def take(self) -> str | None:
        """One attempt."""
        try:
            return self.work.popleft()
        except IndexError:
            return None

    def park(
        self, owner: str, *, topics: tuple[str, ...] = (C,), gone: threading.Event | None = None
    ) -> Future[str | None]:
        """Park in a thread; returns when it is parked."""
        before = self.parking.parked
        future = self.pool.submit(
            self.parking.wait,
            self.take,
            topics=topics,
            owner=owner,
            wait_s=20,
            gone=gone.is_set if gone is not None else lambda: False,
        )
        wait_until(lambda: self.parking.parked > before or future.done(), what=f"{owner} is parked")
        return future

    def bring(self, name: str, topic: str = C) -> None:
        """New work, and word of it."""
        self.work.append(name)
        self.parking.wake(topic)


@pytest.fixture
def redis() -> Iterator[Redis]:
    """An embedded Redis; only the listener talks to it."""
    with fakeredis.FakeRedis(server=fakeredis.FakeServer(), decode_responses=True) as client:
        yield client


@pytest.fixture
def lot(redis: Redis) -> Iterator[Lot]:
    """Room for eight; looks of the waiters' own only once a minute."""
    found = Lot(Parking(redis, 8, recheck_s=60))
    yield found
    found.parking.close()
    found.pool.shutdown()


def test_what_is_there_is_given_at_once(lot: Lot) -> None:
    """No parking when there is something, or no wish to wait."""
    lot.work.append("job")
    wait = lot.parking.wait
    assert wait(lot.take, topics=[C], owner="a", wait_s=20) == "job"
    assert wait(lot.take, topics=[C], owner="a", wait_s=0) is None
    assert lot.parking.parked == 0


def test_first_come_first_served(lot: Lot) -> None:
    """Each piece of work wakes one: the one that has waited longest."""
    parked = [lot.park(name) for name in "abc"]
    for number, future in enumerate(parked):
        lot.bring(f"job{number}")
        assert future.result(5) == f"job{number}"
        assert [later.done() for later in parked[number + 1 :]] == [False] * (2 - number)


def test_only_those_that_can_use_it(lot: Lot) -> None:
    """Work in a language wakes the first that speaks it, not the first of all."""
    only_c, only_python = lot.park("a"), lot.park("b", topics=(PYTHON,))
    lot.bring("job", PYTHON)
    assert only_python.result(5) == "job"
    assert not only_c.done()


def test_results_wake_all(lot: Lot) -> None:
    """Everybody that waits for results looks; the feed is for all."""
    parked = [lot.park(name, topics=(RESULTS_TOPIC,)) for name in "abc"]
    lot.work.extend(["r1", "r2", "r3"])
    lot.parking.wake(RESULTS_TOPIC)
    assert {future.result(5) for future in parked} == {"r1", "r2", "r3"}


def test_a_newer_poll_releases_the_older(lot: Lot) -> None:
    """A runner has one parked request: the old one is answered, the new one gets the job."""
    old = lot.park("a")
    new = lot.pool.submit(lot.parking.wait, lot.take, topics=[C], owner="a", wait_s=20)
    assert old.result(5) is None
    wait_until(lambda: lot.parking.parked == 1, what="only the newer is parked")
    lot.bring("job")
    assert new.result(5) == "job"


def test_no_room(redis: Redis) -> None:
    """Beyond the cap: refused at once, but not before one look at the work."""
    lot = Lot(Parking(redis, 1, recheck_s=60))
    lot.park("a")
    with pytest.raises(ParkingFullError):
        lot.parking.wait(lot.take, topics=[C], owner="b", wait_s=20)
    lot.work.append("job")
    assert lot.parking.wait(lot.take, topics=[C], owner="b", wait_s=20) == "job"
    lot.parking.close()
    lot.pool.shutdown()


def test_a_gone_client_gets_nothing_and_passes_its_wake_up_on(lot: Lot) -> None:
    """Nothing is leased for a closed connection; the next in line gets it."""
    hung_up = threading.Event()
    gone, live = lot.park("a", gone=hung_up), lot.park("b")
    hung_up.set()
    lot.bring("job")
    assert live.result(5) == "job"
    assert gone.result(5) is None


def test_a_client_gone_from_the_start(lot: Lot) -> None:
    """Not even the first attempt is made for it."""
    lot.work.append("job")
    wait = lot.parking.wait
    assert wait(lot.take, topics=[C], owner="a", wait_s=20, gone=lambda: True) is None
    assert list(lot.work) == ["job"]


def test_a_wake_up_during_a_successful_attempt_is_passed_on(lot: Lot) -> None:
    """Two jobs in quick succession: word of the second may reach who just took the first."""
    entered, go_on = threading.Event(), threading.Event()
    calls = 0

    def busy() -> str | None:
        nonlocal calls
        calls += 1
        if calls == 1:
            return None
        entered.set()
        go_on.wait(5)
        lot.bring("second")
        return "first"

    taker = lot.pool.submit(lot.parking.wait, busy, topics=[C], owner="a", wait_s=20)
    assert entered.wait(5)
    next_in_line = lot.park("b")
    go_on.set()
    assert taker.result(5) == "first"
    assert next_in_line.result(5) == "second"


def test_a_released_waiter_passes_its_wake_up_on(lot: Lot) -> None:
    """A wake-up that finds its waiter just released goes to the next."""
    entered, go_on = threading.Event(), threading.Event()
    calls = 0

    def slow() -> str | None:
        nonlocal calls
        calls += 1
        if calls == 2:
            entered.set()
            go_on.wait(5)
        return None

    first = lot.pool.submit(lot.parking.wait, slow, topics=[C], owner="a", wait_s=20)
    assert entered.wait(5)
    second = lot.park("b")
    lot.bring("job")
    lot.parking.release("a")
    go_on.set()
    assert first.result(5) is None
    assert second.result(5) == "job"


def test_close_releases_everybody(lot: Lot) -> None:
    """SIGTERM: all are answered at once, and nobody is parked any more."""
    parked = [lot.park(name) for name in "abcd"]
    started = time.monotonic()
    lot.parking.close()
    assert [future.result(5) for future in parked] == [None] * 4
    assert lot.parking.wait(lot.take, topics=[C], owner="late", wait_s=20) is None
    assert time.monotonic() - started < 2


def test_close_while_somebody_is_just_parking(redis: Redis) -> None:
    """One that had looked before `close` but was not in the list yet is not forgotten."""

    class Slow(Parking):
        def _enter(self, waiter: Waiter) -> None:
            self.close()
            super()._enter(waiter)

    started = time.monotonic()
    assert Slow(redis, 8).wait(lambda: None, topics=[C], owner="a", wait_s=20) is None
    assert time.monotonic() - started < 2


def test_a_lost_wake_up_is_healed(redis: Redis) -> None:
    """Nobody said anything, and yet a waiter finds the work with its next look."""
    lot = Lot(Parking(redis, 8, recheck_s=0.05))
    parked = lot.park("a")
    lot.work.append("job")
    assert parked.result(5) == "job"
    lot.pool.shutdown()


def test_time_is_up(lot: Lot) -> None:
    """None after the wait; the place is free again."""
    assert lot.parking.wait(lot.take, topics=[C], owner="a", wait_s=0.05) is None
    assert lot.parking.parked == 0


def test_an_error_frees_the_place(lot: Lot) -> None:
    """Redis goes away under a parked request: it is told, and leaves nothing behind."""
    calls = 0

    def fails_later() -> str | None:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise ConnectionError
        return None

    with pytest.raises(ConnectionError):
        lot.parking.wait(fails_later, topics=[C], owner="a", wait_s=20)
    assert lot.parking.parked == 0


def test_an_error_passes_the_wake_up_on(lot: Lot) -> None:
    """A runner that turns out to be paused or full: the job goes to the next."""
    entered, go_on = threading.Event(), threading.Event()
    calls = 0

    def refused() -> str | None:
        nonlocal calls
        calls += 1
        if calls == 2:
            entered.set()
            go_on.wait(5)
        if calls > 2:
            raise PermissionError
        return None

    first = lot.pool.submit(lot.parking.wait, refused, topics=[C], owner="a", wait_s=20)
    assert entered.wait(5)
    second = lot.park("b")
    lot.bring("job")
    go_on.set()
    with pytest.raises(PermissionError):
        first.result(5)
    assert second.result(5) == "job"


def test_the_listener_wakes(lot: Lot, redis: Redis) -> None:
    """What is published on the channels reaches who waits for it; `stop` ends the thread."""
    lot.parking.start()
    try:
        job, results = lot.park("a"), Lot(lot.parking)  # piles of their own: listening wakes all
        result = results.park("b", topics=(RESULTS_TOPIC,))
        wait_until(lambda: redis.pubsub_numsub(keys.WAKE_CHANNEL)[0][1], what="it listens")
        assert lot.parking.listening
        lot.work.append("job")
        redis.publish(keys.WAKE_CHANNEL, C)
        assert job.result(5) == "job"
        results.work.append("result")
        redis.publish(keys.LANDED_CHANNEL, "1-0")
        assert result.result(5) == "result"
    finally:
        lot.parking.stop()
        results.pool.shutdown()
    assert not lot.parking.listening


def test_a_dead_listener_is_seen(
    lot: Lot, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What nobody foresaw ends the thread, with a log line; `listening` tells."""

    def fail() -> None:
        raise ValueError("unforeseen")

    monkeypatch.setattr(lot.parking, "_subscribe", fail)
    with caplog.at_level(logging.ERROR):
        lot.parking.start()
        wait_until(lambda: not lot.parking.listening, what="the listener is dead")
    assert "restart the server" in caplog.text


def test_client_gone_looks_at_the_socket() -> None:
    """Open: not gone. Data waiting: not gone, and not eaten. Closed: gone. No socket: never."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        gone = client_gone({"gunicorn.socket": ours})
        assert not gone()
        theirs.send(b"GET")
        assert not gone()
        assert ours.recv(3) == b"GET"
        theirs.close()
        assert gone()
    assert gone(), "a socket of ours that is closed"
    assert not client_gone({})()
