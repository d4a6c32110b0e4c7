"""Computes perceptual hashes of pictures, 64 bits each, for finding near copies."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa

from clipmill.metadata.schema import IMAGE, PHASH, REASON, REASON_TYPE, Column
from clipmill.pipeline.stage import RowFunction, RowStage, Worker
from clipmill.stages.ops.images.pixels import PIXELS, UNDECODABLE, rows_of

DHASH = Column("dhash", pa.uint64(), "64 bits", "Where the grey image gets lighter to the right.")


@dataclass(frozen=True, kw_only=True)
class PHash(RowStage):
    """A perceptual hash: near copies differ in few of its 64 bits; null if undecodable.

    Source: imagehash 4.3, phash and dhash with their defaults, on the decoded image (upright, on
    white); as an integer, highest bit first: int(str(imagehash.phash(image)), 16).
    Error: equals imagehash's with Pillow 13 in every bit; earlier versions resize tall images
    differently, by a few levels. Images past a megapixel are shrunk to it first (PIXELS). In a flat
    or mirror-symmetric image frequencies tie, and rounding decides their bits, in imagehash too.
    Example: {after: [ingest.image_folder]}
    """

    dhash: bool = False  # write `dhash` too, a hash of differences of neighbouring pixels

    version = 1
    determinism = "exact"
    batch_rows = 64  # of decoded images, 3 MB each at most
    reads = (IMAGE, PIXELS)
    reasons = ("no_image", "undecodable")
    advice = UNDECODABLE

    @property
    def writes(self) -> tuple[Column, ...]:
        return (PHASH, DHASH) if self.dhash else (PHASH,)

    def open(self, worker: Worker) -> RowFunction:
        import clipmill.stages.ops.images.perceptual  # noqa: F401  # compiles once per worker

        return partial(hashed, columns=self.writes)


def hashed(batch: pa.Table, columns: tuple[Column, ...]) -> pa.Table:
    """Returns the hashes of every row, or a reason."""
    from clipmill.stages.ops.images import perceptual

    rows = rows_of(batch[PIXELS.name])
    pictures = [rgb for rgb in rows if rgb is not None]
    is_null_N = np.array([rgb is None for rgb in rows], bool)
    hashes = {}
    for column in columns:
        hash_N = np.zeros(len(rows), np.uint64)
        hash_N[~is_null_N] = getattr(perceptual, column.name)(pictures)
        hashes[column.name] = pa.array(hash_N, mask=is_null_N)
    # A loop over the 64 rows: a call into Arrow costs as much as some ten small hashes.
    image, (no_image, undecodable) = batch[IMAGE.name], PHash.reasons
    reason = [
        None if rgb is not None else undecodable if image[row].is_valid else no_image
        for row, rgb in enumerate(rows)
    ]
    return pa.table({**hashes, REASON.name: pa.array(reason, REASON_TYPE)})
