"""Sends requests to a text server: concurrently up to a cap, with retries and a deadline.

An answer is a text or a reason. Errors that no retry can mend end the stage: no such model, a
refused key, a lost server, a spent budget.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any

import aiohttp
import msgspec

from clipmill.pipeline.errors import StageError, did_you_mean
from clipmill.pipeline.stage import Usage
from clipmill.stages.models.endpoint import TRANSIENT, Endpoint, Generated, answer_of
from clipmill.stages.models.spending import Spending

FIRST_PAUSE_S = 0.5  # doubled with every try
LONGEST_PAUSE_S = 30.0  # cap, unless the server asks for more
LAST_S = 30.0  # to finish a cancelled request, as its answer is paid for
MAX_BODY_BYTES = 1_000_000  # of a response: the text and its metadata
MAX_SAID = 300  # characters of a server's message
TEMPLATE_TOKENS = 16  # reserved for the server's chat template, until it counts more
IMAGE_TOKENS = 1200  # reserved with an image: what common models take for a megapixel
MOST_MORE = 1 << 16  # tokens beside a prompt's text; a greater count is not believed
NO_JSON = (ValueError, RecursionError, MemoryError)  # raised by reading an answer
FAILED_IN_A_ROW = 64  # answers, each after its retries: then the server is at fault, not the rows
TOO_LONG = re.compile(
    r"context.?(length|size|window)|max(imum)?.model.len|too.long|exceed_context", re.IGNORECASE
)
FILTERED = re.compile(r"content.?(filter|policy|management)", re.IGNORECASE)


@dataclass(frozen=True)
class Ask:
    """A request for one answer.

    The body is built when it is sent, so that waiting requests hold no images. `keep` is called
    with an answer before its cost is settled.
    """

    path: str
    body: Callable[[], dict[str, Any]]
    text_bytes: int  # of the prompt, and so a bound on its tokens: each has a byte or more
    has_image: bool
    is_probe: bool  # of the form that the server takes
    max_tokens: int
    keep: Callable[[Generated], None]


@dataclass(frozen=True, kw_only=True)
class Reply:
    """The outcome of one request: an answer, or a reason with the server's message."""

    answer: Generated | None = None
    reason: str | None = None
    retry_after_s: float = 0
    message: str = ""
    is_refused: bool = False  # connection refused: no server listens
    may_cost: bool = False  # the server may charge tokens for it


@dataclass
class Opened:
    """A client's session and locks in one event loop."""

    loop: asyncio.AbstractEventLoop
    session: aiohttp.ClientSession
    slots: asyncio.Semaphore
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)  # to reserve an answer's budget
    reviving: asyncio.Lock = field(default_factory=asyncio.Lock)
    closing: AsyncGenerator[None, None] | None = None


