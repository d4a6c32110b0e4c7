"""Reads an export whose pictures are decoded beforehand; batch n depends on the seed, n and rows.

An epoch has each row `repeats` times, ordered by hash. Epochs follow each other without a gap, so
subsets of any size give the same number of samples. Hashes depend on the seed and not on the
stage's name: two subsets trained under one seed differ by their rows alone.
"""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from heapq import heapify, heappop, heapreplace
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from clipmill.metadata.schema import UID
from clipmill.metadata.uid import coin_hash, coin_hash_by
from clipmill.pipeline.errors import StageError
from clipmill.stages.clip.batch import (
    SHIFT,
    STAGE,
    Batch,
    Reading,
    of_view,
    part_of,
    shift_by,
    text_by,
)
from clipmill.stages.clip.cache import CachedShard, cache_shard, read_cached
from clipmill.stages.ops.compiled import compiled

# Shapes: B rows of the batch, M texts of these, N rows in all, E samples of an epoch, S pixels a
# side, T tokens, D width of a stored vector.

prepare = cache_shard  # of a file, before the first step


def batches(
    reading: Reading,
    cached: Sequence[Mapping[str, Any]],
    *,
    size: int,
    seed: int,
    threads: int,
    trainer: Any,
) -> "Batches":
    """Returns the batches of a seed; needs neither threads nor a trainer."""
    shards = list(read_cached(reading.folder, cached, reading.data))
    return Batches(shards, reading, size=size, seed=seed)


