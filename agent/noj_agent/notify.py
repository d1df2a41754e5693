"""Tell systemd how we are (sd_notify(3)): one datagram, no library needed."""

from __future__ import annotations

import contextlib
import os
import socket


def notify(message: str) -> None:
    """Send e.g. "READY=1"; nothing happens where nobody listens."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(message.encode(), address)
