"""Computes the rows of each arm, a shard at a time: kept by a stage, listed, random, or mixed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill.metadata.schema import CAPTIONS, LOSS_WEIGHT, POSITION, REPEATS, SHARD, TEXTS, UID
from clipmill.metadata.uid import coin, coin_hash, halves
from clipmill.pipeline.bench.pool import Choice
from clipmill.pipeline.planning.planned import PlannedStage

# Shapes: N rows of a shard, K of an arm, U uids of a list.

STAGE = "bench"  # key of the hashes


class Rows(Protocol):
    """Rows of an arm. Rows without a picture or a caption are in none."""

    @property
    def has_texts(self) -> bool:
        """Returns whether its rows have texts of their own."""
        ...

    def of(self, shard: pa.Table, number: int) -> pa.Table:
        """Returns its rows of a shard: uid, shard, position, repeats, loss_weight, and own texts.

        The shard holds uid, shard and position of every row with a picture and a caption.
        """
        ...


@dataclass
class Kept:
    """The rows that a stage keeps, as its export would have them; `kept` counts all kept so far."""

    choice: Choice
    texts_of_raw: Mapping[str, Any]  # bindings of texts in the raw export
    kept: int = 0  # of the shards read so far

    @property
    def has_texts(self) -> bool:
        return texts_bound(self.choice.planned) != self.texts_of_raw

    def of(self, shard: pa.Table, number: int) -> pa.Table:
        stage: Any = self.choice.planned.stage
        rows = self.choice.leaving(number, [LOSS_WEIGHT.name])
        self.kept += len(rows)
        rows = rows.filter(pc.is_in(rows[POSITION.name], shard[POSITION.name].combine_chunks()))
        columns = [rows[name] for name in (UID.name, SHARD.name, POSITION.name)]
        for column in (REPEATS, LOSS_WEIGHT):
            has_column = column.name in rows.column_names
            values = rows[column.name] if has_column else pa.nulls(len(rows), column.dtype)
            columns.append(values.fill_null(1))
        names = [UID.name, SHARD.name, POSITION.name, REPEATS.name, LOSS_WEIGHT.name]
        if self.has_texts:
            columns.append(stage.texts(rows))
            names.append(TEXTS.name)
        return pa.table(columns, names)


def texts_bound(planned: PlannedStage) -> dict[str, Any]:
    """Returns the sources of an export's texts."""
    names = ("text", TEXTS.name, CAPTIONS.name)
    return {name: source for name, source in planned.bindings[0].items() if name in names}


@dataclass(frozen=True)
class Every:
    """All rows, each once."""

    has_texts = False

    def of(self, shard: pa.Table, number: int) -> pa.Table:
        return once(shard)


@dataclass(frozen=True)
class Listed:
    """The rows whose uid is in a list, repeated as often as there."""

    uid_U2: NDArray[np.uint64]  # sorted, each once
    times_U: NDArray[np.int32]
    has_texts = False

    def of(self, shard: pa.Table, number: int) -> pa.Table:
        times_N = self.times(halves(shard[UID.name]))
        rows = once(shard).filter(pa.array(times_N > 0))
        return _with(rows, REPEATS.name, pa.array(times_N[times_N > 0], REPEATS.dtype))

    def named(self, shard: pa.Table) -> NDArray[np.uint64]:
        """Returns (K, 2) the uids of the rows of a whole shard that the list names."""
        uid_N2 = halves(shard[UID.name])
        return uid_N2[self.times(uid_N2) > 0]

    def times(self, uid_N2: NDArray[np.uint64]) -> NDArray[np.int32]:
        """Returns (N,) how often the list contains each uid."""
        if not len(self.uid_U2):
            return np.zeros(len(uid_N2), np.int32)
        # Halves are hashes: uids that share the first half are adjacent, and few.
        index_N = np.searchsorted(self.uid_U2[:, 0], uid_N2[:, 0])
        times_N = np.zeros(len(uid_N2), np.int32)
        while True:
            inside_N = index_N < len(self.uid_U2)
            row_N = self.uid_U2[np.minimum(index_N, len(self.uid_U2) - 1)]
            near_N = inside_N & (row_N[:, 0] == uid_N2[:, 0])
            same_N = near_N & (row_N[:, 1] == uid_N2[:, 1])
            times_N[same_N] = self.times_U[index_N[same_N]]
            if not near_N.any():
                return times_N
            index_N = np.where(near_N, index_N + 1, len(self.uid_U2))


