"""A stand-in for a server of texts, on loopback: OpenAI's protocol, and faults when asked for.

python -m tests.text_server --port 8000 --latency 0.2 --faults 429:1,500,half --every 10

Its answers are those of `reference`, the same for equal requests. `GET /counts` tells how often
each request came, by the digest of its body, and how often it got an answer that can be used, how
long it was at work, how many are now, and the tokens of all that it did not refuse, from when they
came; `GET /bodies` what they were.

A fault is a word:
  429, 429:2      too many requests; with Retry-After: 2
  500, 503:2      a server's error, the same way
  400             a request that it does not understand; the message holds the key that was sent
  401             an unknown key; the message holds it too
  too_long        a prompt longer than the context
  filtered        an answer that a filter took away
  half            the connection ends in mid-answer
  drop            the connection ends before any answer
  drip            an answer that comes byte by byte, a byte in 50 ms
  hang            no answer for a minute
  malformed       JSON that ends early
  deep            JSON of lists in lists, 100,000 deep
  empty           no choices
  no_usage        a good answer that does not say how many tokens it took
  beyond_in       a good answer, to a prompt that is counted as 10^18 tokens
  beyond_out      a good answer that is counted as 10^18 tokens
  another         a good answer that no other request gets
  large           an answer of 3 MB
  mute            a good answer, without a text
  refusal         a good answer, that declines
  markup, loop    a good answer, in HTML or said four times
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from aiohttp import web

from clipmill.stages.models.reference import reply
from tests.answering import end

HOST = "127.0.0.1"
MODEL = "stand-in"
SPOILT = {
    "mute": "",
    "refusal": "I'm sorry, but I can't help with that.",
    "markup": "<p>{}</p>",
    "loop": "{0} {0} {0} {0}",
}
GOOD = (None, "no_usage", "beyond_in", "beyond_out", "drip", "another", *SPOILT)
REFUSED = ("429", "500", "503", "400", "401", "too_long")  # and not paid for
DEEP = b'{"choices":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
TWO_CAPTIONS = re.compile(r'"(.+?)"[.:]? [A-Z].*?"(.+?)"')


@dataclass(frozen=True)
class Asked:
    """One request: its number from 0, how often its equal came before, its body."""

    number: int
    before: int
    body: Mapping[str, Any]

    @property
    def text(self) -> str:
        """The body as it was sent, to look for words in."""
        return json.dumps(self.body)


Script = Callable[[Asked], str | None]


@dataclass(kw_only=True)
class TextServer:
    """What a server does, and what it has seen."""

    model: str = MODEL
    latency_s: float = 0
    key: str = ""  # asked for where it is not empty
    script: Script = lambda asked: None
    joins: bool = False  # the two captions that a prompt quotes
    paths: tuple[str, ...] = ("/v1/chat/completions", "/v1/completions")  # of questions
    template: int = 0  # tokens of each prompt beside its words
    port: int = 0
    asked: Counter[str] = field(default_factory=Counter)  # requests, by digest of the body
    answered: Counter[str] = field(default_factory=Counter)  # of these, good answers sent
    bodies: list[Mapping[str, Any]] = field(default_factory=list)
    body_of: dict[str, Mapping[str, Any]] = field(default_factory=dict)  # by its digest
    tokens: int = 0
    at_once: int = 0
    most_at_once: int = 0
    began_s: float = 0  # of the clock: the first request
    busy_s: float = 0  # from the first request to the last answer

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}/v1"

    def die(self) -> None:
        """Closes the port and every connection, in mid-answer too."""
        asyncio.run_coroutine_threadsafe(self._down(), self._loop).result()

    def come_back(self) -> None:
        """Listens again at the same port."""
        asyncio.run_coroutine_threadsafe(self._up(), self._loop).result()

    async def _up(self) -> None:
        app = web.Application(client_max_size=2**26)
        for path in self.paths:
            app.router.add_post(path, self._answer)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/counts", self._counts)
        app.router.add_get("/bodies", self._bodies)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, HOST, self.port, backlog=1024).start()
        self.port = self._runner.addresses[0][1]

    async def _down(self) -> None:
        for site in list(self._runner.sites):
            await site.stop()
        for connection in list(self._runner.server.connections):
            if connection.transport is not None:
                connection.transport.abort()
        await self._runner.cleanup()

    @contextlib.contextmanager
    def running(self) -> Iterator["TextServer"]:
        """The server, while a thread serves."""
        self._loop = asyncio.new_event_loop()
        self._loop.run_until_complete(self._up())
        thread = threading.Thread(target=self._loop.run_forever, name="text-server", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.die()
            end(self._loop, thread)

    async def _models(self, request: web.Request) -> web.Response:
        if not self._may(request):
            return _error(401, "no such key")
        return web.json_response({"object": "list", "data": [{"id": self.model}]})

    async def _counts(self, request: web.Request) -> web.Response:
        counts = {"asked": self.asked, "answered": self.answered, "busy_s": self.busy_s}
        return web.json_response({**counts, "at_once": self.at_once, "tokens": self.tokens})

    async def _bodies(self, request: web.Request) -> web.Response:
        return web.json_response(self.body_of)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if not self._may(request):
            return _error(401, "no such key")
        body = await request.json()
        digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        asked = Asked(number=self.asked.total(), before=self.asked[digest], body=body)
        self.asked[digest] += 1
        self.bodies.append(body)
        self.body_of[digest] = body
        if body.get("model") != self.model:
            return _error(404, f"The model `{body.get('model')}` does not exist.")
        self.began_s = self.began_s or monotonic()
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            usage = self._whole(request, body)["usage"]
            tokens = usage["prompt_tokens"] + usage["completion_tokens"]
            self.tokens += tokens
            await asyncio.sleep(self.latency_s)
            fault = self.script(asked)
            if fault in GOOD:
                self.answered[digest] += 1
            if fault and fault.startswith(REFUSED):
                self.tokens -= tokens
            return await self._reply(request, body, fault, asked.number)
        finally:
            self.at_once -= 1
            self.busy_s = monotonic() - self.began_s

    async def _reply(
        self, request: web.Request, body: Mapping[str, Any], fault: str | None, number: int
    ) -> web.StreamResponse:
        status, _, wait = (fault or "").partition(":")
        if status in ("429", "500", "503"):
            return _error(int(status), "later", {"Retry-After": wait} if wait else {})
        sent = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if fault == "400":
            return _error(400, f"Unrecognized request argument supplied: top_k, by {sent}")
        if fault == "401":
            return _error(401, f"Incorrect API key provided: {sent}.")
        if fault == "too_long":
            return _error(400, "This model's maximum context length is 64 tokens.")
        if fault == "drop":
            request.transport.abort()
            return web.Response()
        if fault == "hang":
            await asyncio.sleep(60)
        whole = self._whole(request, body)
        if self.joins and (quoted := TWO_CAPTIONS.search(asked_text(body))):
            _write(whole, "{1}, {0}".format(*quoted.groups()))
        if fault in SPOILT:
            _write(whole, SPOILT[fault].format(_text(whole)))
        if fault == "filtered":
            whole["choices"][0]["finish_reason"] = "content_filter"
        if fault == "empty":
            whole["choices"] = []
        if fault == "no_usage":
            del whole["usage"]
        if fault == "beyond_in":
            whole["usage"]["prompt_tokens"] = 10**18
        if fault == "beyond_out":
            whole["usage"]["completion_tokens"] = 10**18
        if fault == "another":
            _write(whole, f"{number} {_text(whole)}")
        data = json.dumps(whole).encode()
        if fault == "malformed":
            data = data[: len(data) // 2]
        if fault == "deep":
            data = DEEP
        if fault == "large":
            data += b" " * 3_000_000
        if fault not in ("half", "drip"):
            return web.Response(body=data, content_type="application/json")
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.content_length = len(data)
        await response.prepare(request)
        if fault == "half":
            await response.write(data[: len(data) // 2])
            request.transport.abort()
            return response
        with contextlib.suppress(ConnectionResetError):  # a client that had enough
            for byte in data:
                await response.write(bytes([byte]))
                await asyncio.sleep(0.05)
        return response

    def _whole(self, request: web.Request, body: Mapping[str, Any]) -> dict[str, Any]:
        """A good answer."""
        whole = reply(request.path, body)
        whole["usage"]["prompt_tokens"] += self.template
        return whole

    def _may(self, request: web.Request) -> bool:
        return not self.key or request.headers.get("Authorization") == f"Bearer {self.key}"


def asked_text(body: Mapping[str, Any]) -> str:
    """The words of a request's last message, or its prompt."""
    asked = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
    if isinstance(asked, str):
        return asked
    return " ".join(part["text"] for part in asked if part["type"] == "text")


