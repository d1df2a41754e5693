"""The operator's view of the queue: what waits, what is held, what landed last."""

from __future__ import annotations

from flask import Blueprint, Response

from noj_server.auth import require_role
from noj_server.job_queue import OrphanRecord
from noj_server.replies import model
from noj_server.services import services
from noj_server.submissions import result_entry, when
from noj_shared.wire import ApiKeyRole, LeaseView, OrphanView, QueueLine, QueueReply

blueprint = Blueprint("queue", __name__)


@blueprint.get("/queue")
@require_role(ApiKeyRole.OPERATOR)
def queue() -> Response:
    """Depth and oldest wait per language and priority, leases, last landed."""
    source = services().queue
    names = {record.runner_id: record.name for record in services().registry.list_runners()}
    lines = source.pending_lines()
    return model(
        QueueReply(
            pending=tuple(
                QueueLine(
                    language=line.language,
                    priority=line.priority,
                    depth=line.depth,
                    oldest_wait_s=line.oldest_wait_s,
                )
                for line in lines
            ),
            leases=tuple(
                LeaseView(
                    job_id=lease.job.job_id,
                    submission_id=lease.job.submission_id,
                    problem_id=lease.job.problem_id,
                    language=lease.job.language,
                    runner_id=lease.job.runner_id,
                    runner_name=names.get(lease.job.runner_id),
                    age_s=lease.age_s,
                    time_left_s=lease.time_left_s,
                    attempts=lease.job.attempts,
                    max_attempts=source.settings.max_attempts,
                )
                for lease in source.leases()
            ),
            orphans=tuple(_orphan(record, names) for record in source.orphans()),
            landed=tuple(result_entry(entry) for entry in source.last_results()),
            depth=sum(line.depth for line in lines),
            grace_left_s=source.grace_left_s(),
            parked_polls=services().parking.parked,
        )
    )


def _orphan(record: OrphanRecord, names: dict[str, str]) -> OrphanView:
    job = record.job
    holder = job.runner_id if job is not None and job.state in ("leased", "landed") else ""
    return OrphanView(
        at=when(record.at_ms),
        job_id=record.job_id,
        submission_id=job.submission_id if job is not None else None,
        lost_by=names.get(record.runner_id, record.runner_id),
        state=job.state if job is not None else "forgotten",
        now_with=names.get(holder, holder) or None,
    )
