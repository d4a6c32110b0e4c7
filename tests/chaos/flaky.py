"""A proxy in front of an object store, which fails as it is told to."""

import asyncio
import random
import re
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime

from aiohttp import ClientSession, web

from tests.answering import Answering

LATE = "<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"
UNHEARD = 1 << 10  # bytes of an upload that a cut lets through


@dataclass
class Trouble:
    """What goes wrong with requests whose method and path match, or with a share drawn of them.

    `cut` in mid-upload, `hang` for a minute, `no keys`, for those that have none, or a status and
    a code of S3's.
    """

    match: str
    kind: str = "503"
    times: int = 1 << 30
    share: float = 1.0
    seed: str = ""
    seen: int = 0
    met: int = 0

    def meets(self, request: web.Request) -> bool:
        if self.met >= self.times or not re.search(self.match, f"{request.method} {request.path}"):
            return False
        is_signed = "Authorization" in request.headers or "X-Amz-Signature" in request.query
        if self.kind == "no keys" and is_signed:
            return False
        self.seen += 1
        meets = random.Random(f"{self.seed} {self.kind} {self.seen}").random() < self.share
        self.met += meets
        return meets


@dataclass
class Proxy:
    """Answers on `port` for the store behind it."""

    behind: str
    troubles: list[Trouble] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)  # method, path and query of each request

    def __post_init__(self) -> None:
        self._server = Answering(self._answer)
        self.port, self.close = self._server.port, self._server.close

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(f"{request.method} {request.rel_url}")
        for trouble in self.troubles:
            if trouble.meets(request):
                return await self._fail(request, trouble.kind)
        if is_late(request):
            return web.Response(status=403, text=LATE)
        body = await request.read()
        headers = {k: v for k, v in request.headers.items() if k.lower() != "transfer-encoding"}
        there = self.behind + str(request.rel_url)
        async with (
            ClientSession(auto_decompress=False) as client,
            client.request(request.method, there, headers=headers, data=body) as answer,
        ):
            kept = {
                k: v
                for k, v in answer.headers.items()
                if k.lower() not in ("transfer-encoding", "connection", "server", "date")
            }
            return web.Response(body=await answer.read(), status=answer.status, headers=kept)

    async def _fail(self, request: web.Request, kind: str) -> web.StreamResponse:
        if kind == "cut":
            await request.content.read(UNHEARD)
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        await request.read()
        if kind == "hang":
            await asyncio.sleep(60)
            return web.Response(status=500)
        status, _, code = kind.replace("no keys", "403 AccessDenied").partition(" ")
        text = f"<Error><Code>{code or 'SlowDown'}</Code></Error>"
        return web.Response(status=int(status), text=text)


def is_late(request: web.Request) -> bool:
    """Whether the end in a request's signature is past: S3 looks at it, where moto does not."""
    if "X-Amz-Expires" not in request.query:
        return False
    signed = datetime.strptime(request.query["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    return time.time() > signed.timestamp() + int(request.query["X-Amz-Expires"])
