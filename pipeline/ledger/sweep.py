"""`clipmill sweep`: what a select stage would keep at other thresholds, no model rerun."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from math import isfinite
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from metadata.schema import KEEP, POSITION, SHARD, TEXT, UID
from metadata.uid import coin_hash
from pipeline.errors import RecipeError
from pipeline.ledger.stored import (
    Groups,
    binding,
    group_of,
    groupings,
    largest,
    least,
    rows_at,
    stored,
)
from pipeline.plan import check_threshold
from pipeline.planned import PlannedStage
from pipeline.recipe import nearest
from pipeline.stage import Selects, Threshold, Verdicts
from pipeline.state import RunState
from pipeline.terminal import one_line

# Shapes: N rows of the pool.

FORM = re.compile(
    r"\s*([A-Za-z_][\w-]*(?:\.\w+)?)\s*(<=|>=|<|>|=)\s*([^:\s]+):([^:\s]+):([^:\s]+)\s*"
)
MAX_VALUES = 1000
NAMED = 3  # groups whose share stands in the table


@dataclass(frozen=True)
class Vary:
    """What is varied, `=` or the sign that tells one comparison from another, and the values."""

    name: str
    sign: str
    values: tuple[Decimal, ...]


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


def sweep(state: RunState, stage: str, vary: str) -> dict[str, Any]:
    """Rows kept at each value beside those kept today, with examples of the rows won and lost."""
    planned, wanted = _select_stage(state, stage), parse(vary)
    threshold = _threshold(planned, wanted)
    if not threshold.is_size:
        for number in (wanted.values[0], wanted.values[-1]):
            check_threshold(state.plan.stages, planned, threshold.column, float(number))
    rows = _read(state, planned, threshold)
    bits_N = coin_hash(rows.read[UID.name], seed=state.plan.seed, stage=stage, purpose="sweep")
    points = [_point(found, rows, bits_N) for found in _verdicts(planned, threshold, wanted, rows)]
    _add_captions(state, planned, points)
    return {
        "run": str(state.run),
        "stage": stage,
        "vary": wanted.name,
        "column": threshold.column,
        "today": threshold.text,
        "today_value": threshold.value if isfinite(threshold.value) else None,  # it keeps all
        "rows": len(rows),
        "kept": int(rows.today.sum()),
        "groups": {name: group.counts(rows.today) for name, group in rows.groups.items()},
        "points": points,
    }


def parse(vary: str) -> Vary:
    """`clip_score=0.10:0.40:0.02`; RecipeError where it names no range."""
    where = f"--vary {vary}"
    match = FORM.fullmatch(vary)
    if not match:
        raise RecipeError(
            "it is not NAME=START:STOP:STEP", where, "write it as in clip_score=0.10:0.40:0.02"
        )
    name, sign, *texts = match.groups()
    try:
        start, stop, step = map(Decimal, texts)
    except InvalidOperation:
        raise RecipeError("a range is three numbers", where, "write START:STOP:STEP") from None
    if not all(number.is_finite() for number in (start, stop, step)):
        raise RecipeError("a range is finite", where, "write three plain numbers")
    if step <= 0 or stop < start:
        raise RecipeError("the range is empty", where, "START is at most STOP, STEP is above 0")
    count = int((stop - start) / step) + 1
    if count > MAX_VALUES:
        raise RecipeError(f"{count:,} values", where, f"take a wider STEP: at most {MAX_VALUES:,}")
    return Vary(name, sign, tuple(start + step * i for i in range(count)))


def _select_stage(state: RunState, stage: str) -> PlannedStage:
    stages = state.plan.stages
    if stage not in stages:
        do = f"did you mean '{nearest(stage, stages)}'?"
        raise RecipeError(f"no stage '{stage}'", "--stage", do)
    if not isinstance(stages[stage].stage, Selects):
        selects = [name for name, other in stages.items() if isinstance(other.stage, Selects)]
        raise RecipeError(
            f"'{stage}' is {stages[stage].uses}, which has no threshold",
            "--stage",
            f"name a select stage; here: {', '.join(selects) or 'none'}",
        )
    if not state.stages[stage].complete:
        raise RecipeError(f"'{stage}' is not complete", str(state.run), "run the recipe first")
    return stages[stage]


def _threshold(planned: PlannedStage, vary: Vary) -> Threshold:
    """The one threshold that is varied; RecipeError that names what can be."""
    assert isinstance(planned.stage, Selects)  # see _select_stage
    known = planned.stage.thresholds()
    named = [threshold for threshold in known if threshold.name == vary.name]
    hits = {at.text: at for at in named if vary.sign in ("=", at.sign)}
    if len(hits) == 1:
        return next(iter(hits.values()))
    if hits:
        raise RecipeError(
            f"'{vary.name}' is compared {len(hits)} times: {', '.join(hits)}",
            planned.where,
            "name the one by its sign: " + " or ".join(f"{vary.name}{at.sign}…" for at in named),
        )
    names = ", ".join(dict.fromkeys(threshold.name for threshold in known))
    raise RecipeError(
        f"'{planned.name}' has no threshold '{vary.name}{vary.sign.removeprefix('=')}'",
        planned.where,
        f"vary one of: {names}" if names else "no number of its settings decides by itself",
    )


def _verdicts(
    planned: PlannedStage, threshold: Threshold, vary: Vary, rows: Rows
) -> Iterator[Verdicts]:
    assert isinstance(planned.stage, Selects)  # see _select_stage
    try:
        yield from planned.stage.verdicts(threshold, vary.values, rows.read, rows.made)
    except ValueError as error:
        raise RecipeError(str(error), "--vary", "change the range") from None


def _read(state: RunState, planned: PlannedStage, threshold: Threshold) -> Rows:
    assert planned.root is not None
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
    tables = []
    for shard in range(len(shards)):
        table = shards.table(shard)
        for name in groups:  # a host is short where a URL is long, and repeats
            codes = group_of(name, table[f"group {name}"])
            place = table.column_names.index(f"group {name}")
            table = table.set_column(place, f"group {name}", codes)
        tables.append(table)
    whole = pa.concat_tables(tables).unify_dictionaries().combine_chunks()
    place = {name: whole[name] for name in (UID.name, SHARD.name, POSITION.name)}
    return Rows(
        read=pa.table(place | {name: whole[f"read {name}"] for name in reads}),
        made=pa.table(
            {KEEP.name: whole["kept"]} | {name: whole[f"made {name}"] for name in threshold.made}
        ),
        value=whole["value"],
        groups={name: largest(whole[f"group {name}"]) for name in groups},
        today=whole["kept"].to_numpy(),
    )


def _point(found: Verdicts, rows: Rows, bits_N: NDArray[np.uint64]) -> dict[str, Any]:
    won_N, lost_N = found.keep & ~rows.today, rows.today & ~found.keep
    kept, won = int(found.keep.sum()), int(won_N.sum())
    return {
        "value": found.value,
        "rule": found.rule,
        "kept": kept,
        "share": kept / len(rows) if len(rows) else 0.0,
        "common": kept - won,
        "won": won,
        "lost": int(lost_N.sum()),
        "groups": {name: group.counts(found.keep) for name, group in rows.groups.items()},
        "samples": {
            "won": _samples(rows, least(bits_N, won_N)),
            "lost": _samples(rows, least(bits_N, lost_N)),
        },
    }


def _samples(rows: Rows, index: NDArray[np.int64]) -> list[dict[str, Any]]:
    table = rows.read.select([UID.name, SHARD.name, POSITION.name])
    some = table.append_column("value", rows.value).take(pa.array(index))
    return [
        {
            "uid": row[UID.name].hex(),
            "shard": row[SHARD.name],
            "position": row[POSITION.name],
            "value": row["value"] if _is_json(row["value"]) else str(row["value"]),
        }
        for row in some.to_pylist()
    ]


def _is_json(value: Any) -> bool:
    return not isinstance(value, float) or isfinite(value)


def _add_captions(state: RunState, planned: PlannedStage, points: list[dict[str, Any]]) -> None:
    bound = binding(state, planned.name, TEXT.name)
    places = sorted({(s["shard"], s["position"]) for s in every_sample(points)})
    texts = rows_at(state, {"text": bound}, places) if bound else [{"text": None}] * len(places)
    by_place = dict(zip(places, texts, strict=True))
    for sample in every_sample(points):
        sample["text"] = by_place[sample["shard"], sample["position"]]["text"]


def every_sample(points: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The samples won and lost at every value; one row may stand in many."""
    for point in points:
        yield from (*point["samples"]["won"], *point["samples"]["lost"])