def _text(whole: Mapping[str, Any]) -> str:
    choice = whole["choices"][0]
    return choice["message"]["content"] if "message" in choice else choice["text"]


def _write(whole: Mapping[str, Any], text: str) -> None:
    choice = whole["choices"][0]
    into, name = (choice["message"], "content") if "message" in choice else (choice, "text")
    into[name] = text


def _error(status: int, message: str, headers: Mapping[str, str] | None = None) -> web.Response:
    body = {"error": {"message": message, "code": status}}
    return web.json_response(body, status=status, headers=headers)


def every(faults: list[str], n: int) -> Script:
    """Each n-th request meets the next of the faults, in turn."""

    def script(asked: Asked) -> str | None:
        turn, rest = divmod(asked.number + 1, n)
        return None if rest else faults[(turn - 1) % len(faults)]

    return script


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.text_server", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--latency", type=float, default=0, help="seconds before each answer")
    parser.add_argument("--key", default="", help="the key that requests must bring")
    parser.add_argument("--faults", default="", help="words, between commas")
    parser.add_argument("--every", type=int, default=10, help="which requests meet one")
    parser.add_argument("--joins", action="store_true", help="join the captions that are quoted")
    given = parser.parse_args(arguments)
    server = TextServer(model=given.model, latency_s=given.latency, key=given.key, port=given.port)
    server.joins = given.joins
    if given.faults:
        server.script = every(given.faults.split(","), given.every)
    with server.running(), contextlib.suppress(KeyboardInterrupt):
        print(f"openai:{server.url}#{server.model} (Ctrl-C stops)", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1:])
