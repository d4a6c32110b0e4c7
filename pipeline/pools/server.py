"""A loopback web server for a pool, with the faults of `www/_behaviour.json`.

Behaviour of a path, all keys optional:
  status (int)        answered instead of the file
  times (int)         how often `status` is answered; then the file is served
  redirect (str)      target of a 302
  delay, drip (s)     wait before the answer; time over which the body is sent
  hang (bool)         never answer
  content_type (str), headers (object)
"""

import asyncio
import contextlib
import json
import os
import shlex
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aiohttp import web

from clipmill.pipeline.errors import RecipeError, StageError

HOST = "127.0.0.1"  # loopback only: a pool holds hostile files on purpose
BEHAVIOUR = "_behaviour.json"
MAX_OPEN_FILES = 64
MAX_HANG_S = 3600.0  # a forgotten client must not hold its socket for ever
DRIP_PIECES = 8
CONTENT_TYPES = {  # our own: the system's table differs by machine
    ".jpg": "image/jpeg",
    ".png": "image/png",
    ".gif": "image/gif",
    ".webp": "image/webp",
    ".bmp": "image/bmp",
}


def serve(directory: Path, port: int | None = None) -> None:
    """Serves a pool until Ctrl-C, at the port of its URLs; refuses any other."""
    built_for = port
    with contextlib.suppress(OSError, ValueError):  # no pool.json: any port will do
        built_for = json.loads((directory / "pool.json").read_text()).get("port", port)
    if port is not None and built_for != port:
        raise RecipeError(
            found=f"the pool's URLs name port {built_for}, not {port}",
            where=str(directory / "pool.json"),
            do=f"serve it with --port {built_for}, or build it again with --port {port}",
        )
    with start_server(directory, built_for or 0) as url, contextlib.suppress(KeyboardInterrupt):
        print(f"serving {directory} at {url} (Ctrl-C stops)")
        threading.Event().wait()


@contextlib.contextmanager
def start_server(directory: Path, port: int = 0) -> Iterator[str]:
    """Serves in a thread, and yields the URL; port 0 takes a free one."""
    app = web_app(directory)
    loop = asyncio.new_event_loop()
    # A hanging request ends with its client or with the server: no grace period.
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
    try:
        loop.run_until_complete(runner.setup())
        site = web.TCPSite(runner, HOST, port, backlog=1024)
        loop.run_until_complete(site.start())
    except OSError as error:
        loop.run_until_complete(runner.cleanup())
        loop.close()
        raise StageError(
            found=f"port {port} cannot be opened: {error.strerror or error}",
            where=f"the pool server of {directory}",
            do="stop the program that listens there; or build a pool with another --port N, and"
            " serve that",
        ) from error
    thread = threading.Thread(target=loop.run_forever, name="pool-server", daemon=True)
    thread.start()
    try:
        yield f"http://{HOST}:{runner.addresses[0][1]}"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(runner.cleanup())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


def web_app(directory: Path) -> web.Application:
    """Returns the application: it answers by `_behaviour.json`, else with the file or 404."""
    www = (directory / "www").resolve()
    quoted = shlex.quote(str(directory))
    try:
        behaviour: dict[str, dict[str, Any]] = json.loads((www / BEHAVIOUR).read_text())
    except (FileNotFoundError, NotADirectoryError):
        is_there = directory.is_dir()
        raise RecipeError(
            found="no pool: it has no www/ to serve" if is_there else "no such folder",
            where=str(directory),
            do=f"name a pool's folder, or build one: clipmill pool generated --out {quoted}",
        ) from None
    except (OSError, ValueError) as error:
        raise RecipeError(
            found=f"a pool that cannot be served: {error}",
            where=str(www / BEHAVIOUR),
            do=f"delete {directory} and build it again: clipmill pool demo --out {quoted}",
        ) from error
    served: Counter[str] = Counter()
    open_files = asyncio.Semaphore(MAX_OPEN_FILES)

    async def answer(request: web.Request) -> web.StreamResponse:
        path = request.path.lstrip("/")
        act = behaviour.get(path, {})
        served[path] += 1
        if act.get("hang"):
            await asyncio.sleep(MAX_HANG_S)
        await asyncio.sleep(act.get("delay", 0))
        headers = dict(act.get("headers", {}))
        if "redirect" in act:
            return web.Response(status=302, headers={**headers, "Location": act["redirect"]})
        if "status" in act and served[path] <= act.get("times", served[path]):
            return web.Response(status=act["status"], headers=headers, text=str(act["status"]))
        file = www / path
        # Unlike Path.is_file, it answers no for what is no name at all, such as \0.
        is_there = os.path.isfile(file) and (file := file.resolve()).is_relative_to(www)
        if not is_there or file == www / BEHAVIOUR:
            return web.Response(status=404, text="404")
        async with open_files:
            body = await asyncio.to_thread(file.read_bytes)
        by_name = CONTENT_TYPES.get(file.suffix.lower(), "application/octet-stream")
        headers["Content-Type"] = act.get("content_type") or by_name
        if "drip" in act:
            return await _drip(request, body, headers, float(act["drip"]))
        return web.Response(body=body, headers=headers)

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    return app


async def _drip(
    request: web.Request, body: bytes, headers: dict[str, str], seconds: float
) -> web.StreamResponse:
    """Sends the body in a few pieces with pauses between them."""
    response = web.StreamResponse(headers=headers)
    response.content_length = len(body)
    await response.prepare(request)
    step = max(1, len(body) // DRIP_PIECES)
    starts = range(0, len(body), step)
    with contextlib.suppress(ConnectionResetError):  # the client closed the connection
        for start in starts:
            await asyncio.sleep(seconds / len(starts))
            await response.write(body[start : start + step])
    return response
