"""Every Redis key there is: its type, its fields, its lifetime.

All share one prefix with a hash tag, so that they lie in one slot of a Redis Cluster; scripts
get the prefix as KEYS[1] and may build any of these names (ADR 0002).

    key                       type    holds
    runners:registered        ZSET    runner id → last heartbeat (ms); pruned on listing
    runner:<rn>:meta          HASH    name, version, slots, state, paused, …; 7 d, by EXPIRE only
    runner:<rn>:token_hash    STRING  SHA-256 of its token; 7 d, likewise
    token:<sha256>            STRING  runner id; 7 d, likewise
    runner:<rn>:alive         STRING  "1", for display only (INV2); lease TTL
    runner:<rn>:jobs          SET     ids of the jobs it holds; until they end
    runner:<rn>:revoked       STRING  "1" after it signed off or was revoked; REVOKED_S
    jobs:pending:<language>   ZSET    job id → (100 - priority)·10¹³ + arrival; permanent
    jobs:leased               ZSET    job id → lease deadline (ms); permanent
    job:<jb>                  HASH    submission, problem, version, language, blob, priority,
                                      score, state, attempts, lease, runner, created_ms,
                                      leased_ms; each ≤ 64 bytes (compact encoding);
                                      until it ends, then TOMBSTONE_S
    job:<jb>:history          LIST    failed attempts, fields joined by US (0x1f); with its job,
                                      then retention
    claim:<rn>:<ulid>         STRING  "<jb> <lease>": what an Idempotency-Key got; 2 × lease TTL
    submission:<sid>          HASH    state, job, problem, version, language, user, priority, blob,
                                      created_ms; status, score, … once landed;
                                      until it ends, then retention
    results                   STREAM  landed results, trimmed by age (retention)
    rate:<user>:<window>      STRING  submissions of a user in a window; two windows
    apikey:<sha256>           HASH    id, name, role, created_ms; permanent
    apikeys                   HASH    key id → SHA-256; permanent
    config                    HASH    rate_limit, rate_window_s; permanent
    dispatch:seq              STRING  arrival counter; permanent
    dispatch:tick             STRING  time of the last sweep (ms); permanent
    dispatch:orphans          LIST    the last 20 orphans: when, job, runner; TOMBSTONE_S
    dispatch:grace            STRING  no lease expires before this time (ms); one lease TTL

Problems are not in Redis: the disk is their truth (problems.py), so a Redis that was wiped loses
none. Channels: `wake` (a language has a new pending job), `landed` (a stream id).
"""

from __future__ import annotations

PREFIX = "{noj}:"
WAKE_CHANNEL = f"{PREFIX}wake"
LANDED_CHANNEL = f"{PREFIX}landed"

RUNNERS = f"{PREFIX}runners:registered"
LEASED = f"{PREFIX}jobs:leased"
RESULTS = f"{PREFIX}results"
TICK = f"{PREFIX}dispatch:tick"
GRACE = f"{PREFIX}dispatch:grace"
ORPHANS = f"{PREFIX}dispatch:orphans"
CONFIG = f"{PREFIX}config"
API_KEYS = f"{PREFIX}apikeys"

IDENTITY_TTL_S = 7 * 86_400
REVOKED_S = 300
"""Longer than any parked poll of a runner that is gone."""
TOMBSTONE_S = 86_400
"""How long an ended job's hash answers repeated reports."""

PRIORITY_STEP = 10**13
"""Room for this many arrivals within one priority; (200 · step) fits a double exactly."""


def pending(language: int) -> str:
    """ZSET of a language's pending jobs."""
    return f"{PREFIX}jobs:pending:{language}"


def job(job_id: str) -> str:
    """HASH of one job."""
    return f"{PREFIX}job:{job_id}"


def history(job_id: str) -> str:
    """LIST of a job's failed attempts."""
    return f"{PREFIX}job:{job_id}:history"


def submission(submission_id: str) -> str:
    """HASH of one submission."""
    return f"{PREFIX}submission:{submission_id}"


def runner(runner_id: str, part: str) -> str:
    """One of a runner's keys: meta, token_hash, alive, jobs."""
    return f"{PREFIX}runner:{runner_id}:{part}"


def token(digest: str) -> str:
    """STRING from a token's digest to its runner."""
    return f"{PREFIX}token:{digest}"


def api_key(digest: str) -> str:
    """HASH of one API key."""
    return f"{PREFIX}apikey:{digest}"


def rate(user: str, window: int) -> str:
    """STRING that counts a user's submissions in one window."""
    return f"{PREFIX}rate:{user}:{window}"
