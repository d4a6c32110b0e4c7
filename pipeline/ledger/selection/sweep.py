"""Computes what a select stage would keep at other thresholds, from stored columns."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.metadata.schema import POSITION, SHARD, TEXT, UID
from clipmill.metadata.uid import coin_hash
from clipmill.pipeline.ledger.rows.stored import SHOWN, Place, binding, least, rows_at
from clipmill.pipeline.ledger.selection.counterfactual import (
    Pool,
    Rows,
    parse,
    select_stage,
    threshold_of,
)
from clipmill.pipeline.ledger.selection.groups import Groups
from clipmill.pipeline.planning.plan import check_threshold
from clipmill.pipeline.planning.selects import verdicts_by_part
from clipmill.pipeline.run_folder.state import RunState
from clipmill.pipeline.stage import Verdicts

# Shapes: N rows of the pool or of a part of it, G groups.

Bools = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A row, and its value in the column that the threshold compares."""

    uid: str
    shard: int
    position: int
    value: Any
    text: str | None

    @property
    def place(self) -> Place:
        return self.shard, self.position


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Some of the rows won and of those lost, chosen by a hash of their uid."""

    won: tuple[Sample, ...]
    lost: tuple[Sample, ...]


@dataclass(frozen=True, kw_only=True)
class Point:
    """The rows kept at one value of the threshold.

    `common` are also kept now, `won` are not, and `lost` are kept only now; `groups` counts the
    kept rows by language, source, domain and size.
    """

    value: float
    rule: str
    kept: int
    share: float
    common: int
    won: int
    lost: int
    groups: dict[str, dict[str, int]]
    samples: Samples


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A select stage at several values of one threshold, beside the rows that it keeps now.

    `today` is the current rule, `today_value` its number; null if it keeps all.
    """

    run: str
    stage: str
    vary: str
    column: str
    today: str
    today_value: float | None
    rows: int
    kept: int
    groups: dict[str, dict[str, int]]
    points: tuple[Point, ...]

    @property
    def samples(self) -> list[Sample]:
        """Returns the samples of all points; a row may be in several."""
        return [
            sample for point in self.points for sample in (*point.samples.won, *point.samples.lost)
        ]


class KeptCounts:
    """Counts kept rows, in total and by group."""

    def __init__(self, groups: dict[str, Groups]) -> None:
        self.rows = 0
        self._groups = groups
        self._rows_G = {name: np.zeros(len(g.names), np.int64) for name, g in groups.items()}

    def count(self, rows: Rows, keep_N: Bools) -> None:
        self.rows += int(keep_N.sum())
        for name, code_N in rows.groups.items():
            counted_G = self._rows_G[name]
            counted_G += np.bincount(code_N[keep_N], minlength=len(counted_G))

    @property
    def groups(self) -> dict[str, dict[str, int]]:
        return {name: group.counts(self._rows_G[name]) for name, group in self._groups.items()}


class PointCounts:
    """Counts rows kept, won and lost at one value, with a few samples."""

    def __init__(self, groups: dict[str, Groups]) -> None:
        self.value, self.rule = 0.0, ""
        self.kept = KeptCounts(groups)
        self.won = self.lost = 0
        self.few_won: list[tuple[int, Sample]] = []  # by hash
        self.few_lost: list[tuple[int, Sample]] = []

    def count(self, rows: Rows, verdicts: Verdicts, bits_N: NDArray[np.uint64]) -> None:
        self.value, self.rule = verdicts.value, verdicts.rule
        self.kept.count(rows, verdicts.keep)
        won_N, lost_N = verdicts.keep & ~rows.today, rows.today & ~verdicts.keep
        self.won += int(won_N.sum())
        self.lost += int(lost_N.sum())
        self.few_won = _few([*self.few_won, *_samples(rows, bits_N, won_N)])
        self.few_lost = _few([*self.few_lost, *_samples(rows, bits_N, lost_N)])

    def point(self, rows: int, texts: Mapping[Place, str | None]) -> Point:
        """Returns the counts of `rows` rows; `texts` has captions of the samples by place."""
        kept = self.kept.rows
        won, lost = (
            tuple(replace(sample, text=texts.get(sample.place)) for _, sample in few)
            for few in (self.few_won, self.few_lost)
        )
        return Point(
            value=self.value,
            rule=self.rule,
            kept=kept,
            share=kept / rows if rows else 0.0,
            common=kept - self.won,
            won=self.won,
            lost=self.lost,
            groups=self.kept.groups,
            samples=Samples(won=won, lost=lost),
        )


def sweep(state: RunState, stage: str, vary: str) -> Sweep:
    """Evaluates the select stage at each value of `vary`, as in `clip_score=0.10:0.40:0.02`.

    RecipeError if the stage has no such threshold, or lacks the stored values for it.
    """
    planned, varied = select_stage(state, stage), parse(vary)
    threshold = threshold_of(planned, varied)
    if not threshold.is_size:
        for number in (varied.values[0], varied.values[-1]):
            check_threshold(state.plan.stages, planned, threshold.column, float(number))
    pool = Pool(state, planned, threshold)
    parts = None if pool.is_held else pool.parts
    verdicts_on = verdicts_by_part(planned, threshold, varied.values, parts)
    today, points = KeptCounts(pool.groups), [PointCounts(pool.groups) for _ in varied.values]
    for rows in pool:
        today.count(rows, rows.today)
        bits_N = coin_hash(rows.read[UID.name], seed=state.plan.seed, stage=stage, purpose="sweep")
        for point, verdicts in zip(points, verdicts_on(rows.read, rows.made), strict=True):
            point.count(rows, verdicts, bits_N)
    texts = _captions(state, stage, points)
    return Sweep(
        run=str(state.run),
        stage=stage,
        vary=varied.name,
        column=threshold.column,
        today=threshold.text,
        today_value=threshold.value if isfinite(threshold.value) else None,
        rows=pool.rows,
        kept=today.rows,
        groups=today.groups,
        points=tuple(point.point(pool.rows, texts) for point in points),
    )


def _few(samples: list[tuple[int, Sample]]) -> list[tuple[int, Sample]]:
    """Returns the first samples by hash; ties in pool order."""
    return sorted(samples, key=itemgetter(0))[:SHOWN]


def _samples(rows: Rows, bits_N: NDArray[np.uint64], of_N: Bools) -> Iterator[tuple[int, Sample]]:
    """Yields the rows with the least hashes, with their captions yet to be read."""
    index = least(bits_N, of_N)
    table = rows.read.select([UID.name, SHARD.name, POSITION.name])
    sampled = table.append_column("value", rows.value).take(pa.array(index))
    for bits, row in zip(bits_N[index].tolist(), sampled.to_pylist(), strict=True):
        value = row["value"]
        is_json = not isinstance(value, float) or isfinite(value)
        yield (
            bits,
            Sample(
                uid=row[UID.name].hex(),
                shard=row[SHARD.name],
                position=row[POSITION.name],
                value=value if is_json else str(value),
                text=None,
            ),
        )


def _captions(
    state: RunState, stage: str, points: Sequence[PointCounts]
) -> dict[Place, str | None]:
    """Returns the captions of all samples by place, read at once; empty if the pool has none."""
    bound = binding(state, stage, TEXT.name)
    samples = [sample for point in points for _, sample in (*point.few_won, *point.few_lost)]
    places = sorted({sample.place for sample in samples if bound})
    rows = rows_at(state, {"text": bound} if bound else {}, places)
    return {place: row["text"] for place, row in zip(places, rows, strict=True)}