class Client:
    """A client of one endpoint; its session lives as long as the event loop that uses it."""

    def __init__(
        self, endpoint: Endpoint, spending: Spending, took: Callable[[Usage], None]
    ) -> None:
        self.endpoint, self.spending, self.took = endpoint, spending, took
        self.limits, self.where = spending.limits, spending.where
        self.at_once = min(filter(None, (self.limits.concurrency, endpoint.concurrency)))
        self.opened: Opened | None = None
        self.ended: StageError | None = None  # after which no request is sent
        self.is_settled = True  # chat or completion is known; until then a 404 is no error
        self.is_doubted = False  # the last form was refused: only probes and images are sent
        self.no_form: StageError | None = None  # what the last 404 says
        self.has_answered = False
        self.failed = 0  # failed answers in a row
        self.said = ""  # by the server, when it last refused a request
        self.lives = 0  # revivals of the server
        # Tokens to reserve beside one for each byte of a prompt, without and with an image.
        self.more_tokens = [TEMPLATE_TOKENS, IMAGE_TOKENS]

    async def answer(self, ask: Ask) -> Generated:
        """Returns the server's answer, or the reason that there is none.

        Each request reserves the most that it may cost, until its answer is stored and tells the
        usage. A cancelled caller waits for an answer that is on its way.
        """
        opened = self._open()
        async with opened.turn:
            reserved = await self._slot_and_budget(opened, ask)
        began_s = opened.loop.time()
        answer = await self._with_retries(opened, ask, reserved)
        into, out = answer.prompt_tokens, answer.completion_tokens
        self.took(
            Usage(
                prompt_tokens=into,
                completion_tokens=out,
                usd=self.limits.usd(into, out),
                slot_s=(began_s, opened.loop.time()),
                at_once=self.at_once,
            )
        )
        return answer

    async def _slot_and_budget(self, opened: Opened, ask: Ask) -> Mapping[str, float]:
        """Acquires a slot and reserves the amounts; holds no slot while it waits for budget."""
        while True:
            await opened.slots.acquire()
            prompt_tokens = ask.text_bytes + self.more_tokens[ask.has_image]
            reserved = self.spending.amounts(prompt_tokens, ask.max_tokens)
            try:
                self._still_on()
                wait = await self.spending.reserve(reserved)
            except BaseException as error:
                opened.slots.release()
                self._end(error)
                raise
            if wait is None:
                return reserved
            opened.slots.release()
            await wait()

    async def _with_retries(
        self, opened: Opened, ask: Ask, reserved: Mapping[str, float]
    ) -> Generated:
        """Sends requests until one is answered; starts with slot and budget, pauses without."""
        limits, now = self.limits, opened.loop.time
        left_s, tries, pauses = limits.deadline_s, 0, 0
        while True:
            life = self.lives
            start = now()
            reply = await self._to_its_end(opened, ask, reserved, min(limits.timeout_s, left_s))
            left_s -= now() - start
            self.said = reply.message
            if reply.answer is not None:
                self.has_answered, self.failed = True, 0
                return reply.answer
            if reply.reason not in TRANSIENT:
                return self._failed(reply)
            pause_s = max(min(FIRST_PAUSE_S * 2**pauses, LONGEST_PAUSE_S), reply.retry_after_s)
            can_revive = reply.reason == "server_lost" and self.endpoint.revive is not None
            # Not counted as tries: a busy server, and one that has answered before and may return.
            may_return = reply.is_refused and self.has_answered and not can_revive
            tries += not (may_return or reply.reason == "server_busy")
            pauses += 1
            if tries > limits.retries or pause_s >= left_s:
                return self._failed(reply)
            if can_revive:
                await self._revived(opened, life)
            else:
                left_s -= pause_s
                await asyncio.sleep(pause_s)
            reserved = await self._slot_and_budget(opened, ask)

    async def _to_its_end(
        self, opened: Opened, ask: Ask, reserved: Mapping[str, float], seconds: float
    ) -> Reply:
        """Returns the outcome of a request; a cancelled caller waits for its end, too."""
        limit = asyncio.timeout(seconds)
        paid = asyncio.ensure_future(self._paid(opened, ask, reserved, limit))
        try:
            return await asyncio.shield(paid)
        except asyncio.CancelledError:
            last_s = opened.loop.time() + min(seconds, LAST_S)  # its time-out now, if not sooner
            with contextlib.suppress(RuntimeError):  # the request has not begun, or is over
                limit.reschedule(min(last_s, limit.when() or last_s))
            while not paid.done():  # a row is cancelled by its batch, and again by the batch's end
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([paid])
            raise

    async def _paid(
        self, opened: Opened, ask: Ask, reserved: Mapping[str, float], limit: asyncio.Timeout
    ) -> Reply:
        """Sends a request that has a slot and a reserved budget; releases both."""
        spent: Mapping[str, float] = {}
        try:
            self._still_on()
            if self.is_doubted and not (self.is_settled or ask.has_image or ask.is_probe):
                return Reply(reason="unsent")
            body = ask.body()
            spent = reserved  # unless the outcome costs less
            reply = await self._request(opened, ask.path, body, limit)
            if reply.answer is not None:
                ask.keep(reply.answer)
            if not reply.may_cost:
                spent = {}
            elif reply.answer is not None:
                spent = self._used(ask, reply.answer, reserved)
        except StageError as error:
            spent = {}  # the server refuses
            self._end(error)
            raise
        finally:
            opened.slots.release()
            await self.spending.settle(reserved, spent)
        if self.spending.caps and reply.answer and (excess := self._excess(ask, reply.answer)):
            self._end(excess)
            raise excess
        return reply

    def _failed(self, reply: Reply) -> Generated:
        """Returns the reason as an answer; raises StageError if the server is to blame."""
        self.failed += reply.reason in (*TRANSIENT, "bad_request")
        self.is_doubted = reply.reason in ("bad_request", "no_form", "unsent")
        if reply.is_refused:
            found = f"the server at {self.endpoint.url} is gone: {reply.message}"
        elif (self.is_settled or reply.reason in TRANSIENT) and self.failed >= FAILED_IN_A_ROW:
            found = f"{self.failed} requests in a row had no answer; the last: {reply.message}"
        else:
            return Generated(reason=reply.reason)
        do = "start the server again, or mend it, and run again: what is stored stays"
        error = StageError(found, self.where, do)
        self._end(error)
        raise error

    def _used(
        self, ask: Ask, answer: Generated, reserved: Mapping[str, float]
    ) -> Mapping[str, float]:
        """Returns an answer's cost by the server's count; all that was reserved without a count."""
        into, out = answer.prompt_tokens, answer.completion_tokens
        if not into or (answer.text and not out):
            return reserved
        more = self.more_tokens[ask.has_image]
        if into - ask.text_bytes <= MOST_MORE:
            self.more_tokens[ask.has_image] = max(more, into - ask.text_bytes)
        else:
            into = ask.text_bytes + more
        return self.spending.amounts(into, min(out, ask.max_tokens))

    def _excess(self, ask: Ask, answer: Generated) -> StageError | None:
        """Returns an error if a server's token counts are too high for any budget to hold."""
        into, out = answer.prompt_tokens, answer.completion_tokens
        if into <= ask.text_bytes + MOST_MORE and out <= ask.max_tokens:
            return None
        return StageError(
            f"the server at {self.endpoint.url} counts {into:,} tokens of a prompt of"
            f" {ask.text_bytes:,} bytes and {out:,} of its answer, which may have"
            f" {ask.max_tokens:,}: no budget holds with it",
            self.where,
            "mend the server, or run without limits.max_tokens_total and limits.max_usd: what is"
            " stored stays",
        )

    def _still_on(self) -> None:
        if self.ended is not None:
            raise StageError(*self.ended.args)

    def _end(self, error: BaseException) -> None:
        if isinstance(error, StageError) and self.ended is None:
            self.ended = error

    async def _revived(self, opened: Opened, life: int) -> None:
        """Restarts a lost server, once for all requests that lost it together."""
        assert self.endpoint.revive is not None  # the caller has checked
        async with opened.reviving:
            self._still_on()
            if self.lives == life:
                try:
                    await asyncio.to_thread(self.endpoint.revive)
                except StageError as error:
                    self._end(error)
                    raise
                self.lives += 1

    async def _request(
        self, opened: Opened, path: str, body: dict[str, Any], limit: asyncio.Timeout
    ) -> Reply:
        start = opened.loop.time()
        try:
            if self.endpoint.inside is not None:
                await asyncio.sleep(0)  # let other tasks run
                return Reply(answer=answer_of(self.endpoint.inside(path, body)), may_cost=True)
            data = msgspec.json.encode(body)
            async with (
                limit,
                opened.session.post(self._url(path), data=data, allow_redirects=False) as response,
            ):
                raw = await _read(response)
                if response.status == 200:
                    return Reply(answer=answer_of(msgspec.json.decode(raw)), may_cost=True)
                if response.status == 404:
                    self.no_form = await self._no_form(opened, path, self._message(raw))
                    if self.is_settled:
                        raise self.no_form
                    return Reply(reason="no_form", message=self.no_form.args[0])
                wait_s = _retry_after_s(response.headers.get("Retry-After", ""))
                return self._refusal(response.status, self._message(raw), wait_s)
        except TimeoutError:
            message = f"no answer in {opened.loop.time() - start:.3g} s"
            return Reply(reason="answer_timeout", message=message, may_cost=True)
        except aiohttp.ClientConnectorError as error:
            message = f"{error.os_error.strerror or error.os_error}"
            return Reply(reason="server_lost", message=message, is_refused=True)
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, OSError) as error:
            message = f"the connection was lost ({type(error).__name__})"
            return Reply(reason="server_lost", message=message, may_cost=True)
        except (aiohttp.ClientError, *NO_JSON) as error:  # no HTTP; no JSON; no choice in it
            message = self._without_key(str(error) or type(error).__name__)
            return Reply(reason="bad_answer", message=message, may_cost=True)

    def _refusal(self, status: int, message: str, retry_after_s: float) -> Reply:
        """Maps a status other than 200 to a reply; raises StageError if no retry can help."""
        message = f"HTTP {status}: {message}"
        if status in (401, 403):
            env = self.limits.api_key_env
            unset = "" if self.endpoint.key else f"; the environment variable {env} is not set"
            raise StageError(
                f"the server at {self.endpoint.url} refuses the key: HTTP {status}{unset}",
                self.where,
                f"set {env}, in the environment of every worker, to a key that may use"
                f" '{self.endpoint.model}'; another variable is named by limits.api_key_env",
            )
        if status == 402 or "insufficient_quota" in message:
            do = "pay for more, and run again: what is stored stays"
            raise StageError(f"the account has no credit left: {message}", self.where, do)
        if status == 429 or status >= 500:
            return Reply(
                reason="server_busy" if status == 429 else "server_error",
                message=message,
                retry_after_s=retry_after_s,
                may_cost=status in (504, 524),  # a gateway timed out: the server may go on
            )
        if status == 408:
            return Reply(reason="answer_timeout", message=message, may_cost=True)
        if status == 413 or TOO_LONG.search(message):
            return Reply(answer=Generated(reason="prompt_too_long"), message=message)
        if FILTERED.search(message):
            return Reply(answer=Generated(reason="refused_content"), message=message)
        return Reply(reason="bad_request", message=message)

    async def _no_form(self, opened: Opened, path: str, message: str) -> StageError:
        """Returns the error for a 404 at a path; raises it if the model is wrong."""
        url, model = self.endpoint.url, self.endpoint.model
        try:
            async with opened.session.get(self._url("models"), allow_redirects=False) as response:
                listed = msgspec.json.decode(await _read(response))["data"]
            names = [str(entry["id"]) for entry in listed]
        except (aiohttp.ClientError, OSError, *NO_JSON, LookupError, TypeError):
            return StageError(
                f"there is no {url}/{path}: HTTP 404, and no list of models either",
                self.where,
                "mend the URL: with most servers it ends in /v1",
            )
        if model in names:
            do = "take another model: it answers neither as completion nor as chat"
            return StageError(f"HTTP 404 at {path} for '{model}': {message}", self.where, do)
        do = f"write one that the server has after the #: {did_you_mean(model, names, 'it has')}"
        raise StageError(f"the server at {url} has no model '{model}'", self.where, do)

    def _message(self, raw: bytes) -> str:
        """Returns the error message of OpenAI's protocol, or the beginning of the body."""
        try:
            error = msgspec.json.decode(raw)["error"]
            parts = [error.get(part) for part in ("message", "code", "type")]
            text = "; ".join(str(part) for part in parts if part)
        except (*NO_JSON, LookupError, TypeError, AttributeError):
            text = raw[: 4 * MAX_SAID].decode("utf-8", "replace")
        return self._without_key(text)

    def _without_key(self, text: str) -> str:
        text = text.replace(self.endpoint.key, "***") if self.endpoint.key else text
        return text[:MAX_SAID]

    def _url(self, path: str) -> str:
        base = "http://localhost/v1" if self.endpoint.url.startswith("unix:") else self.endpoint.url
        return f"{base.rstrip('/')}/{path}"

    def _open(self) -> Opened:
        """Returns the running loop's session and locks; the session closes with the loop."""
        loop = asyncio.get_running_loop()
        if self.opened is None or self.opened.loop is not loop:
            headers = {"Content-Type": "application/json", "User-Agent": "clipmill"}
            if self.endpoint.key:
                headers["Authorization"] = f"Bearer {self.endpoint.key}"
            scheme, _, socket = self.endpoint.url.partition(":")
            kind = (
                partial(aiohttp.UnixConnector, socket) if scheme == "unix" else aiohttp.TCPConnector
            )
            # A connection a request: else a server's second answer would be the next row's.
            session = aiohttp.ClientSession(
                connector=kind(limit=0, force_close=True),
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=None),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
            self.opened = Opened(loop, session, asyncio.Semaphore(self.at_once))
            closing = _closing(session)
            # Started, it is one of the async generators that the loop closes at its end.
            with contextlib.suppress(StopIteration):
                closing.__anext__().send(None)
            self.opened.closing = closing
        return self.opened


async def _closing(session: aiohttp.ClientSession) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        await session.close()


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """Reads the body; raises ValueError if it is longer than MAX_BODY_BYTES."""
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise ValueError(f"an answer of more than {MAX_BODY_BYTES // 10**6} MB")
    return bytes(body)


def _retry_after_s(header: str) -> float:
    """Parses Retry-After, seconds or a date; 0 if it is missing or cannot be read."""
    with contextlib.suppress(ValueError):
        return max(float(header), 0.0)
    try:
        return (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError, OverflowError):  # no date, or one without a time zone
        return 0
