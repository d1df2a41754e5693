"""Rules for zips from outside: a problem's test data and a submission's code.

Zips are hostile until proven otherwise (reference: sandbox findings 55). `inspect_*` looks at
the central directory, finds *every* fault, and raises them all at once in one PackageError; only
where there is none is every file read once, to find the damaged ones. Nothing is written. What
it returns lists the members that may be read, with names that are safe to join to a directory.

    limit                      test data          code
    entries                    20,200             64
    unpacked bytes, all        4 GiB              4 MiB
    unpacked bytes, one file   1 GiB              1 MiB
    ratio unpacked : packed    200 : 1 (checked once more than 64 MiB is unpacked)

Reads from the stream it is given and writes nowhere.
"""

from __future__ import annotations

import io
import json
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO

from pydantic import ValidationError

from noj_shared.language import Language
from noj_shared.problem import FieldFault
from noj_shared.wire import ProblemMeta

META_NAME = "meta.json"
META_LIMIT_BYTES = 1024 * 1024
CHAOS = "chaos"
"""Folder of a problem package whose files are laid beside the submitted source."""

_CASE = re.compile(r"([0-9]{2})([0-9]{2})\.(in|out)")
_CHUNK_BYTES = 1024 * 1024
_MIB = 1024 * 1024
_NAME_LIMIT_BYTES = 200
_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, struct.error),
    *(EOFError, ValueError, RuntimeError),  # NotImplementedError among the last
)
"""What zipfile raises on garbage."""


@dataclass(frozen=True)
class Limits:
    """How much a zip may hold; see the table atop this module."""

    entries: int
    total_bytes: int
    file_bytes: int
    ratio: int = 200
    ratio_free_bytes: int = 64 * _MIB


TESTDATA_LIMITS = Limits(entries=20_200, total_bytes=4096 * _MIB, file_bytes=1024 * _MIB)
CODE_LIMITS = Limits(entries=64, total_bytes=4 * _MIB, file_bytes=_MIB)


class PackageError(ValueError):
    """A zip breaks the rules. `faults` names every one of them, file by file."""

    def __init__(self, faults: Iterable[FieldFault]) -> None:
        self.faults = list(faults)
        super().__init__("; ".join(f"{fault.field}: {fault.message}" for fault in self.faults))


@dataclass(frozen=True)
class Member:
    """One regular file of a zip: its safe relative name and its unpacked size in bytes."""

    name: str
    size_bytes: int


@dataclass(frozen=True)
class Testdata:
    """A problem package that passed: its meta, its cases' files and its extra files."""

    __test__ = False  # the name is the domain's; pytest must not collect it

    meta: ProblemMeta
    cases: tuple[Member, ...]
    chaos: tuple[Member, ...]

    @property
    def members(self) -> tuple[Member, ...]:
        """All files an agent lays out."""
        return self.cases + self.chaos


@dataclass(frozen=True)
class Code:
    """A code zip that passed: the files to lay out, the language's main file among them."""

    members: tuple[Member, ...]
    main: str


def case_name(task: int, case: int, suffix: str) -> str:
    """`TTCC.in` or `TTCC.out` for zero-based task and case numbers."""
    return f"{task:02d}{case:02d}.{suffix}"


@contextmanager
def opened(stream: IO[bytes]) -> Iterator[zipfile.ZipFile]:
    """Open a zip; PackageError instead of the many things zipfile raises on garbage."""
    try:
        archive = zipfile.ZipFile(stream)
    except (*_DAMAGE, OSError) as error:
        raise PackageError([FieldFault(field="zip", message=f"not a readable zip: {error}")]) from (
            error
        )
    with archive:
        yield archive


def inspect_testdata(
    stream: IO[bytes], meta: bytes | None = None, *, limits: Limits = TESTDATA_LIMITS
) -> Testdata:
    """Check a problem package; `meta` (JSON) overrides a `meta.json` inside the zip.

    Raises PackageError that lists every fault: unsafe entries, limits, meta, missing answers,
    files that nobody asked for.
    """
    with opened(stream) as archive:
        members, faults = _survey(archive, limits, folders=frozenset({CHAOS}))
        parsed = _parse_meta(archive, members, meta, faults)
        cases, chaos = _sort_testdata(members, parsed, faults)
        faults.extend(_damage(archive, (*cases, *chaos)) if not faults else ())
    if faults or parsed is None:
        raise PackageError(faults)
    return Testdata(meta=parsed, cases=cases, chaos=chaos)


