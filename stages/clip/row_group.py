"""A row group of an export in memory: encoded pictures, texts, and the order of its samples."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.metadata.schema import LOSS_WEIGHT, REPEATS, SAMPLE_INDEX, TEXTS, UID
from clipmill.metadata.uid import coin_hash, mixed
from clipmill.stages.clip.cache import ROW, texts_there
from clipmill.stages.clip.loader import STAGE
from clipmill.stages.ops.vectors import as_matrix

# Shapes: N samples of a row group.


class Group:
    """The usable rows, and their samples in the order that a draw hashes them to."""

    def __init__(
        self,
        rows: pa.Table,
        images: pa.ChunkedArray,
        first: int,
        teacher: Sequence[str],
        where: str,
    ) -> None:
        self.uid = rows[UID.name].combine_chunks()
        self.images: list[bytes | None] = images.to_pylist()
        self.texts = [texts_there(row) for row in rows[TEXTS.name].to_pylist()]
        self.weights = rows[LOSS_WEIGHT.name].fill_null(1).to_numpy()
        self.rows = first + rows[ROW].to_numpy()
        self.index = rows[SAMPLE_INDEX.name].to_numpy()
        self.teacher = {column: as_matrix(rows[column]) for column in teacher}
        repeats = rows[REPEATS.name].fill_null(1).to_numpy()
        self.order = np.repeat(np.arange(len(repeats)), repeats)  # (N,) row of each sample
        self.where = where
        self.bad: set[int] = set()  # rows whose pictures were found not to decode
        self._coins: tuple[int, NDArray[np.uint64]] = (-1, np.empty(0, np.uint64))

    def sort(self, seed: int, purpose: str) -> None:
        """Brings the samples into the order of their hashes; copies of a row are apart."""
        coin_N = coin_hash(self.uid, seed=seed, stage=STAGE, purpose=purpose)[self.order]
        is_first_N = np.diff(self.order, prepend=-1) != 0
        place_N = np.arange(len(self.order))
        copy_N = place_N - np.maximum.accumulate(np.where(is_first_N, place_N, 0))
        coin_N = np.where(copy_N, mixed(coin_N + copy_N.astype(np.uint64)), coin_N)
        self.order = self.order[np.lexsort((copy_N, self.order, coin_N))]

    def coins(self, seed: int, n: int) -> NDArray[np.uint64]:
        """A coin of each row for a batch."""
        held = self._coins
        if held[0] != n:
            purpose = f"batch {n}"
            held = n, coin_hash(self.uid, seed=seed, stage=STAGE, purpose=purpose)
            self._coins = held
        return held[1]
