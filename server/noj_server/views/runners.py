"""The runner side of the wire, and the operator's list of runners."""

from __future__ import annotations

import logging
import math
import time

from flask import Blueprint, Response, request
from werkzeug.exceptions import MethodNotAllowed

from noj_server.api_keys import unauthorized
from noj_server.auth import (
    bearer,
    checked_id,
    registration_allowed,
    require_role,
    require_runner_token,
)
from noj_server.errors import ApiError, json_body, not_found, parse
from noj_server.job_queue import Abort, ClaimedJob, ClaimRefusedError, JobRecord, Landing
from noj_server.problems import UnknownProblemError
from noj_server.replies import empty, model, parked, preferences
from noj_server.runners import RunnerRecord
from noj_server.services import services
from noj_server.submissions import ShapeError, when
from noj_shared.ids import is_job_id, is_request_id, is_runner_id
from noj_shared.problem import ErrorCode
from noj_shared.wire import (
    AbortJobBody,
    AbortJobReply,
    AbortReason,
    ApiKeyRole,
    CompleteJobBody,
    HeartbeatBody,
    HeartbeatReply,
    Job,
    RegisterRunnerBody,
    RegisterRunnerReply,
    RunnerActivity,
    RunnerConfig,
    RunnersReply,
    RunnerState,
    RunnerView,
)

log = logging.getLogger(__name__)

blueprint = Blueprint("runners", __name__)

SMALL_BODY_BYTES = 256 * 1024


def runner_config() -> RunnerConfig:
    """What the settings ask of runners."""
    settings = services().settings
    return RunnerConfig(
        heartbeat_interval_sec=settings.heartbeat_interval_s,
        poll_interval_sec=settings.poll_interval_s,
        max_concurrent_jobs=settings.max_concurrent_jobs,
        lease_ttl_sec=settings.lease_ttl_s,
    )


@blueprint.post("/runners/register")
def register() -> Response:
    """A new runner; its token is told this once."""
    body = parse(RegisterRunnerBody, json_body(SMALL_BODY_BYTES))
    if not registration_allowed(services().settings, body.registration_token):
        raise unauthorized("the registration token is wrong, or none is set on the server")
    runner_id, token = services().registry.register(body)
    reply = RegisterRunnerReply(runner_id=runner_id, token=token, config=runner_config())
    return model(reply, 201)


@blueprint.post("/runners/<runner_id>/heartbeat")
@require_runner_token
def heartbeat(runner_id: str) -> Response:
    """Renew the runner and the leases of the jobs it lists. Never parks."""
    body = parse(HeartbeatBody, json_body(SMALL_BODY_BYTES))
    if not services().registry.renew_alive(runner_id, body):
        raise unauthorized("this runner is not registered any more; register again")
    renewal = services().queue.renew_lease(runner_id, body.active_job_ids, body.leases)
    if body.state is RunnerActivity.DRAINING:
        services().parking.release(runner_id)
    if preferences().get("return") != "representation":
        return empty()
    record = services().registry.get(runner_id)
    return model(
        HeartbeatReply(
            cancel=renewal.cancel,
            lost=renewal.lost,
            paused=record is not None and record.paused,
            config=runner_config(),
        )
    )


@blueprint.get("/runners/<runner_id>/next-job")
@require_runner_token
def next_job(runner_id: str) -> Response:
    """The next job, at once or within `Prefer: wait`; 204 when there is none.

    A runner that is paused, or holds its maximum, is not parked: it would only be in the way.
    """
    if request.method == "HEAD":  # which Flask adds to every GET; here it would lease a job
        raise MethodNotAllowed(["GET"])
    record = services().registry.get(runner_id)
    if record is None:
        raise unauthorized("this runner is not registered any more; register again")
    key = request.headers.get("Idempotency-Key")
    if key is not None and not is_request_id(key):
        raise ApiError(400, ErrorCode.BAD_REQUEST, "Idempotency-Key must be a ULID")
    languages = record.language_numbers

    def claim() -> ClaimedJob | None:
        return services().queue.claim_next_job(
            runner_id,
            languages,
            idempotency_key=key,
            max_jobs=services().settings.max_concurrent_jobs,
        )

    try:
        found = parked(claim, topics=map(str, languages), owner=runner_id)
    except ClaimRefusedError as refused:
        if refused.reason == "revoked":
            raise unauthorized("this runner was revoked; register again") from refused
        return empty(Retry_After=str(math.ceil(services().settings.poll_interval_s)))
    if isinstance(found, Response):
        return found
    try:
        return model(_job(found))
    except UnknownProblemError as error:
        # The data directory has lost the version. Handed back until it lands as Judge Error (INV5).
        log.error("job %s cannot be judged: no such %s", found.job_id, error)
        reason = AbortReason.REJECTED
        detail = f"the server's data directory has lost the version of {error}"
        services().queue.abort_job(
            runner_id, found.job_id, found.lease, reason=reason, detail=detail
        )
        return empty()


