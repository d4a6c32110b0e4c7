"""Serves the explorer on the loopback interface, to holders of its random token only.

The token is the first part of every address. A cookie would go to all servers of this machine,
on any port; the address goes nowhere, as no page sends a referrer.
"""

import asyncio
import contextlib
import hmac
import secrets
import threading
import traceback
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from aiohttp import web

from clipmill.metadata.damage import DamagedError
from clipmill.metadata.keys import without_keys
from clipmill.pipeline.errors import ClipmillError, RecipeError
from clipmill.pipeline.explore.session import Session
from clipmill.pipeline.report.page import TEMPLATES

HOST = "127.0.0.1"  # loopback only: a page shows untrusted text and pictures
NAMES = (HOST, "localhost")  # refuses names rebound to this address
PAGE = Path(__file__).parent / "page"
PALETTE = TEMPLATES / "palette.css"  # the report's colours
TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
MOST_BYTES = 1 << 20  # largest question
DRAWN_AT_ONCE = 4  # pictures decoded at once
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'; require-trusted-types-for 'script'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@contextlib.contextmanager
def serving(session: Session, port: int | None = None) -> Iterator[str]:
    """Yields the page's address while a thread serves it; RecipeError if the port is taken."""
    token = secrets.token_urlsafe(24)
    loop = asyncio.new_event_loop()
    app = web_app(session, token)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    try:
        loop.run_until_complete(runner.setup())
        loop.run_until_complete(web.TCPSite(runner, HOST, port or 0).start())
    except (OSError, OverflowError) as error:
        loop.run_until_complete(runner.cleanup())
        loop.close()
        raise RecipeError(
            found=f"port {port} cannot be opened: {getattr(error, 'strerror', None) or error}",
            where="--port",
            do="name another, or leave --port out: a free one is taken",
        ) from error
    thread = threading.Thread(target=loop.run_forever, name="explorer", daemon=True)
    thread.start()
    try:
        yield f"http://{HOST}:{runner.addresses[0][1]}/{token}/"
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()  # ends open requests
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


def web_app(session: Session, token: str) -> web.Application:
    """Returns the application: the page, its answers and its pictures, below the token."""
    files = {path.name: path for path in (*PAGE.iterdir(), PALETTE) if path.suffix in TYPES}
    drawing = asyncio.Semaphore(DRAWN_AT_ONCE)

    async def file(request: web.Request) -> web.StreamResponse:
        path = files.get(request.match_info.get("name") or "index.html")
        if path is None:
            return refused(404, "no such file", request.path, "load the page again")
        body = await asyncio.to_thread(path.read_bytes)
        return web.Response(body=body, content_type=TYPES[path.suffix], charset="utf-8")

    async def answer(request: web.Request) -> web.StreamResponse:
        work = session.answers.get(request.match_info["question"])
        if work is None:
            return refused(404, "no such question", request.path, "load the page again")
        body = await request.read()
        return web.json_response(await asyncio.to_thread(work, body))

    async def picture(request: web.Request) -> web.StreamResponse:
        match = request.match_info
        async with drawing:
            small = await asyncio.to_thread(
                session.picture, match["root"], int(match["row"]), match["size"]
            )
        if small is None:
            return refused(404, "no picture that can be shown", request.path, "see the row's why")
        kind, body = small
        cache = {"Cache-Control": "private, max-age=3600"}
        return web.Response(body=body, content_type=kind, headers=cache)

    middlewares = [guarded(token), errors_as_answers]
    app = web.Application(client_max_size=MOST_BYTES, middlewares=middlewares)
    app.router.add_get("/{token}/", file)
    app.router.add_get("/{token}/page/{name}", file)
    app.router.add_post("/{token}/ask/{question}", answer)
    app.router.add_get(r"/{token}/picture/{root}/{row:\d{1,15}}/{size}", picture)

    async def headers(_: web.Request, response: web.StreamResponse) -> None:
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)

    app.on_response_prepare.append(headers)
    return app


def guarded(token: str) -> Any:
    """Returns a guard that refuses requests without the token, or for rebound names."""

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        name = request.headers.get("Host", "").rpartition(":")[0] or request.headers.get("Host")
        request_token = request.path.removeprefix("/").partition("/")[0]
        is_known = hmac.compare_digest(request_token.encode(), token.encode())
        if name not in NAMES or not is_known:
            return refused(403, "not for you", "this address", "open the one that was printed")
        return await handler(request)

    return guard


@web.middleware
async def errors_as_answers(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answers errors as JSON: what was found, where, and what to do."""
    try:
        return await handler(request)
    except ClipmillError as error:
        return refused(400, *error.args)
    except (DamagedError, OSError) as error:
        do = "look again at the run; `clipmill verify --run …` tells what is damaged"
        found = f"a file is gone or has changed: {without_keys(str(error))}"
        return refused(409, found, "the run folder", do)
    except web.HTTPRequestEntityTooLarge:
        return refused(413, f"more than {MOST_BYTES:,} bytes", "the question", "name fewer values")
    except web.HTTPException as error:
        return refused(error.status, error.reason, request.path, "load the page again")
    except Exception as error:
        traceback.print_exc()  # to the terminal, for the user to copy
        found = f"a fault of ours: {type(error).__name__}"
        return refused(500, found, request.path, "report what stands on the terminal")


def refused(status: int, found: str, where: str, do: str) -> web.Response:
    return web.json_response({"found": found, "where": where, "do": do}, status=status)
