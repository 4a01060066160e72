"""Ports for programs that listen a moment later. Standard library only: nodes of a cluster run it with any Python."""

import secrets
import socket
from pathlib import Path

_LOWEST = 10_000  # below are those that services are known by
_LEAST_ROOM = 1000  # ports to choose from, so that two who choose at once hardly ever choose the same
_TRIES = 100
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port that nobody has, and that no outgoing connection gets before its program listens."""
    room = _first_of_connections() - _LOWEST
    for _ in range(_TRIES if room >= _LEAST_ROOM else 0):
        port = _LOWEST + secrets.randbelow(room)
        if _can_be_had(host, port):
            return port
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _first_of_connections() -> int:
    """Return the lowest port that the kernel gives to connections by itself, Linux's own where it does not say."""
    try:
        return int(_RANGE.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 32_768


def _can_be_had(host: str, port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True
