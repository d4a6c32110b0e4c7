"""The captions of a run: each text with what is known of it, which a select keeps, and why not.

A list of texts, whatever its stage, is one with values beside it: lists of other columns, as long,
named `text_…`. A stage that writes `text_reasons` says of each text that it read whether it stays.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill.metadata.schema import CAPTIONS, TEXTS, UID
from clipmill.metadata.uid import coin_hash
from clipmill.pipeline.ledger.rows.ahead import ahead
from clipmill.pipeline.ledger.rows.stored import Place, rows_at, stored
from clipmill.pipeline.planning.planned import Binding, PlannedStage
from clipmill.pipeline.run_folder.state import RunState

# Shapes: N rows of a shard, V texts of them.

REASONS, FELL_BACK = "text_reasons", "fell_back"  # what a select of captions writes
VALUE = "text_"  # begins the name of a list of values
NOT_VALUES = (REASONS, "text_scores")  # the second: of those texts that stay
LISTS = (TEXTS.name, CAPTIONS.name, REASONS, "text_scores")
EXAMPLES = 20
NO_SOURCE = "unknown"
NO_VERDICT = "no_verdict"  # of a row that the select gave none


@dataclass(frozen=True, kw_only=True)
class Caption:
    """One text of a row; `values` by the names of their columns. `reason` says why it went."""

    text: str | None
    source: str | None
    label: str | None
    model: str | None
    prompt_id: str | None
    values: dict[str, Any]
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Texts:
    """The texts that a stage has for one row; `chosen_by` is the select that says which stay.

    `fell_back`: whether none but the original stays, since none was good enough.
    """

    stage: str
    texts: tuple[Caption, ...]
    chosen_by: str | None = None
    fell_back: bool | None = None


@dataclass(frozen=True, kw_only=True)
class CaptionList:
    """Where a list of texts lies, with the values beside it and the select that chooses."""

    stage: str
    column: str
    values: dict[str, Binding]
    chosen_by: str | None

    @property
    def bound(self) -> dict[str, Binding]:
        """Its columns, as `rows_at` reads them."""
        by = self.chosen_by
        verdict: dict[str, Binding] = (
            {REASONS: (by, REASONS), FELL_BACK: (by, FELL_BACK)} if by else {}
        )
        return {TEXTS.name: (self.stage, self.column), **self.values, **verdict}


@dataclass(frozen=True, kw_only=True)
class Example:
    """A row with more than one text, chosen by a hash of its uid."""

    place: Place
    texts: Texts


@dataclass(frozen=True, kw_only=True)
class Captions:
    """The texts of all rows: how many of each source, and how many went for which reason.

    `kept` and `reasons` count by source. `fell_back` counts rows of which the original alone stays;
    null without a select.
    """

    stage: str
    chosen_by: str | None
    rows: int
    texts: dict[str, int]
    kept: dict[str, int]
    reasons: dict[str, dict[str, int]]
    fell_back: int | None
    examples: tuple[Example, ...]


def caption_lists(state: RunState) -> tuple[CaptionList, ...]:
    """The lists that selects of captions read; else the last `texts`; else every stage's list."""
    stages = {name: it for name, it in state.plan.stages.items() if it.gives_rows}
    chosen = [
        (it.bindings[0][TEXTS.name], name)
        for name, it in stages.items()
        if _writes(it, REASONS) and it.bindings and TEXTS.name in it.bindings[0]
    ]
    if chosen:
        return tuple(_list(stages, *where, by) for where, by in chosen)
    judged = [name for name, it in stages.items() if _writes(it, TEXTS.name)]
    if judged:
        return (_list(stages, judged[-1], TEXTS.name, None),)
    made = [name for name, it in stages.items() if _writes(it, CAPTIONS.name)]
    return tuple(_list(stages, name, CAPTIONS.name, None) for name in made)


def _list(
    stages: Mapping[str, PlannedStage], stage: str, column: str, by: str | None
) -> CaptionList:
    values: dict[str, Binding] = {}
    for name, other in stages.items():
        reads = (stage, column) in (other.bindings[0].values() if other.bindings else ())
        for written in other.stage.writes if name == stage or reads else ():
            is_value = written.name.startswith(VALUE) and written.name not in NOT_VALUES
            if is_value and pa.types.is_list(written.dtype):
                values[written.name] = (name, written.name)
    return CaptionList(stage=stage, column=column, values=values, chosen_by=by)


def _writes(planned: PlannedStage, column: str) -> bool:
    return column in {written.name for written in planned.stage.writes}


