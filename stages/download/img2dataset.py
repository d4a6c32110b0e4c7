"""Downloads images by img2dataset's own code, for its users and for comparison."""

import hashlib
import os
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection, IncompleteRead
from importlib.util import find_spec
from io import BytesIO
from threading import Semaphore
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    Request,
    UnknownHandler,
)

import pyarrow as pa

from clipmill.pipeline.errors import StageError
from clipmill.pipeline.extras import install
from clipmill.pipeline.stage import OneUp, RowFunction, Seconds, Worker, ZeroUp, location
from clipmill.stages.download._rows import (
    Allowed,
    Answer,
    Download,
    Kept,
    allowed,
    answered,
    reason_of,
    to_fetch,
    wishes,
)

if TYPE_CHECKING:
    from multiprocessing.pool import ThreadPool

STATUS = re.compile(r"HTTP Error ([345]\d\d): ")
# Patterns of urllib's messages; the first match counts.
REDIRECTING = (("infinite loop", "redirect_loop"), ("is not allowed", "bad_url"), ("", "http_3xx"))

PRIVATE = "not an address that may be asked"
TOO_LARGE = "the body is too large"
FETCHING = (
    ("X-Robots-Tag", "opt_out"),
    (PRIVATE, "private_address"),
    (TOO_LARGE, "too_large"),
    ("timed out", "timeout"),
    (r"Errno -\d", "unresolvable"),
    ("SSL|certificate", "tls"),
    ("closed connection|IncompleteRead|reset by peer|Broken pipe", "connection_lost"),
    (r"urlopen error \[Errno", "refused"),
    ("Errno", "connection_lost"),
    ("unknown url type|no host|control char|port:|codec|Invalid IPv6|not a valid|NFKC", "bad_url"),
    ("", "bad_response"),
)
RESIZING = (
    ("image too small", "too_small"),
    ("image area too large|CV_IO_MAX_IMAGE", "too_many_pixels"),
    ("aspect ratio too large", "extreme_aspect"),
    ("", "undecodable"),
)
COSTLY = ("too_many_pixels", "too_costly")  # other faults are left to img2dataset


@dataclass(frozen=True, kw_only=True)
class Img2dataset(Download):
    """The image at each URL as img2dataset makes it, its size and SHA-256; null without one.

    Keys and columns are those of download.images: change `uses` to compare.

    Source: img2dataset 1.47, download_image_with_retry and Resizer. Departs: only http and https,
    no proxy, no private addresses, and bodies are capped.
    Error: no cap on seconds: a slow server may hold a thread, and so its shard, indefinitely.
        There is no limit for a host, no pause before a retry, and any failure is retried, 404 too.
        X-Robots-Tag is read as in img2dataset: `*: noindex`, `none` and a value with another colon
        are missed. Reasons are parsed from messages; HTML, truncated and broken files are all
        undecodable or, decoded halfway, images; http_status is 200 for any answer with a body. EXIF
        orientation is ignored, grey stays grey, and `resize: no` re-encodes what skip_reencode does
        not keep.
    Example: {after: [ingest.datacomp]}
    """

    timeout_s: Seconds = location(10.0)  # seconds of one wait for the network
    retries: ZeroUp = location(2)  # after any failure
    concurrency: OneUp = location(64)  # threads per worker

    version = 1
    batch_rows = 2048
    reasons = (
        *("no_url", "no_sha256", "bad_url", "private_address", "unresolvable", "refused", "tls"),
        *("timeout", "connection_lost", "bad_response", "redirect_loop", "opt_out", "too_large"),
        *("http_3xx", "http_403", "http_404", "http_410", "http_429", "http_4xx"),
        *("http_500", "http_5xx", "hash_mismatch", "undecodable"),
        *("too_many_pixels", "too_costly", "too_small", "extreme_aspect"),
    )
    transient = (
        *("unresolvable", "refused", "timeout", "connection_lost"),
        *("http_429", "http_500", "http_5xx"),
    )

    def look(self) -> None:
        if find_spec("img2dataset") is None:
            do = f"{install('img2dataset')}, or use download.images"
            raise StageError("the package 'img2dataset' is not installed", "key `uses`", do)

    def open(self, worker: Worker) -> RowFunction:
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # no look-up of newer versions
        from multiprocessing.pool import ThreadPool

        from img2dataset.resizer import Resizer

        resizer = Resizer(
            self.image_size,
            self.resize,
            self.resize_only_if_bigger,
            self.upscale_interpolation,
            self.downscale_interpolation,
            self.encode_quality,
            self.encode_format,
            self.skip_reencode,
            min_image_size=self.min_image_size,
            max_image_area=self.max_pixels,
            max_aspect_ratio=self.max_aspect_ratio or float("inf"),
        )
        web = opener(allowed(self.allow_private_addresses), self.max_body_bytes)
        pool = ThreadPool(self.concurrency)
        fetch_all = partial(fetched, web=web, pool=pool, resizer=resizer, settings=self)

        def downloaded(batch: pa.Table) -> pa.Table:
            wished = wishes(batch, self.verify_sha256)
            urls = to_fetch(wished, self.verify_sha256)
            answers = dict(zip(urls, fetch_all(urls), strict=True))
            of_rows = (answers.get(url or "") for url, _ in wished)
            return answered(wished, self.verify_sha256, of_rows)

        return downloaded


