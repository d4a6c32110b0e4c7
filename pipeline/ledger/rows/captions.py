"""Reads the captions of a run: each text, its values, and the verdict of a caption select.

Values of a list of texts are lists of the same length in other columns, named `text_…`. A select
of captions writes `text_reasons`, which says of each text that it read whether it stays.
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

from clipmill.metadata.schema import CAPTIONS, ORIGINAL, TEXTS, UID
from clipmill.metadata.uid import coin_hash
from clipmill.pipeline.ledger.rows.stored import Place, least, rows_at, tables
from clipmill.pipeline.planning.planned import Binding, PlannedStage
from clipmill.pipeline.run_folder.state import RunState

# Shapes: N rows of a shard, V texts of them.

REASONS, FELL_BACK = "text_reasons", "fell_back"  # columns of a select of captions
VALUE = "text_"  # prefix of a list of values
NOT_VALUES = (REASONS, "text_scores")  # `text_scores` has an item for each kept text only
LISTS = (TEXTS.name, CAPTIONS.name, REASONS, "text_scores")
EXAMPLES = 20
NO_SOURCE = "unknown"
NO_VERDICT = "no_verdict"  # the select has no verdict on the row
Counts = Counter[tuple[str, str | None]]  # source and reason, None for kept ones, to texts


@dataclass(frozen=True, kw_only=True)
class Caption:
    """One text of a row; `values` are by column name, `reason` says why it was dropped."""

    text: str | None
    source: str | None
    label: str | None
    model: str | None
    prompt_id: str | None
    values: dict[str, Any]
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Texts:
    """The texts of a stage for one row; `chosen_by` is the select that judges them.

    `fell_back`: only the original stays, since no text was good enough.
    """

    stage: str
    texts: tuple[Caption, ...]
    chosen_by: str | None = None
    fell_back: bool | None = None


@dataclass(frozen=True, kw_only=True)
class CaptionList:
    """A stored list of texts, the values beside it, and the select that judges it."""

    stage: str
    column: str
    values: dict[str, Binding]
    chosen_by: str | None

    @property
    def bound(self) -> dict[str, Binding]:
        """Returns the list's columns, as `rows_at` reads them."""
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
    """Counts over the texts of all rows, by source and by reason.

    `kept` and `reasons` count by source. `fell_back` counts rows that keep only the original text;
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
    """Returns the lists that caption selects read; else the last `texts`; else all `captions`."""
    stages = {name: planned for name, planned in state.plan.stages.items() if planned.gives_rows}
    chosen = [
        (planned.bindings[0][TEXTS.name], name)
        for name, planned in stages.items()
        if _writes(planned, REASONS) and planned.bindings and TEXTS.name in planned.bindings[0]
    ]
    if chosen:
        return tuple(_list(stages, *column, by) for column, by in chosen)
    judged = [name for name, planned in stages.items() if _writes(planned, TEXTS.name)]
    if judged:
        return (_list(stages, judged[-1], TEXTS.name, None),)
    writers = [name for name, planned in stages.items() if _writes(planned, CAPTIONS.name)]
    return tuple(_list(stages, name, CAPTIONS.name, None) for name in writers)


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


def texts_of(captions: CaptionList, row: Mapping[str, Any]) -> Texts:
    """Returns the texts of one row, read with `CaptionList.bound`."""
    texts = row[TEXTS.name] or []
    reasons = row.get(REASONS) or []
    if captions.chosen_by and len(reasons) != len(texts):
        reasons = [NO_VERDICT] * len(texts)
    lists = {name: row[name] for name in captions.values}
    lists = {name: v for name, v in lists.items() if v is not None and len(v) == len(texts)}
    return Texts(
        stage=captions.stage,
        texts=tuple(
            Caption(
                **(text or dict.fromkeys(("text", "source", "label", "model", "prompt_id"))),
                values={name: values[number] for name, values in lists.items()},
                reason=reason,
            )
            for number, (text, reason) in enumerate(zip_longest(texts, reasons))
        ),
        chosen_by=captions.chosen_by,
        fell_back=row.get(FELL_BACK),
    )


def texts_at(state: RunState, places: Mapping[str, Place], stages: set[str]) -> Iterator[Texts]:
    """Yields the texts of one row, list by list; `places` are by root; `stages` have its shard."""
    for captions in caption_lists(state):
        root = state.plan.stages[captions.stage].root
        if captions.stage in stages and root in places:
            bound = {name: source for name, source in captions.bound.items() if source[0] in stages}
            (row,) = rows_at(state, bound, [places[root]])
            texts = texts_of(captions, dict.fromkeys(captions.bound) | row)
            if texts.texts:
                yield texts


def captions(state: RunState) -> tuple[Captions, ...]:
    """Counts the texts of each caption list, for the report."""
    return tuple(
        _counted(state, caption_list)
        for caption_list in caption_lists(state)
        if all(state.stages[stage].complete for stage, _ in caption_list.bound.values())
    )


def _counted(state: RunState, captions: CaptionList) -> Captions:
    root = state.plan.stages[captions.stage].root
    names = (TEXTS.name, REASONS, FELL_BACK)
    bound = {name: source for name, source in captions.bound.items() if name in names}
    counts: Counts = Counter()
    rows = fell_back = 0
    examples: list[tuple[int, Place]] = []
    for shard, table in enumerate(tables(state, root, bound)):
        texts = table[TEXTS.name]
        count_N = pc.list_value_length(texts).fill_null(0).to_numpy()
        source = pc.struct_field(pc.list_flatten(texts), "source").fill_null(NO_SOURCE)
        chosen = verdicts(table[REASONS], count_N) if captions.chosen_by else None
        counts.update(by_reason(source, chosen))
        rows += int(np.count_nonzero(count_N))
        if captions.chosen_by:
            fell_back += int(pc.sum(table[FELL_BACK].cast(pa.int64())).as_py() or 0)
        bits_N = coin_hash(table[UID.name], seed=state.plan.seed, stage=root, purpose="captions")
        rows_here = least(bits_N, count_N > 1, EXAMPLES).tolist()
        examples += [(int(bits_N[row]), (shard, row)) for row in rows_here]
        examples = sorted(examples)[:EXAMPLES]
    places = [place for _, place in examples]
    read = rows_at(state, captions.bound, places)
    all_texts, kept, reasons = by_source(counts)
    return Captions(
        stage=captions.stage,
        chosen_by=captions.chosen_by,
        rows=rows,
        texts=all_texts,
        kept=kept,
        reasons=reasons,
        fell_back=fell_back if captions.chosen_by else None,
        examples=tuple(
            Example(place=place, texts=texts_of(captions, row))
            for place, row in zip(places, read, strict=True)
        ),
    )


def by_source(counts: Counts) -> tuple[dict[str, int], dict[str, int], dict[str, dict[str, int]]]:
    """Returns texts by source, the original first: all, kept ones, and by reason those lost."""
    sources = sorted({source for source, _ in counts}, key=lambda name: (name != ORIGINAL, name))
    reasons = sorted({reason for _, reason in counts if reason is not None})
    kept = {source: counts[source, None] for source in sources}
    lost = {why: {source: counts[source, why] for source in sources} for why in reasons}
    texts = {source: kept[source] + sum(by[source] for by in lost.values()) for source in sources}
    return texts, kept, lost


def verdicts(reasons: pa.ChunkedArray, count_N: NDArray[np.int64]) -> pa.Array:
    """Returns (V,) the reason of each text; NO_VERDICT in a row without a reason for each text."""
    fits_N = pc.list_value_length(reasons).fill_null(0).to_numpy() == count_N
    fits_V = np.repeat(fits_N, count_N)
    reason_V = pc.list_flatten(reasons.filter(pa.array(fits_N)))  # of the V texts those that fit
    taken = reason_V.take(pa.array(np.cumsum(fits_V) - 1, mask=~fits_V))
    return pc.if_else(pa.array(fits_V), taken, NO_VERDICT)


def by_reason(source_V: pa.Array, reason_V: pa.Array | None = None) -> Counts:
    """Counts texts by source and reason; without reasons all are kept."""
    reason_V = pa.nulls(len(source_V), pa.string()) if reason_V is None else reason_V
    counted = pa.table({"source": source_V, "reason": reason_V}).group_by(["source", "reason"])
    rows = counted.aggregate([([], "count_all")]).to_pylist()
    return Counter({(row["source"], row["reason"]): row["count_all"] for row in rows})
