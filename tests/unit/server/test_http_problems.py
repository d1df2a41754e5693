"""Problems: packages go in whole or not at all; runners fetch meta and test data."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import pytest
from noj_http import make_meta, make_package
from noj_testing import make_zip

from noj_shared.problem import CONTENT_TYPE

if TYPE_CHECKING:
    from tests.unit.server.conftest import Site


def test_new_same_and_newer(site: Site) -> None:
    """201 when new, 200 when the same or a newer version; the version follows the content."""
    first = site.put_problem()
    assert (first.status_code, first.json["tasks"], first.json["cases"]) == (201, 2, 3)
    assert first.json["checksum"] == hashlib.sha256(make_package()).hexdigest()
    again = site.put_problem()
    assert (again.status_code, again.json) == (200, first.json)
    other = site.put_problem(package=make_package(answer="4\n"))
    assert other.status_code == 200
    assert other.json["version"] != first.json["version"]


def test_meta_as_a_field_of_the_form(site: Site) -> None:
    """A `meta` field overrides the zip's meta.json and makes a version of its own."""
    first = site.put_problem()
    meta = make_meta(((10, 2), (90, 1)))
    second = site.put_problem(meta=json.dumps(meta))
    assert second.json["checksum"] == first.json["checksum"]
    assert second.json["version"] != first.json["version"]
    path = "/problem/p1/meta"
    data = site.http.get(path, headers=site.register().headers).json["data"]
    assert data == {**meta, "checker": "diff"}


@pytest.mark.parametrize("problem_id", ["p", "1", "a" * 64, "A_-9"])
def test_every_id_of_the_right_form_can_be_stored(site: Site, problem_id: str) -> None:
    """Ids of one character and of 64 are problems like any other."""
    assert site.put_problem(problem_id).status_code == 201
    headers = site.register().headers
    assert site.http.get(f"/problem/{problem_id}/testdata", headers=headers).status_code == 200


def test_every_fault_is_listed(site: Site) -> None:
    """400 with all that is wrong, file by file; nothing has changed."""
    files: dict[str, str | bytes] = {
        "meta.json": json.dumps(make_meta(((60, 2), (30, 1)))),
        "0000.in": "1",
        "readme.txt": "hello",
        "../evil": "x",
    }
    reply = site.put_problem(package=make_zip(files))
    assert (reply.status_code, reply.content_type) == (400, CONTENT_TYPE)
    assert reply.json["code"] == "invalid_package"
    faults = {fault["field"]: fault["message"] for fault in reply.json["errors"]}
    assert {"../evil", "readme.txt", "meta.json"} <= set(faults)
    assert "sum to 90" in faults["meta.json"]
    files["meta.json"] = json.dumps(make_meta())
    reply = site.put_problem(package=make_zip(files))
    fields = {fault["field"] for fault in reply.json["errors"]}
    assert {"0000.out", "0001.in", "0001.out", "0100.in", "0100.out"} <= fields
    assert site.http.get("/problem/p1/meta", headers=site.register().headers).status_code == 404


@pytest.mark.parametrize(
    ("package", "field"),
    [
        (b"", "zip"),
        (b"no zip", "zip"),
        (make_package()[:-30], "zip"),
        (make_zip({"0000.in": "", "0000.out": ""}), "meta.json"),
        (make_zip({"meta.json": "{"}), "meta.json"),
        (make_zip({"meta.json": "[" * 100_000}), "meta.json"),
        (make_zip({"meta.json": '{"tasks": NaN}'}), "meta.json.tasks"),
        (make_zip({"meta.json": '{"tasks": []}'}), "meta.json.tasks"),
        (make_zip({"meta.json": b"\xff\xfe\x00"}), "meta.json"),
        (
            make_zip({"meta.json": json.dumps({**make_meta(), "extra": 1})}),
            "meta.json.extra",
        ),
    ],
)
def test_bad_packages(site: Site, package: bytes, field: str) -> None:
    """Each is 400 with its place named, never a 500."""
    reply = site.put_problem(package=package)
    assert (reply.status_code, reply.json["code"]) == (400, "invalid_package"), reply.text
    assert field in {fault["field"] for fault in reply.json["errors"]}


def test_no_package_at_all(site: Site) -> None:
    """A body that is no form, and a form without the zip, say what is missing."""
    plain = site.http.put("/problems/p1", data=make_package(), headers=site.admin)
    form = site.http.send_form(
        "/problems/p1", method="PUT", files={"zip": b"x"}, fields={}, headers=site.admin
    )
    for reply in (plain, form):
        assert (reply.status_code, reply.json["code"]) == (400, "invalid_body")
        assert [fault["field"] for fault in reply.json["errors"]] == ["testdata"]


def test_testdata_whole_in_ranges_and_by_etag(judged: Site) -> None:
    """A broken download goes on where it stopped; an unchanged one is not sent again."""
    headers = judged.register().headers
    path, content = "/problem/p1/testdata", make_package()

    whole = judged.http.get(path, headers=headers)
    assert (whole.status_code, whole.data) == (200, content)
    assert whole.content_type == "application/zip"
    assert whole.headers["Accept-Ranges"] == "bytes"
    etag = whole.headers["ETag"]
    assert etag.strip('"') == hashlib.sha256(content).hexdigest()

    part = judged.http.get(path, headers={**headers, "Range": "bytes=10-19"})
    assert (part.status_code, part.data) == (206, content[10:20])
    assert part.headers["Content-Range"] == f"bytes 10-19/{len(content)}"
    rest = judged.http.get(path, headers={**headers, "Range": "bytes=20-", "If-Range": etag})
    assert (rest.status_code, rest.data) == (206, content[20:])
    changed = judged.http.get(path, headers={**headers, "Range": "bytes=20-", "If-Range": '"x"'})
    assert (changed.status_code, changed.data) == (200, content)
    beyond = judged.http.get(path, headers={**headers, "Range": "bytes=999999-"})
    assert (beyond.status_code, beyond.json["code"]) == (416, "range_not_satisfiable")
    assert beyond.headers["Content-Range"] == f"bytes */{len(content)}"

    cached = judged.http.get(path, headers={**headers, "If-None-Match": etag})
    assert (cached.status_code, cached.data) == (304, b"")


def test_checksum(judged: Site) -> None:
    """It is the zip's SHA-256."""
    reply = judged.http.get("/problem/p1/checksum", headers=judged.register().headers)
    assert reply.json == {"data": hashlib.sha256(make_package()).hexdigest()}


def test_versions_of_test_data(judged: Site) -> None:
    """The version that a job names stays fetchable; one that never was is 404."""
    old = hashlib.sha256(make_package()).hexdigest()
    judged.put_problem(package=make_package(answer="4\n"))
    headers = judged.register().headers

    def fetch(checksum: str) -> tuple[int, bytes]:
        reply = judged.http.get(
            "/problem/p1/testdata", query_string={"checksum": checksum}, headers=headers
        )
        return reply.status_code, reply.data

    assert fetch(old) == (200, make_package())
    for wrong in ("0" * 64, "x", "../../etc/passwd", ""):
        assert fetch(wrong)[0] == 404


@pytest.mark.parametrize("what", ["meta", "checksum", "testdata"])
def test_unknown_problems(site: Site, what: str) -> None:
    """404 for a problem that is not there, 400 for what cannot be one."""
    headers = site.register().headers
    assert site.http.get(f"/problem/none/{what}", headers=headers).status_code == 404
    assert site.http.get(f"/problem/a.b/{what}", headers=headers).status_code == 400
