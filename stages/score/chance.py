"""Scores how much better a caption fits its image than shuffled captions of the pool do."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill.metadata.schema import (
    IDENTITY,
    IMAGE_EMBEDDING,
    REASON,
    REASON_TYPE,
    TEXT_EMBEDDING,
    UID,
    Column,
)
from clipmill.metadata.uid import coin_hash
from clipmill.pipeline.dataset import Context, Inputs, State
from clipmill.pipeline.stage import DatasetStage
from clipmill.stages.ops.tables.rows import added
from clipmill.stages.ops.vectors.matrices import as_matrix, unusable
from clipmill.stages.score.clip_score import row_cosine

# Shapes: N rows, R drawn rows, M shuffled pairs, B bins of a cosine, D width of the embedding.

ABOVE_CHANCE = Column(
    name="above_chance",
    dtype=pa.float32(),
    unit="share, 0 to 1",
    doc="Shuffled pairs of the pool that fit less well.",
    better="high",
)
FIT_RANK = Column(
    name="fit_rank",
    dtype=pa.float32(),
    unit="share, 0 to 1",
    doc="Estimated share of the pool's fitting captions that fit better.",
    better="low",
)
FOLD = "unmet_fold"  # of embed.filter_network with `folds`
DRAWN = 4096  # rows, by hash
SHIFTS = 16  # captions that each drawn picture meets
BINS = 1 << 16  # of a cosine, from -1 to 1


@dataclass(frozen=True, kw_only=True)
class AboveChance(DatasetStage):
    """Share of shuffled pairs whose cosine is below the row's own, in [0, 1]; null if undefined.

    Pairs are drawn from the pool itself, so one threshold keeps alike whatever the scale of its
    cosines: of pictures that a filter network learnt from, and of others. Rows of 4,096 are drawn
    by hash; each picture meets 16 captions, with embed.filter_network's `folds` of its own fold.

    `fit_rank < 0.9` keeps an estimated 90 % of the captions that fit. Others are taken to score as
    shuffled ones, so twice the rows below the shuffled pairs' median are their estimated number. It
    is 1 for all rows where these fit no better than shuffled ones.

    Source: the null distribution is a permutation test's; Storey (2002) estimates its share.
    Error: .008 at most in standard deviation, from drawing 4,096 rows. `fit_rank` takes captions of
    a similar picture for fitting ones; docs/measured/filter-network.md has what it keeps.
    Example: {after: [ingest.image_folder, embed.clip]}
    """

    version = 2
    determinism = "exact"
    learns = ""
    reads = (IMAGE_EMBEDDING, TEXT_EMBEDDING)
    optional_reads = (FOLD,)
    writes = (ABOVE_CHANCE, FIT_RANK)
    reasons = ("no_image_embedding", "no_text_embedding", "zero_or_nan_embedding", "too_few_rows")

    def run(self, inputs: Inputs, ctx: Context) -> None:
        ctx.say("shuffling captions")
        draw = partial(drawn, seed=ctx.worker.seed, stage=ctx.worker.stage)
        chance_M: NDArray[np.floating] = np.empty(0)
        rank_B = np.ones(BINS)
        if len(inputs.rows):
            chance_M = shuffled(ctx.reduce(draw, inputs.rows, least))
        if len(chance_M):
            rank_B = ranks(ctx.reduce(counted, inputs.rows, added)["rows"], chance_M)
        measure = partial(above, chance_M=chance_M, rank_B=rank_B)
        ctx.restore(ctx.map_shards(measure, inputs.rows))


def drawn(rows: pa.Table, *, seed: int, stage: str) -> State:
    """Returns vectors, fold and hash of the rows with the least hashes."""
    image_ND, text_ND = (as_matrix(rows[c.name]) for c in (IMAGE_EMBEDDING, TEXT_EMBEDDING))
    fold_N = np.zeros(len(rows), np.int32)
    if FOLD in rows.column_names:
        fold_N = rows[FOLD].fill_null(0).to_numpy()
    hash_N = coin_hash(rows[UID.name], seed=seed, stage=stage, purpose="rows")
    good_N = ~(unusable(image_ND) | unusable(text_ND))
    values: dict[str, NDArray] = {
        "hash": hash_N,
        "fold": fold_N,
        "image": image_ND,
        "text": text_ND,
    }
    return least({name: value_N[good_N] for name, value_N in values.items()})


def least(*states: State) -> State:
    """Returns the rows of least hash, in its order."""
    both = {name: np.concatenate([state[name] for state in states]) for name in states[0]}
    order = np.argsort(both["hash"], kind="stable")[:DRAWN]
    return {name: value[order] for name, value in both.items()}


def shuffled(rows: State) -> NDArray[np.floating]:
    """Returns (M,) the cosines of pictures and other rows' captions of the fold, ascending."""
    cosines: list[NDArray[np.floating]] = [np.empty(0)]
    for fold in np.unique(rows["fold"]):
        image_RD, text_RD = (rows[name][rows["fold"] == fold] for name in ("image", "text"))
        for shift in range(1, min(SHIFTS + 1, len(image_RD))):
            cosines.append(exact_cosine(image_RD, np.roll(text_RD, shift, axis=0)))
    return np.sort(np.concatenate(cosines))


