"""Draws good rows more often; each draw of a row makes the next less likely: soft-cap sampling."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from clipmill.pipeline.errors import StageError
from clipmill.pipeline.stage import OneUp
from clipmill.stages.select._repeats import Clocks, DrawingSelect, least

# Shapes: N rows, R draws.


@dataclass(frozen=True, kw_only=True)
class SoftCap(DrawingSelect):
    """Keep decision, first draw and `repeats` of each row; null if it is never drawn.

    A round draws `batch` rows without replacement, with chances softmax(score); the scores of the
    drawn rows then fall by `alpha`. Rounds go on until there are `rows` draws. A round's draw is
    the `batch` largest of score + Gumbel noise, a hash of seed, round and uid, so shards and
    workers change nothing, and fewer draws are the first of more. One worker draws, from
    rows with a score that no earlier select dropped.

    Source: soft-cap sampling of FLYT (Shechter and Carmon 2025), and its released code. Departs:
    scores are standardised, so that an affine change of one changes nothing; the code fails once
    fewer rows than a batch have a chance above 0 in float64.
    Error: none: the law of draws without replacement. Rows of one uid share their noise.
    Example: {after: [ingest.image_folder, embed.clip, score.clip_score],
      weights: {clip_score: 1}, rows: 20, batch: 4}
    """

    batch: OneUp = 100_000  # rows that a round draws
    alpha: Annotated[float, Meta(ge=0, le=1e6)] = 0.15  # fall of a drawn score; small pool: 0.5

    version = 1

    @property
    def least_rows(self) -> tuple[str, int]:
        return "batch", min(self.batch, self.rows)

    def drawn(self, score_N: NDArray[np.float64], clocks: Clocks, stage: str) -> NDArray[np.intp]:
        if len(score_N) < self.least_rows[1]:
            raise StageError(
                found=f"a round of {self.least_rows[1]:,} rows, and {len(score_N):,} have a score",
                where=f"stage '{stage}', key `batch`",
                do="lower `batch`, or give more rows",
            )
        rounds = []
        for start in range(0, self.rows, self.batch):
            waits_N = np.log(clocks(start // self.batch)) - score_N
            rounds.append(least(waits_N, min(self.batch, self.rows - start)))
            score_N[rounds[-1]] -= self.alpha
        return np.concatenate(rounds)
