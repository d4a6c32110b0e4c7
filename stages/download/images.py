"""Downloads images and resizes them as img2dataset does; one status and reason a URL."""

import hashlib
from dataclasses import dataclass
from functools import partial
from itertools import compress
from typing import Literal

import pyarrow as pa

from clipmill.metadata.keys import redacted
from clipmill.metadata.schema import FACE_BBOXES, LISTED, Column
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.stage import OneUp, Seconds, StreamFunction, Worker, ZeroUp, later, location
from clipmill.stages.download._rows import Answer, Download, Kept, answered, to_fetch, wishes
from clipmill.stages.ops.images.blur import BAD_BOX, NO_BOXES, Boxes, blurred, fault
from clipmill.stages.ops.tables.blocklists import WORDS, Blocked, Lists, opened

# Rows read ahead for each concurrent request. While one URL takes its deadline of 20 s, each other
# request can go on with so many, at a third of a second a row. Their pictures are in memory: 4,096
# of 512 pixels are about 200 MB, beside 64 bodies.
ROWS_A_SLOT = 64


@dataclass(frozen=True, kw_only=True)
class DownloadImages(Download):
    """The image at each URL, its size and its SHA-256; null if it could not be fetched.

    Source: img2dataset 1.47 for resize modes and option names; DataComp's download script for the
    defaults. Departs: only http and https, no private addresses; bodies, pixels and seconds are
    capped; a host that only times out is given up; `resize: no` stores the body unchanged (their
    disable_all_reencoding), as does skip_reencode, on by default here, for an image that fits;
    EXIF orientation is applied.
    Error: results depend on the day; a corrupt image may still decode. Which rows of a hanging host
        are host_down depends on the requests beside them. `decode: reduced` against `full`, as
        stored: 40 dB up from 2 and 12 megapixels, 32 dB from small, sharp ones.
    Example: {after: [ingest.datacomp]}
    """

    # reduced decodes a JPEG at 1/2, 1/4 or 1/8, if at least 1.5 times the final size is left
    decode: Literal["full", "reduced"] = later("full")
    # formats beside encode_format that skip_reencode keeps; an opaque picture of one frame only
    keep_formats: tuple[Literal["jpg", "png", "webp"], ...] = later(())
    # face_bboxes: blur these boxes of the row once its picture is resized, before it is stored
    blur: Literal["face_bboxes"] | None = later(None)
    # files of links, hosts and digests that are not fetched, or not decoded: reason `listed`
    lists: Lists = later(Lists())  # frozen
    max_redirects: ZeroUp = 10  # cap on redirects of one URL
    timeout_s: Seconds = location(10.0)  # seconds of one request, from look-up to last byte
    # seconds of one URL, all requests, redirects, pauses and retries included
    deadline_s: Seconds = location(20.0)
    retries: ZeroUp = location(2)  # after time-outs, lost connections, 429 and 5xx
    concurrency: OneUp = location(64)  # concurrent requests, per worker
    max_per_host: OneUp = location(8)  # concurrent requests to one host and port

    version = 1
    batch_rows = 256  # many batches run at once: ROWS_A_SLOT
    streams = True
    journals = True
    reasons = (
        *("no_url", "no_sha256", "bad_url", "private_address", "unresolvable", "refused", "tls"),
        *("timeout", "host_down", "connection_lost", "bad_response", "redirect_loop", "opt_out"),
        *("too_large", "http_3xx", "http_403", "http_404", "http_410", "http_429", "http_4xx"),
        *("http_500", "http_5xx", "hash_mismatch", "not_an_image", "undecodable", "truncated"),
        *("too_many_pixels", "too_costly", "too_small", "extreme_aspect", NO_BOXES, BAD_BOX),
        LISTED,
    )
    transient = (
        *("unresolvable", "refused", "timeout", "host_down", "connection_lost"),
        *("http_429", "http_500", "http_5xx"),
    )

    @property
    def reads(self) -> tuple[Column, ...]:
        return (*super().reads, FACE_BBOXES) if self.blur else super().reads

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in WORDS.keys() & self.lists.paths:
            do = "leave it to select.unlisted, after annotate.phash"
            raise RecipeError("a download makes no perceptual hashes", f"key `lists.{name}`", do)

    def look(self) -> None:
        self.lists.look()

    def open(self, worker: Worker) -> StreamFunction:
        from clipmill.stages.download._web import Client, Rules
        from clipmill.stages.ops.ahead import ahead

        rules = Rules(**{name: getattr(self, name) for name in Rules.__dataclass_fields__})
        sha256 = self.lists.sha256()
        for name, digest in sha256.items():
            worker.pin(f"list {redacted(self.lists.paths[name])}", digest)
        blocked = opened(self.lists, tuple(sha256.values()))
        keep = partial(kept, settings=self, blocked=blocked)
        client = Client(rules, worker.threads, keep=keep, is_blocked=blocked.are_blocked)

        async def downloaded(batch: pa.Table) -> pa.Table:
            wished = wishes(batch, self.verify_sha256)
            wanted = {*to_fetch(wished, self.verify_sha256)}
            boxes = of_boxes(batch[FACE_BBOXES.name]) if self.blur else [()] * len(wished)
            rows = [(url, own) for (url, _), own in zip(wished, boxes, strict=True)]
            unique = list(dict.fromkeys(row for row in rows if row[0] in wanted))
            is_free_N = ~blocked.are_blocked([url or "" for url, _ in unique])
            free = list(compress(unique, is_free_N))
            urls = [url or "" for url, _ in free]
            fetched = await client.fetch_all(urls, worker.row_done, [own for _, own in free])
            answers = dict.fromkeys(unique, Answer(reason=LISTED))
            answers |= zip(free, fetched, strict=True)
            return answered(wished, self.verify_sha256, map(answers.get, rows))

        return partial(ahead, start=downloaded, rows_ahead=ROWS_A_SLOT * self.concurrency)


def of_boxes(column: pa.ChunkedArray) -> list[tuple[Boxes | None]]:
    """Returns the boxes of each row, as the tuple of arguments that `kept` gets after the body."""
    return [
        (None if boxes is None else tuple(box and tuple(box) for box in boxes),)
        for boxes in column.to_pylist()
    ]


def kept(
    body: bytes, boxes: Boxes | None = (), *, settings: DownloadImages, blocked: Blocked
) -> Kept:
    """Decodes and resizes a body; returns the image to store, its size and digest, or a reason."""
    from clipmill.stages.ops.images.decode import decode
    from clipmill.stages.ops.images.encoded import ENCODED, encode, probe
    from clipmill.stages.ops.images.opened import ImageError
    from clipmill.stages.ops.images.resize import reduction, resize

    digest = hashlib.sha256(body).hexdigest()
    if blocked.has_file(body):
        return Kept(sha256=digest, reason=LISTED)
    if reason := fault(boxes):
        return Kept(sha256=digest, reason=reason)
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
            blur=partial(blurred, boxes=boxes or ()),
        )
        is_fit = rgb is original and header.is_plain
        formats = (settings.encode_format, *settings.keep_formats)
        has_format = header.format in {ENCODED[name][0] for name in formats}
        is_whole = settings.resize == "no" and rgb is original
        if is_whole or (settings.skip_reencode and is_fit and has_format):
            image = body
        else:
            image = encode(rgb, settings.encode_format, settings.encode_quality)
    except ImageError as bad:
        return Kept(sha256=digest, reason=bad.code)
    height, width = rgb.shape[:2]
    return Kept(sha256=digest, image=image, width=width, height=height)
