"""Balances a pool over its concepts as MetaCLIP does: fewer rows of common concepts."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
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
    UID,
    Column,
)
from clipmill.metadata.uid import coin, coin_hash
from clipmill.pipeline.dataset import Context, Inputs, Shards, State, Task
from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.pipeline.stage import DatasetStage, NonEmpty, OneUp, Share, Threshold, Verdicts
from clipmill.stages.ops.concepts import concept_list
from clipmill.stages.ops.outside import listing_digest, need_file
from clipmill.stages.ops.tables.rows import DROPPED, added, put_text
from clipmill.stages.select import _cut as cut
from clipmill.stages.select._judged import (
    NO_IMAGE,
    first_of,
    judged_rows,
    left_out,
    the_size,
)

# Shapes: N rows, M pairs of a row and one of its concepts, E entries of the list.

TABLE, SUMMARY = "concepts.parquet", "balance.json"
UNMATCHED = f"undefined:{CONCEPT_IDS.name}"
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
    2025). Departs: draws are hashes; the published code draws in the order of its index,
    and may find a t of 0 for a small `tail_share`, where concepts have no row.
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
    learns = ""
    reads = (CONCEPT_IDS, CONCEPT_LIST)
    optional_reads = (KEEP, IMAGE_BYTES)
    writes = (KEEP, BALANCE_RANK, KEEP_PROBABILITY, DECIDING_CONCEPT, BALANCE_T)
    reasons = (DROPPED, NO_IMAGE, UNMATCHED, "balanced_out")
    artifacts = (("balance", SUMMARY), ("concepts", TABLE))

    def __post_init__(self) -> None:
        do = "give one of `t`, `rows`, `fraction` and `tail_share`"
        name, value = the_size(self, ("t", "rows", "fraction", "tail_share"), do)
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
        return (Threshold.own("t", BALANCE_RANK.name, "<", self.t, f"t = {self.t:g}"),)

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
            count_E = sums["count_E"]
            t = tail_count(count_E, self.tail_share) if self.tail_share else self.t or np.inf
            weight_E = count_E.astype(np.float64)
            if self.per_language:
                weight_E, t = by_language(count_E, concepts, self.t, self.tail_share, worker.stage)
            draw = replace(draw, weight=weight_E)
            if self.rows or self.fraction:
                matched = int(sums["matched"])
                size = self.rows or int(matched * (self.fraction or 0))
                t = leaving(size, matched, draw, rows, ctx)
            sums |= ctx.reduce(partial(kept_counts, draw, t), rows, added)
            ctx.map(partial(put_tables, concepts, draw, sums), [{"t": t}])
        rules = partial(judged, draw, t, concepts.entries, self.keep_unmatched)
        ctx.restore(ctx.map_shards(rules, rows))


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


@dataclass(frozen=True)
class Pairs:
    """Rows with each of their concepts; every row has at least one."""

    start: NDArray[np.int64]  # (N,) each row's first pair
    size: NDArray[np.int64]  # (N,)
    concept: NDArray[np.int32]  # (M,)

    @classmethod
    def of(cls, rows: pa.Table) -> "Pairs":
        ids = rows[CONCEPT_IDS.name].combine_chunks()
        size_N = pc.list_value_length(ids).to_numpy(zero_copy_only=False).astype(np.int64)
        return cls(np.cumsum(size_N) - size_N, size_N, pc.list_flatten(ids).to_numpy())

    def least(self, value_M: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns (N,) the least value of each row."""
        return np.minimum.reduceat(value_M, self.start) if len(self.start) else value_M

    def keep_probability(self, p_E: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns (N,) the probability that at least one of a row's concepts is drawn."""
        lost_M = 1 - p_E[self.concept]
        return 1 - (np.multiply.reduceat(lost_M, self.start) if len(self.start) else lost_M)


@dataclass(frozen=True, kw_only=True)
class Draw:
    """Random draws by concept, keyed by seed and stage; a weight is a count in units of t."""

    seed: int
    stage: str
    weight: NDArray[np.float64]  # (E,)

    def of(self, rows: pa.Table, pairs: Pairs) -> NDArray[np.float64]:
        """Returns (M,) u * weight of each pair: below t with probability min(1, t / weight).

        A u * weight never rounds up to the weight, so a concept of weight t or less always stays.
        """
        row_N = coin_hash(rows[UID.name], seed=self.seed, stage=self.stage, purpose="row")
        row_M = np.repeat(row_N, pairs.size)
        key_M2 = np.stack([row_M, pairs.concept.astype(np.uint64)], axis=1).astype(">u8")
        key_M = pa.Array.from_buffers(pa.binary(16), len(key_M2), [None, pa.py_buffer(key_M2)])
        u_M = coin(key_M, seed=self.seed, stage=self.stage, purpose="concept")
        return u_M * self.weight[pairs.concept]

    def probability(self, t: float) -> NDArray[np.float64]:
        """Returns (E,) the probability that a draw of each concept is below t."""
        p_E = np.ones(len(self.weight))
        is_head = self.weight > t
        p_E[is_head] = t / self.weight[is_head]
        return p_E


def undrawn(rows: pa.Table) -> pa.Array | pa.ChunkedArray:
    """Returns (N,) why a row does not draw; null if it does."""
    has_none = pc.equal(pc.list_value_length(rows[CONCEPT_IDS.name]).fill_null(0), 0)
    return first_of({**left_out(rows), UNMATCHED: has_none})


def drawing(rows: pa.Table) -> pa.Table:
    """Returns the rows that draw."""
    return rows.filter(undrawn(rows).is_null())


ENGLISH = "en"
DIGITS = 4  # 16-bit digits of a float64


def share_below(count_E: NDArray, t: float) -> float:
    """Returns the share of all pairs that belong to concepts of fewer than t rows."""
    return float(count_E[count_E < t].sum() / max(1, count_E.sum()))


def tail_count(count_E: NDArray, share: float) -> float:
    """Returns the count up to which the rarest concepts hold nearest to this share of all pairs."""
    count = np.sort(count_E[count_E > 0])
    if not len(count):
        return np.inf
    return float(count[np.abs(np.cumsum(count) / count.sum() - share).argmin()])


def by_language(
    count_E: NDArray, concepts: ConceptList, t: float | None, tail_share: float | None, stage: str
) -> tuple[NDArray[np.float64], float]:
    """Returns each concept's count in units of English's t, and that t; 1 if no row is English."""
    ids = {name: places.to_numpy() for name, places in concepts.by_language()}
    if ENGLISH not in ids:
        raise StageError(
            found=f"no concept of language '{ENGLISH}' in the list",
            where=f"stage '{stage}', key `per_language`",
            do="leave per_language out, or build the list with --language",
        )
    if t and count_E.any() and not count_E[ids[ENGLISH]].any():
        raise StageError(
            found=f"no row has a concept of language '{ENGLISH}', whose tail `t` is about",
            where=f"stage '{stage}', key `t`",
            do="write a `tail_share` instead",
        )
    share = tail_share or share_below(count_E[ids[ENGLISH]], t or np.inf)
    t_of = {name: tail_count(count_E[places], share) for name, places in ids.items()}
    t = t_of[ENGLISH] = t or (t_of[ENGLISH] if t_of[ENGLISH] < np.inf else 1.0)
    weight_E = np.empty(len(count_E))
    for name, places in ids.items():  # multiplied first: a count up to its t is at most t
        weight_E[places] = count_E[places] * t / t_of[name]
    return weight_E, t


def leaving(size: int, matched: int, draw: Draw, rows: Shards, ctx: Context) -> float:
    """Returns the t below which the ranks of exactly `size` of the matched rows lie."""
    if size > matched:
        raise StageError(
            found=f"{size:,} rows wanted, and {matched:,} have a concept",
            where=f"stage '{ctx.worker.stage}', key `rows`",
            do="want fewer, or match with a list of more concepts",
        )
    if size == matched:
        return np.inf
    nth, digits = matched - size, cut.EVERYTHING  # from the greatest rank down
    for _ in range(DIGITS):
        survey = ctx.reduce(partial(rank_digits, draw, digits), rows, added)
        digits, nth = cut.extend(digits, nth, survey["by_digit"])
    return as_float(digits)


def rank_digits(draw: Draw, begin: cut.Cut, rows: pa.Table) -> State:
    """Counts the next digit of the ranks, least draws, that begin with these digits."""
    drawn = drawing(rows)
    pairs = Pairs.of(drawn)
    rank = pa.chunked_array([pairs.least(draw.of(drawn, pairs))])
    return {"by_digit": cut.next_digit(cut.value_digits(rank), begin)}


def as_float(digits: cut.Cut) -> float:
    """Returns the number, 0 or above, that has these digits in `cut.value_digits`."""
    bits = int.from_bytes(np.array(digits, ">u2").tobytes()) ^ (1 << 63)
    return float(np.array(bits, np.uint64).view(np.float64))


FIXED = 2.0**24  # sums of probabilities in fixed point: 2^38 rows fit into 64 bits


def kept_counts(draw: Draw, t: float, rows: pa.Table) -> State:
    """Counts kept rows by concept; kept rows, their expected number and its variance."""
    drawn = drawing(rows)
    pairs = Pairs.of(drawn)
    keep_N = pairs.least(draw.of(drawn, pairs)) < t
    chance_N = pairs.keep_probability(draw.probability(t))
    kept_M = pairs.concept[np.repeat(keep_N, pairs.size)]
    return {
        "kept_E": np.bincount(kept_M, minlength=len(draw.weight)),
        "kept": np.array(keep_N.sum()),
        "expected": np.array(in_fixed_point(chance_N).sum()),
        "variance": np.array(in_fixed_point(chance_N * (1 - chance_N)).sum()),
    }


def in_fixed_point(value_N: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.rint(value_N * FIXED).astype(np.int64)  # sums do not depend on the order of rows


def put_tables(
    concepts: ConceptList, draw: Draw, sums: dict[str, Any], item: dict[str, Any], task: Task
) -> dict[str, Any]:
    """Stores out/concepts.parquet (entries' counts before and after), out/balance.json (sizes)."""
    summary = {
        "t": item["t"] if item["t"] < np.inf else None,  # JSON has no infinity
        **{name: int(sums[name]) for name in ("rows", "matched", "kept")},
        "entries_dropped": concepts.dropped,
        "expected": float(sums["expected"] / FIXED),
        "sigma": float(np.sqrt(sums["variance"] / FIXED)),
    }
    table = concepts.table.drop_columns(["count"])
    for name, values in (("count", sums["count_E"]), ("kept", sums["kept_E"])):
        table = table.append_column(name, pa.array(values, pa.int64()))
    met_E = sums["count_E"] > 0
    t_E = np.full(len(met_E), np.nan)
    t_E[met_E] = item["t"] * sums["count_E"][met_E] / draw.weight[met_E]  # of its language
    table = table.append_column("t", pa.array(t_E, mask=~met_E))
    pq.write_table(table, task.worker.scratch / TABLE, compression="zstd")
    task.put_file(TABLE, task.worker.scratch / TABLE)
    put_text(SUMMARY, json.dumps(summary), task)
    return summary


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
    out = pc.if_else(pa.array(rank_N >= t), "balanced_out", None)
    chance_N = pairs.keep_probability(draw.probability(t)).astype(np.float32)
    columns = {
        BALANCE_RANK.name: pa.array(rank_N).take(place),
        KEEP_PROBABILITY.name: pa.array(chance_N).take(place),
        DECIDING_CONCEPT.name: entries.take(pa.array(decider_N)).take(place),
        BALANCE_T.name: pa.array(np.where(draws_N, t, 0.0), mask=~draws_N),
    }
    return judged_rows(rows, pc.coalesce(reason, out.take(place)), columns)
