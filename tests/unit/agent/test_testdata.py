"""The test data cache: whole or not at all, once, of the right checksum, within its size."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest
from noj_machine import TESTDATA, checksum_of
from noj_testing import make_zip, wait_until

from noj_agent.errors import Unavailable
from noj_agent.testdata import TestdataCache
from noj_shared.package import PackageError

BIG = 10 * 1024 * 1024
CHECKSUM = checksum_of(TESTDATA)


class Source:
    """A download that counts how often it was asked for."""

    def __init__(self, content: bytes = TESTDATA) -> None:
        self.content = content
        self.fetched = 0

    @property
    def checksum(self) -> str:
        """What names it."""
        return checksum_of(self.content)

    def __call__(self, sink: IO[bytes]) -> None:
        self.fetched += 1
        sink.write(self.content)


def package(size_bytes: int, mark: str) -> Source:
    """Test data that takes about so much room."""
    return Source(make_zip({"0000.in": mark.encode().ljust(size_bytes, b"."), "0000.out": b""}))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The cache's folder."""
    folder = tmp_path / "testdata"
    folder.mkdir()
    return folder


@pytest.fixture
def cache(root: Path) -> TestdataCache:
    """A roomy cache."""
    return TestdataCache(root, BIG)


def test_it_is_fetched_once(cache: TestdataCache, root: Path) -> None:
    """Also over a restart of the agent; meta.json is not laid out."""
    source = Source()
    for one in (cache, cache, TestdataCache(root, BIG)):
        with one.use(source.checksum, source) as folder:
            assert (folder / "0000.in").read_bytes() == b"1 2\n"
            assert (folder / "0000.out").read_bytes() == b"3\n"
            assert not (folder / "meta.json").exists()
    assert source.fetched == 1
    assert [path.name for path in root.iterdir()] == [source.checksum]


def test_no_program_finds_it_by_path(cache: TestdataCache, root: Path) -> None:
    """INV8: the folders are the agent's alone, the files read-only."""
    source = Source(make_zip({"0000.in": b"", "0000.out": b"", "chaos/grader.h": b"x"}))
    with cache.use(source.checksum, source) as folder:
        folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
        assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o700}
        assert stat.S_IMODE((folder / "0000.in").stat().st_mode) == 0o444
        assert (folder / "chaos" / "grader.h").read_bytes() == b"x"


def test_other_bytes_than_the_checksum_says(cache: TestdataCache, root: Path) -> None:
    """A rejudge after a data fix never uses old data; nothing is left of the wrong bytes."""
    source = Source()
    with pytest.raises(Unavailable, match="is not"), cache.use("0" * 64, source):
        pytest.fail("wrong data used")
    assert list(root.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [
        b"no zip",
        TESTDATA[:-30],
        make_zip({"0000.in": b"x" * 100}).replace(b"0000.in", b"0001.in", 1),
    ],
    ids=["garbage", "torn", "two names"],
)
def test_a_bad_zip(cache: TestdataCache, root: Path, content: bytes) -> None:
    """PackageError, and nothing is left behind."""
    source = Source(content)
    with pytest.raises(PackageError), cache.use(source.checksum, source):
        pytest.fail("a bad zip used")
    assert list(root.iterdir()) == []