def _job(claimed: ClaimedJob) -> Job:
    problem = services().problems.version(claimed.problem_id, claimed.version)
    base = services().settings.public_url or request.host_url
    token = services().code_urls.sign(claimed.submission_id)
    return Job(
        job_id=claimed.job_id,
        submission_id=claimed.submission_id,
        problem_id=claimed.problem_id,
        language=claimed.language,
        code_url=f"{base.rstrip('/')}/submissions/{claimed.submission_id}/code?token={token}",
        checker=problem.meta.checker,
        tasks=problem.meta.tasks,
        lease=claimed.lease,
        testdata_checksum=problem.checksum,
        attempts=claimed.attempts,
        lease_ttl_sec=services().settings.lease_ttl_s,
    )


def _known_job(job_id: str) -> JobRecord:
    record = services().queue.job(checked_id(job_id, is_job_id, "job"))
    if record is None:
        raise not_found("job")
    return record


def _lost() -> ApiError:
    return ApiError(409, ErrorCode.LEASE_LOST, "this job is not yours any more; drop it")


@blueprint.put("/runners/<runner_id>/jobs/<job_id>/complete")
@require_runner_token
def complete(runner_id: str, job_id: str) -> Response:
    """Take a result: 204 landed, landed before, or of no use any more; 409 not yours."""
    body = parse(CompleteJobBody, json_body(services().settings.report_limit_bytes))
    record = _known_job(job_id)
    try:
        landing = services().submissions.land(runner_id, record, body)
    except ShapeError as error:
        raise ApiError(400, ErrorCode.SHAPE_MISMATCH, str(error), errors=error.faults) from error
    if landing is Landing.NOT_YOURS:
        raise _lost()
    if landing is Landing.UNKNOWN:
        raise not_found("job")
    return empty()


@blueprint.put("/runners/<runner_id>/jobs/<job_id>/abort")
@require_runner_token
def abort(runner_id: str, job_id: str) -> Response:
    """Take a job back: 202 requeued or landed as Judge Error."""
    body = parse(AbortJobBody, json_body(SMALL_BODY_BYTES))
    _known_job(job_id)
    outcome = services().queue.abort_job(
        runner_id, job_id, body.lease, reason=body.reason, detail=body.detail or ""
    )
    if outcome is Abort.NOT_YOURS:
        raise _lost()
    if outcome is Abort.UNKNOWN:
        raise not_found("job")
    return model(AbortJobReply(outcome=outcome.value), 202)


@blueprint.delete("/runners/<runner_id>")
def sign_off(runner_id: str) -> Response:
    """A runner signs off, or an operator revokes it; immediate either way."""
    checked_id(runner_id, is_runner_id, "runner")
    operator = services().api_keys.role_of(bearer()) is ApiKeyRole.OPERATOR
    if not operator and not services().registry.verify_token(runner_id, bearer()):
        raise unauthorized("neither that runner's token nor an operator's key")
    services().registry.sign_off(runner_id)
    services().parking.release(runner_id)
    return empty()


@blueprint.get("/runners")
@require_role(ApiKeyRole.OPERATOR)
def list_runners() -> Response:
    """All runners with what they hold."""
    views = [_view(record) for record in services().registry.list_runners()]
    return model(RunnersReply(runners=tuple(views)))


@blueprint.post("/runners/<runner_id>/<any(pause, resume):action>")
@require_role(ApiKeyRole.OPERATOR)
def pause(runner_id: str, action: str) -> Response:
    """Give a runner no more jobs, or give it again; what it has, it finishes."""
    checked_id(runner_id, is_runner_id, "runner")
    if not services().registry.set_paused(runner_id, action == "pause"):
        raise not_found("runner")
    return empty()


def _view(record: RunnerRecord) -> RunnerView:
    jobs = services().queue.held_jobs(record.runner_id)
    silent_s = max(time.time() - record.last_seen_ms / 1000, 0.0)
    return RunnerView(
        runner_id=record.runner_id,
        name=record.name,
        state=_state(record, bool(jobs)),
        reason=record.reason,
        version=record.version,
        slots=record.slots,
        busy_slots=record.busy_slots,
        languages=record.languages,
        tags=record.tags,
        jobs=tuple(jobs),
        outbox=record.outbox,
        load=record.load,
        disk_free_bytes=record.disk_free_bytes,
        registered_at=when(record.registered_ms),
        last_seen_at=when(record.last_seen_ms),
        last_seen_s=silent_s,
    )


def _state(record: RunnerRecord, busy: bool) -> RunnerState:
    if not record.alive:
        return RunnerState.LOST
    if record.state == RunnerActivity.SICK:
        return RunnerState.SICK
    if record.state == RunnerActivity.DRAINING:
        return RunnerState.DRAINING
    if record.paused:
        return RunnerState.PAUSED
    return RunnerState.BUSY if busy else RunnerState.ONLINE
