"""Balances a pool over its concepts as MetaCLIP does: fewer rows of common concepts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Meta
from numpy.typing import NDArray

from clipmill.metadata.concepts.load import ConceptList
from clipmill.metadata.schema import (
    BALANCE_RANK,
    CONCEPT_IDS,
    CONCEPT_LIST,
    DECIDING_CONCEPT,
    IMAGE_BYTES,
    KEEP,
    Column,
)
from clipmill.pipeline.dataset import Context, Inputs, State
from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.pipeline.stage import DatasetStage, NonEmpty, OneUp, Share, Threshold, Verdicts
from clipmill.stages.ops.concepts import concept_list
from clipmill.stages.ops.outside import listing_digest, need_file
from clipmill.stages.ops.tables.rows import DROPPED, added
from clipmill.stages.select._draws import (
    SUMMARY,
    TABLE,
    UNMATCHED,
    Draw,
    Pairs,
    by_language,
    drawing,
    kept_counts,
    leaving,
    put_tables,
    tail_count,
    undrawn,
)
from clipmill.stages.select._judged import NO_IMAGE, judged_rows

# Shapes: N rows, M pairs of a row and one of its concepts, E entries of the list.

KEEP_PROBABILITY = Column(
    "keep_probability", pa.float32(), "0 to 1", "How likely a draw keeps the row."
)
BALANCE_T = Column("balance_t", pa.float64(), "rows", "The t that the rank is held against.")


@dataclass(frozen=True, kw_only=True)
class Balance(DatasetStage):
    """Keep decision, `balance_rank` and deciding concept of each row; null without concepts.

    Each concept e of a row draws u(seed, uid, e) * count[e], u uniform in [0, 1); the row's rank is
    its least draw, and the row stays if that is below t. This is one Bernoulli draw of min(1, t /
    count[e]) per concept, of which one success is enough, for every t at once: another t is a query
    on `balance_rank`, a size is a quantile of it. Only rows that no earlier select dropped and
    whose image did not fail are counted. out/concepts.parquet has each entry's count before and
    after, out/balance.json the expected and the actual size.

    `rows` and `fraction` (of the rows with concepts, rounded down) take the t that leaves exactly
    that number. `tail_share` takes the count up to which concepts hold that share of all pairs.
    With `per_language` each language has its own t, by the share that `t` makes the tail of
    English, or by `tail_share`; ranks are then in units of English's t.

    Source: MetaCLIP (Xu et al. 2024), algorithm 1; t by language is MetaCLIP 2's (Chuang et al.
    2025). Departs: draws are hashes; the published code draws in the order of its index.
    Error: rows of one uid with the same concepts share their draws, so they stay or go together;
    `rows` may then fall short by such a set.
    Example: {after: [ingest.image_folder, annotate.concepts], concepts: concepts.parquet, t: 20000}
    """

    concepts: NonEmpty  # list whose entries `concept_ids` number
    # rows that a common concept keeps; MetaCLIP: 20,000 of 1.6 billion rows; .inf keeps all with a
    # concept
    t: Annotated[float, Meta(gt=0)] | None = None
    rows: OneUp | None = None  # or: number of rows to keep
    fraction: Share | None = None  # or: share of the rows with concepts to keep
    # or: share of all row-concept pairs that is left to rare concepts; MetaCLIP: 0.06
    tail_share: Share | None = None
    per_language: bool = False  # each language has its own t
    keep_unmatched: bool = False  # rows without concepts stay, undrawn

    version = 1
    determinism = "exact"
    reads = (CONCEPT_IDS, CONCEPT_LIST)
    optional_reads = (KEEP, IMAGE_BYTES)
    writes = (KEEP, BALANCE_RANK, KEEP_PROBABILITY, DECIDING_CONCEPT, BALANCE_T)
    reasons = (DROPPED, NO_IMAGE, UNMATCHED, "balanced_out")
    artifacts = (("balance", SUMMARY), ("concepts", TABLE))

    def __post_init__(self) -> None:
        targets = {name: getattr(self, name) for name in ("t", "rows", "fraction", "tail_share")}
        chosen = {name: value for name, value in targets.items() if value is not None}
        if len(chosen) != 1:
            found = f"{' and '.join(chosen)} say" if chosen else "nothing says"
            found += " how much stays"
            do = "give one of `t`, `rows`, `fraction` and `tail_share`"
            raise RecipeError(found, "its settings", do)
        (name, value), *_ = chosen.items()
        if self.per_language and (name in ("rows", "fraction") or value == np.inf):
            do = "give a finite `t` or a `tail_share`, or leave per_language out"
            raise RecipeError(f"per_language with {name}: {value}", "key `per_language`", do)

    @property
    def least_rows(self) -> tuple[str, int] | None:
        return ("rows", self.rows) if self.rows else None

    def look(self) -> None:
        need_file(self.concepts, "concepts", "make a list with `clipmill concepts build`")

    def thresholds(self) -> tuple[Threshold, ...]:
        """Returns `t`, which the stored ranks answer; none if a size or a share has set it."""
        if self.t is None or self.per_language:
            return ()
        return (
            Threshold(
                name="t",
                column=BALANCE_RANK.name,
                sign="<",
                value=self.t,
                text=f"t = {self.t:g}",
                made=(BALANCE_RANK.name,),
                by_row=True,
            ),
        )

    def verdicts(
        self, threshold: Threshold, values: Sequence[Decimal], rows: pa.Table, made: pa.Table
    ) -> Iterator[Verdicts]:
        """Yields the verdicts at each t; rows that drew nothing stay or go as they do today."""
        if min(values) <= 0:
            raise ValueError(f"t is {min(values)}; it lies above 0")
        drew_N = made[BALANCE_RANK.name].is_valid().to_numpy()
        rank_N = made[BALANCE_RANK.name].fill_null(0).to_numpy()
        undrawn_N = made[KEEP.name].to_numpy() & ~drew_N
        for t in map(float, values):
            yield Verdicts(t, f"t = {t:g}", undrawn_N | drew_N & (rank_N < t))

    def explain(self, reason: str, made: Mapping[str, Any]) -> str:
        """Returns the draw that decided, for a row that drew; else ""."""
        rank, t = made[BALANCE_RANK.name], made[BALANCE_T.name]
        if rank is None:
            return ""
        return f"its least draw, of {made[DECIDING_CONCEPT.name]!r}, is {rank:.4g}, and t is {t:g}"

    def outside(self) -> str:
        """Returns the time and size of the list's file; a list other than the matched one fails."""
        return listing_digest(self.concepts)

    def run(self, inputs: Inputs, ctx: Context) -> None:
        rows, worker = inputs.rows, ctx.worker
        concepts = concept_list(self.concepts, where=f"stage '{worker.stage}', key `concepts`")
        draw = Draw(seed=worker.seed, stage=worker.stage, weight=np.ones(len(concepts)))
        t = np.inf
        if len(rows):
            sums = ctx.reduce(partial(counted, len(concepts), concepts.digest), rows, added)
            weight_E, t = self.weights(sums["count_E"], concepts, worker.stage)
            draw = replace(draw, weight=weight_E)
            if self.rows or self.fraction:
                matched = int(sums["matched"])
                size = self.rows or int(matched * (self.fraction or 0))
                t = leaving(size, matched, draw, rows, ctx)
            sums |= ctx.reduce(partial(kept_counts, draw, t), rows, added)
            ctx.map(partial(put_tables, concepts, draw, sums), [{"t": t}])
        rules = partial(judged, draw, t, concepts.entries, self.keep_unmatched)
        ctx.restore(ctx.map_shards(rules, rows))

    def weights(
        self, count_E: NDArray, concepts: ConceptList, stage: str
    ) -> tuple[NDArray[np.float64], float]:
        """Returns each concept's count in units of t, and t; plain counts if a size will fix t."""
        if self.per_language:
            return by_language(count_E, concepts, self.t, self.tail_share, stage)
        t = tail_count(count_E, self.tail_share) if self.tail_share else self.t or np.inf
        return count_E.astype(np.float64), t


