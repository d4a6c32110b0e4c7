"""A client of the Jobs API of a Ray cluster's head (served by its `ray[default]`), in plain HTTP.

Ray's own client takes most of a second to import, needs `ray[default]` here, too, prefers
RAY_ADDRESS to the address it is given, and waits for ever for a silent one.
"""

import contextlib
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

from clipmill.metadata.keys import redacted
from clipmill.pipeline.errors import RecipeError

CONNECT_S = 10.0
ANSWER_S = 60.0  # a head may take long over a job
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
NO_CONTACT = (aiohttp.ClientError, TimeoutError)


class Head:
    """An open connection to a cluster's Jobs API."""

    def __init__(self, session: aiohttp.ClientSession, address: str) -> None:
        self.session, self.address = session, address

    async def ask(self, path: str, method: str = "GET", **body: Any) -> tuple[int, str]:
        """Sends a request; returns the answer's status and text."""
        async with self.session.request(method, f"{self.address}/{path}", **body) as answer:
            if answer.status in (401, 403):
                raise RecipeError(
                    found=f"the head wants a token: {await answer.text()}",
                    where=redacted(self.address),
                    do="set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH, to the cluster's token",
                )
            return answer.status, await answer.text()

    async def fetch(self, path: str, method: str = "GET", **body: Any) -> Any:
        """Sends a request; returns its answer parsed from JSON, or raises RecipeError."""
        status, text = await self.ask(path, method, **body)
        with contextlib.suppress(ValueError):
            if status == 200:
                return json.loads(text)
        raise RecipeError(
            found=f"no answer of a Ray head: {status} {text.strip()[-300:]}",
            where=f"{redacted(self.address)}/{path}",
            do="check the address; a head answers at its dashboard's, where ray[default] is",
        )

    async def log(self, job: str) -> AsyncIterator[str]:
        """Yields what a job prints, from its start until its end or that of the connection."""
        url = f"{self.address}/api/jobs/{job}/logs/tail"
        async with self.session.ws_connect(url, heartbeat=ANSWER_S) as stream:
            async for message in stream:
                if message.type is aiohttp.WSMsgType.TEXT:
                    yield message.data


@contextlib.asynccontextmanager
async def opened(address: str) -> AsyncIterator[Head]:
    """Opens the head at an address, with the cluster's token."""
    known_token = token()
    async with aiohttp.ClientSession(
        headers={"Authorization": f"Bearer {known_token}"} if known_token else {},
        timeout=aiohttp.ClientTimeout(sock_connect=CONNECT_S, sock_read=ANSWER_S),
    ) as session:
        yield Head(session, address)


def token() -> str | None:
    """Returns a cluster's token, from where Ray's own commands take it; None without one."""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    text = os.environ.get("RAY_AUTH_TOKEN") or (path.read_text() if path.is_file() else "")
    return text.strip() or None
