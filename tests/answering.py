"""An HTTP server on loopback that answers as a function says, from a thread of its own."""

import asyncio
import threading
from collections.abc import Awaitable, Callable

from aiohttp import web

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Answering:
    """Answers every request on `port` until it is closed."""

    def __init__(self, answer: Answer) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        self.port: int = self._runner.addresses[0][1]

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result()
        end(self._loop, self._thread)

    async def _start(self) -> None:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()


def end(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    """Ends what a loop has under way, then the loop and its thread.

    A task that is left would be told of when it is collected: in the log of another test.
    """
    asyncio.run_coroutine_threadsafe(_rest_cancelled(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


async def _rest_cancelled() -> None:
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)
