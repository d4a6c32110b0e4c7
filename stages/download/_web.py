"""Fetches many URLs concurrently: politely, within limits, and not from private networks.

Every URL ends with one status and, unless there is a body, one reason. No server can hold a URL for
more than `deadline_s` seconds, or fill more than `max_body_bytes` of memory.
"""

import asyncio
import contextlib
import re
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
from yarl import URL

from clipmill.metadata.schema import LISTED
from clipmill.pipeline.stage import ignored
from clipmill.stages.download._rows import Answer, allowed, reason_of

AGENT = "clipmill"
HOST_TIME_OUTS = 8  # in a row, after which a host is down for the URLs that wait for it
DNS_S = 300  # lifetime of an address in the cache, of the last thousand names
LAST = {"Connection": "close"}
IDLE_S = 0.5  # a connection waits for its host's next URL: short, as each is an open file
FIRST_PAUSE_S = 0.5  # doubled with every try
RETRIED = ("timeout", "connection_lost", "http_429", "http_500", "http_5xx")
REDIRECTS = (301, 302, 303, 307, 308)

asked_host: ContextVar[str] = ContextVar("asked_host")  # of a task's request, for its socket


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Limits of a client, named as the settings of `download.images`."""

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
class Reply:
    """The outcome of one request."""

    status: int | None = None
    reason: str | None = None
    body: bytes = b""
    location: str | None = None
    retry_after_s: float = 0


class PrivateAddressError(OSError):
    """Raised instead of a connection to an address that the rules do not permit."""


@dataclass(kw_only=True)
class Host:
    """State shared by all requests to one host and port."""

    turns: asyncio.Semaphore
    users: int = 0  # URLs waiting for the host or in a request to it
    due: int = 0  # users that begin with this host: no redirects
    time_outs: int = 0  # in a row


class Client:
    """A client under one set of rules, bound to the first event loop that uses it.

    Its threads, session, DNS cache and state of hosts last as long as it does.
    """

    def __init__(
        self,
        rules: Rules,
        threads: int,
        keep: Callable[..., Any],
        is_blocked: Callable[[list[str]], Any] = lambda urls: [False],
    ) -> None:
        """Asks `is_blocked` of redirects alone: the caller has checked the first URL."""
        self.rules, self.keep, self.is_blocked = rules, keep, is_blocked
        self.keepers = ThreadPoolExecutor(threads)
        self.slots = asyncio.Semaphore(rules.concurrency)
        self.hosts: dict[tuple[str | None, int | None], Host] = {}
        self.under_way: dict[tuple[Any, ...], asyncio.Task[Answer]] = {}
        self.waiting: Counter[asyncio.Task[Answer]] = Counter()  # calls that wait for each
        self.session: aiohttp.ClientSession | None = None
        self._open: AsyncIterator[aiohttp.ClientSession] = _sessions(rules)
        token = (rules.user_agent_token or AGENT).strip().lower()
        self.agents = frozenset({AGENT, token})
        self.disallowed = frozenset(
            directive.strip().lower() for directive in rules.disallowed_header_directives
        )

    async def fetch_all(
        self,
        urls: list[str],
        done: Callable[[], None] = ignored,
        about: Sequence[tuple[Any, ...]] | None = None,
    ) -> list[Answer]:
        """Returns the answer of every URL, in order; `keep` turns a body into `kept`, in a thread.

        `about` has what `keep` is given of each URL beside its body. A URL that another call waits
        for, with the same, is fetched once for both. At most `concurrency` bodies are in memory.
        """
        if self.session is None:
            # Threads for DNS look-ups: a dead name server must not block other names, or the loop.
            executor = ThreadPoolExecutor(self.rules.concurrency)
            asyncio.get_running_loop().set_default_executor(executor)
            self.session = await anext(self._open)
        each = about or [()] * len(urls)
        tasks = [self._task(url, given) for url, given in zip(urls, each, strict=True)]
        for task in tasks:
            task.add_done_callback(lambda _: done())
        self.waiting.update(tasks)
        try:
            return await asyncio.gather(*tasks)
        finally:
            self.waiting.subtract(tasks)
            for task in tasks:
                if not self.waiting[task]:  # else another call waits for it
                    del self.waiting[task]
                    task.cancel()  # it still runs only if another one failed

    def _task(self, url: str, about: tuple[Any, ...]) -> asyncio.Task[Answer]:
        key = url, about
        if key not in self.under_way:
            task = asyncio.create_task(self._fetch(_joined(None, url), about))
            self.under_way[key] = task
            task.add_done_callback(lambda _: self.under_way.pop(key))
        return self.under_way[key]

    @contextlib.contextmanager
    def _host(self, url: URL, is_first: bool) -> Iterator[Host]:
        """Yields the state of a URL's host, and counts the URL as its user meanwhile."""
        key = url.raw_host, url.port
        if key not in self.hosts:
            self.hosts[key] = Host(turns=asyncio.Semaphore(self.rules.max_per_host))
        host = self.hosts[key]
        host.users += 1
        host.due += is_first
        try:
            yield host
        finally:
            host.users -= 1
            host.due -= is_first
            # Time-outs of a shard's last, slowest URLs must not count for the next shard.
            if not host.users:
                del self.hosts[key]

    async def _fetch(self, url: URL | None, about: tuple[Any, ...]) -> Answer:
        rules, now = self.rules, asyncio.get_running_loop().time
        left_s, hops, tries, status, reason = rules.deadline_s, 0, 0, None, "host_down"
        while url is not None:
            with self._host(url, is_first=hops == 0) as host:
                while True:
                    # The host first, so that a URL waiting for a busy host holds no slot.
                    async with host.turns, self.slots:
                        if host.time_outs >= HOST_TIME_OUTS:
                            return Answer(status=status, reason=reason)
                        start = now()
                        # As many may run as are due: none waits for this connection.
                        headers = LAST if 0 < host.due <= rules.max_per_host else None
                        reply = await self._request(url, min(rules.timeout_s, left_s), headers)
                        left_s -= now() - start
                        status = reply.status
                        host.time_outs = host.time_outs + 1 if reply.reason == "timeout" else 0
                        if reply.reason is None and reply.location is None:
                            return Answer(status=status, kept=await self._kept(reply.body, about))
                    if reply.location is not None:
                        break
                    pause_s = max(FIRST_PAUSE_S * 2**tries, reply.retry_after_s)
                    is_last = tries == rules.retries or pause_s >= left_s
                    if reply.reason not in RETRIED or is_last:
                        return Answer(status=status, reason=reply.reason)
                    tries, reason = tries + 1, reply.reason
                    left_s -= pause_s
                    await asyncio.sleep(pause_s)
            hops += 1
            if hops > rules.max_redirects:
                return Answer(status=status, reason="redirect_loop")
            url, reason = _joined(url, reply.location), "host_down"
            if url is not None and self.is_blocked([str(url)])[0]:
                return Answer(reason=LISTED)
        return Answer(status=status, reason="bad_url")

    async def _kept(self, body: bytes, about: tuple[Any, ...]) -> Any:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.keepers, self.keep, body, *about)

    async def _request(self, url: URL, seconds: float, headers: dict[str, str] | None) -> Reply:
        assert self.session is not None
        status = None
        asked_host.set(url.raw_host or "")
        try:
            async with (
                asyncio.timeout(seconds),
                self.session.get(url, headers=headers, allow_redirects=False) as response,
            ):
                status = response.status
                return await self._read(response)
        except Exception as error:  # a hostile server must not fail the batch
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
    """Returns an absolute http or https URL with a usable host; None for anything else."""
    try:
        text.encode()  # refuses a lone surrogate, without which the URL would be another page's
        url = URL(text.strip()) if base is None else base.join(URL(text.strip()))
        host = url.raw_host or ""
        if "xn--" in host:
            url.host  # noqa: B018  # raises if the name does not decode
    except Exception:  # on hostile text the library raises ValueError to IndexError
        return None
    is_name = host.isprintable() and " " not in host
    return url if url.scheme in ("http", "https") and host and is_name else None


