"""Content on disk: test data, code, results. Written whole or not at all.

Names come from digests and ids that were checked before; a name that could leave its folder is
refused all the same.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{1,199}")


class Blobs:
    """One folder per kind, two characters of a name's end as a sub-folder. Thread-safe."""

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(mode=0o700, parents=True, exist_ok=True)

    @property
    def root(self) -> Path:
        """The data directory."""
        return self._root

    def path(self, kind: str, name: str) -> Path:
        """Where a blob lies or would lie. Raises ValueError on a bad name."""
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no blob name")
        return self._root / kind / name[-2:] / name

    def put(self, kind: str, name: str, content: bytes) -> None:
        """Store bytes; durable (fsync of file and folder) when it returns."""
        with self.writing(kind, name) as stream:
            stream.write(content)

    @contextmanager
    def writing(self, kind: str, name: str) -> Iterator[IO[bytes]]:
        """A stream that becomes the blob when the block ends without an error."""
        target = self.path(kind, name)
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd, unfinished = tempfile.mkstemp(dir=target.parent, prefix=".part-")
        try:
            with os.fdopen(fd, "wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            Path(unfinished).replace(target)
            sync_folder(target.parent)
        except BaseException:
            with suppress(FileNotFoundError):
                Path(unfinished).unlink()
            raise

    def read(self, kind: str, name: str) -> bytes:
        """All of a blob. Raises FileNotFoundError."""
        return self.path(kind, name).read_bytes()

    def exists(self, kind: str, name: str) -> bool:
        """Whether it is there."""
        return self.path(kind, name).is_file()

    def delete(self, kind: str, name: str) -> None:
        """Remove it, if it is there."""
        self.path(kind, name).unlink(missing_ok=True)

    def free_bytes(self) -> int:
        """Space left on its disk."""
        return shutil.disk_usage(self._root).free


def sync_folder(folder: Path) -> None:
    """fsync a folder, so that a rename in it survives a power loss."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