class Batches:
    """Batches of `size` rows, as `batches[n]` for any n >= 0."""

    def __init__(
        self, shards: Sequence[CachedShard], reading: Reading, *, size: int, seed: int
    ) -> None:
        self.size, self.seed, self.reading = size, seed, reading
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
        least = size * reading.super_batch
        if (reading.gain or reading.reference) and len(self.row_E) < least:
            found = f"{len(self.row_E):,} samples, and a batch is chosen from {least:,}"
            raise StageError(found, "key `super_batch`", "select more rows, or lower it")
        # A batch spans at most two, unless epochs are tiny. No method: a circle would keep the maps
        # of all pictures after the training.
        self._order = lru_cache(2)(partial(order_of, self.uid, self.row_E, self.copy_E, seed))
        self.weight_N = np.concatenate([shard.weights for shard in self.shards])
        self.index_N = np.concatenate([shard.index for shard in self.shards])
        self.texts_N = np.concatenate([np.diff(shard.text_starts) for shard in self.shards])
        self.negatives_N = np.concatenate([shard.negatives for shard in self.shards])
        if len(self.negatives_N):  # they stand after the captions of a row
            self.texts_N = self.texts_N - self.negatives_N
        self.reference_N = np.concatenate([shard.reference for shard in self.shards])
        if reading.gain is not None:
            self.concept_C = np.concatenate([shard.concepts for shard in self.shards])
            counts_N = np.concatenate([shard.concepts_of for shard in self.shards])
            self.concept_start_N = np.cumsum([0, *counts_N])
            samples = np.bincount(self.concept_C, np.repeat(repeats_N, counts_N))
            self.rarity = 1 / np.maximum(samples, 1)

    def __getitem__(self, n: int) -> Batch:
        return self.of_rank(n, 0, 1)

    def of_rank(self, n: int, rank: int, ranks: int) -> Batch:
        """Returns a rank's rows of batch n; reads no other row."""
        return self.of_rows(self._rows(n)[part_of(self.size, rank, ranks)], n)

    def of_rows(self, row_B: NDArray[np.int64], n: int) -> Batch:
        """Returns rows as batch n has them."""
        coin_B = self.coins(row_B, f"batch {n}")
        views, reading = range(self.reading.text_views), self.reading
        coins = [of_view(coin_B, view) for view in views]
        texts = [self._texts(row_B, coin_B, view) for view in views]
        S = self.shards[0].images.shape[1]
        canvas_BSS3 = np.full((len(row_B), S + 2 * SHIFT, S + 2 * SHIFT, 3), 255, np.uint8)
        bags: list[list[list[NDArray[np.int32]]]] = [[[] for _ in row_B] for _ in views]
        false: list[list[NDArray[np.int32]]] = [[] for _ in row_B]
        teacher = {
            column: np.empty((len(row_B), stored.shape[1]), np.float32)
            for column, stored in self.shards[0].teacher.items()
        }
        shard_B = np.searchsorted(self.first, row_B, side="right") - 1
        for number in np.unique(shard_B):
            shard = self.shards[number]
            here = np.flatnonzero(shard_B == number)
            local = row_B[here] - self.first[number]
            canvas_BSS3[here, SHIFT:-SHIFT, SHIFT:-SHIFT] = shard.images[shard.at[local]]
            for column, stored in shard.teacher.items():
                teacher[column][here] = stored[local]
            for view, (first_B, taken_B) in enumerate(texts):
                text = shard.text_starts[local] + first_B[here]
                edits = reading.edits is not None and view == views[-1]
                for place, start, stop in zip(here, text, text + taken_B[here], strict=True):
                    coin = coins[view][place] if edits else None
                    bags[view][place] = self._bags(shard, start, stop, coin)
            if len(self.negatives_N):
                count = self.negatives_N[row_B[here]]
                text = shard.text_starts[local] + self.texts_N[row_B[here]]
                text += text_by(coin_B[here], np.maximum(count, 1).astype(np.uint64)).astype(int)
                for place, start in zip(here[count > 0], text[count > 0], strict=True):
                    false[place] = self._bags(shard, start, start + 1)
        windows = sliding_window_view(canvas_BSS3, (S, S), axis=(1, 2))
        flat = [bag for rows in (*bags, false) for row in rows for bag in row]
        shifts = [shift_by(of_view(coin_B, view)) for view in range(reading.image_views)]
        place_B = np.arange(len(row_B))
        return Batch(
            pixels=np.concatenate(
                [windows[place_B, down.astype(int), right.astype(int)] for down, right in shifts]
            ),
            tokens=np.concatenate(flat),
            starts=np.cumsum([0, *map(len, flat[:-1])], dtype=np.int64),
            image_of=np.repeat(place_B, texts[0][1]),
            weights=self.weight_N[row_B],
            rows=row_B,
            index=self.index_N[row_B],
            teacher=teacher,
            negative_of=np.flatnonzero(list(map(len, false))) if len(self.negatives_N) else None,
        )

    def close(self) -> None:
        """Does nothing: no resource needs closing."""

    def files(self, row_B: NDArray[np.int64]) -> list[str]:
        """Returns the exported shards that hold the rows, in order."""
        numbers = np.unique(np.searchsorted(self.first, row_B, side="right") - 1)
        return [self.shards[number].file for number in numbers]

    def _bags(
        self, shard: CachedShard, start: int, stop: int, coin: np.uint64 | None = None
    ) -> list[NDArray[np.int32]]:
        """Returns the tokens of each of some texts, whose lengths differ; edited by a hash."""
        if coin is None or self.reading.edits is None:
            bounds = shard.token_starts[start : stop + 1]
            return np.split(shard.tokens[bounds[0] : bounds[-1]], bounds[1:-1] - bounds[0])
        ends = pairwise(shard.byte_starts[start : stop + 1])
        plain = [shard.text_bytes[first:last].tobytes().decode() for first, last in ends]
        edited = [self.reading.edits(text, of_view(coin, k)) for k, text in enumerate(plain)]
        tokens, starts = self.reading.tokenize(edited)
        return np.split(tokens, starts[1:-1])

    def _texts(
        self, row_B: NDArray[np.int64], coin_B: NDArray[np.uint64], view: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns (B,) the first text of each row that the step takes, and (B,) how many."""
        texts_B = self.texts_N[row_B]
        if self.reading.texts == "all":
            return np.zeros_like(texts_B), texts_B
        if self.reading.texts == "first":
            return np.zeros_like(texts_B), np.ones_like(texts_B)
        text_B = text_by(coin_B, texts_B.astype(np.uint64), view)
        return text_B.astype(np.int64), np.ones_like(texts_B)

    def _rows(self, n: int) -> NDArray[np.int64]:
        if self.reading.gain is not None:
            row_S = self.super_batch(n)
            return row_S[self._chosen(row_S)]
        epoch_B, place_B = np.divmod(np.arange(n * self.size, (n + 1) * self.size), len(self.row_E))
        row_B = np.empty(self.size, np.int64)
        for epoch in np.unique(epoch_B):
            here = epoch_B == epoch
            row_B[here] = self._order(int(epoch))[place_B[here]]
        return row_B

    def super_batch(self, n: int) -> NDArray[np.int64]:
        """Returns (S,) the samples that batch n is of, each once: a row is `repeats` of them."""
        size = self.size * self.reading.super_batch
        epoch, place = divmod(n, len(self.row_E) // size)
        return self._order(epoch)[place * size : (place + 1) * size]

    def _chosen(self, row_B: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the places of a batch in its super-batch, by the gain of their concepts.

        Source: CABS (Ghosh et al. 2025), by formulas as recalled, not read; `frequency` is its FM,
        the number of concepts. Its target is not told: ours is as many rows of each concept as
        there would be if all that the super-batch has were equally frequent.
        """
        counts_B = np.diff(self.concept_start_N)[row_B]
        if self.reading.gain == "frequency":
            return np.argsort(-counts_B, kind="stable")[: self.size]
        start_S = np.cumsum([0, *counts_B])
        within = np.arange(start_S[-1]) - np.repeat(start_S[:-1], counts_B)
        concept_C = self.concept_C[np.repeat(self.concept_start_N[row_B], counts_B) + within]
        distinct = max(1, len(np.unique(concept_C)))
        target = math.ceil(len(concept_C) / self.reading.super_batch / distinct)
        return np.array(diverse(concept_C, start_S, self.rarity, target, self.size))

    def coins(self, row_B: NDArray[np.int64], purpose: str) -> NDArray[np.uint64]:
        uid = self.uid.take(pa.array(row_B))
        return coin_hash(uid, seed=self.seed, stage=STAGE, purpose=purpose)


def order_of(
    uid: pa.Array, row_E: NDArray[np.int64], copy_E: NDArray[np.int64], seed: int, epoch: int
) -> NDArray[np.int64]:
    """Returns (E,) the rows in the order of one epoch; `copy_E` numbers the samples of a row."""
    purposes = [f"epoch {epoch} copy {copy}" for copy in range(int(copy_E.max()) + 1)]
    uid_E = uid.take(pa.array(row_E))
    coin_E = coin_hash_by(uid_E, copy_E, seed=seed, stage=STAGE, purposes=purposes)
    return row_E[np.lexsort((row_E, copy_E, coin_E))]


@compiled()
def diverse(
    concept_C: NDArray[np.int32],
    start_S: NDArray[np.int64],
    rarity: NDArray[np.float64],
    target: int,
    count: int,
) -> list[int]:
    """Returns the places of `count` rows of a super-batch, whose concepts begin at `start_S`: one
    after the other that with the greatest gain beside those taken, of equal ones the first."""
    seen = np.zeros(len(rarity), np.int64)
    heap = []
    for place in range(len(start_S) - 1):
        ids = concept_C[start_S[place] : start_S[place + 1]]
        heap.append((-gain_of(ids, seen, rarity, target), place))
    heapify(heap)
    taken: list[int] = []
    while len(taken) < count:
        before, place = heap[0]
        ids = concept_C[start_S[place] : start_S[place + 1]]
        now = -gain_of(ids, seen, rarity, target)
        if now > before:  # rows taken since have its concepts, and no gain ever grows
            heapreplace(heap, (now, place))
            continue
        heappop(heap)
        taken.append(place)
        seen[ids] += 1
    return taken


@compiled()
def gain_of(
    ids: NDArray[np.int32], seen: NDArray[np.int64], rarity: NDArray[np.float64], target: int
) -> float:
    """Returns the mean over a row's concepts of the share that they lack to the target, and of
    their rarity, one over the samples that have them; 0 for those that have reached it.

    Source: CABS (Ghosh et al. 2025), its DM, by a formula as recalled, not read.
    """
    gain = 0.0
    for concept in ids:
        if seen[concept] < target:
            gain += (target - seen[concept]) / target + rarity[concept]
    return gain / max(1, len(ids))
