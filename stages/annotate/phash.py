"""Computes perceptual hashes of pictures, for finding near copies."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from clipmill.metadata.schema import (
    IMAGE,
    PDQ,
    PDQ_QUALITY,
    PHASH,
    REASON,
    REASON_TYPE,
    Column,
)
from clipmill.pipeline.stage import RowFunction, RowStage, Worker, later
from clipmill.stages.ops.images.pixels import PIXELS, UNDECODABLE, rows_of

DHASH = Column("dhash", pa.uint64(), "64 bits", "Where the grey image gets lighter to the right.")


@dataclass(frozen=True, kw_only=True)
class PHash(RowStage):
    """A perceptual hash: near copies differ in few of its 64 bits; null if undecodable.

    Source: imagehash 4.3, phash and dhash with their defaults, on the decoded image (upright, on
    white); as an integer, highest bit first: int(str(imagehash.phash(image)), 16). PDQ by Meta.
    Error: equals imagehash's with Pillow 13 in every bit; earlier versions resize tall images
    differently, by a few levels. Images past a megapixel are shrunk to it first (PIXELS). In a flat
    or mirror-symmetric image frequencies tie, and rounding decides their bits, in imagehash too.
    Example: {after: [ingest.image_folder]}
    """

    dhash: bool = False  # write `dhash` too, a hash of differences of neighbouring pixels
    pdq: bool = later(False)  # write `pdq` too, which lists of others hold, and `pdq_quality`

    version = 1
    determinism = "exact"
    batch_rows = 64  # of decoded images, 3 MB each at most
    reads = (IMAGE, PIXELS)
    reasons = ("no_image", "undecodable")
    advice = UNDECODABLE

    @property
    def writes(self) -> tuple[Column, ...]:
        more = (DHASH,) if self.dhash else ()
        return (PHASH, *more, *((PDQ, PDQ_QUALITY) if self.pdq else ()))

    def open(self, worker: Worker) -> RowFunction:
        import clipmill.stages.ops.images.perceptual  # noqa: F401  # compiles once per worker

        return partial(hashed, columns=self.writes)


def hashed(batch: pa.Table, columns: tuple[Column, ...]) -> pa.Table:
    """Returns the hashes of every row, or a reason."""
    from clipmill.stages.ops.images import perceptual
    from clipmill.stages.ops.images.pdq import pdq

    rows = rows_of(batch[PIXELS.name])
    pictures = [rgb for rgb in rows if rgb is not None]
    is_null_N = np.array([rgb is None for rgb in rows], bool)
    place = pa.array(np.cumsum(~is_null_N) - 1, mask=is_null_N)  # of a row among the pictures
    values: dict[str, Any] = {}
    for column in columns:
        if column is PDQ:
            values[PDQ.name], values[PDQ_QUALITY.name] = pdq(pictures)
        elif column is not PDQ_QUALITY:
            values[column.name] = getattr(perceptual, column.name)(pictures)
    hashes = {c.name: pa.array(values[c.name], c.dtype).take(place) for c in columns}
    # A loop over the 64 rows: a call into Arrow costs as much as some ten small hashes.
    image, (no_image, undecodable) = batch[IMAGE.name], PHash.reasons
    reason = [
        None if rgb is not None else undecodable if image[row].is_valid else no_image
        for row, rgb in enumerate(rows)
    ]
    return pa.table({**hashes, REASON.name: pa.array(reason, REASON_TYPE)})