def inspect_code(stream: IO[bytes], language: Language, *, limits: Limits = CODE_LIMITS) -> Code:
    """Check a submission's zip: flat, small, with the language's main file in it.

    Raises PackageError; when the main file is missing, it says what was expected and found.
    """
    with opened(stream) as archive:
        members, faults = _survey(archive, limits, folders=frozenset())
        faults.extend(_damage(archive, members.values()) if not faults else ())
    main = language.source_name
    if main not in members:
        found = ", ".join(sorted(members)[:8]) or "no file at all"
        faults.append(
            FieldFault(
                field="code",
                message=f"a {language.title} submission's zip must hold {main}; found {found}",
            )
        )
    if faults:
        raise PackageError(faults)
    return Code(members=tuple(members.values()), main=main)


def wrap_source(source: bytes, language: Language) -> bytes:
    """A zip that holds `source` under the language's main name; the same bytes every time.

    Raises PackageError if the source is over the code limits.
    """
    if len(source) > CODE_LIMITS.file_bytes:
        raise PackageError(
            [
                FieldFault(
                    field="code",
                    message=f"{len(source)} bytes of source; at most {CODE_LIMITS.file_bytes}",
                )
            ]
        )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        info = zipfile.ZipInfo(language.source_name, date_time=(1980, 1, 1, 0, 0, 0))
        info.compress_type = zipfile.ZIP_DEFLATED
        info.external_attr = (stat.S_IFREG | 0o644) << 16
        archive.writestr(info, source)
    return buffer.getvalue()


def read_member(archive: zipfile.ZipFile, member: Member) -> Iterator[bytes]:
    """The bytes of one inspected member, in chunks of up to 1 MiB.

    Raises PackageError when the content differs from what the directory of the zip promised
    (size or CRC), or cannot be decompressed.
    """
    left = member.size_bytes
    try:
        with archive.open(member.name) as content:
            while chunk := content.read(_CHUNK_BYTES):
                left -= len(chunk)
                if left < 0:
                    break
                yield chunk
    except _DAMAGE as error:
        raise PackageError([FieldFault(field=member.name, message=f"damaged: {error}")]) from error
    if left != 0:
        raise PackageError(
            [FieldFault(field=member.name, message="its size is not what the zip promised")]
        )


def _damage(archive: zipfile.ZipFile, members: Iterable[Member]) -> Iterator[FieldFault]:
    """What is wrong with the content of files whose entries are in order."""
    for member in members:
        try:
            for _ in read_member(archive, member):
                pass
        except PackageError as error:
            yield from error.faults


def _survey(
    archive: zipfile.ZipFile, limits: Limits, *, folders: frozenset[str]
) -> tuple[dict[str, Member], list[FieldFault]]:
    """All regular files by name, and everything wrong with any entry."""
    faults: list[FieldFault] = []
    members: dict[str, Member] = {}
    infos = archive.infolist()
    if len(infos) > limits.entries:
        # The rest is not even looked at: a list of a million faults helps nobody.
        fault = FieldFault(field="zip", message=f"{len(infos)} entries; at most {limits.entries}")
        return {}, [fault]
    for info in infos:
        problem = _entry_fault(info, folders) or (
            f"{info.file_size} bytes unpacked; at most {limits.file_bytes} a file"
            if info.file_size > limits.file_bytes
            else None
        )
        if problem is not None:
            faults.append(FieldFault(field=_printable(info.orig_filename), message=problem))
        elif info.is_dir():
            continue
        elif info.filename in members:
            faults.append(FieldFault(field=info.filename, message="stands in the zip twice"))
        else:
            members[info.filename] = Member(info.filename, info.file_size)
    for directory in {str(parent) for name in members for parent in PurePosixPath(name).parents}:
        if directory in members:
            faults.append(FieldFault(field=directory, message="is a file and a folder at once"))
    faults.extend(_size_faults(archive, infos, limits))
    return members, faults


def _size_faults(
    archive: zipfile.ZipFile, infos: list[zipfile.ZipInfo], limits: Limits
) -> Iterator[FieldFault]:
    total = sum(info.file_size for info in infos)
    packed = sum(info.compress_size for info in infos)
    if total > limits.total_bytes:
        yield FieldFault(
            field="zip", message=f"{total} bytes unpacked; at most {limits.total_bytes}"
        )
    if total > limits.ratio_free_bytes and total > limits.ratio * max(packed, 1):
        yield FieldFault(
            field="zip",
            message=f"unpacks to {total // max(packed, 1)} times its size; at most {limits.ratio}",
        )
    # Entries that share the same compressed bytes are how small zips become huge ones.
    if packed > archive.start_dir:
        yield FieldFault(field="zip", message="entries overlap one another")


