"""The Jobs API of a Ray cluster's head, over plain HTTP: what `ray[default]` there serves.

Ray's own client takes most of a second to import, wants `ray[default]` here too, lets RAY_ADDRESS
stand before the address it is given, and waits for ever on one that does not answer.
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
ANSWER_S = 60.0  # a head takes its time over a job
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
NO_CONTACT = (aiohttp.ClientError, TimeoutError)


class Head:
    """The Jobs API of a cluster's head."""

    def __init__(self, session: aiohttp.ClientSession, address: str) -> None:
        self.session, self.address = session, address

    async def ask(self, path: str, method: str = "GET", **body: Any) -> tuple[int, str]:
        """Status and text of its answer."""
        async with self.session.request(method, f"{self.address}/{path}", **body) as answer:
            if answer.status in (401, 403):
                raise RecipeError(
                    found=f"the head wants a token: {await answer.text()}",
                    where=redacted(self.address),
                    do="set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH, to the cluster's token",
                )
            return answer.status, await answer.text()

    async def fetch(self, path: str, method: str = "GET", **body: Any) -> Any:
        """The head's answer, parsed from JSON."""
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
        """What the job prints, from its first word, until its end or that of the connection."""
        url = f"{self.address}/api/jobs/{job}/logs/tail"
        async with self.session.ws_connect(url, heartbeat=ANSWER_S) as stream:
            async for message in stream:
                if message.type is aiohttp.WSMsgType.TEXT:
                    yield message.data


@contextlib.asynccontextmanager
async def opened(address: str) -> AsyncIterator[Head]:
    """The head, shown the cluster's token."""
    found = token()
    async with aiohttp.ClientSession(
        headers={"Authorization": f"Bearer {found}"} if found else {},
        timeout=aiohttp.ClientTimeout(sock_connect=CONNECT_S, sock_read=ANSWER_S),
    ) as session:
        yield Head(session, address)


def token() -> str | None:
    """The token of a cluster, from where Ray's own commands take it."""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    found = os.environ.get("RAY_AUTH_TOKEN") or (path.read_text() if path.is_file() else "")
    return found.strip() or None
