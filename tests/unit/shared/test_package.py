"""The rules for zips from outside: what passes, and that every fault is named at once."""

from __future__ import annotations

import io
import json
import stat
import zipfile

import pytest

from noj_shared.language import Language
from noj_shared.package import (
    CODE_LIMITS,
    Limits,
    PackageError,
    inspect_code,
    inspect_testdata,
    opened,
    read_member,
    wrap_source,
)

META = {"tasks": [{"taskScore": 100, "memoryLimit": 65536, "timeLimit": 1000, "caseCount": 2}]}
GOOD = {
    "meta.json": json.dumps(META).encode(),
    "0000.in": b"1\n",
    "0000.out": b"1\n",
    "0001.in": b"2\n",
    "0001.out": b"2\n",
}


def zipped(
    files: dict[str, bytes] | list[tuple[str | zipfile.ZipInfo, bytes]],
    method: int = zipfile.ZIP_DEFLATED,
) -> io.BytesIO:
    """A zip of the given files, in order."""
    buffer = io.BytesIO()
    entries = files.items() if isinstance(files, dict) else files
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    buffer.seek(0)
    return buffer


def faults_of(stream: io.BytesIO, meta: bytes | None = None) -> dict[str, str]:
    """The faults of a bad package, field to message."""
    with pytest.raises(PackageError) as caught:
        inspect_testdata(stream, meta)
    return {fault.field: fault.message for fault in caught.value.faults}


def test_good_package_passes() -> None:
    """A package with all its cases gives the meta and the files in task and case order."""
    data = inspect_testdata(zipped(GOOD))
    assert [m.name for m in data.cases] == ["0000.in", "0000.out", "0001.in", "0001.out"]
    assert data.meta.tasks[0].timeLimit == 1000


def test_separate_meta_wins() -> None:
    """The meta sent beside the zip is used instead of the one inside."""
    one = {"tasks": [{**META["tasks"][0], "caseCount": 1}]}
    files = {name: content for name, content in GOOD.items() if not name.startswith("0001")}
    assert len(inspect_testdata(zipped(files), json.dumps(one).encode()).cases) == 2


def test_chaos_files_pass() -> None:
    """Files below chaos/ are listed apart."""
    data = inspect_testdata(zipped({**GOOD, "chaos/helper.h": b"//"}))
    assert [m.name for m in data.chaos] == ["chaos/helper.h"]


def test_all_faults_are_listed_at_once() -> None:
    """A missing answer, an extra file, a wild name and a wrong sum come in one error."""
    files = {k: v for k, v in GOOD.items() if k != "0001.out"}
    files |= {"0105.in": b"", "notes.txt": b"", "../evil": b""}
    assert set(faults_of(zipped(files))) == {"0001.out", "0105.in", "notes.txt", "../evil"}


@pytest.mark.parametrize(
    ("meta", "field"),
    [
        (b"{", "meta.json"),
        (b"[" * 100_000, "meta.json"),
        (b'{"tasks": []}', "meta.json.tasks"),
        (json.dumps({"tasks": [{**META["tasks"][0], "taskScore": 99}]}).encode(), "meta.json"),
        (
            json.dumps({"tasks": [{**META["tasks"][0], "timeLimit": "x"}]}).encode(),
            "meta.json.tasks.0.timeLimit",
        ),
        (json.dumps({**META, "chekcer": "diff"}).encode(), "meta.json.chekcer"),
    ],
)
def test_meta_faults_name_the_field(meta: bytes, field: str) -> None:
    """A wrong meta says where it is wrong."""
    assert field in faults_of(zipped(GOOD), meta)


def test_missing_meta_says_what_to_do() -> None:
    """Without any meta the error names both ways to give one."""
    files = {k: v for k, v in GOOD.items() if k != "meta.json"}
    assert "field `meta`" in faults_of(zipped(files))["meta.json"]


