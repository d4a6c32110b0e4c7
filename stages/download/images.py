"""Images from the web, resized as img2dataset does, with one status and one reason a URL."""

import hashlib
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import pyarrow as pa
from msgspec import Meta

from clipmill.metadata.schema import SHA256, URL, Column
from clipmill.pipeline.stage import (
    OneUp,
    Resources,
    RowStage,
    Seconds,
    StreamFunction,
    Worker,
    ZeroUp,
    later,
    location,
)
from clipmill.stages.download._rows import ADVICE, WRITES, Kept, answered, check, to_fetch, wishes

# Rows that are read for each request that may be under way: a URL that takes its whole deadline
# holds nobody up while the others take a third of a second. Their pictures are in memory: 4,096 of
# 512 pixels are about 200 MB, and 64 bodies.
ROWS_A_SLOT = 64

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
        host that hangs are host_down depends on what was asked with them. `decode: reduced` against
        `full`, as stored: 40 dB up from 2 and 12 megapixels, 32 dB from small, sharp ones.
    Example: {after: [ingest.datacomp]}
    """

    # how an image meets `image_size`: border pads to a square, keep_ratio fits the shorter side,
    # keep_ratio_largest the longer one, center_crop cuts a square; no leaves it as it is
    resize: Literal["no", "border", "keep_ratio", "keep_ratio_largest", "center_crop"] = (
        "keep_ratio_largest"
    )
    image_size: OneUp = 512  # pixels of the side that `resize` fits
    resize_only_if_bigger: bool = True  # smaller images stay as they are
    upscale_interpolation: Interpolation = "lanczos"  # how pixels are made up where an image grows
    # how pixels are put together where an image shrinks
    downscale_interpolation: Interpolation = "area"
    encode_format: Literal["jpg", "png", "webp"] = "jpg"  # of the stored image
    # 1 to 100, as JPEG and WebP count; for PNG the compression, 0 to 9
    encode_quality: Annotated[int, Meta(ge=0, le=100)] = 95
    skip_reencode: bool = True  # an image that fits and is in encode_format keeps its bytes
    # reduced: a JPEG is decoded at 1/2, 1/4 or 1/8 of its size where 1.5 times the final is left
    decode: Literal["full", "reduced"] = later("full")
    min_image_size: ZeroUp = 0  # pixels of the shorter side: a smaller image is `too_small`
    # longer side to shorter: a longer image is `extreme_aspect`
    max_aspect_ratio: Annotated[float, Meta(ge=1)] | None = None
    # of an image before it is decoded; the default is LAION's, against decompression bombs
    max_pixels: OneUp = 89_478_484
    max_body_bytes: OneUp = 20_000_000  # of an answer: a longer one is `too_large`
    max_redirects: ZeroUp = 10  # followed from one link
    # an image that is not the one of the pool's `sha256` is `hash_mismatch`
    verify_sha256: bool = False
    # a name of yours in the User-Agent; what X-Robots-Tag says to it counts
    user_agent_token: str | None = None
    # words of X-Robots-Tag that make a row `opt_out`; [] heeds none
    disallowed_header_directives: tuple[str, ...] = ("noai", "noimageai", "noindex", "noimageindex")
    # true for a pool served on loopback; else networks and names: [10.0.0.0/8, images.internal]
    allow_private_addresses: bool | tuple[str, ...] = False
    timeout_s: Seconds = location(10.0)  # seconds of one request, from look-up to last byte
    # seconds of a URL: its requests, redirects, pauses and retries
    deadline_s: Seconds = location(20.0)
    retries: ZeroUp = location(2)  # after time-outs, lost connections, 429 and 5xx
    concurrency: OneUp = location(64)  # requests at once, per worker
    max_per_host: OneUp = location(8)  # of these, to one host and port

    version = 1
    determinism = "recorded"
    batch_rows = 256  # of which many are under way at once: ROWS_A_SLOT
    streams = True
    journals = True
    resources = Resources(cpus=1, memory_gb=4)
    writes = WRITES
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
    def advice(self) -> dict[str, str]:
        return {reason: do for reason, do in ADVICE.items() if reason in self.reasons}

    @property
    def reads(self) -> tuple[Column, ...]:
        return (URL, SHA256) if self.verify_sha256 else (URL,)

    def __post_init__(self) -> None:
        check(self, "download.images")

    def open(self, worker: Worker) -> StreamFunction:
        from clipmill.stages.download._web import Client, Rules
        from clipmill.stages.ops.ahead import ahead

        rules = Rules(**{name: getattr(self, name) for name in Rules.__dataclass_fields__})
        client = Client(rules, worker.threads, keep=partial(kept, settings=self))

        async def downloaded(batch: pa.Table) -> pa.Table:
            wished = wishes(batch, self.verify_sha256)
            urls = to_fetch(wished, self.verify_sha256)
            answers = dict(zip(urls, await client.fetch_all(urls), strict=True))
            return answered(wished, self.verify_sha256, answers)

        return partial(ahead, start=downloaded, rows_ahead=ROWS_A_SLOT * self.concurrency)


def kept(body: bytes, settings: DownloadImages) -> Kept:
    """The image to store of a body, with its size and digest, or a reason."""
    from clipmill.stages.ops.images import ImageError, decode, probe
    from clipmill.stages.ops.resize import ENCODED, encode, reduction, resize

    digest = hashlib.sha256(body).hexdigest()
    try:
        header = probe(body)
        short, long = sorted((header.width, header.height))
        if short < settings.min_image_size:
            return Kept(sha256=digest, reason="too_small")
        if settings.max_aspect_ratio and long > settings.max_aspect_ratio * short:
            return Kept(sha256=digest, reason="extreme_aspect")
        size, full = settings.image_size, (header.height, header.width)
        shrink = reduction(settings.resize, size, *full) if settings.decode == "reduced" else 1
        original = decode(body, settings.max_pixels, shrink)
        rgb = resize(
            original,
            settings.resize,
            size,
            only_if_bigger=settings.resize_only_if_bigger,
            upscale=settings.upscale_interpolation,
            downscale=settings.downscale_interpolation,
            full=full,
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