def texts_of(found: CaptionList, row: Mapping[str, Any]) -> Texts:
    """The texts of one row, as read by `CaptionList.bound`."""
    texts = row[TEXTS.name] or []
    reasons = row.get(REASONS) or []
    if found.chosen_by and len(reasons) != len(texts):
        reasons = [NO_VERDICT] * len(texts)
    lists = {name: row[name] for name in found.values}
    lists = {name: it for name, it in lists.items() if it is not None and len(it) == len(texts)}
    return Texts(
        stage=found.stage,
        texts=tuple(
            Caption(
                **(text or dict.fromkeys(("text", "source", "label", "model", "prompt_id"))),
                values={name: it[number] for name, it in lists.items()},
                reason=reason,
            )
            for number, (text, reason) in enumerate(zip_longest(texts, reasons))
        ),
        chosen_by=found.chosen_by,
        fell_back=row.get(FELL_BACK),
    )


def texts_at(state: RunState, places: Mapping[str, Place], stages: set[str]) -> Iterator[Texts]:
    """The texts of one row: `places` by root; of these stages, which have its shard."""
    for found in caption_lists(state):
        root = state.plan.stages[found.stage].root
        if found.stage in stages and root in places:
            bound = {name: where for name, where in found.bound.items() if where[0] in stages}
            (row,) = rows_at(state, bound, [places[root]])
            texts = texts_of(found, dict.fromkeys(found.bound) | row)
            if texts.texts:
                yield texts


def captions(state: RunState) -> tuple[Captions, ...]:
    """What the report tells of each list."""
    return tuple(
        _counted(state, found)
        for found in caption_lists(state)
        if all(state.stages[stage].complete for stage, _ in found.bound.values())
    )


def _counted(state: RunState, found: CaptionList) -> Captions:
    root = state.plan.stages[found.stage].root
    wanted = {n: where for n, where in found.bound.items() if n in (TEXTS.name, REASONS, FELL_BACK)}
    shards = stored(state, root, wanted)
    counts: Counter[tuple[str, str | None]] = Counter()
    rows = fell_back = 0
    few: list[tuple[int, Place]] = []
    every = range(len(shards))
    for shard, table in zip(every, ahead(state.run, shards.table, every), strict=True):
        counts.update(_by_reason(table))
        count_N = pc.list_value_length(table[TEXTS.name]).fill_null(0).to_numpy()
        rows += int(np.count_nonzero(count_N))
        if found.chosen_by:
            fell_back += int(pc.sum(table[FELL_BACK].cast(pa.int64())).as_py() or 0)
        bits_N = coin_hash(table[UID.name], seed=state.plan.seed, stage=root, purpose="captions")
        few = sorted([*few, *_least(shard, bits_N, count_N > 1)])[:EXAMPLES]
    places = [place for _, place in few]
    read = rows_at(state, found.bound, places)
    sources = list(dict.fromkeys(source for source, _ in sorted(counts, key=_first_original)))
    reasons = sorted({reason for _, reason in counts if reason is not None})
    return Captions(
        stage=found.stage,
        chosen_by=found.chosen_by,
        rows=rows,
        texts={it: sum(n for (of, _), n in counts.items() if of == it) for it in sources},
        kept={it: counts[it, None] for it in sources},
        reasons={why: {it: counts[it, why] for it in sources} for why in reasons},
        fell_back=fell_back if found.chosen_by else None,
        examples=tuple(
            Example(place=place, texts=texts_of(found, row))
            for place, row in zip(places, read, strict=True)
        ),
    )


def _first_original(of: tuple[str, str | None]) -> tuple[bool, str]:
    return of[0] != "original", of[0]


def _by_reason(table: pa.Table) -> dict[tuple[str, str | None], int]:
    """Texts of a shard by source and reason."""
    texts = table[TEXTS.name]
    source = pc.struct_field(pc.list_flatten(texts), "source").fill_null(NO_SOURCE)
    reasons = pa.nulls(len(source), pa.string())
    if REASONS in table.column_names:
        count_N = pc.list_value_length(texts).fill_null(0).to_numpy()
        fits_N = pc.list_value_length(table[REASONS]).fill_null(0).to_numpy() == count_N
        fits_V = np.repeat(fits_N, count_N)
        given = pc.list_flatten(table[REASONS].filter(pa.array(fits_N)))
        said = given.take(pa.array(np.cumsum(fits_V) - 1, mask=~fits_V))
        reasons = pc.if_else(pa.array(fits_V), said, NO_VERDICT)
    counted = pa.table({"source": source, "reason": reasons}).group_by(["source", "reason"])
    rows = counted.aggregate([([], "count_all")]).to_pylist()
    return {(row["source"], row["reason"]): row["count_all"] for row in rows}


def _least(
    shard: int, bits_N: NDArray[np.uint64], rows_N: NDArray[np.bool_]
) -> list[tuple[int, Place]]:
    """The rows, of those that are true, whose hashes are least."""
    index = np.flatnonzero(rows_N)
    index = index[np.argsort(bits_N[index], kind="stable")][:EXAMPLES]
    return [(int(bits_N[row]), (shard, int(row))) for row in index]
