"""The ranks of a launch: their rendezvous, and the collection of their results and errors."""

import fcntl
import os
import re
import socket
import struct
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from clipmill.metadata.damage import DamagedError
from clipmill.pipeline.dataset import Rank
from clipmill.pipeline.errors import LostLockError, RetryableError, StageError

OWN_ERRORS = (StageError, LostLockError, DamagedError)  # never caused by the death of another rank
SIOCGIFADDR = 0x8915  # Linux ioctl for an interface's address
TAKEN = re.compile("address already in use", re.IGNORECASE)


def free_address(host: str) -> str:
    """Returns `tcp://HOST:PORT` with a port that is free now; host is this machine's address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as bound:
        bound.bind((host, 0))
        port = bound.getsockname()[1]
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def as_rank(fn: Callable[[Rank], Mapping[str, Any]], rank: Rank) -> Mapping[str, Any]:
    """Runs fn(rank) in its process; raises RetryableError if another took the port meanwhile.

    Sets the network interface that leads to rank 0, which gloo would guess from the host's name:
    that often resolves to loopback.
    """
    if interface := _interface_to(rank.rendezvous):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    try:
        return fn(rank)
    except Exception as error:
        if rank.rank == 0 and TAKEN.search(str(error)):
            raise RetryableError(str(error), rank.rendezvous, "run again") from error
        raise


class Ends:
    """The results and errors of one launch's ranks.

    The death of a rank breaks the others' connections, and their errors may arrive before the news
    of the death. So an error that may be such an echo is raised only `echo_s` after the first.
    """

    def __init__(self, ranks: int, echo_s: float) -> None:
        self.ranks, self.echo_s = ranks, echo_s if ranks > 1 else 0.0
        self._results: dict[int, Mapping[str, Any]] = {}
        self._errors: list[Exception] = []
        self._since_s = 0.0

    def add(self, rank: int, end: Mapping[str, Any] | Exception) -> None:
        """Adds a rank's result or exception; raises an exception that cannot be an echo."""
        if isinstance(end, OWN_ERRORS):
            raise end
        if not isinstance(end, Exception):
            self._results[rank] = end
            return
        self._since_s = self._since_s or time.monotonic()
        self._errors.append(end)

    def results(self) -> list[Mapping[str, Any]] | None:
        """Returns results by rank, None while one is missing; raises an error once it counts."""
        is_over = len(self._results) + len(self._errors) == self.ranks
        if self._errors and (is_over or time.monotonic() - self._since_s > self.echo_s):
            raise min(self._errors, key=lambda error: not isinstance(error, RetryableError))
        return [self._results[rank] for rank in range(self.ranks)] if is_over else None


def _interface_to(rendezvous: str) -> str | None:
    """Returns the network interface that leads to an address; None if unknown."""
    address = urlsplit(rendezvous)
    if sys.platform != "linux" or not address.hostname or ":" in address.hostname:
        return None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
        probe.connect((address.hostname, address.port or 1))  # sends nothing
        own = probe.getsockname()[0]
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # an interface without an address
                request = struct.pack("256s", name.encode()[:15])
                answer = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, request)
                if socket.inet_ntoa(answer[20:24]) == own:
                    return name
    return None