def listed(uid_N2: NDArray[np.uint64]) -> Listed:
    """Returns the rows of a list in any order, which may repeat uids."""
    order = np.lexsort((uid_N2[:, 1], uid_N2[:, 0]))
    uid_N2 = uid_N2[order]
    is_new_N = np.ones(len(uid_N2), bool)
    is_new_N[1:] = (uid_N2[1:] != uid_N2[:-1]).any(axis=1)
    first_U = np.flatnonzero(is_new_N)
    times_U = np.diff(np.append(first_U, len(uid_N2))).astype(np.int32)
    return Listed(uid_N2[first_U], times_U)


@dataclass(frozen=True)
class Chance:
    """The rows with the least hashes of an arm: a smaller sample is part of a larger one."""

    below: int  # hash of the first row left out
    seed: int
    parent: Rows

    @property
    def has_texts(self) -> bool:
        return self.parent.has_texts

    def of(self, shard: pa.Table, number: int) -> pa.Table:
        rows = self.parent.of(shard, number)
        is_in_N = chances(rows, self.seed) < np.uint64(self.below)
        return rows.filter(pa.array(is_in_N))


def chances(shard: pa.Table, seed: int) -> NDArray[np.uint64]:
    """Returns (N,) the hash of each row."""
    return coin_hash(shard[UID.name], seed=seed, stage=STAGE, purpose="random")


@dataclass(frozen=True)
class Mixed:
    """Rows of several arms, repeated so that each arm has its share of an epoch's samples.

    A row that occurs k times in an arm of R samples has share * T / R * k expected repeats; T is
    large enough that no row of any arm has less than one. It is repeated by the integer part, and
    once more if its hash is below the fraction. Repeats from several arms add up; the texts are
    those of the first arm that has some, the weight is the mean by repeats.
    """

    name: str
    parts: Mapping[str, Rows]
    shares: Mapping[str, float]
    samples: Mapping[str, int]  # samples per epoch of each part
    seed: int

    @property
    def has_texts(self) -> bool:
        return any(part.has_texts for part in self.parts.values())

    @property
    def total(self) -> float:
        """Returns the expected samples of an epoch."""
        return max(self.samples[name] / share for name, share in self.shares.items())

    def each(self, name: str) -> float:
        """Returns the expected repeats of a row that occurs once in a part."""
        return self.shares[name] * self.total / self.samples[name]

    def of(self, shard: pa.Table, number: int) -> pa.Table:
        times_N = np.zeros(len(shard))
        weight_N = np.zeros(len(shard))
        texts: list[tuple[NDArray[np.int64], pa.Array]] = []
        place_N = shard[POSITION.name].to_numpy()
        for name, part in self.parts.items():
            rows = part.of(shard, number)
            at_K = np.searchsorted(place_N, rows[POSITION.name].to_numpy())
            expected_K = self.each(name) * rows[REPEATS.name].to_numpy()
            times_N[at_K] += expected_K
            weight_N[at_K] += expected_K * rows[LOSS_WEIGHT.name].to_numpy()
            if part.has_texts:
                texts.append((at_K, rows[TEXTS.name].combine_chunks()))
        is_in_N = times_N > 0
        whole_N = np.floor(times_N + 1e-9)  # 0.9999999999 counts as once
        coin_N = coin(shard[UID.name], seed=self.seed, stage=STAGE, purpose=f"mix {self.name}")
        repeats_N = (whole_N + (coin_N < times_N - whole_N)).astype(np.int32)[is_in_N]
        rows = once(shard.filter(pa.array(is_in_N)))
        rows = _with(rows, REPEATS.name, pa.array(repeats_N, REPEATS.dtype))
        weight = pa.array((weight_N[is_in_N] / times_N[is_in_N]).astype(np.float32))
        rows = _with(rows, LOSS_WEIGHT.name, weight)
        return rows.append_column(TEXTS.name, _first(texts, is_in_N)) if texts else rows


def _first(texts: list[tuple[NDArray[np.int64], pa.Array]], is_in_N: NDArray[np.bool_]) -> pa.Array:
    """Returns each row's texts from the first part that has some; null if none has."""
    from_N = np.full(len(is_in_N), -1)
    start = 0
    for at_K, part_texts in texts:
        new_K = from_N[at_K] < 0
        from_N[at_K[new_K]] = start + np.flatnonzero(new_K)
        start += len(part_texts)
    from_K = from_N[is_in_N]
    every = pa.concat_arrays([part_texts for _, part_texts in texts])
    return every.take(pa.array(from_K, mask=from_K < 0))


def once(shard: pa.Table) -> pa.Table:
    """Returns the rows, each once and of weight 1."""
    rows = shard.select([UID.name, SHARD.name, POSITION.name])
    rows = rows.append_column(REPEATS.name, pa.array(np.ones(len(rows), np.int32)))
    return rows.append_column(LOSS_WEIGHT.name, pa.array(np.ones(len(rows), np.float32)))


def _with(rows: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return rows.set_column(rows.column_names.index(name), name, values)
