"""The ranks of a launch: where they meet, and what is to be made of their ends."""

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

OWN_ERRORS = (StageError, LostLockError, DamagedError)  # of the rank itself, not of another's end
SIOCGIFADDR = 0x8915  # asks Linux for an interface's address
TAKEN = re.compile("address already in use", re.IGNORECASE)


def free_address(host: str) -> str:
    """`tcp://HOST:PORT` of a port that is free now on this machine, which has that address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as chosen:
        chosen.bind((host, 0))
        port = chosen.getsockname()[1]
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def as_rank(fn: Callable[[Rank], Mapping[str, Any]], rank: Rank) -> Mapping[str, Any]:
    """fn(rank), in its process; RetryableError where another has taken the port meanwhile.

    gloo would guess its network from the host's name, which is often loopback's: it is told which
    one leads to rank 0.
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
    """What the ranks of one launch have come to.

    A rank that dies takes the others' connections with it, and their errors may be heard before
    its death: so an error that may be such an echo counts after a while without one.
    """

    def __init__(self, ranks: int, echo_s: float) -> None:
        self.ranks, self.echo_s = ranks, echo_s if ranks > 1 else 0.0
        self._results: dict[int, Mapping[str, Any]] = {}
        self._errors: list[Exception] = []
        self._since_s = 0.0

    def add(self, rank: int, end: Mapping[str, Any] | Exception) -> None:
        """A rank's result, or what it raised; raises what is no echo."""
        if isinstance(end, OWN_ERRORS):
            raise end
        if not isinstance(end, Exception):
            self._results[rank] = end
            return
        self._since_s = self._since_s or time.monotonic()
        self._errors.append(end)

    def results(self) -> list[Mapping[str, Any]] | None:
        """Those of all ranks; None while one is missing. Raises the error that has counted."""
        is_over = len(self._results) + len(self._errors) == self.ranks
        if self._errors and (is_over or time.monotonic() - self._since_s > self.echo_s):
            raise min(self._errors, key=lambda error: not isinstance(error, RetryableError))
        return [self._results[rank] for rank in range(self.ranks)] if is_over else None


def _interface_to(rendezvous: str) -> str | None:
    """The network interface that leads to an address; None where nothing tells."""
    to = urlsplit(rendezvous)
    if sys.platform != "linux" or not to.hostname or ":" in to.hostname:
        return None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking, suppress(OSError):
        asking.connect((to.hostname, to.port or 1))  # sends nothing
        own = asking.getsockname()[0]
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # one without an address
                asked = struct.pack("256s", name.encode()[:15])
                held = fcntl.ioctl(asking.fileno(), SIOCGIFADDR, asked)
                if socket.inet_ntoa(held[20:24]) == own:
                    return name
    return None