async def _sessions(rules: Rules) -> AsyncIterator[aiohttp.ClientSession]:
    """Yields one session, closed with this generator: at the latest when the loop ends."""
    agent = "; ".join(["compatible", AGENT, *filter(None, [rules.user_agent_token])])
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=0,  # our slots instead, which are taken before the time-out starts
            keepalive_timeout=IDLE_S,
            ttl_dns_cache=DNS_S,
            socket_factory=_sockets(rules),
        ),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None),
        # The body as sent: its SHA-256 is comparable, and no small body unpacks to a large one.
        headers={"User-Agent": f"Mozilla/5.0 ({agent})", "Accept-Encoding": "identity"},
        auto_decompress=False,
    ) as session:
        yield session


def _sockets(rules: Rules) -> Callable[..., socket.socket]:
    """Returns a socket factory that refuses forbidden addresses.

    Redirects, changed DNS answers and odd spellings of an address cannot bypass it.
    """
    may = allowed(rules.allow_private_addresses)

    def socket_of(address_info) -> socket.socket:
        family, kind, protocol, _, (address, *_) = address_info
        if not may.admits(address, asked_host.get()):
            raise PrivateAddressError("not an address that may be asked")
        return socket.socket(family, kind, protocol)

    return socket_of


def _retry_after_s(header: str) -> float:
    """Parses Retry-After, seconds or a date; 0 if it is missing or cannot be read."""
    if header.isdecimal():
        return float(header)
    try:
        return (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError, OverflowError):  # no date, or one without a time zone
        return 0


def _reason(error: Exception) -> str:
    """Returns the reason for an error of a request."""
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
        case ValueError():  # found by the client library before it connects: a label too long
            return "bad_url"
        case _:
            return "bad_response"


AGENT_NAME = re.compile(r"\*|[a-z][^\s]*")  # not a date's "06 Nov 1994 08" before a colon
WITH_VALUE = ("max-", "unavailable_after")  # rules with a colon, which are no agents' names


def opts_out(values: Iterable[str], agents: Collection[str], rules: Collection[str]) -> bool:
    """Returns whether a header gives one of the rules to all agents, or to one of ours.

    `none` means noindex and nofollow. Agents and rules are in lower case.

    Source: Google's specification of the header: rules between commas, in any case; an agent's name
    and a colon address the rules up to the next name; rules before any name are for all.
    Error: two headers that a proxy joined with a comma are read as one, so rules for all may be
    taken as those of the agent named before them.
    """
    none = {"none"} if {"noindex", "nofollow"} & set(rules) else set()
    heeded = none.union(rules)
    return any(rule in heeded for value in values for rule in _rules(value, agents))


def _rules(value: str, agents: Collection[str]) -> Iterator[str]:
    """Yields the names of the rules for all, or for one of the agents."""
    is_for_us = True
    for part in value.lower().split(","):
        name, colon, rest = (piece.strip() for piece in part.partition(":"))
        if colon and AGENT_NAME.fullmatch(name) and not name.startswith(WITH_VALUE):
            is_for_us = name == "*" or name in agents
            name = rest.partition(":")[0].strip()
        if is_for_us:
            yield name
