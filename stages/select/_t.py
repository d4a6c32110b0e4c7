"""The t of a balance: by the share of its tail, by language, or the quantile that leaves a size."""

from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.metadata.concepts.load import ConceptList
from clipmill.metadata.schema import IDENTITY
from clipmill.pipeline.dataset import Context, Shards, State
from clipmill.pipeline.errors import StageError
from clipmill.stages.ops.states import added
from clipmill.stages.select import _cut as cut
from clipmill.stages.select._draws import Draw, Pairs, drawing

# Shapes: N rows, E entries of the list.

ENGLISH = "en"
DIGITS = 4  # of a float64


def share_below(count_E: NDArray, t: float) -> float:
    """Share of all pairs that belong to concepts of fewer than t rows."""
    return float(count_E[count_E < t].sum() / max(1, count_E.sum()))


def tail_count(count_E: NDArray, share: float) -> float:
    """The count up to which concepts, rarest first, hold nearest to this share of all pairs."""
    count = np.sort(count_E[count_E > 0])
    if not len(count):
        return np.inf
    return float(count[np.abs(np.cumsum(count) / count.sum() - share).argmin()])


def by_language(
    count_E: NDArray, concepts: ConceptList, t: float | None, tail_share: float | None, stage: str
) -> tuple[NDArray[np.float64], float]:
    """Each concept's count in units of English's t, and that t."""
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


def leaving(wanted: int, matched: int, draw: Draw, rows: Shards, ctx: Context) -> float:
    """The t below which the wanted number of ranks lies, of those of the matched rows."""
    if wanted > matched:
        raise StageError(
            found=f"{wanted:,} rows wanted, and {matched:,} have a concept",
            where=f"stage '{ctx.worker.stage}', key `rows`",
            do="want fewer, or match with a list of more concepts",
        )
    if wanted == matched:
        return np.inf
    ranked = ctx.map_shards(partial(with_ranks, draw), rows)
    nth, digits = matched - wanted, cut.EVERYTHING  # from the greatest rank down
    for _ in range(DIGITS):
        survey = ctx.reduce(partial(rank_digits, begin=digits), ranked, added)
        digits, nth = cut.extend(digits, nth, survey["by_digit"])
    return as_float(digits)


def with_ranks(draw: Draw, rows: pa.Table) -> pa.Table:
    """The rows that draw, with their rank."""
    some = drawing(rows)
    pairs = Pairs.of(some)
    rank_N = pa.array(pairs.least(draw.of(some, pairs)))
    return some.select(IDENTITY).append_column("rank", rank_N)


def rank_digits(rows: pa.Table, *, begin: cut.Cut) -> State:
    return {"by_digit": cut.next_digit(cut.value_digits(rows["rank"]), begin)}


def as_float(digits: cut.Cut) -> float:
    """The number, 0 or above, that has these digits in `cut.value_digits`."""
    bits = int.from_bytes(np.array(digits, ">u2").tobytes()) ^ (1 << 63)
    return float(np.array(bits, np.uint64).view(np.float64))
