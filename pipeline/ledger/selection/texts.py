"""Counts texts like rows, at each stage that makes, collects or drops them, by source and reason.

At every stage: texts = kept + lost. A stage that asks a model loses those it did not get; a select
of captions those that break a rule; a last select of rows those of the rows that it drops.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill.metadata.schema import (
    CAPTIONS,
    CAPTIONS_MISSING,
    KEEP,
    ORIGINAL,
    REASON,
    TEXT,
    TEXT_LIST,
    TEXTS,
)
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.ledger.rows.ahead import ahead
from clipmill.pipeline.ledger.rows.captions import (
    NO_SOURCE,
    REASONS,
    Counts,
    by_reason,
    by_source,
    verdicts,
)
from clipmill.pipeline.ledger.rows.columns import line_of
from clipmill.pipeline.ledger.rows.stored import stored
from clipmill.pipeline.ledger.selection.causes import is_end
from clipmill.pipeline.planning.bindings import type_of
from clipmill.pipeline.planning.planned import Binding, PlannedStage
from clipmill.pipeline.run_folder.rows import PoolShards
from clipmill.pipeline.run_folder.state import RunState
from clipmill.pipeline.run_folder.words import in_words

# Shapes: N rows of a shard, V texts of them.

# Instead of reasons: no reason is stored for texts that the others of their row lack; texts of rows
# that a select drops; texts read and not stored.
BESIDE, WITH_ROW, NOT_TAKEN = "missing", "with their row", "not taken"
UNNAMED = (BESIDE, WITH_ROW, NOT_TAKEN)


@dataclass(frozen=True, kw_only=True)
class StageTexts:
    """Texts of one stage by source: `texts` = `kept` + those of `lost`, which is by reason."""

    stage: str
    texts: dict[str, int]
    kept: dict[str, int]
    lost: dict[str, dict[str, int]]

    @property
    def sentence(self) -> str:
        """Returns `2 of 50 texts of 'made' stay in 'chosen'; gone: 48 by rewrite < 0.2`, of those
        made; of all if the stage lost others, too."""
        others = {source for lost in self.lost.values() for source, count in lost.items() if count}
        sources = [name for name in self.texts if name != ORIGINAL or name in others]
        sources = sources or list(self.texts)
        kept, texts = (sum(map(by.__getitem__, sources)) for by in (self.kept, self.texts))
        named = ", ".join("the pool" if name == ORIGINAL else f"'{name}'" for name in sources)
        is_own = sources == [self.stage]
        where = f"made by '{self.stage}'" if is_own else f"of {named} stay in '{self.stage}'"
        lost = sorted(self.lost.items(), key=lambda item: -sum(item[1].values()))
        causes = ", ".join(
            f"{sum(counts.values()):,} {reason if reason in UNNAMED else f'by {reason}'}"
            for reason, counts in lost
        )
        return f"{kept:,} of {texts:,} texts {where}{f'; gone: {causes}' if causes else ''}"


def stage_texts(state: RunState) -> tuple[StageTexts, ...]:
    """Counts the texts of each complete stage that has any; StageError if they do not add up."""
    done = state.row_stages
    counted = []
    for planned in done:
        if bound := _bound(state, planned, is_end(planned, done)):
            shards, counts = stored(state, planned.root, bound), Counts()
            read = partial(_shard, planned.name, tuple(bound), shards)
            for of_shard in ahead(state.run, read, range(len(shards))):
                counts.update(of_shard)
            if counts:
                texts, kept, reasons = by_source(counts)
                lost = {_said(planned, reason): by for reason, by in reasons.items()}
                counted.append(StageTexts(stage=planned.name, texts=texts, kept=kept, lost=lost))
    return tuple(counted)


def has_texts(state: RunState) -> bool:
    """Returns whether a stage of the plan makes, collects or chooses texts."""
    return any(_lists(planned) for planned in state.plan.stages.values() if planned.gives_rows)


def _said(planned: PlannedStage, reason: str) -> str:
    """Returns a reason in words; of a cut with its number, if the recipe has one."""
    kind, _, name = reason.partition(":")
    cuts = getattr(planned.stage, "cuts", None)
    if kind == "cut" and isinstance(cuts, dict) and name in cuts:
        return f"{name} < {cuts[name]:g}"
    return in_words(reason)


def _lists(planned: PlannedStage) -> list[str]:
    lists = {column.name for column in planned.stage.writes if column.dtype == TEXT_LIST}
    return [name for name in (CAPTIONS.name, TEXTS.name) if name in lists]


def _bound(state: RunState, planned: PlannedStage, is_last: bool) -> dict[str, Binding]:
    """Returns the columns that tell what a stage did with texts, none if it has none: its own, and
    as `<name` those that it read, in order."""
    plan, name = state.plan, planned.name
    own = {column.name: (name, column.name) for column in planned.stage.writes}
    read: list[Binding] = []
    if planned.is_select:
        line = line_of(plan, name)
        before = [p for p in plan.stages.values() if p.name in line and p.root == planned.root]
        read = [(p.name, TEXTS.name) for p in before if TEXTS.name in _lists(p)][-1:]
        lists = [p for p in before if CAPTIONS.name in _lists(p)]
        read = read or [(p.name, name) for p in lists for name in _own_texts(p)]
        columns = [KEEP.name] if is_last and read else []
    elif TEXTS.name in _lists(planned):
        bindings = {} if planned.is_root else planned.bindings[0]
        read = [b for b in bindings.values() if type_of(plan.stages[b[0]].stage, b[1]) == TEXT_LIST]
        if TEXT.name in bindings and bindings.get(TEXTS.name) not in read:
            read = [bindings[TEXT.name], *read]  # the pool's caption, which no list of `texts` has
        columns = [TEXTS.name, REASONS]
    else:
        made = [*_own_texts(planned), CAPTIONS_MISSING.name, REASON.name]
        columns = made if _lists(planned) else []
        own[REASON.name] = (name, REASON.name)
    bound = {column: own[column] for column in columns if column in own}
    return bound | ({f"<{n}": source for n, source in enumerate(read)} if bound else {})


def _own_texts(planned: PlannedStage) -> list[str]:
    """Returns the columns of texts that a stage with a list of captions brings; a pool's has the
    first of them apart."""
    return [TEXT.name, CAPTIONS.name] if planned.is_root else [CAPTIONS.name]


def _shard(name: str, columns: Sequence[str], shards: PoolShards, index: int) -> Counts:
    """Counts the texts of a stage in one shard."""
    table = shards.table(index)
    read = [column for column in columns if column.startswith("<")]
    if CAPTIONS.name in columns:
        lists = [column for column in (TEXT.name, CAPTIONS.name) if column in columns]
        counts = by_reason(_sources(table, lists)[0])
        if CAPTIONS_MISSING.name in columns:
            reasons = table[REASON.name].cast(pa.string()).fill_null(BESIDE)
            missing = pa.table({"reason": reasons, "texts": table[CAPTIONS_MISSING.name]})
            for row in missing.group_by("reason").aggregate([("texts", "sum")]).to_pylist():
                counts[name, row["reason"]] += row["texts_sum"] or 0
        return +counts
    source_V, count_N = _sources(table, read)
    if KEEP.name in columns:
        keep_N = table[KEEP.name].fill_null(False).to_numpy()
        is_kept_V = pa.array(np.repeat(keep_N, count_N))
        return by_reason(source_V, pc.if_else(is_kept_V, None, WITH_ROW))
    after = by_reason(_sources(table, [TEXTS.name])[0])
    if REASONS not in columns:
        for (source, _), count in (by_reason(source_V) - after).items():
            after[source, NOT_TAKEN] = count
        return after
    counts = by_reason(source_V, verdicts(table[REASONS], count_N))
    kept = Counts({key: count for key, count in counts.items() if key[1] is None})
    if kept != after:
        raise StageError(
            f"{kept.total()} of {counts.total()} texts have no reason to go, and"
            f" {after.total()} are stored",
            f"stage '{name}', shard {index}",
            f"let `{REASONS}` have an item for each text that is read, null if it stays",
        )
    return counts


def _sources(table: pa.Table, lists: Sequence[str]) -> tuple[pa.Array, NDArray[np.int64]]:
    """Returns (V,) the source of each text of some columns, row by row, and (N,) texts of a row."""
    rows, sources = [np.empty(0, np.int64)], [pa.array([], pa.string())]
    for name in lists:
        column = table[name].combine_chunks()
        if pa.types.is_list(column.type):
            row_V, texts = pc.list_parent_indices(column).to_numpy(), pc.list_flatten(column)
            source = pc.struct_field(texts, "source").fill_null(NO_SOURCE)
        else:  # the pool's own captions
            row_V, texts = np.arange(len(column)), column
            source = pa.array([ORIGINAL]).take(pa.array(np.zeros(len(column), np.int32)))
        # Null texts are counted in the first list alone, which a select has a verdict on.
        if name != lists[0] or not pa.types.is_list(column.type):
            texts = pc.struct_field(texts, "text") if pa.types.is_struct(texts.type) else texts
            row_V, source = row_V[np.asarray(texts.is_valid())], source.filter(texts.is_valid())
        rows.append(row_V)
        sources.append(source)
    row_V = np.concatenate(rows)
    source_V = pa.concat_arrays(sources).take(pa.array(np.argsort(row_V, kind="stable")))
    return source_V, np.bincount(row_V, minlength=len(table))
