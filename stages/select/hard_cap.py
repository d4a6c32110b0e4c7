"""Draws good rows more often, each at most so many times: hard-cap sampling."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipmill.pipeline.errors import StageError
from clipmill.pipeline.stage import OneUp
from clipmill.stages.select._repeats import Clocks, DrawingSelect, least

# Shapes: N rows, R draws, M draws that are early enough so far.


@dataclass(frozen=True, kw_only=True)
class HardCap(DrawingSelect):
    """Keep decision, first draw and `repeats` of each row; null if it is never drawn.

    Rows are drawn one at a time with replacement, with chances softmax(score); one that has been
    drawn `at_most` times leaves. Each row is a Poisson process of rate exp(score) that stops after
    `at_most` arrivals, and the draws are the first `rows` arrivals of all: the same law. Waiting
    times are a hash of seed, number and uid, so shards and workers change nothing, and fewer draws
    are the first of more. One worker draws, from rows
    with a score that no earlier select dropped.

    Source: hard-cap sampling of FLYT (Shechter and Carmon 2025), and its released code. Departs:
    scores are standardised, so that an affine change of one changes nothing.
    Error: none. Rows of one uid share their waiting times.
    Example: {after: [ingest.image_folder, embed.clip, score.clip_score],
      weights: {clip_score: 1}, rows: 20, at_most: 3}
    """

    at_most: OneUp  # draws after which a row leaves

    version = 1

    @property
    def least_rows(self) -> tuple[str, int]:
        return "rows", -(-self.rows // self.at_most)

    def drawn(self, score_N: NDArray[np.float64], clocks: Clocks, stage: str) -> NDArray[np.intp]:
        if len(score_N) < self.least_rows[1]:
            raise StageError(
                found=f"{self.rows:,} draws of {len(score_N):,} rows, each at most {self.at_most:,}"
                " times",
                where=f"stage '{stage}', key `rows`",
                do="lower `rows`, or raise `at_most`",
            )
        waited_N = np.zeros(len(score_N))
        time_M, row_M = np.empty(0), np.empty(0, np.intp)
        for number in range(self.at_most):
            waited_N += clocks(number)
            time_M = np.concatenate([time_M, np.log(waited_N) - score_N])
            row_M = np.concatenate([row_M, np.arange(len(score_N))])
            early = least(time_M, min(self.rows, len(time_M)))
            time_M, row_M = time_M[early], row_M[early]
        return row_M
