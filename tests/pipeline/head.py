"""What answers like a Ray head: it keeps what it is sent, and says what it is told."""

import asyncio
import re
import socket
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from tests.answering import Answering

CUT = "cut"  # in a log: the connection is lost here


@dataclass
class Head:
    """Answers at `address`."""

    machines: list[list[str]] = field(default_factory=lambda: [[socket.gethostname()]])  # an answer
    jobs: list[dict[str, Any]] = field(default_factory=list)  # that were there before
    logs: list[list[str]] = field(default_factory=lambda: [["done\n"]])  # a connection each
    ended: dict[str, Any] = field(default_factory=lambda: {"status": "SUCCEEDED"})
    later: list[dict[str, Any]] = field(
        default_factory=list
    )  # what `ended` becomes, answer by answer
    pause_s: float = 0.0  # before each word of a log
    token: str | None = None
    broken: dict[str, tuple[int, str]] = field(default_factory=dict)  # by pattern of a path
    asked: list[str] = field(default_factory=list)
    sent: list[dict[str, Any]] = field(default_factory=list)
    packages: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._server = Answering(self._answer)
        self.close = self._server.close

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.port}"

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(f"{request.method} {request.path}")
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.Response(status=401, text="Unauthorized")
        for pattern, (status, text) in self.broken.items():
            if re.fullmatch(pattern, request.path):
                return web.Response(status=status, text=text)
        match request.method, *request.path.strip("/").split("/"):
            case "GET", "api", "version":
                return web.json_response({"ray_version": "2.60.0"})
            case "GET", "nodes":
                return web.json_response({"data": {"hostNameList": _next(self.machines)}})
            case "GET", "api", "jobs":
                return web.json_response(self.jobs)
            case "POST", "api", "jobs":
                self.sent.append(await request.json())
                return web.json_response({})
            case "GET", "api", "packages", "gcs", name:
                return web.Response(status=200 if name in self.packages else 404)
            case "PUT", "api", "packages", "gcs", name:
                self.packages[name] = await request.read()
                return web.Response()
            case "POST", "api", "jobs", _, "stop":
                self.ended, self.later = {"status": "RUNNING"}, [{"status": "STOPPED"}]
                return web.json_response({"stopped": True})
            case "GET", "api", "jobs", _:
                ended, self.ended = self.ended, self.later.pop(0) if self.later else self.ended
                return web.json_response(ended)
            case "GET", "api", "jobs", _, "logs":
                return web.json_response({"logs": "".join(self.logs[-1])})
            case "GET", "api", "jobs", _, "logs", "tail":
                return await self._tail(request)
        return web.Response(status=404, text="no such place")

    async def _tail(self, request: web.Request) -> web.WebSocketResponse:
        stream = web.WebSocketResponse()
        await stream.prepare(request)
        for word in _next(self.logs):
            if word == CUT:
                assert request.transport
                request.transport.abort()
                break
            await asyncio.sleep(self.pause_s)
            await stream.send_str(word)
        return stream


def _next(answers: list[Any]) -> Any:
    """The first answer; the last one stays."""
    return answers.pop(0) if len(answers) > 1 else answers[0]