def text(found: dict[str, Any]) -> str:
    """The same as a table: a line a value, with the shares of the largest groups."""
    share = found["kept"] / found["rows"] if found["rows"] else 0.0
    lines = [
        f"{found['run']}: '{found['stage']}' keeps {found['kept']:,} of {found['rows']:,} rows"
        f" ({share:.1%}) with {one_line(found['today'])}",
        "",
    ]
    named = [
        (group, name)
        for group, counts in found["groups"].items()
        for name in list(counts)[:NAMED]
        if any(len(point["groups"][group]) > 1 for point in found["points"])
    ]
    heads = "".join(f"  {one_line(name)[-14:]:>14}" for _, name in named)
    lines.append(
        f"{found['vary']:>14}{'kept':>12}{'share':>8}{'common':>12}{'won':>10}{'lost':>10}{heads}"
    )
    for point in found["points"]:
        shares = "".join(
            f"  {point['groups'][group].get(name, 0) / max(1, point['kept']):>14.1%}"
            for group, name in named
        )
        lines.append(
            f"{point['value']:>14g}{point['kept']:>12,}{point['share']:>8.1%}"
            f"{point['common']:>12,}{point['won']:>10,}{point['lost']:>10,}{shares}"
        )
    if named:
        lines += ["", "the last columns: share of the kept rows, of the groups largest today"]
    return "\n".join(lines)
