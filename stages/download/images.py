"""Images from the web, resized as img2dataset does, with one status and one reason a URL."""

import hashlib
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import pyarrow as pa

from metadata.schema import (
    HEIGHT,
    HTTP_STATUS,
    IMAGE,
    IMAGE_BYTES,
    REASON,
    REASON_TYPE,
    SHA256,
    URL,
    WIDTH,
    Column,
)
from pipeline.errors import RecipeError
from pipeline.stage import Resources, RowFunction, RowStage, Worker, location
from stages.ops.addresses import allowed

if TYPE_CHECKING:
    from stages.ops.web import Answer, Client

Interpolation = Literal["nearest", "linear", "cubic", "area", "lanczos"]


@dataclass(frozen=True, kw_only=True)
class DownloadImages(RowStage):
    """The image at each URL, its size and its SHA-256; null where there is none to be had.

    Source: img2dataset 1.47 for resize modes and option names; DataComp's download script for the
    defaults. Departs: only http and https, no private addresses; bodies, pixels and seconds are
    capped; a host that only times out is set aside; `resize: no` stores the body as it came (their
    disable_all_reencoding), and so does skip_reencode, on by default here, for an image that fits;
    EXIF orientation is applied.
    Error: what the web answered on that day; a corrupt image may still decode. Which rows of a
        host that hangs are host_down depends on what was asked with them.
    """

    resize: Literal["no", "border", "keep_ratio", "keep_ratio_largest", "center_crop"] = (
        "keep_ratio_largest"
    )
    image_size: int = 512
    resize_only_if_bigger: bool = True
    upscale_interpolation: Interpolation = "lanczos"
    downscale_interpolation: Interpolation = "area"
    encode_format: Literal["jpg", "png", "webp"] = "jpg"
    encode_quality: int = 95  # for PNG the compression, 0 to 9
    skip_reencode: bool = True  # an image that fits and is in encode_format keeps its bytes
    min_image_size: int = 0  # pixels, the shorter side
    max_aspect_ratio: float | None = None  # longer side to shorter
    max_pixels: int = 89_478_484  # LAION's guard against decompression bombs
    max_body_bytes: int = 20_000_000
    max_redirects: int = 10
    verify_sha256: bool = False  # against the pool's column: no bytes but those of the crawl
    user_agent_token: str | None = None
    disallowed_header_directives: tuple[str, ...] = ("noai", "noimageai", "noindex", "noimageindex")
    # true for a pool served on loopback; else networks and names: [10.0.0.0/8, images.internal]
    allow_private_addresses: bool | tuple[str, ...] = False
    timeout_s: float = location(10.0)  # of one request, from look-up to last byte
    deadline_s: float = location(20.0)  # of a URL: its requests, redirects, pauses and retries
    retries: int = location(2)  # after time-outs, lost connections, 429 and 5xx
    concurrency: int = location(64)  # requests at once, per worker
    max_per_host: int = location(8)  # of these, to one host and port

    version = 1
    determinism = "recorded"
    # A batch ends with its slowest URL: few batches waste little, and 2,048 images of 512 px
    # take about 100 MB.
    batch_rows = 2048
    resources = Resources(cpus=1, memory_gb=4)
    writes = (IMAGE, IMAGE_BYTES, WIDTH, HEIGHT, SHA256, HTTP_STATUS)
    reasons = (
        *("no_url", "no_sha256", "bad_url", "private_address", "unresolvable", "refused", "tls"),
        *("timeout", "host_down", "connection_lost", "bad_response", "redirect_loop", "opt_out"),
        *("too_large", "http_3xx", "http_403", "http_404", "http_410", "http_429", "http_4xx"),
        *("http_500", "http_5xx", "hash_mismatch", "not_an_image", "undecodable", "truncated"),
        *("too_many_pixels", "too_costly", "too_small", "extreme_aspect"),
    )
    transient = (
        *("unresolvable", "refused", "timeout", "host_down", "connection_lost"),
        *("http_429", "http_500", "http_5xx"),
    )

    @property
    def reads(self) -> tuple[Column, ...]:  # type: ignore[override]  # by settings
        return (URL, SHA256) if self.verify_sha256 else (URL,)

    def __post_init__(self) -> None:
        best = 9 if self.encode_format == "png" else 100
        if not 0 <= self.encode_quality <= best:
            raise RecipeError(
                found=f"encode_quality is {self.encode_quality}, not 0 to {best}",
                where=f"download.images with encode_format {self.encode_format}",
                do="set it; for png it is the compression, 0 to 9",
            )
        try:
            allowed(self.allow_private_addresses)
        except ValueError as error:
            found, do = error.args
            raise RecipeError(found, "download.images, key `allow_private_addresses`", do) from None

    def open(self, worker: Worker) -> RowFunction:
        from stages.ops.web import Client, Rules

        rules = Rules(**{name: getattr(self, name) for name in Rules.__dataclass_fields__})
        return partial(download, client=Client(rules, threads=worker.threads), settings=self)


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What is stored of one body, or why nothing is."""

    sha256: str
    image: bytes | None = None
    width: int | None = None
    height: int | None = None
    reason: str | None = None


def download(batch: pa.Table, client: "Client", settings: DownloadImages) -> pa.Table:
    """Image, size, digest and status of every row; a URL that repeats is fetched once."""
    urls = [url if url and url.strip() else None for url in batch[URL.name].to_pylist()]
    verify = settings.verify_sha256
    crawled = batch[SHA256.name].to_pylist() if verify else [None] * len(urls)
    pairs = list(zip(urls, crawled, strict=True))
    unique = list(dict.fromkeys(url for url, sha256 in pairs if url and (sha256 or not verify)))
    answers = dict(
        zip(unique, client.fetch_all(unique, partial(kept, settings=settings)), strict=True)
    )
    # By rows: they waited for a network, one by one.
    rows = [row(answers.get(url), url, sha256, verify) for url, sha256 in pairs]
    columns = {c.name: pa.array([r.get(c.name) for r in rows], c.dtype) for c in settings.writes}
    reason = pa.array([r.get(REASON.name) for r in rows], pa.string())
    return pa.table({**columns, REASON.name: reason.cast(REASON_TYPE)})


def row(answer: "Answer | None", url: str | None, crawled: str | None, verify: bool) -> dict:
    """The written columns of one row, by name; those that are left out are null."""
    if url is None:
        return {REASON.name: "no_url"}
    if answer is None or (verify and crawled is None):
        return {REASON.name: "no_sha256"}
    found, image = {HTTP_STATUS.name: answer.status}, answer.kept
    if answer.reason:
        return {**found, REASON.name: answer.reason}
    if crawled and crawled.lower() != image.sha256:
        return {**found, REASON.name: "hash_mismatch"}
    if image.reason:
        return {**found, REASON.name: image.reason}
    return {**found, **vars(image), IMAGE_BYTES.name: len(image.image)}


def kept(body: bytes, settings: DownloadImages) -> Kept:
    """The image to store for a raw body."""
    from stages.ops.images import ImageError, decode, probe
    from stages.ops.resize import ENCODED, encode, resize

    digest = hashlib.sha256(body).hexdigest()
    try:
        header = probe(body)
        short, long = sorted((header.width, header.height))
        if short < settings.min_image_size:
            return Kept(sha256=digest, reason="too_small")
        if settings.max_aspect_ratio and long > settings.max_aspect_ratio * short:
            return Kept(sha256=digest, reason="extreme_aspect")
        original = decode(body, settings.max_pixels)
        rgb = resize(
            original,
            settings.resize,
            settings.image_size,
            only_if_bigger=settings.resize_only_if_bigger,
            upscale=settings.upscale_interpolation,
            downscale=settings.downscale_interpolation,
        )
        is_fit = rgb is original and header.is_plain
        has_format = header.format == ENCODED[settings.encode_format][0]
        if settings.resize == "no" or (settings.skip_reencode and is_fit and has_format):
            image = body
        else:
            image = encode(rgb, settings.encode_format, settings.encode_quality)
    except ImageError as bad:
        return Kept(sha256=digest, reason=bad.code)
    height, width = rgb.shape[:2]
    return Kept(sha256=digest, image=image, width=width, height=height)
