"""Scores how much better a caption fits its image than shuffled captions of the pool do."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill.metadata.schema import (
    IMAGE_EMBEDDING,
    REASON,
    TEXT_EMBEDDING,
    TEXT_FEATURES,
    UID,
    Column,
)
from clipmill.metadata.uid import coin_hash
from clipmill.pipeline.dataset import Context, Inputs, State
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.stage import DatasetStage, OneUp, later
from clipmill.stages.ops.tables.rows import added, with_reason
from clipmill.stages.ops.vectors.matrices import as_matrix, unit_rows, unusable
from clipmill.stages.score._sums import least
from clipmill.stages.score.clip_score import row_cosine

# Shapes: N rows, F of a fold, P of a part of it, R drawn, M shuffled pairs, G groups, B bins of a
# fit, C cells of these, D width of a vector.

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
MORE = 4  # times as many to be compared with, if captions are grouped
SHIFTS = 16  # captions that each drawn picture meets
BINS = 1 << 16  # of a fit, from -1 to 1
CELLS, STEPS = 80, 60  # of the mixture's histogram, and of its fit
PART, GRID = 512, 2048  # rows compared at a time, parts of 1 to which vectors are rounded
NEAR = 5  # nearest captions, whose mean similarity is taken
FEW = 100  # rows of a group
Rows = dict[str, NDArray[Any]]  # a State: image, text, features, fold, hash, index


@dataclass(frozen=True, kw_only=True)
class AboveChance(DatasetStage):
    """Share of shuffled pairs whose cosine is below the row's own, in [0, 1]; null if undefined.

    Pairs are drawn from the pool itself, so one threshold keeps alike whatever the scale of its
    cosines: of pictures that a filter network learnt from, and of others. Rows of 4,096 are drawn
    by hash; each picture meets 16 captions, with embed.filter_network's `folds` of its own fold.

    `fit_rank < 0.9` keeps an estimated 90 % of the captions that fit. Others are taken to score as
    shuffled ones, so twice the rows below the shuffled pairs' median are their estimated number. It
    is 1 for all rows where these fit no better than shuffled ones.

    With `groups`, which needs `folds` and embed.features, captions of rare concepts are kept like
    others, though heads have not met these: `fit_rank` is among captions as common, by the mean
    cosine of their features to the 5 nearest of other folds. There a caption's fit is its cosine
    less the mean of the 5 captions of its fold that fit the picture best, and captions that fit are
    taken to be normally distributed. Compared are 16,384 rows, drawn by hash: 4 CPU minutes for a
    million.

    Source: the null distribution is a permutation test's; Storey (2002) estimates its share; within
    groups EM does (Dempster et al. 1977).
    Error: .008 at most in standard deviation, from drawing 4,096 rows. `fit_rank` takes captions of
    a similar picture for fitting ones; docs/measured/filter-network.md has what it keeps.
    Example: {after: [ingest.image_folder, embed.clip]}
    """

    groups: OneUp = later(1)  # parts of the captions, by how common they are, each ranked apart

    version = 2
    determinism = "exact"
    learns = ""
    optional_reads = (FOLD,)
    writes = (ABOVE_CHANCE, FIT_RANK)
    reasons = ("no_image_embedding", "no_text_embedding", "zero_or_nan_embedding", "too_few_rows")

    @property
    def reads(self) -> tuple[Column | str, ...]:
        return IMAGE_EMBEDDING, TEXT_EMBEDDING, *((TEXT_FEATURES, FOLD) if self.groups > 1 else ())

    def run(self, inputs: Inputs, ctx: Context) -> None:
        ctx.say("shuffling captions")
        how: dict[str, Any] = {
            "seed": ctx.worker.seed,
            "stage": ctx.worker.stage,
            "grouped": self.groups > 1,
        }
        most = drawn_of(self.groups)
        rows_R: Rows = {"hash": np.empty(0)}
        if len(inputs.rows):
            draw = partial(drawn, **how, most=most)
            rows_R = ctx.reduce(draw, inputs.rows, partial(least, most))
        if self.groups > 1 and 0 < len(rows_R["hash"]) < self.groups * FEW:
            raise StageError(
                found=f"{len(rows_R['hash']):,} rows with both vectors, for {self.groups} groups",
                where=f"stage '{ctx.worker.stage}', key `groups`",
                do=f"lower `groups`, or give more rows: a group takes {FEW} or more",
            )
        chance = chance_of(rows_R, self.groups)
        rows = ctx.map_shards(
            partial(measured, read=partial(usable, **how), chance=chance), inputs.rows
        )
        rank_GB = np.ones((self.groups, BINS))
        if len(chance.cosine_M):
            count_GB = ctx.reduce(partial(counted, groups=self.groups), rows, added)["rows"]
            rank_GB = chance.ranks(count_GB)
        ctx.restore(ctx.map_shards(partial(above, chance=chance, rank_GB=rank_GB), rows))


def drawn_of(groups: int) -> int:
    return DRAWN if groups == 1 else DRAWN * MORE


def usable(rows: pa.Table, *, seed: int, stage: str, grouped: bool) -> Rows:
    """Returns vectors, fold, hash and index of the rows that have vectors."""
    columns = {"image": IMAGE_EMBEDDING, "text": TEXT_EMBEDDING}
    columns |= {"features": TEXT_FEATURES} if grouped else {}
    values: Rows = {name: as_matrix(rows[column.name]) for name, column in columns.items()}
    good_N = ~np.logical_or.reduce([unusable(row_ND) for row_ND in values.values()])
    values["fold"] = np.zeros(len(rows), np.int32)
    if FOLD in rows.column_names:
        values["fold"] = rows[FOLD].fill_null(0).to_numpy()
    values["hash"] = coin_hash(rows[UID.name], seed=seed, stage=stage, purpose="rows")
    values["index"] = np.arange(len(rows))
    return {name: value_N[good_N] for name, value_N in values.items()}


def drawn(rows: pa.Table, *, seed: int, stage: str, grouped: bool = False, most: int) -> Rows:
    """Returns vectors, fold and hash of the rows with the least hashes."""
    return least(most, usable(rows, seed=seed, stage=stage, grouped=grouped))


class Chance(NamedTuple):
    """Shuffled pairs of the drawn rows: their cosine, ascending, fit, and group of the caption."""

    cosine_M: NDArray[np.floating]
    fit_M: NDArray[np.floating]
    group_M: NDArray[np.int64]
    drawn: Rows
    edges: NDArray[np.floating]  # between the groups, ascending

    def ranks(self, count_GB: NDArray[Any]) -> NDArray[np.float64]:
        if len(count_GB) == 1:
            return ranks(count_GB[0], self.fit_M)[None]
        fits = (self.fit_M[self.group_M == group] for group in range(len(count_GB)))
        return np.stack([normal_ranks(*both) for both in zip(count_GB, fits, strict=True)])

    def place(self, rows: Rows) -> tuple[NDArray[np.floating], NDArray[np.int64]]:
        """Returns (N,) what the rows' fits are compared with, and their groups."""
        if not len(self.edges):
            return np.zeros(len(rows["hash"])), np.zeros(len(rows["hash"]), np.int64)
        best_N, common_N = beside(rows, self.drawn)
        return best_N, np.searchsorted(self.edges, common_N)


