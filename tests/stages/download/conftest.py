"""The site served from a thread, and rows downloaded from it."""

import asyncio
import socket
import threading

import pyarrow as pa
import pytest
from aiohttp import web

from clipmill.stages.download.images import DownloadImages
from tests.answering import end
from tests.stages.download.site import Site, only_loopback, opened


@pytest.fixture
def server(monkeypatch):
    """The site, with its `port`, served from a thread; nothing but loopback can be asked."""
    only_loopback(monkeypatch)
    site, loop = Site(), asyncio.new_event_loop()

    async def start():
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", site.answer)
        site.runner = web.AppRunner(app, shutdown_timeout=0.01)
        await site.runner.setup()
        tcp = web.TCPSite(site.runner, "127.0.0.1", 0)
        await tcp.start()
        site.port = tcp._server.sockets[0].getsockname()[1]

    # Only a loop that already runs for good can be stopped: one stopped while it still runs
    # `start` would go on, and this thread would wait for it without end.
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    asyncio.run_coroutine_threadsafe(start(), loop).result(30)
    yield site
    asyncio.run_coroutine_threadsafe(site.runner.cleanup(), loop).result(30)
    end(loop, thread)


@pytest.fixture
def download(server, tmp_path):
    """Rows of the given paths or URLs, downloaded in one batch by download.images or another."""

    def rows(*paths, stage=DownloadImages, sha256=None, boxes=None, **settings):
        base = f"http://127.0.0.1:{server.port}"
        urls = [base + path if path and path[0] == "/" else path for path in paths]
        columns = {"url": pa.array(urls, pa.string())}
        if sha256:
            columns["sha256"] = pa.array(sha256, pa.string())
        if boxes:
            columns["face_bboxes"] = pa.array(boxes, pa.list_(pa.list_(pa.float64())))
        return opened(tmp_path, stage, **settings)(pa.table(columns)).to_pylist()

    return rows


@pytest.fixture
def closed_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and nobody listens
        yield taken.getsockname()[1]
