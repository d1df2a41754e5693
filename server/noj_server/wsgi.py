"""gunicorn underneath: one gthread worker process with a few hundred threads (ADR 0001)."""

from __future__ import annotations

import logging
import resource
import signal
import socket
import struct
import time
from contextlib import suppress
from types import FrameType
from typing import Any

from gunicorn.app.base import BaseApplication
from gunicorn.workers.gthread import ThreadWorker

from noj_server.app import create_app
from noj_server.logs import log_config
from noj_server.redis_client import EMBEDDED_WARNING, persistence_faults
from noj_server.services import EXTENSION, Services
from noj_server.settings import ServerSettings

log = logging.getLogger(__name__)

KEEPALIVE_S = 75
GRACEFUL_S = 3  # below the 5 s for which a restarted server tries to bind
WORKER_TIMEOUT_S = 60
GOODBYE_S = 1


class ParkingWorker(ThreadWorker):
    """A gthread worker that answers parked polls when it is told to stop, and waits for no
    stalled client for ever.

    Otherwise the stop would wait out the longest poll, and then cut it off.
    """

    def handle(self, conn: Any) -> Any:
        """One request. gunicorn's sockets block, so the kernel has to end a stalled one's wait:
        recv and send fail with EAGAIN."""
        timeval = struct.pack("@ll", _services(self).settings.client_timeout_s, 0)
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            conn.sock.setsockopt(socket.SOL_SOCKET, option, timeval)
        result = super().handle(conn)
        if not result:
            _say_goodbye(conn.sock)
        return result

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM: release the parked requests, then stop as ever."""
        _services(self).parking.close()
        super().handle_exit(sig, frame)

    def handle_quit(self, sig: int, frame: FrameType | None) -> None:
        """SIGQUIT and SIGINT: the same."""
        _services(self).parking.close()
        super().handle_quit(sig, frame)

    def is_parent_alive(self) -> bool:
        """The master was killed: this worker ends itself, so nobody is to stay parked."""
        alive = bool(super().is_parent_alive())
        if not alive:
            _services(self).parking.close()
        return alive


def _say_goodbye(sock: socket.socket) -> None:
    """Wait in this thread until the client has closed its side, too.

    gunicorn does that in its one main thread, up to 2 s per connection: a few clients that do not
    close would stop the whole server. After this it finds nothing to wait for.
    """
    deadline = time.monotonic() + GOODBYE_S
    try:
        sock.shutdown(socket.SHUT_WR)
        while (left_s := deadline - time.monotonic()) > 0:
            sock.settimeout(left_s)
            if not sock.recv(65536):
                break
    except OSError:
        pass
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def _services(worker: Any) -> Services:
    found: Services = worker.app.callable.extensions[EXTENSION]
    return found


def _worker_ready(worker: Any) -> None:
    parts = _services(worker)
    parts.start()
    if parts.embedded:
        log.warning(EMBEDDED_WARNING)
    else:
        try:
            for fault in persistence_faults(parts.redis):
                log.warning("Redis: %s", fault)
        except Exception as error:  # noqa: BLE001  # whatever it is, /readyz goes on telling it
            log.error("Redis does not answer yet: %s", error)
    settings = parts.settings
    log.info("noj-server is listening on http://%s:%s", settings.host, settings.port)


def _worker_exit(_server: Any, worker: Any) -> None:
    _services(worker).stop()


class NojServer(BaseApplication):
    """gunicorn, configured from our settings alone."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        super().__init__()

    def load_config(self) -> None:
        """Our settings as gunicorn's."""
        settings = self._settings
        options = {
            "bind": f"{settings.host}:{settings.port}",
            "worker_class": "noj_server.wsgi.ParkingWorker",
            # One process: keep-alive connections do not balance over several, and the embedded
            # Redis lives in it.
            "workers": 1,
            "threads": settings.threads,
            "worker_connections": max(1000, 4 * settings.threads),
            "timeout": WORKER_TIMEOUT_S,
            "graceful_timeout": GRACEFUL_S,
            "keepalive": KEEPALIVE_S,
            "backlog": 2048,
            "post_worker_init": _worker_ready,
            "worker_exit": _worker_exit,
            "logconfig_dict": log_config(settings.log_format),
            "proc_name": "noj-server",
            "control_socket_disable": True,
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        """The application, made in the worker process."""
        return create_app(self._settings)


def serve(settings: ServerSettings) -> None:
    """Serve until a signal ends it. Does not return."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # A shell's soft limit of 1,024 files is below `worker_connections`; accept would fail.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    NojServer(settings).run()
