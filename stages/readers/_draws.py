"""Draws the samples of an export for each stream of a batch, from any sample on.

A batch is split among a fixed number of streams, independent of the ranks. A stream is an endless
sequence of row groups: of shards drawn with replacement, or of its share of each epoch. Its
position at batch n follows from counts alone, so a training resumes anywhere without reading.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.metadata.schema import LOSS_WEIGHT, REPEATS, SAMPLE_INDEX, TEXTS, UID
from clipmill.metadata.uid import coin_hash, from_halves, mixed
from clipmill.stages.clip.batch import STAGE
from clipmill.stages.clip.cache import ROW, texts_there
from clipmill.stages.clip.scales import Sampling
from clipmill.stages.ops.vectors.matrices import as_matrix

# Shapes: F shards, R row groups of one, D draws; N samples of a row group.

ROWS_A_STREAM = 128  # least rows of a batch in a stream, which holds a row group in memory
STREAMS = 64  # cap on streams
DRAWS = 1024  # shards drawn at first; doubled as needed


@dataclass(frozen=True)
class Piece:
    """Samples `start` to `stop` of a row group, ordered by a hash with `purpose`."""

    shard: int  # among those that have samples
    group: int
    start: int
    stop: int
    purpose: str


class Draws:
    """The streams of an export; `groups` has the sample count of each row group, by shard."""

    def __init__(
        self, groups: Sequence[Sequence[int]], batch_size: int, seed: int, sampling: Sampling
    ) -> None:
        self.groups, self.batch_size, self.seed = groups, batch_size, seed  # no shard is empty
        self.sampling = sampling
        self._samples_F = np.array([sum(sizes) for sizes in groups], np.int64)
        self._first = lru_cache(2 * STREAMS)(partial(drawn_shards, self._samples_F, seed))
        self._epoch = lru_cache(2)(partial(shards_in_order, self._samples_F, seed))

    @property
    def streams(self) -> int:
        return min(STREAMS, max(1, self.batch_size // ROWS_A_STREAM))

    def rows(self, stream: int) -> slice:
        """Returns the rows of each batch that come from a stream."""
        size, streams = self.batch_size, self.streams
        return slice(size * stream // streams, size * (stream + 1) // streams)

    def pieces(self, stream: int, first: int, count: int) -> Iterator[Piece]:
        """Yields `count` samples of the stream from `first` on."""
        while count > 0:
            shard, purpose, begin, left = self._locate(stream, first)
            taken = 0
            end = begin + min(left, count)
            for group, start, stop in self._groups(shard, purpose, begin, end):
                yield Piece(shard, group, start, stop, f"{purpose} group {group}")
                taken += stop - start
            first, count = first + taken, count - taken

    def _locate(self, stream: int, sample: int) -> tuple[int, str, int, int]:
        """Returns a sample's shard, its draw's purpose, its number there, and how many are left."""
        if self.sampling == "shards":
            shard_D, end_D = self._drawn(stream, sample)
            place, stop = sample, int(end_D[-1])
        else:
            total = int(self._samples_F.sum())
            stop = total * (stream + 1) // self.streams
            start = total * stream // self.streams
            epoch, place = divmod(sample, stop - start)
            place += start
            shard_D, end_D = self._epoch(epoch)
        draw = int(np.searchsorted(end_D, place, side="right"))
        shard, end = int(shard_D[draw]), int(end_D[draw])
        number = int(self._samples_F[shard]) - (end - place)
        is_drawn = self.sampling == "shards"
        purpose = f"stream {stream} draw {draw}" if is_drawn else f"epoch {epoch}"
        return shard, purpose, number, min(end, stop) - place

    def _drawn(self, stream: int, sample: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns (D,) shards that a stream draws, past a sample, and (D,) the end of each draw."""
        draws = DRAWS
        while True:
            shard_D, end_D = self._first(stream, draws)
            if end_D[-1] > sample:
                return shard_D, end_D
            draws *= 2

    def _groups(
        self, shard: int, purpose: str, start: int, stop: int
    ) -> Iterator[tuple[int, int, int]]:
        """Yields row groups and the range of each, for samples `start` to `stop` of a shard."""
        size_R = np.array(self.groups[shard], np.int64)
        coin_R = hash_of_numbers(len(size_R), self.seed, f"{purpose} shard {shard}")
        order_R = np.argsort(coin_R, kind="stable")
        end_R = np.cumsum(size_R[order_R])
        for turn, group in enumerate(order_R):
            begin = int(end_R[turn] - size_R[group])
            low, high = max(start, begin), min(stop, int(end_R[turn]))
            if low < high:
                yield int(group), low - begin, high - begin


