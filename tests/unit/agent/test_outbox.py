"""The outbox: a report is on the disk before it is sent, and stays until it was taken (INV7)."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest
from noj_machine import make_abort, make_result
from noj_testing import Process, wait_until

from noj_agent.outbox import REFUSED_KEPT, Entry, Outbox
from noj_shared.ids import new_job_id

WRITER = """
import sys, threading
from pathlib import Path
from noj_agent.outbox import Entry, Outbox
from noj_shared.wire import CompleteJobBody
outbox = Outbox(Path(sys.argv[1]))
for line in sys.stdin:
    job_id, _, body = line.strip().partition(" ")
    outbox.put(Entry(job_id, CompleteJobBody.model_validate_json(body)))
    print("put", job_id, flush=True)
print("all", flush=True)
threading.Event().wait(60)
"""


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    """An empty one."""
    return Outbox(tmp_path / "outbox")


def test_what_is_put_comes_back(outbox: Outbox, tmp_path: Path) -> None:
    """Results and hand-backs alike, oldest job first, also for a new process."""
    entries = [Entry(new_job_id(), make_result()), Entry(new_job_id(), make_abort())]
    for entry in entries:
        outbox.put(entry)
    assert outbox.changed.is_set()
    for box in (outbox, Outbox(tmp_path / "outbox")):
        assert box.entries() == sorted(entries, key=lambda entry: entry.job_id)
    assert {(entry.kind, entry.lease) for entry in outbox.entries()} == {
        ("complete", "lease-1"),
        ("abort", "lease-1"),
    }


def test_the_first_report_of_a_job_wins(outbox: Outbox) -> None:
    """A result that is there is never replaced by a hand-back."""
    job_id = new_job_id()
    outbox.put(Entry(job_id, make_result()))
    outbox.put(Entry(job_id, make_abort()))
    (entry,) = outbox.entries()
    assert entry.kind == "complete"


def test_a_report_under_a_newer_lease(outbox: Outbox) -> None:
    """INV7: the job came back to us under a new lease while the old report waited; the new
    report is the one that can land."""
    job_id = new_job_id()
    old, new = (Entry(job_id, make_result(lease)) for lease in ("old", "new"))
    outbox.put(old)
    outbox.put(new)
    assert outbox.entries() == [new]
    outbox.remove(old)  # the server answered the old one only now
    outbox.refuse(old)
    assert outbox.entries() == [new]


def test_what_was_taken_is_gone(outbox: Outbox) -> None:
    """Removing twice is no error."""
    job_id = new_job_id()
    entry = Entry(job_id, make_result())
    outbox.put(entry)
    assert outbox.job_ids() == [job_id]
    for _ in range(2):
        outbox.remove(entry)
        assert (outbox.job_ids(), outbox.entries()) == ([], [])


def test_what_was_refused_is_kept_aside(outbox: Outbox, tmp_path: Path) -> None:
    """It is not sent again, and a person can look at it; only the newest hundred stay."""
    refused = tmp_path / "outbox" / "refused"
    for number in range(REFUSED_KEPT + 3):
        entry = Entry(new_job_id(), make_result())
        outbox.put(entry)
        path = tmp_path / "outbox" / f"{entry.job_id}.json"
        os.utime(path, (number, number))
        outbox.refuse(entry)
    assert outbox.entries() == []
    ages = sorted(path.stat().st_mtime for path in refused.iterdir())
    assert ages == list(range(3, REFUSED_KEPT + 3))
    outbox.refuse(Entry(new_job_id(), make_result()))


@pytest.mark.parametrize(
    "content", ["", "{", "null", "[]", '{"kind": "complete"}', '{"kind": "abort", "body": {}}']
)
def test_a_damaged_file_is_set_aside(outbox: Outbox, tmp_path: Path, content: str) -> None:
    """It blocks no other report, and is not lost."""
    bad, good = new_job_id(), Entry(new_job_id(), make_result())
    (tmp_path / "outbox" / f"{bad}.json").write_text(content)
    outbox.put(good)
    assert outbox.entries() == [good]
    assert (tmp_path / "outbox" / "refused" / f"{bad}.json").read_text() == content
    assert outbox.job_ids() == [good.job_id]


@pytest.mark.parametrize("name", ["jb_x.json", "notes.txt", ".part-abc", "jb_../x.json"])
def test_foreign_files_are_left_alone(outbox: Outbox, tmp_path: Path, name: str) -> None:
    """Half-written files of a killed predecessor among them."""
    path = tmp_path / "outbox" / Path(name).name
    path.write_text("{}")
    assert (outbox.job_ids(), outbox.entries()) == ([], [])
    assert path.exists()


def test_threads_put_and_take_at_once(outbox: Outbox) -> None:
    """Nothing is lost or torn between writers and a reader."""
    jobs = [new_job_id() for _ in range(40)]
    seen: set[str] = set()

    def put(some: list[str]) -> None:
        for job_id in some:
            outbox.put(Entry(job_id, make_result()))

    writers = [threading.Thread(target=put, args=(jobs[start::4],)) for start in range(4)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers) or outbox.job_ids():
        for entry in outbox.entries():
            seen.add(entry.job_id)
            outbox.remove(entry)
    assert seen == set(jobs)


def test_inv7_kill_9_after_put(tmp_path: Path) -> None:
    """INV7: whatever `put` has returned for is whole after kill -9 of the process."""
    folder, feed = tmp_path / "outbox", tmp_path / "feed"
    bodies = {new_job_id(): make_result(f"lease-{number}") for number in range(200)}
    lines = [f"{job_id} {body.model_dump_json()}" for job_id, body in bodies.items()]
    feed.write_text("\n".join(lines) + "\n")
    script = f"import sys; sys.stdin = open({str(feed)!r})\n{WRITER}"
    with Process(argv=[sys.executable, "-c", script, str(folder)], log=tmp_path / "log") as writer:
        wait_until(lambda: writer.output().count("put ") >= 20, what="twenty reports are kept")
        writer.kill9()
        words = [line.split() for line in writer.output().splitlines(keepends=True)]
    promised = {word[1] for word in words if word[:1] == ["put"]}
    found = {entry.job_id: entry.body for entry in Outbox(folder).entries()}
    assert len(promised) >= 20
    assert promised <= set(found)
    assert all(body == bodies[job_id] for job_id, body in found.items())