def chance_of(drawn: Rows, groups: int) -> Chance:
    """Shuffles the captions of drawn rows within their folds."""
    cosines: list[NDArray[np.floating]] = [np.empty(0)]
    pairs = [np.empty((2, 0), np.int64)]
    for fold in np.unique(drawn["fold"]) if len(drawn["hash"]) else ():
        row_R = np.flatnonzero(drawn["fold"] == fold)
        for shift in range(1, min(SHIFTS + 1, len(row_R))):
            pairs.append(np.stack([row_R, np.roll(row_R, shift)]))
            image_R, text_R = pairs[-1]
            cosines.append(exact_cosine(drawn["image"][image_R], drawn["text"][text_R]))
    cosine_M, (image_M, text_M) = np.concatenate(cosines), np.concatenate(pairs, axis=1)
    if groups == 1 or not len(cosine_M):
        chance_M = np.sort(cosine_M)
        return Chance(chance_M, chance_M, np.zeros_like(text_M), {}, np.empty(0))
    best_R, common_R = beside(drawn, drawn)
    edges = np.quantile(common_R, np.arange(1, groups) / groups)
    group_M = np.searchsorted(edges, common_R[text_M])
    return Chance(np.sort(cosine_M), (cosine_M - best_R[image_M]) / 2, group_M, drawn, edges)


