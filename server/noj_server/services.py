"""What the views work with, made once per process; and how a view gets at it."""

from __future__ import annotations

from dataclasses import dataclass

from flask import current_app
from redis import Redis

from noj_server.api_keys import ApiKeys, CodeUrls
from noj_server.blobs import Blobs
from noj_server.config import LiveConfig
from noj_server.job_queue import JobQueue
from noj_server.problems import Problems
from noj_server.redis_client import RedisClients, connect
from noj_server.runners import RunnerRegistry
from noj_server.settings import ServerSettings
from noj_server.submissions import Submissions
from noj_server.sweeper import Sweeper
from noj_server.waiting import Parking

EXTENSION = "noj"


@dataclass(frozen=True)
class Services:
    """The parts of one server process. `start` and `stop` its threads; tests may do without."""

    settings: ServerSettings
    redis: Redis
    embedded: bool
    queue: JobQueue
    registry: RunnerRegistry
    api_keys: ApiKeys
    code_urls: CodeUrls
    blobs: Blobs
    problems: Problems
    submissions: Submissions
    config: LiveConfig
    parking: Parking
    sweeper: Sweeper

    def start(self) -> None:
        """Start the sweeper and the listener, once per process."""
        self.parking.start()
        self.sweeper.start()

    def stop(self) -> None:
        """Release parked requests and end the threads."""
        self.parking.stop()
        self.sweeper.stop()


def make_services(settings: ServerSettings, clients: RedisClients | None = None) -> Services:
    """Wire the parts together; talks to no Redis yet. Raises OSError if the data directory
    cannot be made."""
    clients = clients or connect(settings.redis_url)
    redis = clients.main
    queue = JobQueue(redis, settings.queue, claim_redis=clients.claims)
    registry = RunnerRegistry(redis, alive_ttl_s=settings.lease_ttl_s)
    blobs = Blobs(settings.data_dir)
    problems = Problems(blobs)
    config = LiveConfig(redis)
    return Services(
        settings=settings,
        redis=redis,
        embedded=clients.embedded,
        queue=queue,
        registry=registry,
        api_keys=ApiKeys(redis, settings),
        code_urls=CodeUrls(settings),
        blobs=blobs,
        problems=problems,
        submissions=Submissions(queue, registry, problems, blobs),
        config=config,
        parking=Parking(redis, settings.parking_capacity),
        sweeper=Sweeper(queue),
    )


def services() -> Services:
    """The parts of the process that serves this request."""
    found: Services = current_app.extensions[EXTENSION]
    return found