def _entry_fault(info: zipfile.ZipInfo, folders: frozenset[str]) -> str | None:
    """What is wrong with one entry, whatever it contains; None if nothing is."""
    name = info.filename
    mode = info.external_attr >> 16
    parts = name.rstrip("/").split("/")
    outside = parts[0] not in folders and (len(parts) > 1 or info.is_dir())
    allowed = f" (only {', '.join(sorted(folders))}/ may be one)" if folders else ""
    checks = (
        (
            info.orig_filename != name or "\\" in name or not name.isprintable(),
            "the name holds characters that are not allowed",
        ),
        (
            name.startswith("/") or any(part in ("", ".", "..") for part in parts),
            "the name is not a plain relative path",
        ),
        (
            len(name.encode("utf-8", "surrogatepass")) > _NAME_LIMIT_BYTES,
            f"the name is longer than {_NAME_LIMIT_BYTES} bytes",
        ),
        (
            stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR),
            "is not a regular file (a symbolic link, device or pipe)",
        ),
        (
            stat.S_IFMT(mode) != 0 and stat.S_ISDIR(mode) != info.is_dir(),
            "cannot be both a folder and a file",
        ),
        (bool(info.flag_bits & 0x1), "is encrypted"),
        (
            info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED),
            "uses a compression method other than stored and deflated",
        ),
        (
            outside,
            f"lies in a folder{allowed}; zip the files themselves, not the folder they lie in",
        ),
    )
    return next((message for wrong, message in checks if wrong), None)


def _parse_meta(
    archive: zipfile.ZipFile,
    members: dict[str, Member],
    given: bytes | None,
    faults: list[FieldFault],
) -> ProblemMeta | None:
    member = members.pop(META_NAME, None)
    raw = given
    if raw is None:
        if member is None:
            faults.append(
                FieldFault(
                    field=META_NAME,
                    message="missing: put it into the zip or send it as the field `meta`",
                )
            )
            return None
        if member.size_bytes > META_LIMIT_BYTES:
            faults.append(FieldFault(field=META_NAME, message="is larger than 1 MiB"))
            return None
        try:
            raw = b"".join(read_member(archive, member))
        except PackageError as error:
            faults.extend(error.faults)
            return None
    try:
        return ProblemMeta.model_validate(json.loads(raw))
    except ValidationError as error:
        faults.extend(meta_faults(error))
    except (ValueError, RecursionError) as error:
        faults.append(FieldFault(field=META_NAME, message=f"is not JSON: {error}"))
    return None


def meta_faults(error: ValidationError) -> list[FieldFault]:
    """A validation error of a meta as faults, each with the field's place in the file."""
    return [
        FieldFault(
            field=".".join([META_NAME, *map(str, item["loc"])]),
            message=item["msg"].removeprefix("Value error, "),
        )
        for item in error.errors(include_url=False, include_input=False, include_context=False)
    ]


def _sort_testdata(
    members: dict[str, Member], meta: ProblemMeta | None, faults: list[FieldFault]
) -> tuple[tuple[Member, ...], tuple[Member, ...]]:
    """Split cases from chaos files; what is missing or unasked-for becomes a fault."""
    chaos = tuple(m for name, m in sorted(members.items()) if name.startswith(f"{CHAOS}/"))
    rest = {name: m for name, m in members.items() if not name.startswith(f"{CHAOS}/")}
    if meta is None:
        # Without a meta one can still say which names make no sense at all.
        faults.extend(
            FieldFault(field=name, message="is not named TTCC.in or TTCC.out")
            for name in sorted(rest)
            if not _CASE.fullmatch(name)
        )
        return (), chaos
    wanted = [
        case_name(t, c, suffix)
        for t, task in enumerate(meta.tasks)
        for c in range(task.caseCount)
        for suffix in ("in", "out")
    ]
    faults.extend(
        FieldFault(field=name, message="missing: meta.json counts this case")
        for name in wanted
        if name not in rest
    )
    asked = set(wanted)
    for name in sorted(rest):
        if name not in asked:
            reason = (
                "belongs to no case that meta.json counts"
                if _CASE.fullmatch(name)
                else "is not named TTCC.in or TTCC.out"
            )
            faults.append(FieldFault(field=name, message=reason))
    return tuple(rest[name] for name in wanted if name in rest), chaos


def _printable(name: str) -> str:
    return ascii(name)[1:-1][:120]
