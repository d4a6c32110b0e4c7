"""Draws rows by each of their concepts; one success keeps a row: MetaCLIP's balancing.

The draw of a concept of weight w is u * w, with u uniform in [0, 1), a hash of seed, stage, uid and
concept. It is below any t with probability min(1, t / w), so the row's least draw decides for every
t.
"""

import json
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clipmill.metadata.concepts.load import ConceptList
from clipmill.metadata.schema import CONCEPT_IDS, IDENTITY, UID
from clipmill.metadata.uid import coin, coin_hash
from clipmill.pipeline.dataset import Context, Shards, State, Task
from clipmill.pipeline.errors import StageError
from clipmill.stages.ops.tables.rows import added, put_text
from clipmill.stages.select import _cut as cut
from clipmill.stages.select._judged import first_of, left_out

# Shapes: N rows, M pairs of a row and one of its concepts, E entries of the list.

UNMATCHED = f"undefined:{CONCEPT_IDS.name}"


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
    """Returns each concept's count in units of English's t, and that t."""
    ids = {name: places.to_numpy() for name, places in concepts.by_language()}
    if ENGLISH not in ids:
        raise StageError(
            found=f"no concept of language '{ENGLISH}' in the list",
            where=f"stage '{stage}', key `per_language`",
            do="leave per_language out, or build the list with --language",
        )
    share = tail_share or share_below(count_E[ids[ENGLISH]], t or np.inf)
    t_of = {name: tail_count(count_E[places], share) for name, places in ids.items()}
    t = t_of[ENGLISH] = t or t_of[ENGLISH]
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
    ranked = ctx.map_shards(partial(with_ranks, draw), rows)
    nth, digits = matched - size, cut.EVERYTHING  # from the greatest rank down
    for _ in range(DIGITS):
        survey = ctx.reduce(partial(rank_digits, begin=digits), ranked, added)
        digits, nth = cut.extend(digits, nth, survey["by_digit"])
    return as_float(digits)


def with_ranks(draw: Draw, rows: pa.Table) -> pa.Table:
    """Returns the rows that draw, with their rank, the least draw."""
    drawn = drawing(rows)
    pairs = Pairs.of(drawn)
    rank_N = pa.array(pairs.least(draw.of(drawn, pairs)))
    return drawn.select(IDENTITY).append_column("rank", rank_N)


def rank_digits(rows: pa.Table, *, begin: cut.Cut) -> State:
    return {"by_digit": cut.next_digit(cut.value_digits(rows["rank"]), begin)}


def as_float(digits: cut.Cut) -> float:
    """Returns the number, 0 or above, that has these digits in `cut.value_digits`."""
    bits = int.from_bytes(np.array(digits, ">u2").tobytes()) ^ (1 << 63)
    return float(np.array(bits, np.uint64).view(np.float64))


FIXED = 2.0**24  # sums of probabilities in fixed point: 2^38 rows fit into 64 bits
TABLE, SUMMARY = "concepts.parquet", "balance.json"


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