def symlink(name: str) -> zipfile.ZipInfo:
    """An entry that unpackers turn into a symbolic link."""
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/etc/passwd", "relative path"),
        ("a/../../b", "relative path"),
        ("chaos/../x", "relative path"),
        ("a\\b", "characters"),
        ("bell\x07", "characters"),
        ("folder/0000.in", "folder"),
        ("x" * 300, "longer"),
        (symlink("chaos/link"), "regular file"),
    ],
)
def test_hostile_entries_are_refused(name: str | zipfile.ZipInfo, message: str) -> None:
    """Names that leave the folder, links and control characters never pass."""
    faults = faults_of(zipped([*GOOD.items(), (name, b"x")]))
    assert any(message in text for text in faults.values())


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_duplicate_entries_are_refused() -> None:
    """A name that stands twice could show one content to us and another to the agent."""
    assert "twice" in faults_of(zipped([*GOOD.items(), ("0000.in", b"other")]))["0000.in"]


def test_zip_bomb_is_refused_unread() -> None:
    """A small zip that unpacks to far more than its size is refused by its directory alone."""
    faults = faults_of(zipped({**GOOD, "chaos/bomb": bytes(100 * 1024 * 1024)}))
    assert "times its size" in faults["zip"]


def test_total_and_entry_limits() -> None:
    """Unpacked size and number of entries are bounded."""
    small = Limits(entries=3, total_bytes=10, file_bytes=5)
    with pytest.raises(PackageError, match="at most 3"):
        inspect_testdata(zipped(GOOD), limits=small)
    with pytest.raises(PackageError, match="at most 5 a file"):
        inspect_code(
            zipped({"main.c": b"123456"}),
            Language.C11,
            limits=Limits(entries=3, total_bytes=100, file_bytes=5),
        )


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04" + bytes(40)])
def test_garbage_is_no_zip(content: bytes) -> None:
    """Whatever is no zip is a fault, never another exception."""
    assert "zip" in faults_of(io.BytesIO(content))


def test_truncated_and_flipped_zips_never_crash() -> None:
    """Every cut and every flipped byte give a PackageError or a readable package."""
    whole = zipped(GOOD).getvalue()
    for position in range(len(whole)):
        flipped = bytearray(whole)
        flipped[position] ^= 0x5A
        for damaged in (whole[:position], bytes(flipped)):
            stream = io.BytesIO(damaged)
            try:
                data = inspect_testdata(stream)
            except PackageError:
                continue
            with opened(stream) as archive:
                for member in data.members:
                    assert sum(map(len, read_member(archive, member))) == member.size_bytes


def test_damaged_content_is_refused_by_the_file() -> None:
    """A bad disk or transfer is seen at the upload, not when a submission is judged."""
    files = {"0000.in": b"the first input\n", "chaos/a.h": b"the header\n"}
    whole = zipped({**GOOD, **files}, zipfile.ZIP_STORED).getvalue()
    for name, content in files.items():
        stored = whole.index(content)
        damaged = whole[:stored] + b"T" + whole[stored + 1 :]
        assert "damaged" in faults_of(io.BytesIO(damaged))[name]
    code = zipped({"main.c": b"int main(){}"}, zipfile.ZIP_STORED).getvalue()
    with pytest.raises(PackageError, match=r"main\.c: damaged"):
        inspect_code(io.BytesIO(code.replace(b"int main", b"Int main")), Language.C11)


def test_code_zip_without_main_says_what_was_expected() -> None:
    """The message names the file that is missing and those that are there."""
    with pytest.raises(PackageError, match=r"must hold main\.c; found ma1n\.c"):
        inspect_code(zipped({"ma1n.c": b"int main(){}"}), Language.C11)


def test_wrapped_source_is_a_good_code_zip() -> None:
    """A bare source file becomes the same zip every time, and that zip passes."""
    for language in (Language.C11, Language.CPP17, Language.PYTHON3):
        content = wrap_source(b"x", language)
        assert content == wrap_source(b"x", language)
        code = inspect_code(io.BytesIO(content), language)
        assert code.main == language.source_name
    with pytest.raises(PackageError):
        wrap_source(b"x" * (CODE_LIMITS.file_bytes + 1), Language.C11)