def fetched(
    urls: list[str], web: OpenerDirector, pool: "ThreadPool", resizer: Any, settings: Img2dataset
) -> list[Answer]:
    """Fetches every URL in threads and resizes images here, as img2dataset; answers in order."""
    from img2dataset import downloader

    # Replaces img2dataset's urlopen alone: install_opener would change the whole process.
    request = SimpleNamespace(Request=Request, urlopen=web.open)
    downloader.urllib = SimpleNamespace(request=request)
    room = Semaphore(2 * settings.concurrency)  # bodies in memory

    def rows() -> Iterator[tuple[int, str]]:
        for row in enumerate(urls):
            room.acquire()
            yield row

    ask = partial(
        downloader.download_image_with_retry,
        timeout=settings.timeout_s,
        retries=settings.retries,
        user_agent_token=settings.user_agent_token and settings.user_agent_token.strip().lower(),
        disallowed_header_directives={
            directive.strip().lower() for directive in settings.disallowed_header_directives
        },
    )
    answers = {}
    for number, body, error in pool.imap_unordered(ask, rows()):
        answers[number] = answer(body, error, resizer)
        room.release()
    return [answers[number] for number in range(len(urls))]


def answer(body: BytesIO | None, error: str | None, resizer: Any) -> Answer:
    """Converts the results of img2dataset's two functions to the answer of one URL."""
    from clipmill.stages.ops.images.opened import ImageError, weighed

    if body is None:
        message = error or ""
        if match := STATUS.match(message):
            status = int(match[1])
            reason = first(REDIRECTING, message) if status < 400 else reason_of(status)
            return Answer(status=status, reason=reason)
        reason = first(FETCHING, message)
        return Answer(status=200 if reason == "opt_out" else None, reason=reason)
    digest = hashlib.sha256(body.getbuffer()).hexdigest()
    try:
        weighed(body.getvalue(), resizer.max_image_area)  # img2dataset checks after decoding only
    except ImageError as bad:
        if bad.code in COSTLY:
            return Answer(status=200, kept=Kept(sha256=digest, reason=bad.code))
    image, width, height, _, _, failed = resizer(body)
    if failed is not None:
        return Answer(status=200, kept=Kept(sha256=digest, reason=first(RESIZING, failed)))
    return Answer(status=200, kept=Kept(sha256=digest, image=image, width=width, height=height))


def first(known: tuple[tuple[str, str], ...], message: str) -> str:
    """Returns the reason of the first pattern that matches the message."""
    return next(reason for pattern, reason in known if re.search(pattern, message, re.DOTALL))


def opener(may: Allowed, max_body_bytes: int) -> OpenerDirector:
    """Returns an opener of http and https URLs: no files, no ftp, no proxy from the environment.

    It raises OSError with PRIVATE for a connection that is not permitted, after redirects too, and
    with TOO_LARGE for a body that is too large.
    """

    class Body(HTTPResponse):
        def read(self, amt: int | None = None) -> bytes:
            body = super().read(max_body_bytes + 1)
            if len(body) > max_body_bytes:
                raise OSError(TOO_LARGE)
            if self.length:  # a read with a limit does not report a body that was cut short
                raise IncompleteRead(body, self.length)
            return body

    def connection(kind: type[HTTPConnection], host: str, **options) -> HTTPConnection:
        new = kind(host, **options)
        new.response_class = Body
        new._create_connection = partial(_connected, may)  # type: ignore[attr-defined]  # its seam
        return new

    class Http(HTTPHandler):
        def http_open(self, request: Request) -> HTTPResponse:
            return self.do_open(partial(connection, HTTPConnection), request)

    class Https(HTTPSHandler):
        def https_open(self, request: Request) -> HTTPResponse:
            return self.do_open(partial(connection, HTTPSConnection), request)

    director = OpenerDirector()
    also = (UnknownHandler, HTTPDefaultErrorHandler, HTTPRedirectHandler, HTTPErrorProcessor)
    for handler in (Http, Https, *also):
        director.add_handler(handler())
    return director


def _connected(may: Allowed, address: tuple[str, int], *options) -> socket.socket:
    """Connects as socket.create_connection, to permitted addresses of the host alone."""
    host, port = address
    error = OSError(PRIVATE)
    for *_, target in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        ip = str(target[0])
        if may.admits(ip, host):
            try:
                return socket.create_connection((ip, port), *options)
            except OSError as failed:
                error = failed
    raise error