def beside(rows: Rows, drawn: Rows) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Returns (N,) the mean cosine of each picture and the captions of its fold that fit it best,
    and of its caption's features and the nearest of other folds."""
    best_N, common_N = np.zeros((2, len(rows["hash"])))
    for fold in np.unique(rows["fold"]):
        row_F = rows["fold"] == fold
        inside_R = drawn["fold"] == fold
        for out_N, mine, theirs, drawn_R in (
            (best_N, "image", "text", inside_R),
            (common_N, "features", "features", ~inside_R),
        ):
            own_F = rows["hash"][row_F]
            out_N[row_F] = nearest(
                rows[mine][row_F], own_F, drawn[theirs][drawn_R], drawn["hash"][drawn_R]
            )
    return best_N, common_N


def nearest(
    row_FD: NDArray[np.float32], own_F: NDArray, drawn_RD: NDArray[np.float32], own_R: NDArray
) -> NDArray[np.float64]:
    """Returns (F,) the mean cosine of each row and the 5 nearest drawn but itself; 0 of fewer.

    Vectors are rounded to 1 / 2,048, so that float32 sums products exactly, in any order.
    """
    if len(drawn_RD) <= NEAR:
        return np.zeros(len(row_FD))
    row_FD, drawn_RD = (np.rint(unit_rows(x_ND) * GRID) for x_ND in (row_FD, drawn_RD))
    mean_F = np.empty(len(row_FD))
    for start in range(0, len(row_FD), PART):
        part = slice(start, start + PART)
        product_PR = row_FD[part] @ drawn_RD.T
        product_PR[own_F[part, None] == own_R] = -(GRID**2)
        product_PR.partition(-NEAR, axis=1)
        mean_F[part] = product_PR[:, -NEAR:].mean(axis=1, dtype=np.float64) / GRID**2
    return mean_F


def measured(rows: pa.Table, *, read: Callable[[pa.Table], Rows], chance: Chance) -> pa.Table:
    """Returns each row's cosine, fit and group, or a reason to have none."""
    state = read(rows)
    good, (best_N, group_N) = state["index"], chance.place(state)
    few_N = np.full(len(rows), not len(chance.cosine_M))
    bad_N = np.ones(len(rows), bool)
    bad_N[good] = False
    cosine = np.zeros(len(rows))
    cosine[good] = exact_cosine(state["image"], state["text"])
    fit, group = cosine.copy(), np.zeros(len(rows), np.int64)
    group[good] = group_N
    if len(chance.edges):
        fit[good] = (cosine[good] - best_N) / 2  # in [-1, 1]
    null = [rows[IMAGE_EMBEDDING.name].is_null(), rows[TEXT_EMBEDDING.name].is_null()]
    null += [pa.array(bad_N), pa.array(few_N)]
    reason = pc.case_when(pc.make_struct(*null), *AboveChance.reasons)  # the first that is true
    return with_reason(rows, {"cosine": cosine, "fit": fit, "group": group}, reason)


def counted(rows: pa.Table, *, groups: int) -> State:
    """Counts the rows of each group in each bin of their fit."""
    good = rows.filter(rows[REASON.name].is_null())
    place_N = good["group"].to_numpy() * BINS + bin_of(good["fit"].to_numpy())
    return {"rows": np.bincount(place_N, minlength=groups * BINS).reshape(groups, BINS)}


def bin_of(fit_N: NDArray[np.floating]) -> NDArray[np.int64]:
    return np.clip((fit_N + 1) * (BINS / 2), 0, BINS - 1).astype(np.int64)