def drawn_shards(
    samples_F: NDArray[np.int64], seed: int, stream: int, draws: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns (D,) the shards that a stream draws first, and (D,) the end of each one's samples."""
    coin_D = hash_of_numbers(draws, seed, f"stream {stream}")
    shard_D = (coin_D % np.uint64(len(samples_F))).astype(np.int64)
    return shard_D, np.cumsum(samples_F[shard_D])


def shards_in_order(
    samples_F: NDArray[np.int64], seed: int, epoch: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns (F,) the shards in an epoch's order, and (F,) the end of each one's samples."""
    shard_F = np.argsort(hash_of_numbers(len(samples_F), seed, f"epoch {epoch}"), kind="stable")
    return shard_F, np.cumsum(samples_F[shard_F])


def hash_of_numbers(count: int, seed: int, purpose: str) -> NDArray[np.uint64]:
    """Returns (count,) a random hash for each number from 0."""
    number_N2 = np.stack([np.zeros(count, np.uint64), np.arange(count, dtype=np.uint64)], 1)
    return coin_hash(from_halves(number_N2), seed=seed, stage=STAGE, purpose=purpose)


class Group:
    """The usable rows of a row group, and their samples in the hash order of a draw."""

    def __init__(
        self,
        rows: pa.Table,
        images: pa.ChunkedArray,
        first: int,
        teacher: Sequence[str],
        negatives: str | None,
        where: str,
    ) -> None:
        self.uid = rows[UID.name].combine_chunks()
        self.images: list[bytes | None] = images.to_pylist()
        self.texts = [texts_there(row) for row in rows[TEXTS.name].to_pylist()]
        self.weights = rows[LOSS_WEIGHT.name].fill_null(1).to_numpy()
        self.rows = first + rows[ROW].to_numpy()
        self.index = rows[SAMPLE_INDEX.name].to_numpy()
        false = rows[negatives].to_pylist() if negatives else [None] * len(rows)
        self.negatives = [texts_there(row) for row in false]
        self.teacher = {column: as_matrix(rows[column]) for column in teacher}
        repeats = rows[REPEATS.name].fill_null(1).to_numpy()
        self.order = np.repeat(np.arange(len(repeats)), repeats)  # (N,) row of each sample
        self.where = where
        self.bad: set[int] = set()  # rows whose pictures were found not to decode
        self.coins = lru_cache(1)(partial(coins_of, self.uid))  # no cycle: it holds pictures

    def sort(self, seed: int, purpose: str) -> None:
        """Sorts the samples by their hashes; copies of a row have hashes of their own."""
        coin_N = coin_hash(self.uid, seed=seed, stage=STAGE, purpose=purpose)[self.order]
        is_first_N = np.diff(self.order, prepend=-1) != 0
        place_N = np.arange(len(self.order))
        copy_N = place_N - np.maximum.accumulate(np.where(is_first_N, place_N, 0))
        coin_N = np.where(copy_N, mixed(coin_N + copy_N.astype(np.uint64)), coin_N)
        self.order = self.order[np.lexsort((copy_N, self.order, coin_N))]


def coins_of(uid: pa.Array, seed: int, n: int) -> NDArray[np.uint64]:
    """Returns a random hash of each row for batch n."""
    return coin_hash(uid, seed=seed, stage=STAGE, purpose=f"batch {n}")
