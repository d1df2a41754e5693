"""Test data on disk, by checksum: fetched once, verified, unpacked whole or not at all.

A job names the checksum it needs, so a rejudge after a data fix never uses old data. Files are
0444 in folders of 0700: a program may open /dev/stdin again, but no path leads it here.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import tempfile
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from noj_agent.errors import Unavailable
from noj_agent.state import read_json, write_json
from noj_shared.package import Member, opened, read_member

log = logging.getLogger(__name__)

Fetch = Callable[[IO[bytes]], None]
"""Streams the zip into a file."""
DOWNLOAD_LIMIT_BYTES = 4 * 1024**3
_MANIFEST = "manifest.json"


class TestdataCache:
    """A size-capped cache, least recently used goes first. Thread-safe."""

    __test__ = False  # the name is the domain's; pytest must not collect it

    def __init__(self, root: Path, limit_bytes: int) -> None:
        self._root = root
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._users: Counter[str] = Counter()
        self._fetching: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        for leftover in root.glob(".part-*"):
            _remove(leftover)

    @contextmanager
    def use(self, checksum: str, fetch: Fetch) -> Iterator[Path]:
        """The folder with TTCC.in and TTCC.out, fetched if need be; kept while it is in use.

        Raises what `fetch` raises, PackageError for a bad zip, Unavailable when the bytes are not
        those of the checksum.
        """
        with self._lock:
            self._users[checksum] += 1
            one_at_a_time = self._fetching[checksum]
        try:
            with one_at_a_time:
                folder = self._root / checksum
                if not _intact(folder):
                    self._fill(folder, checksum, fetch)
                (folder / _MANIFEST).touch()
            yield folder
        finally:
            with self._lock:
                self._users[checksum] -= 1

    def _fill(self, folder: Path, checksum: str, fetch: Fetch) -> None:
        _remove(folder)
        with tempfile.TemporaryDirectory(dir=self._root, prefix=".part-") as parts:
            archive = Path(parts) / "testdata.zip"
            with archive.open("w+b") as stream:
                fetch(stream)
                stream.flush()
                stream.seek(0)
                if _sha256(stream) != checksum:
                    raise Unavailable(f"the test data that came is not {checksum[:12]}…")
                unpacked = Path(parts) / "unpacked"
                unpacked.mkdir(mode=0o700)
                _unpack(stream, unpacked)
            self._evict(_size(unpacked), keep=checksum)
            unpacked.rename(folder)
        log.info("test data %s… fetched", checksum[:12])

    def _evict(self, incoming_bytes: int, *, keep: str) -> None:
        """Make room; never takes what is in use."""
        with self._lock:
            entries = sorted(
                (path for path in self._root.iterdir() if (path / _MANIFEST).exists()),
                key=lambda path: (path / _MANIFEST).stat().st_mtime,
            )
            sizes = {path: _size(path) for path in entries}
            total = sum(sizes.values()) + incoming_bytes
            for path in entries:
                if total <= self._limit_bytes:
                    return
                if self._users[path.name] == 0 and path.name != keep:
                    _remove(path)
                    total -= sizes[path]
                    log.info("test data %s… evicted", path.name[:12])


def _unpack(stream: IO[bytes], folder: Path) -> None:
    """Lay out every member the server's own check let in, and a manifest of sizes, last."""
    stream.seek(0)
    sizes: dict[str, int] = {}
    with opened(stream) as archive:
        for info in archive.infolist():
            if info.is_dir() or info.filename == "meta.json":
                continue
            target = (folder / info.filename).resolve()
            if not target.is_relative_to(folder.resolve()):
                raise Unavailable(f"the test data holds a bad name: {info.filename!r}")
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with target.open("xb") as out:
                for chunk in read_member(archive, Member(info.filename, info.file_size)):
                    out.write(chunk)
            target.chmod(0o444)
            sizes[info.filename] = info.file_size
    write_json(folder / _MANIFEST, sizes)


def _intact(folder: Path) -> bool:
    """Whether every file of the manifest is there in its size."""
    sizes = read_json(folder / _MANIFEST)
    if not isinstance(sizes, dict):
        return False
    return all(
        (folder / name).is_file() and (folder / name).stat().st_size == size
        for name, size in sizes.items()
    )


def _sha256(stream: IO[bytes]) -> str:
    total = hashlib.sha256()
    while chunk := stream.read(1024 * 1024):
        total.update(chunk)
    return total.hexdigest()


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