def ranks(count_B: NDArray[Any], chance_M: NDArray[np.floating]) -> NDArray[np.float64]:
    """Returns (B,) the estimated share of fitting captions in higher bins, 0 to 1, falling."""
    chance_B = np.bincount(bin_of(chance_M), minlength=BINS)
    to_B, chance_to_B = (np.cumsum(of_B) / of_B.sum() for of_B in (count_B, chance_B))
    shuffled_share = share_of(to_B, chance_to_B)
    if shuffled_share >= 1:
        return np.ones(BINS)
    rank_B = (1 - to_B - shuffled_share * (1 - chance_to_B)) / (1 - shuffled_share)
    return np.clip(np.maximum.accumulate(rank_B[::-1])[::-1], 0, 1)


def share_of(to_B: NDArray[np.float64], chance_to_B: NDArray[np.float64]) -> float:
    """Returns the estimated share of rows that fit as shuffled ones do, from cumulative shares."""
    median = np.searchsorted(chance_to_B, 0.5)
    return float(to_B[median] / chance_to_B[median])


def normal_ranks(count_B: NDArray[Any], chance_M: NDArray[np.floating]) -> NDArray[np.float64]:
    """Returns (B,) the estimated share of fitting captions in higher bins, if those are normal."""
    from scipy.special import ndtr

    chance_B = np.bincount(bin_of(chance_M), minlength=BINS)
    if not (count_B.any() and chance_B.any()):  # many captions are equally common
        return np.ones(BINS)
    occupied = np.flatnonzero(count_B + chance_B)
    place_B = (np.arange(BINS) - occupied[0] + 0.5) * (CELLS / (occupied[-1] + 1 - occupied[0]))
    cell_B = np.clip(place_B, 0, CELLS - 1).astype(np.int64)
    count_C, chance_C = (np.bincount(cell_B, of_B, CELLS) for of_B in (count_B, chance_B))
    chance_C = np.convolve(chance_C + 0.5, (0.25, 0.5, 0.25), "same")
    count_C, chance_C = count_C / count_C.sum(), chance_C / chance_C.sum()
    shuffled_share = share_of(np.cumsum(count_C), np.cumsum(chance_C))
    fit_C = np.maximum(count_C - shuffled_share * chance_C, 0)
    if shuffled_share >= 1 or not fit_C.any():
        return np.ones(BINS)
    middle_C = np.arange(CELLS) + 0.5
    for _ in range(STEPS):
        fits = fit_C.sum()
        mean = fit_C @ middle_C / fits
        deviation = np.sqrt(fit_C @ (middle_C - mean) ** 2 / fits + 1 / 12)  # in a cell, too
        normal_C = np.exp(-(((middle_C - mean) / deviation) ** 2) / 2)
        normal_C *= fits / deviation / np.sqrt(2 * np.pi)
        fit_C = count_C * normal_C / (normal_C + (1 - fits) * chance_C)
    return np.asarray(ndtr((mean - place_B) / deviation))


def above(rows: pa.Table, *, chance: Chance, rank_GB: NDArray[np.float64]) -> pa.Table:
    """Returns share and rank of every row, or the reason."""
    cosine_N, fit_N, group_N = (rows[name].to_numpy() for name in ("cosine", "fit", "group"))
    null_N = rows[REASON.name].is_valid().to_numpy()
    below_N = np.searchsorted(chance.cosine_M, cosine_N) / max(1, len(chance.cosine_M))
    values = {ABOVE_CHANCE: below_N, FIT_RANK: rank_GB[group_N, bin_of(fit_N)]}
    made = {c.name: pa.array(v_N.astype(np.float32), mask=null_N) for c, v_N in values.items()}
    return with_reason(rows, made, rows[REASON.name])


def exact_cosine(a_ND: NDArray[np.floating], b_ND: NDArray[np.floating]) -> NDArray[np.floating]:
    """Returns (N,) cosines in float64, in which ranks do not depend on the order of sums."""
    return row_cosine(a_ND.astype(np.float64), b_ND.astype(np.float64))
