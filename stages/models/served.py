"""Starts a model server of our own beside the worker: on a Unix socket, with a random key."""

import http.client
import secrets
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from clipmill.pipeline.errors import StageError
from clipmill.pipeline.stage import Worker
from clipmill.stages.models.endpoint import Endpoint

ANSWER_S = 10.0  # time-out of a health check
LONGEST_SOCKET = 103  # bytes of a socket's path that every system takes


def serve(
    worker: Worker,
    command: Callable[[Path], Sequence[str]],
    *,
    key_env: str,
    env: Mapping[str, str],
    model: str,
    identity: str,
    concurrency: int | None,
    wait_s: float,
) -> Endpoint:
    """Starts a server on a socket by `command`, waits until it is healthy, returns its endpoint.

    The server ends with the worker. It gets its key by the variable `key_env`. The socket is in a
    folder that only this user may read.
    """
    key = secrets.token_urlsafe(24)
    path = worker.scratch / f"{secrets.token_hex(4)}.sock"
    if len(str(path).encode()) > LONGEST_SOCKET:
        raise StageError(
            f"the path of a socket may have {LONGEST_SOCKET} bytes, and this has more: {path}",
            f"stage '{worker.stage}'",
            "set TMPDIR to a folder with a shorter path",
        )

    def is_healthy() -> bool:
        connection = OverSocket(path)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    helper = worker.start_helper(
        command(path), is_healthy=is_healthy, wait_s=wait_s, env={**env, key_env: key}
    )
    reviving = threading.Lock()  # many requests lose a dead server at once

    def revive() -> None:
        with reviving:
            if not (helper.is_alive() and is_healthy()):
                helper.restart()

    return Endpoint(
        url=f"unix:{path}",
        model=model,
        identity=identity,
        key=key,
        revive=revive,
        concurrency=concurrency,
    )


class OverSocket(http.client.HTTPConnection):
    """An HTTP connection over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=ANSWER_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)  # `close` closes it if it cannot connect, too
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
