"""The rows on a map with their thumbnails, as they leave but for their neighbours."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.metadata.schema import CAPTION, CLUSTER_ID, IDENTITY, IMAGE, TEXT, UID
from clipmill.pipeline.dataset import Shards
from clipmill.stages.export._features import PICTURE
from clipmill.stages.export._mapped import Pick, kept
from clipmill.stages.export._plane import on_plane
from clipmill.stages.ops.ranges import RANGE, range_of

# Shapes: N rows of a batch, D width of a vector.

X, Y, THUMBNAIL, CLUSTER, KEPT = "x", "y", "thumbnail", "cluster", "kept"
BATCH_ROWS = 64  # pictures held at a time
MODE: Final = "keep_ratio_largest"
QUALITY = 80  # of a thumbnail


@dataclass(frozen=True)
class Drawn:
    """The rows on the map with thumbnails of their pictures. Implements `Shards`."""

    over: Shards
    pick: Pick
    plane: NDArray[np.float64]
    bits: int  # of the number of a uid's range
    side: int
    columns: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.over)

    def rows(self, index: int) -> int:
        return -1  # some of the shard's

    def batches(self, index: int, batch_rows: int = BATCH_ROWS) -> Iterator[pa.Table]:
        return map(self._drawn, self.over.batches(index, batch_rows))

    def table(self, index: int) -> pa.Table:
        return pa.concat_tables(self.batches(index))

    def select(self, names: Iterable[str]) -> "Drawn":
        return replace(self, columns=tuple(name for name in self.columns if name in set(names)))

    def empty(self) -> pa.Table:
        """No row, with the types of all columns."""
        return self._drawn(next(self.over.batches(0, 1)).slice(0, 0))

    def _drawn(self, batch: pa.Table) -> pa.Table:
        unit_ND, taken_N, _ = self.pick(batch)
        rows = batch.filter(pa.array(taken_N))
        place_N2 = on_plane(unit_ND[taken_N], self.plane)
        held = {
            RANGE: range_of(rows[UID.name], self.bits),
            X: place_N2[:, 0],
            Y: place_N2[:, 1],
            THUMBNAIL: thumbnails(rows[IMAGE.name], self.side),
            CAPTION.name: captions(rows),
            CLUSTER: rows[CLUSTER_ID.name],
            KEPT: kept(rows),
            **{name: rows[name] for name in (*IDENTITY, *self.columns)},
        }
        return pa.table(
            {
                name: values.cast(values.type.value_type)
                if isinstance(values, pa.ChunkedArray) and pa.types.is_dictionary(values.type)
                else values
                for name, values in held.items()
            }
        )


def captions(rows: pa.Table) -> pa.ChunkedArray:
    """The caption of each row; empty ones where the pool has none at all."""
    if TEXT.name in rows.column_names:
        return rows[TEXT.name]
    return pa.chunked_array([np.full(len(rows), "")], TEXT.dtype)


def thumbnails(images: pa.ChunkedArray, side: int) -> pa.Array:
    """{bytes, path: null} of each picture, its longer side at most `side`; null without one."""
    from clipmill.stages.ops.images import ImageError, decode, probe  # late: a plan needs no OpenCV
    from clipmill.stages.ops.resize import encode, reduction, resize

    def small(body: bytes | None) -> bytes | None:
        if body is None:
            return None
        try:
            header = probe(body)
            full = header.height, header.width
            rgb = decode(body, shrink=reduction(MODE, side, *full))
            return encode(resize(rgb, MODE, side, only_if_bigger=True, full=full), "jpg", QUALITY)
        except ImageError:
            return None

    # Decoders take one at a time.
    body = pa.array([small(image.as_py()) for image in images], pa.binary())
    paths = pa.nulls(len(body), pa.string())
    return pa.StructArray.from_arrays([body, paths], fields=list(PICTURE), mask=body.is_null())
