"""A server on loopback that does all a bad one does, and the stage opened to ask it."""

import asyncio
import gzip
import io
import socket
import socketserver
import time
from collections import Counter

import numpy as np
from aiohttp import web
from PIL import Image

from clipmill.pipeline.contract import row_function
from clipmill.pipeline.stage import Worker
from clipmill.stages.download.images import DownloadImages
from tests.hostile_pictures import apng, scanned


def picture(name: str, height: int = 40, width: int = 60, **options) -> bytes:
    rgb = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(rgb).save(out, name, **options)
    return out.getvalue()


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


FILES = {
    "ok.jpg": picture("jpeg"),
    "ok.png": picture("png"),
    "ok.gif": picture("gif"),
    "ok.webp": picture("webp"),
    "large.jpg": picture("jpeg", 300, 600),
    "turned.jpg": picture("jpeg", exif=turned()),
    "tiny.png": picture("png", 2, 2),
    "line.png": picture("png", 2, 90),
    "page.html": b"<html><body>not here</body></html>",
    "drawing.svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "empty": b"",
    "cut.jpg": picture("jpeg")[:900],
    "lies.png": apng(2**31),
    "costly.jpg": scanned(1500, 900),
    "corrupt.png": picture("png")[:60] + b"\xa5" * 400 + picture("png")[460:],
}


class Site:
    """What the server does, by path, and what it was asked for."""

    def __init__(self) -> None:
        self.asked, self.times, self.agents = Counter(), [], set()
        self.now = self.most_at_once = self.most_open = 0
        self.connections = set()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        name, _, argument = request.path.strip("/").partition("/")
        self.asked[request.path] += 1
        self.times.append(time.monotonic())
        self.agents.add(request.headers["User-Agent"])
        self.now += 1
        self.most_at_once = max(self.most_at_once, self.now)
        self.connections.add(request.transport)
        open_now = [it for it in self.connections if not it.is_closing()]
        self.most_open = max(self.most_open, len(open_now))
        try:
            return await getattr(self, name)(request, argument)
        finally:
            self.now -= 1

    async def file(self, request, name):
        # The type is a lie for all but one of them: nobody is to trust it.
        return web.Response(body=FILES[name], content_type="image/webp")

    async def zipped(self, request, name):
        body = gzip.compress(FILES[name])
        return web.Response(body=body, headers={"Content-Encoding": "gzip"})

    async def noai(self, request, name):
        return web.Response(body=FILES["ok.jpg"], headers={"X-Robots-Tag": "noai"})

    async def status(self, request, code):
        return web.Response(status=int(code))

    async def once(self, request, code):
        if self.asked[request.path] > 1:
            return await self.file(request, "ok.jpg")
        return web.Response(status=int(code), headers={"Retry-After": request.query.get("s", "")})

    async def slow(self, request, number):
        await asyncio.sleep(0.05)
        return await self.file(request, "ok.jpg")

    async def after(self, request, count):
        while sum(path.startswith("/slow/") for path in self.asked) < int(count):
            await asyncio.sleep(0.01)
        return await self.file(request, "ok.jpg")

    async def hang(self, request, _):
        await asyncio.sleep(60)

    async def drip(self, request, _):
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(20):
            await response.write(b"\xff")
            await asyncio.sleep(0.05)
        return response

    async def endless(self, request, _):
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        for _ in range(100):
            await response.write(bytes(1000))
        return response

    async def vast(self, request, _):
        response = web.StreamResponse(headers={"Content-Length": "1000000000"})
        await response.prepare(request)
        await asyncio.sleep(60)

    async def half(self, request, _):
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(bytes(10))
        request.transport.close()
        return response

    async def drop(self, request, _):
        request.transport.abort()

    async def garbage(self, request, _):
        request.transport.write(b"good day\r\n\r\n")
        request.transport.close()

    async def to(self, request, target):
        raise web.HTTPFound(request.query["url"])

    async def loop(self, request, number):
        raise web.HTTPFound(f"/loop/{int(number) + 1}")

    async def hops(self, request, number):
        raise web.HTTPFound(f"/hops/{int(number) - 1}" if int(number) else "/file/ok.jpg")


class RawSite(socketserver.ThreadingTCPServer):
    """Answers with given bytes by path, whether or not they are HTTP; else with an image."""

    request_queue_size = 256
    daemon_threads = True
    good = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + FILES["ok.jpg"]

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), RawAnswer)
        self.answers: dict[str, bytes] = {}
        self.port = self.server_address[1]

    def url(self, path: str, answer: bytes) -> str:
        """Where this answer is had."""
        self.answers[path] = answer
        return f"http://127.0.0.1:{self.port}{path}"

    def handle_error(self, *_) -> None:
        """A client that left."""


class RawAnswer(socketserver.StreamRequestHandler):
    timeout = 10

    def handle(self) -> None:
        path = self.rfile.readline().partition(b" ")[2].partition(b" ")[0].decode()
        while self.rfile.readline().strip():
            pass
        self.wfile.write(self.server.answers.get(path, self.server.good))


def only_loopback(monkeypatch, **names: str) -> None:
    """Whatever a URL says, no name server is asked, and no address but loopback's.

    Of a name, with _ for dots, the addresses it has.
    """
    known = {"localhost": "127.0.0.1", "good.test": "127.0.0.1"}
    known |= {name.replace("_", "."): addresses for name, addresses in names.items()}

    def resolved(host, port, *_, **__):
        if host not in known:  # an address in some notation, or no such name
            return numeric(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        stream = socket.AF_INET, socket.SOCK_STREAM, 6, ""
        return [(*stream, (address, port)) for address in known[host].split()]

    def connected(self, address):
        if address[0] not in ("127.0.0.1", "::1"):
            raise ConnectionRefusedError
        return connect(self, address)

    connect, numeric = socket.socket.connect, socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    monkeypatch.setattr(socket.socket, "connect", connected)


def opened(tmp_path, stage=DownloadImages, **settings):
    """The stage's function of one batch; loopback allowed and impatient unless told otherwise."""
    impatient = {"timeout_s": 5.0, "retries": 0, "allow_private_addresses": True}
    worker = Worker(seed=0, stage="images", device="cpu", threads=1, scratch=tmp_path)
    return row_function(stage(**{**impatient, **settings}), worker)