def counted(entries: int, digest: str, rows: pa.Table) -> State:
    """Counts rows by concept, and rows with one; StageError if they met another list."""
    for matched in pc.unique(rows[CONCEPT_LIST.name]).drop_null().to_pylist():
        if matched != digest:
            raise StageError(
                found=f"captions were matched with list {matched}, and the list is now {digest}",
                where="select.balance, key `concepts`",
                do=f"match again with `digest: {digest}` in annotate.concepts, or bring it back",
            )
    drawn = drawing(rows)
    return {
        "count_E": np.bincount(Pairs.of(drawn).concept, minlength=entries),
        "rows": np.array(len(rows)),
        "matched": np.array(len(drawn)),
    }


def judged(
    draw: Draw, t: float, entries: pa.StringArray, keep_unmatched: bool, rows: pa.Table
) -> pa.Table:
    """Returns keep, rank, probability, deciding concept and reason of every row."""
    reason = undrawn(rows)
    draws_N = np.asarray(reason.is_null())
    drawn = rows.filter(pa.array(draws_N))
    pairs = Pairs.of(drawn)
    draw_M = draw.of(drawn, pairs)
    rank_N = pairs.least(draw_M)
    least = np.flatnonzero(draw_M == np.repeat(rank_N, pairs.size))
    decider_N = pairs.concept[least[np.searchsorted(least, pairs.start)]]  # first of equals
    place = pa.array(np.cumsum(draws_N) - 1, mask=~draws_N)  # index among the rows that draw
    if keep_unmatched:
        reason = pc.if_else(pc.equal(reason, UNMATCHED).fill_null(False), None, reason)
    out = pa.array(np.where(rank_N >= t, "balanced_out", None), pa.string())
    chance_N = pairs.keep_probability(draw.probability(t)).astype(np.float32)
    columns = {
        BALANCE_RANK.name: pa.array(rank_N).take(place),
        KEEP_PROBABILITY.name: pa.array(chance_N).take(place),
        DECIDING_CONCEPT.name: entries.take(pa.array(decider_N)).take(place),
        BALANCE_T.name: pa.array(np.where(draws_N, t, 0.0), mask=~draws_N),
    }
    return judged_rows(rows, pc.coalesce(reason, out.take(place)), columns)
