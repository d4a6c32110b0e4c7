"""What a select stage would keep at other thresholds, from stored columns."""

from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from metadata.schema import KEEP, POSITION, SHARD, TEXT, UID
from metadata.uid import coin_hash
from pipeline.errors import RecipeError
from pipeline.ledger.ahead import ahead
from pipeline.ledger.groupings import Groups, group_of, groupings, largest
from pipeline.ledger.stored import Place, binding, least, rows_at, stored
from pipeline.ledger.vary import parse, select_stage, threshold_of
from pipeline.planning.plan import check_threshold
from pipeline.planning.planned import PlannedStage
from pipeline.planning.selects import verdicts_at
from pipeline.run_folder.state import RunState
from pipeline.stage import Threshold, Verdicts

# Shapes: N rows of the pool.


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A row, and its value in the column that the threshold cuts."""

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
    """A few of the rows won and of those lost, chosen by a hash of their uid."""

    won: tuple[Sample, ...]
    lost: tuple[Sample, ...]


@dataclass(frozen=True, kw_only=True)
class Point:
    """The rows kept with one value in the threshold's place.

    `common` are kept today too, `won` are not, and `lost` are kept today only; `groups` counts the
    kept ones by language, source, domain and size.
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
    """A select stage at several values of one threshold, beside the rows that it keeps today.

    `today` is the rule of today, `today_value` its number; null where that keeps all.
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
        """The samples of all points; a row may be in several."""
        return [sample for at in self.points for sample in (*at.samples.won, *at.samples.lost)]


@dataclass(frozen=True)
class Rows:
    """What other verdicts are made of, the groups of each row, and today's verdict."""

    read: pa.Table  # uid, shard, position and columns as the stage reads them
    made: pa.Table  # columns that it wrote
    value: pa.ChunkedArray  # of the column that the threshold cuts
    groups: dict[str, Groups]
    today: NDArray[np.bool_]  # (N,)

    def __len__(self) -> int:
        return len(self.read)


def sweep(state: RunState, stage: str, vary: str) -> Sweep:
    """The select stage at each value of `vary`, as in `clip_score=0.10:0.40:0.02`.

    RecipeError where the stage has no such threshold, or stores no value that would answer.
    """
    planned, wanted = select_stage(state, stage), parse(vary)
    threshold = threshold_of(planned, wanted)
    if not threshold.is_size:
        for number in (wanted.values[0], wanted.values[-1]):
            check_threshold(state.plan.stages, planned, threshold.column, float(number))
    rows = _read(state, planned, threshold)
    bits_N = coin_hash(rows.read[UID.name], seed=state.plan.seed, stage=stage, purpose="sweep")
    verdicts = verdicts_at(planned, threshold, wanted.values, rows.read, rows.made)
    points = [_point(at_value, rows, bits_N) for at_value in verdicts]
    return Sweep(
        run=str(state.run),
        stage=stage,
        vary=wanted.name,
        column=threshold.column,
        today=threshold.text,
        today_value=threshold.value if isfinite(threshold.value) else None,
        rows=len(rows),
        kept=int(rows.today.sum()),
        groups={name: group.counts(rows.today) for name, group in rows.groups.items()},
        points=_with_captions(state, planned, points),
    )


def _read(state: RunState, planned: PlannedStage, threshold: Threshold) -> Rows:
    groups = groupings(state, planned.name)
    given = planned.bindings[0]
    reads = [name for name in threshold.reads if name in given]
    column = given.get(threshold.column, (planned.name, threshold.column))
    bound = {
        **{f"read {name}": given[name] for name in reads},
        **{f"made {name}": (planned.name, name) for name in threshold.made},
        **{f"group {name}": where for name, where in groups.items()},
        "value": column,
        "kept": (planned.name, KEEP.name),
    }
    shards = stored(state, planned.root, bound)
    if not len(shards):
        raise RecipeError("the pool has no rows", str(state.run), "check the pool's path")

    def read(shard: int) -> pa.Table:
        table = shards.table(shard)
        for name in groups:  # a host is short where a URL is long, and repeats
            codes = group_of(name, table[f"group {name}"])
            place = table.column_names.index(f"group {name}")
            table = table.set_column(place, f"group {name}", codes)
        return table

    tables = list(ahead(state.run, read, range(len(shards))))
    whole = pa.concat_tables(tables).unify_dictionaries().combine_chunks()
    place = {name: whole[name] for name in (UID.name, SHARD.name, POSITION.name)}
    return Rows(
        read=pa.table(place | {name: whole[f"read {name}"] for name in reads}),
        made=pa.table(
            {KEEP.name: whole["kept"]} | {name: whole[f"made {name}"] for name in threshold.made}
        ),
        value=_deciding(whole["value"], threshold),
        groups={name: largest(whole[f"group {name}"]) for name in groups},
        today=whole["kept"].to_numpy(),
    )


def _deciding(values: pa.ChunkedArray, threshold: Threshold) -> pa.ChunkedArray:
    """Of lists, the item of each that decides."""
    if threshold.item is None or not pa.types.is_list(values.type):
        return values
    items = pl.Series(values).list
    return pa.chunked_array([(items.max() if threshold.item == "max" else items.min()).to_arrow()])


def _point(verdicts: Verdicts, rows: Rows, bits_N: NDArray[np.uint64]) -> Point:
    won_N, lost_N = verdicts.keep & ~rows.today, rows.today & ~verdicts.keep
    kept, won = int(verdicts.keep.sum()), int(won_N.sum())
    return Point(
        value=verdicts.value,
        rule=verdicts.rule,
        kept=kept,
        share=kept / len(rows) if len(rows) else 0.0,
        common=kept - won,
        won=won,
        lost=int(lost_N.sum()),
        groups={name: group.counts(verdicts.keep) for name, group in rows.groups.items()},
        samples=Samples(
            won=_samples(rows, least(bits_N, won_N)), lost=_samples(rows, least(bits_N, lost_N))
        ),
    )


def _samples(rows: Rows, index: NDArray[np.int64]) -> tuple[Sample, ...]:
    """The rows at these indices, their captions yet to be read."""
    table = rows.read.select([UID.name, SHARD.name, POSITION.name])
    some = table.append_column("value", rows.value).take(pa.array(index))
    return tuple(
        Sample(
            uid=row[UID.name].hex(),
            shard=row[SHARD.name],
            position=row[POSITION.name],
            value=row["value"] if _is_json(row["value"]) else str(row["value"]),
            text=None,
        )
        for row in some.to_pylist()
    )


def _is_json(value: Any) -> bool:
    return not isinstance(value, float) or isfinite(value)


def _with_captions(
    state: RunState, planned: PlannedStage, points: list[Point]
) -> tuple[Point, ...]:
    """The points, each sample with its caption; all captions are read at once."""
    bound = binding(state, planned.name, TEXT.name)
    if bound is None:
        return tuple(points)
    kinds = [(point.samples.won, point.samples.lost) for point in points]
    places = sorted({sample.place for both in kinds for some in both for sample in some})
    texts = rows_at(state, {"text": bound}, places)
    text = {place: row["text"] for place, row in zip(places, texts, strict=True)}

    def captioned(some: tuple[Sample, ...]) -> tuple[Sample, ...]:
        return tuple(replace(sample, text=text[sample.place]) for sample in some)

    return tuple(
        replace(point, samples=Samples(won=captioned(won), lost=captioned(lost)))
        for point, (won, lost) in zip(points, kinds, strict=True)
    )
