"""Batch number n, as a pure function of the seed, n and the exported shards.

An epoch has each row `repeats` times, ordered by hash. Epochs follow each other without a gap, so
every subset gives the same number of samples, whatever its size. Hashes depend on the seed and not
on the stage's name: two subsets trained under one seed differ by their rows alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from metadata.schema import UID
from metadata.uid import coin_hash
from stages.clip.cache import CachedShard

# Shapes: B rows of the batch, N rows in all, E samples of an epoch, S pixels a side, T tokens.

Texts = Literal["uniform", "first"]  # which text of a row a step takes
SHIFT = 4  # pixels, either way
STAGE = "train.clip"


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The images and captions of one step."""

    pixels: NDArray[np.uint8]  # (B, 3, S, S)
    tokens: NDArray[np.int32]  # (T,)
    starts: NDArray[np.int64]  # (B,) first token of each caption
    weights: NDArray[np.float32]  # (B,)
    rows: NDArray[np.int64]  # (B,) among all rows


class Batches:
    """Batches of `size` rows: `batches[n]`, for any n from 0 up."""

    def __init__(
        self, shards: Sequence[CachedShard], *, size: int, seed: int, texts: Texts = "uniform"
    ) -> None:
        self.size, self.seed = size, seed
        self.shards = [shard for shard in shards if len(shard.uids)]
        self.first = np.cumsum([0, *(len(shard.uids) for shard in self.shards)])
        uid_N16 = np.concatenate([shard.uids for shard in self.shards])
        self.uid = pa.FixedSizeBinaryArray.from_buffers(
            UID.dtype, len(uid_N16), [None, pa.py_buffer(np.ascontiguousarray(uid_N16))]
        )
        repeats_N = np.concatenate([shard.repeats for shard in self.shards])
        self.row_E = np.repeat(np.arange(len(repeats_N)), repeats_N)
        ends_N = np.cumsum(repeats_N)
        self.copy_E = np.arange(len(self.row_E)) - np.repeat(ends_N - repeats_N, repeats_N)
        self._order = lru_cache(2)(self._epoch)  # a batch spans at most two, but tiny epochs
        self.weight_N = np.concatenate([shard.weights for shard in self.shards])
        texts_N = np.concatenate([np.diff(shard.text_starts) for shard in self.shards])
        self.texts_N = texts_N if texts == "uniform" else np.ones_like(texts_N)  # to draw from

    def __getitem__(self, n: int) -> Batch:
        row_B = self._rows(n)
        coin_B = self._coins(row_B, f"batch {n}")
        caption_B = ((coin_B >> np.uint64(32)) % self.texts_N[row_B].astype(np.uint64)).astype(int)
        shifts = np.uint64(2 * SHIFT + 1)
        down_B, right_B = coin_B % shifts, coin_B // shifts % shifts
        S = self.shards[0].images.shape[1]
        canvas_BSS3 = np.full((len(row_B), S + 2 * SHIFT, S + 2 * SHIFT, 3), 255, np.uint8)
        bags: list[NDArray[np.int32]] = [np.empty(0, np.int32)] * len(row_B)
        shard_B = np.searchsorted(self.first, row_B, side="right") - 1
        for number in np.unique(shard_B):
            shard = self.shards[number]
            here = np.flatnonzero(shard_B == number)
            local = row_B[here] - self.first[number]
            canvas_BSS3[here, SHIFT:-SHIFT, SHIFT:-SHIFT] = shard.images[local]
            text = shard.text_starts[local] + caption_B[here]
            spans = zip(shard.token_starts[text], shard.token_starts[text + 1], strict=True)
            for place, (start, stop) in zip(here, spans, strict=True):  # lengths differ
                bags[place] = shard.tokens[start:stop]
        windows = sliding_window_view(canvas_BSS3, (S, S), axis=(1, 2))
        return Batch(
            pixels=windows[np.arange(len(row_B)), down_B.astype(int), right_B.astype(int)],
            tokens=np.concatenate(bags),
            starts=np.cumsum([0, *map(len, bags[:-1])], dtype=np.int64),
            weights=self.weight_N[row_B],
            rows=row_B,
        )

    def files(self, row_B: NDArray[np.int64]) -> list[str]:
        """The exported shards that rows are from, in order."""
        numbers = np.unique(np.searchsorted(self.first, row_B, side="right") - 1)
        return [self.shards[number].file for number in numbers]

    def _rows(self, n: int) -> NDArray[np.int64]:
        sample_B = np.arange(n * self.size, (n + 1) * self.size)
        epoch_B, place_B = np.divmod(sample_B, len(self.row_E))
        row_B = np.empty(self.size, np.int64)
        for epoch in np.unique(epoch_B):
            here = epoch_B == epoch
            row_B[here] = self._order(int(epoch))[place_B[here]]
        return row_B

    def _epoch(self, epoch: int) -> NDArray[np.int64]:
        """(E,) rows in the order of one epoch."""
        coin_E = np.empty(len(self.row_E), np.uint64)
        for copy in range(int(self.copy_E.max()) + 1):
            here = self.copy_E == copy
            coin_E[here] = self._coins(self.row_E[here], f"epoch {epoch} copy {copy}")
        return self.row_E[np.lexsort((self.row_E, self.copy_E, coin_E))]

    def _coins(self, row_B: NDArray[np.int64], purpose: str) -> NDArray[np.uint64]:
        uid = self.uid.take(pa.array(row_B))
        return coin_hash(uid, seed=self.seed, stage=STAGE, purpose=purpose)
