"""Many URLs at once: politely, within limits, and never inside the network of whoever asks.

Every URL ends with one status and, unless there is a body, one reason. Whatever a server does, a
URL waits for it `deadline_s` seconds at most, and fills `max_body_bytes` of memory at most.
"""

import asyncio
import ipaddress
import socket
import ssl
import weakref
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
from multidict import CIMultiDictProxy
from yarl import URL

FIRST_PAUSE_S = 0.5  # doubled with every try
OWN_CODE = (403, 404, 410, 429, 500)  # the others share http_3xx, http_4xx, http_5xx
RETRIED = ("timeout", "connection_lost", "http_429", "http_500", "http_5xx")
REDIRECTS = (301, 302, 303, 307, 308)


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How a client behaves; the words are those of `download.images`."""

    timeout_s: float
    deadline_s: float
    retries: int
    concurrency: int
    max_per_host: int
    max_redirects: int
    max_body_bytes: int
    allow_private_addresses: bool
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
    """What one request brought."""

    status: int | None = None
    reason: str | None = None
    body: bytes = b""
    location: str | None = None
    retry_after_s: float = 0


class PrivateAddressError(OSError):
    """Raised in place of a connection to an address that is not on the public internet."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What the requests of one call share."""

    session: aiohttp.ClientSession
    keep: Callable[[bytes], Any]
    slots: asyncio.Semaphore
    hosts: defaultdict[tuple[str | None, int | None], asyncio.Semaphore]


class Client:
    """Fetches under one set of rules, with one event loop and threads that it keeps."""

    def __init__(self, rules: Rules, threads: int) -> None:
        self.rules = rules
        self.loop = asyncio.new_event_loop()
        # Look-ups run in these: a dead name server must hold up neither other names nor a batch.
        self.loop.set_default_executor(ThreadPoolExecutor(rules.concurrency))
        self.keepers = ThreadPoolExecutor(threads)
        weakref.finalize(self, self.loop.close)

    def fetch_all(self, urls: list[str], keep: Callable[[bytes], Any]) -> list[Answer]:
        """The answer of every URL, in order; `keep` turns a body, in a thread, into what stays.

        A body is held only until it is kept: there are at most `concurrency` of them.
        """
        return self.loop.run_until_complete(self._fetch_all(urls, keep))

    async def _fetch_all(self, urls: list[str], keep: Callable[[bytes], Any]) -> list[Answer]:
        async with _session(self.rules) as session:
            batch = Batch(
                session=session,
                keep=keep,
                slots=asyncio.Semaphore(self.rules.concurrency),
                hosts=defaultdict(lambda: asyncio.Semaphore(self.rules.max_per_host)),
            )
            return await asyncio.gather(*(self._fetch(url, batch) for url in urls))

    async def _fetch(self, text: str, batch: Batch) -> Answer:
        rules, now = self.rules, self.loop.time
        left_s, hops, tries, status = rules.deadline_s, 0, 0, None
        url = _joined(None, text)
        while url is not None:
            # The host first: those who queue for a busy one must not hold the others' slots.
            async with batch.hosts[url.host, url.port], batch.slots:
                start = now()
                reply = await self._request(url, min(rules.timeout_s, left_s), batch.session)
                left_s -= now() - start
                status = reply.status
                if reply.reason is None and reply.location is None:
                    kept = await self.loop.run_in_executor(self.keepers, batch.keep, reply.body)
                    return Answer(status=status, kept=kept)
            if reply.location is not None:
                hops += 1
                if hops > rules.max_redirects:
                    return Answer(status=status, reason="redirect_loop")
                url = _joined(url, reply.location)
                continue
            pause_s = max(FIRST_PAUSE_S * 2**tries, reply.retry_after_s)
            if reply.reason not in RETRIED or tries == rules.retries or pause_s >= left_s:
                return Answer(status=status, reason=reply.reason)
            tries += 1
            left_s -= pause_s
            await asyncio.sleep(pause_s)
        return Answer(status=status, reason="bad_url")

    async def _request(self, url: URL, seconds: float, session: aiohttp.ClientSession) -> Reply:
        status = None
        try:
            async with (
                asyncio.timeout(seconds),
                session.get(url, allow_redirects=False) as response,
            ):
                status = response.status
                return await _read(response, self.rules)
        except Exception as error:  # one hostile server must not fail the batch
            return Reply(status=status, reason=_reason(error))