def counted(rows: pa.Table) -> State:
    """Counts the rows in each bin of their cosine."""
    cosine_N = cosines(rows)
    return {"rows": np.bincount(bin_of(cosine_N[~np.isnan(cosine_N)]), minlength=BINS)}


def bin_of(cosine_N: NDArray[np.floating]) -> NDArray[np.int64]:
    return np.clip((cosine_N + 1) * (BINS / 2), 0, BINS - 1).astype(np.int64)


def ranks(count_B: NDArray[Any], chance_M: NDArray[np.floating]) -> NDArray[np.float64]:
    """Returns (B,) the estimated share of fitting captions in higher bins, 0 to 1, falling."""
    chance_B = np.bincount(bin_of(chance_M), minlength=BINS)
    to_B, chance_to_B = (np.cumsum(of_B) / of_B.sum() for of_B in (count_B, chance_B))
    median = np.searchsorted(chance_to_B, 0.5)
    shuffled_share = to_B[median] / chance_to_B[median]
    if shuffled_share >= 1:
        return np.ones(BINS)
    rank_B = (1 - to_B - shuffled_share * (1 - chance_to_B)) / (1 - shuffled_share)
    return np.clip(np.maximum.accumulate(rank_B[::-1])[::-1], 0, 1)


def above(
    rows: pa.Table, *, chance_M: NDArray[np.floating], rank_B: NDArray[np.float64]
) -> pa.Table:
    """Returns share and rank of every row, or a reason."""
    cosine_N = cosines(rows)
    bad_N = np.isnan(cosine_N)
    few_N = np.full(len(rows), not len(chance_M))
    values = {
        ABOVE_CHANCE.name: np.searchsorted(chance_M, cosine_N) / max(1, len(chance_M)),
        FIT_RANK.name: rank_B[bin_of(np.where(bad_N, 0, cosine_N))],
    }
    null = [rows[IMAGE_EMBEDDING.name].is_null(), rows[TEXT_EMBEDDING.name].is_null()]
    null += [pa.array(bad_N), pa.array(few_N)]
    reason = pc.case_when(pc.make_struct(*null), *AboveChance.reasons)  # the first that is true
    out = rows.select(IDENTITY)
    for name, value_N in values.items():
        out = out.append_column(name, pa.array(value_N.astype(np.float32), mask=bad_N | few_N))
    return out.append_column(REASON.name, reason.cast(REASON_TYPE))


def cosines(rows: pa.Table) -> NDArray[np.floating]:
    """Returns (N,) the cosine of each row's image and text; NaN where undefined."""
    return exact_cosine(*(as_matrix(rows[c.name]) for c in (IMAGE_EMBEDDING, TEXT_EMBEDDING)))


def exact_cosine(a_ND: NDArray[np.floating], b_ND: NDArray[np.floating]) -> NDArray[np.floating]:
    """Returns (N,) cosines in float64, in which ranks do not depend on the order of sums."""
    return row_cosine(a_ND.astype(np.float64), b_ND.astype(np.float64))
