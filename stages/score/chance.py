"""Scores how much better a caption fits its image than shuffled captions of the pool do."""

from dataclasses import dataclass
from functools import partial

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
from clipmill.stages.ops.vectors.matrices import as_matrix, unusable
from clipmill.stages.score.clip_score import row_cosine

# Shapes: N rows, R drawn rows, M shuffled pairs, D width of the embedding.

ABOVE_CHANCE = Column(
    name="above_chance",
    dtype=pa.float32(),
    unit="share, 0 to 1",
    doc="Shuffled pairs of the pool that fit less well.",
    better="high",
)
FOLD = "unmet_fold"  # of embed.filter_network with `folds`
DRAWN = 4096  # rows, by hash
SHIFTS = 16  # captions that each drawn picture meets


@dataclass(frozen=True, kw_only=True)
class AboveChance(DatasetStage):
    """Share of shuffled pairs whose cosine is below the row's own, in [0, 1]; null if undefined.

    Pairs are drawn from the pool itself, so one threshold keeps alike whatever the scale of its
    cosines: of pictures that a filter network learnt from, and of others. Rows of 4,096 are drawn
    by hash; each picture meets 16 captions, with embed.filter_network's `folds` of its own fold.

    Source: none needed; the null distribution is a permutation test's.
    Error: .008 at most in standard deviation, from drawing 4,096 rows.
    Example: {after: [ingest.image_folder, embed.clip]}
    """

    version = 1
    determinism = "exact"
    reads = (IMAGE_EMBEDDING, TEXT_EMBEDDING)
    optional_reads = (FOLD,)
    writes = (ABOVE_CHANCE,)
    reasons = ("no_image_embedding", "no_text_embedding", "zero_or_nan_embedding", "too_few_rows")

    def run(self, inputs: Inputs, ctx: Context) -> None:
        ctx.say("shuffling captions")
        draw = partial(drawn, seed=ctx.worker.seed, stage=ctx.worker.stage)
        chance_M: NDArray[np.floating] = np.empty(0)
        if len(inputs.rows):
            chance_M = shuffled(ctx.reduce(draw, inputs.rows, least))
        ctx.restore(ctx.map_shards(partial(above, chance_M=chance_M), inputs.rows))


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


def above(rows: pa.Table, *, chance_M: NDArray[np.floating]) -> pa.Table:
    """Returns the share of every row, or a reason."""
    image, text = rows[IMAGE_EMBEDDING.name], rows[TEXT_EMBEDDING.name]
    cosine_N = exact_cosine(as_matrix(image), as_matrix(text))
    share_N = np.searchsorted(chance_M, cosine_N) / max(1, len(chance_M))
    few_N = np.full(len(rows), not len(chance_M))
    bad_N = np.isnan(cosine_N)
    null = [image.is_null(), text.is_null(), pa.array(bad_N), pa.array(few_N)]
    reason = pc.case_when(pc.make_struct(*null), *AboveChance.reasons)  # the first that is true
    out = rows.select(IDENTITY)
    share = pa.array(share_N.astype(np.float32), mask=bad_N | few_N)
    out = out.append_column(ABOVE_CHANCE.name, share)
    return out.append_column(REASON.name, reason.cast(REASON_TYPE))


def exact_cosine(a_ND: NDArray[np.floating], b_ND: NDArray[np.floating]) -> NDArray[np.floating]:
    """Returns (N,) cosines in float64, in which ranks do not depend on the order of sums."""
    return row_cosine(a_ND.astype(np.float64), b_ND.astype(np.float64))
