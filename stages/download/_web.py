"""Many URLs at once: politely, within limits, and never inside the network of whoever asks.

Every URL ends with one status and, unless there is a body, one reason. Whatever a server does, a
URL waits for it `deadline_s` seconds at most, and fills `max_body_bytes` of memory at most.
"""

import asyncio
import socket
import ssl
import weakref
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
from yarl import URL

from stages.download._addresses import allowed
from stages.download._robots import opts_out

AGENT = "clipmill"
HOST_TIME_OUTS = 8  # in a row: after so many a host is down, for the rest of the batch
LAST = {"Connection": "close"}
IDLE_S = 0.5  # how long a connection is kept for its host's next URL: each is an open file
FIRST_PAUSE_S = 0.5  # doubled with every try
OWN_CODE = (403, 404, 410, 429, 500)  # the others share http_3xx, http_4xx, http_5xx
RETRIED = ("timeout", "connection_lost", "http_429", "http_500", "http_5xx")
REDIRECTS = (301, 302, 303, 307, 308)

asked_host: ContextVar[str] = ContextVar("asked_host")  # of a task's request; sockets know none


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Limits and manners of a client, named as the settings of `download.images`."""

    timeout_s: float
    deadline_s: float
    retries: int
    concurrency: int
    max_per_host: int
    max_redirects: int
    max_body_bytes: int
    allow_private_addresses: bool | tuple[str, ...]
    user_agent_token: str | None
    disallowed_header_directives: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """How a URL ended: the last HTTP status; a reason, or what was made of the body."""

    status: int | None = None
    reason: str | None = None
    kept: Any = None


@dataclass(frozen=True, kw_only=True)
class Reply:
    """The outcome of one request."""

    status: int | None = None
    reason: str | None = None
    body: bytes = b""
    location: str | None = None
    retry_after_s: float = 0


class PrivateAddressError(OSError):
    """Raised in place of a connection to an address that the rules do not allow."""


@dataclass(kw_only=True)
class Host:
    """State that the requests of one call to one host and port share."""

    turns: asyncio.Semaphore
    due: int = 0  # URLs that begin with it
    time_outs: int = 0  # in a row


@dataclass(frozen=True, kw_only=True)
class Requests:
    """State that all requests of one call share."""

    session: aiohttp.ClientSession
    keep: Callable[[bytes], Any]
    slots: asyncio.Semaphore
    hosts: defaultdict[tuple[str | None, int | None], Host]


class Client:
    """Fetches under one set of rules, with one event loop and threads that it keeps."""

    def __init__(self, rules: Rules, threads: int) -> None:
        self.rules = rules
        self.loop = asyncio.new_event_loop()
        # Look-ups run in these: a dead name server must hold up neither other names nor a batch.
        self.loop.set_default_executor(ThreadPoolExecutor(rules.concurrency))
        self.keepers = ThreadPoolExecutor(threads)
        token = (rules.user_agent_token or AGENT).strip().lower()
        self.agents = frozenset({AGENT, token})
        self.disallowed = frozenset(
            directive.strip().lower() for directive in rules.disallowed_header_directives
        )
        weakref.finalize(self, self.loop.close)

    def fetch_all(self, urls: list[str], keep: Callable[[bytes], Any]) -> list[Answer]:
        """The answer of every URL, in order; `keep` runs in a thread and gives `kept` of a body.

        At most `concurrency` bodies are in memory.
        """
        return self.loop.run_until_complete(self._fetch_all(urls, keep))

    async def _fetch_all(self, urls: list[str], keep: Callable[[bytes], Any]) -> list[Answer]:
        async with _session(self.rules) as session:
            batch = Requests(
                session=session,
                keep=keep,
                slots=asyncio.Semaphore(self.rules.concurrency),
                hosts=defaultdict(lambda: Host(turns=asyncio.Semaphore(self.rules.max_per_host))),
            )
            firsts = [_joined(None, url) for url in urls]
            for url in filter(None, firsts):
                batch.hosts[url.raw_host, url.port].due += 1
            return await asyncio.gather(*(self._fetch(url, batch) for url in firsts))

    async def _fetch(self, url: URL | None, batch: Requests) -> Answer:
        rules, now = self.rules, self.loop.time
        left_s, hops, tries, status, reason = rules.deadline_s, 0, 0, None, "host_down"
        while url is not None:
            host = batch.hosts[url.raw_host, url.port]
            # The host first: those who queue for a busy one must not hold the others' slots.
            async with host.turns, batch.slots:
                if host.time_outs >= HOST_TIME_OUTS:
                    return Answer(status=status, reason=reason)
                start = now()
                # As many requests at once as URLs: no connection would serve a second one.
                headers = LAST if 0 < host.due <= rules.max_per_host else None
                seconds = min(rules.timeout_s, left_s)
                reply = await self._request(url, seconds, headers, batch.session)
                left_s -= now() - start
                status = reply.status
                host.time_outs = host.time_outs + 1 if reply.reason == "timeout" else 0
                if reply.reason is None and reply.location is None:
                    kept = await self.loop.run_in_executor(self.keepers, batch.keep, reply.body)
                    return Answer(status=status, kept=kept)
            if reply.location is not None:
                hops += 1
                if hops > rules.max_redirects:
                    return Answer(status=status, reason="redirect_loop")
                url, reason = _joined(url, reply.location), "host_down"
                continue
            pause_s = max(FIRST_PAUSE_S * 2**tries, reply.retry_after_s)
            if reply.reason not in RETRIED or tries == rules.retries or pause_s >= left_s:
                return Answer(status=status, reason=reply.reason)
            tries, reason = tries + 1, reply.reason
            left_s -= pause_s
            await asyncio.sleep(pause_s)
        return Answer(status=status, reason="bad_url")

    async def _request(
        self,
        url: URL,
        seconds: float,
        headers: dict[str, str] | None,
        session: aiohttp.ClientSession,
    ) -> Reply:
        status = None
        asked_host.set(url.raw_host or "")
        try:
            async with (
                asyncio.timeout(seconds),
                session.get(url, headers=headers, allow_redirects=False) as response,
            ):
                status = response.status
                return await self._read(response)
        except Exception as error:  # one hostile server must not fail the batch
            return Reply(status=status, reason=_reason(error))

    async def _read(self, response: aiohttp.ClientResponse) -> Reply:
        status, headers = response.status, response.headers
        if status in REDIRECTS and "Location" in headers:
            return Reply(status=status, location=headers["Location"])
        if not 200 <= status < 300:
            wait_s = _retry_after_s(headers.get("Retry-After", ""))
            return Reply(status=status, reason=reason_of(status), retry_after_s=wait_s)
        if opts_out(headers.getall("X-Robots-Tag", ()), self.agents, self.disallowed):
            return Reply(status=status, reason="opt_out")
        limit = self.rules.max_body_bytes
        if (response.content_length or 0) > limit:
            return Reply(status=status, reason="too_large")
        body = bytearray()
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > limit:
                return Reply(status=status, reason="too_large")
        return Reply(status=status, body=bytes(body))


def _joined(base: URL | None, text: str) -> URL | None:
    """An absolute http or https URL whose host can be asked for; None where it is anything else."""
    try:
        text.encode()  # a lone surrogate would be left out, and another page asked for
        url = URL(text.strip()) if base is None else base.join(URL(text.strip()))
        host = url.raw_host or ""
        if "xn--" in host:
            url.host  # noqa: B018  # raises where no name follows
    except Exception:  # on hostile text the library raises ValueError to IndexError
        return None
    is_name = host.isprintable() and " " not in host
    return url if url.scheme in ("http", "https") and host and is_name else None


def _session(rules: Rules) -> aiohttp.ClientSession:
    agent = "; ".join(["compatible", AGENT, *filter(None, [rules.user_agent_token])])
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=0,  # our own slots are taken before the clock starts, the connector's after
            keepalive_timeout=IDLE_S,
            socket_factory=_sockets(rules),
        ),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None),
        # The body as sent: its SHA-256 is the crawl's, and no small body unpacks to a large one.
        headers={"User-Agent": f"Mozilla/5.0 ({agent})", "Accept-Encoding": "identity"},
        auto_decompress=False,
    )


def _sockets(rules: Rules) -> Callable[..., socket.socket]:
    """A maker of sockets that refuses forbidden addresses: no redirect, no second answer of a name
    server and no odd spelling of an address gets around it."""
    may = allowed(rules.allow_private_addresses)

    def made(address_info) -> socket.socket:
        family, kind, protocol, _, (address, *_) = address_info
        if not may.admits(address, asked_host.get()):
            raise PrivateAddressError("not an address that may be asked")
        return socket.socket(family, kind, protocol)

    return made


def reason_of(status: int) -> str:
    """The reason for a status without a body."""
    family = f"http_{status}" if status in OWN_CODE else f"http_{status // 100}xx"
    return family if 300 <= status < 600 else "bad_response"


def _retry_after_s(wish: str) -> float:
    """Seconds that the server asks to wait; 0 without such a header, or one that cannot be read."""
    if wish.isdecimal():
        return float(wish)
    try:
        return (parsedate_to_datetime(wish) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError, OverflowError):  # no date, or one without a time zone
        return 0


def _reason(error: Exception) -> str:
    """The reason for an error of a request."""
    match error:  # subclasses first
        case TimeoutError():
            return "timeout"
        case aiohttp.ClientConnectorDNSError():
            return "unresolvable"
        case aiohttp.ClientSSLError() | ssl.SSLError():
            return "tls"
        case aiohttp.ClientConnectorError(os_error=PrivateAddressError()):
            return "private_address"
        case aiohttp.ClientConnectorError():
            return "refused"
        case aiohttp.ClientPayloadError() | aiohttp.ServerDisconnectedError() | OSError():
            return "connection_lost"
        case ValueError():  # what the client library finds wrong before it asks: a label too long
            return "bad_url"
        case _:
            return "bad_response"