@pytest.mark.parametrize("name", ["../0000.in", "/tmp/noj-escaped", "a/../../b"])
def test_a_name_that_leads_out(cache: TestdataCache, root: Path, tmp_path: Path, name: str) -> None:
    """The agent does not lean on the server's check alone."""
    source = Source(make_zip({name: b"x"}))
    with pytest.raises(Unavailable, match="bad name"), cache.use(source.checksum, source):
        pytest.fail("a bad name used")
    assert list(root.iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["testdata"]


def test_a_failed_fetch_is_tried_again(cache: TestdataCache, root: Path) -> None:
    """What the download raises comes out; the next job starts anew."""

    def broken(sink: IO[bytes]) -> None:
        sink.write(TESTDATA[:20])
        raise Unavailable("cut")

    with pytest.raises(Unavailable, match="cut"), cache.use(CHECKSUM, broken):
        pytest.fail("half a file used")
    assert list(root.iterdir()) == []
    source = Source()
    with cache.use(CHECKSUM, source):
        assert source.fetched == 1


def _remove(folder: Path) -> None:
    (folder / "0000.out").unlink()


def _cut(folder: Path) -> None:
    (folder / "0000.in").chmod(0o600)
    os.truncate(folder / "0000.in", 1)


def _lose_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("{")


@pytest.mark.parametrize("damage", [_remove, _cut, _lose_manifest])
def test_a_damaged_entry_is_fetched_again(
    cache: TestdataCache, damage: Callable[[Path], None]
) -> None:
    """A missing, cut or unlisted file is noticed before the next use."""
    source = Source()
    with cache.use(CHECKSUM, source) as folder:
        pass
    damage(folder)
    with cache.use(CHECKSUM, source) as folder:
        assert (folder / "0000.in").read_bytes() == b"1 2\n"
        assert (folder / "0000.out").exists()
    assert source.fetched == 2


def test_leftovers_of_a_killed_predecessor_go(root: Path) -> None:
    """Unfinished folders are removed at start, finished ones stay."""
    (root / ".part-abc").mkdir()
    (root / ".part-abc" / "testdata.zip").write_bytes(b"half")
    (root / CHECKSUM).mkdir()
    TestdataCache(root, BIG)
    assert [path.name for path in root.iterdir()] == [CHECKSUM]


def test_many_jobs_fetch_it_once(cache: TestdataCache) -> None:
    """While one downloads, the others of the same checksum wait for it."""
    arrived, go = threading.Barrier(9, timeout=10), threading.Event()
    source = Source()
    found: list[bytes] = []

    def slow(sink: IO[bytes]) -> None:
        assert go.wait(10)
        source(sink)

    def work() -> None:
        arrived.wait()
        with cache.use(CHECKSUM, slow) as folder:
            found.append((folder / "0000.out").read_bytes())

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    arrived.wait()
    go.set()
    for thread in threads:
        thread.join(15)
    assert found == [b"3\n"] * 8
    assert source.fetched == 1


def test_another_checksum_does_not_wait(cache: TestdataCache) -> None:
    """A slow download holds up only the jobs that need it."""
    fetching, go = threading.Event(), threading.Event()

    def slow(sink: IO[bytes]) -> None:
        fetching.set()
        assert go.wait(10)
        sink.write(TESTDATA)

    def work() -> None:
        with cache.use(CHECKSUM, slow):
            pass

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert fetching.wait(10)
        other = package(10, "other")
        with cache.use(other.checksum, other):
            assert other.fetched == 1
    finally:
        go.set()
        thread.join(10)


def use(cache: TestdataCache, source: Source, age: int) -> None:
    """Use it once, and make it that many seconds younger than the epoch's tenth day."""
    with cache.use(source.checksum, source) as folder:
        pass
    os.utime(folder / "manifest.json", (864_000 + age, 864_000 + age))


def test_the_least_recently_used_goes_first(root: Path) -> None:
    """A used entry is young again; entries go until the new one fits."""
    cache = TestdataCache(root, 3500)
    old, older, new = package(1500, "old"), package(1500, "older"), package(1500, "new")
    use(cache, older, 1)
    use(cache, old, 2)
    use(cache, older, 3)
    use(cache, new, 4)
    assert {path.name for path in root.iterdir()} == {older.checksum, new.checksum}
    assert older.fetched == 1


def test_what_is_in_use_is_not_evicted(root: Path) -> None:
    """Rather over the limit than a file gone under a running job."""
    cache = TestdataCache(root, 100)
    first, second = package(1000, "first"), package(1000, "second")
    with cache.use(first.checksum, first) as folder:
        with cache.use(second.checksum, second):
            assert (folder / "0000.in").exists()
        assert (folder / "0000.in").exists()
    third = package(1000, "third")
    with cache.use(third.checksum, third):
        assert not folder.exists()


def test_a_failing_job_gives_its_entry_back(root: Path) -> None:
    """An error of the user does not keep the entry for ever."""
    cache = TestdataCache(root, 100)
    first, second = package(1000, "first"), package(1000, "second")
    with pytest.raises(ZeroDivisionError), cache.use(first.checksum, first):
        raise ZeroDivisionError
    with cache.use(second.checksum, second):
        wait_until(lambda: not (root / first.checksum).exists(), what="it is evicted")
