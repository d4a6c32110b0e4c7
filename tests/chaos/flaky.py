"""A proxy in front of an object store, which fails as it is told to."""

import asyncio
import re
import threading
from dataclasses import dataclass, field

from aiohttp import ClientSession, web

UNHEARD = 1 << 10  # bytes of an upload that a cut lets through


@dataclass
class Trouble:
    """What goes wrong with requests whose method and path match: `503`, or `cut` in mid-upload."""

    match: str
    kind: str = "503"
    times: int = 1 << 30
    met: int = 0

    def meets(self, request: web.Request) -> bool:
        if self.met >= self.times or not re.search(self.match, f"{request.method} {request.path}"):
            return False
        self.met += 1
        return True


@dataclass
class Proxy:
    """Answers on `port`, from a thread of its own, for the store behind it."""

    behind: str
    troubles: list[Trouble] = field(default_factory=list)
    port: int = 0

    def __post_init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self) -> None:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = self._runner.addresses[0][1]
        self._client = ClientSession(auto_decompress=False)

    async def _stop(self) -> None:
        await self._client.close()
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        for trouble in self.troubles:
            if trouble.meets(request):
                return await self._fail(request, trouble.kind)
        body = await request.read()
        async with self._client.request(
            request.method,
            self.behind + str(request.rel_url),
            headers={k: v for k, v in request.headers.items() if k.lower() != "transfer-encoding"},
            data=body,
        ) as answer:
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
        return web.Response(status=503, text="<Error><Code>SlowDown</Code></Error>")