def _joined(base: URL | None, text: str) -> URL | None:
    """An absolute http or https URL with a host; None where it is anything else."""
    try:
        url = URL(text.strip()) if base is None else base.join(URL(text.strip()))
    except ValueError:
        return None
    return url if url.scheme in ("http", "https") and url.host else None


def _session(rules: Rules) -> aiohttp.ClientSession:
    agent = "; ".join(["compatible", "clipmill", *filter(None, [rules.user_agent_token])])
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=0,  # our own slots are taken before the clock starts, the connector's after
            socket_factory=None if rules.allow_private_addresses else _public_socket,
        ),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None),
        # The body as sent: its SHA-256 is the crawl's, and no small body unpacks to a large one.
        headers={"User-Agent": f"Mozilla/5.0 ({agent})", "Accept-Encoding": "identity"},
        auto_decompress=False,
    )


def _public_socket(address_info) -> socket.socket:
    """A socket for an address about to be connected: the one place that no redirect, no second
    answer of a name server and no odd spelling of an address gets around."""
    family, kind, protocol, _, (host, *_) = address_info
    if not is_public(host):
        raise PrivateAddressError("not a public address")
    return socket.socket(family, kind, protocol)


def is_public(host: str) -> bool:
    """Whether this is the plain form of an address on the public internet."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        # IPv4 inside IPv6: what counts is where the packets go
        address = address.ipv4_mapped or address.sixtofour or address
    inner = address.is_multicast or address.is_reserved or getattr(address, "is_site_local", False)
    return address.is_global and not inner


async def _read(response: aiohttp.ClientResponse, rules: Rules) -> Reply:
    status, headers = response.status, response.headers
    if status in REDIRECTS and "Location" in headers:
        return Reply(status=status, location=headers["Location"])
    if not 200 <= status < 300:
        family = f"http_{status}" if status in OWN_CODE else f"http_{status // 100}xx"
        reason = family if 300 <= status < 600 else "bad_response"
        return Reply(status=status, reason=reason, retry_after_s=_retry_after_s(headers))
    if opts_out(headers, rules.user_agent_token, rules.disallowed_header_directives):
        return Reply(status=status, reason="opt_out")
    if (response.content_length or 0) > rules.max_body_bytes:
        return Reply(status=status, reason="too_large")
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > rules.max_body_bytes:
            return Reply(status=status, reason="too_large")
    return Reply(status=status, body=bytes(body))


def _retry_after_s(headers: CIMultiDictProxy[str]) -> float:
    """Seconds that the server asks us to wait; 0 where it asks for nothing we understand."""
    wish = headers.get("Retry-After", "")
    if wish.isdecimal():
        return float(wish)
    try:
        return (parsedate_to_datetime(wish) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):  # no date, or one without a time zone
        return 0


def opts_out(
    headers: CIMultiDictProxy[str], token: str | None, directives: tuple[str, ...]
) -> bool:
    """Whether an X-Robots-Tag for all, or for our token, holds one of the directives.

    Source: img2dataset 1.47, is_disallowed.
    """
    ours = {directive.strip().lower() for directive in directives}
    for value in headers.getall("X-Robots-Tag", []):
        agent, colon, rest = value.lower().partition(":")
        is_for_us = not colon or agent.strip() == (token or "").strip().lower()
        if is_for_us and any(part.strip() in ours for part in (rest or agent).split(",")):
            return True
    return False


def _reason(error: Exception) -> str:
    """The code of what went wrong on the way; most special first, as they inherit."""
    match error:
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
        case aiohttp.InvalidURL() | UnicodeError():  # a label too long, a port of no number
            return "bad_url"
        case _:
            return "bad_response"
