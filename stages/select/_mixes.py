"""Which of a row's texts a mix keeps: some rows take a text that was made, others their own."""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

# Shapes: N rows, T texts of all of them.

Mix = Literal["blip2", "short-synthetic", "veclip", "laclip", "metaclip-1.2"]
Bools = NDArray[np.bool_]
SHARES = MappingProxyType({"blip2": 0.3, "short-synthetic": 0.45, "metaclip-1.2": 0.15})


@dataclass(frozen=True, kw_only=True)
class Flat:
    """The texts of N rows one after the other."""

    row_T: NDArray[np.int64]
    original_T: Bools
    made_T: Bools  # texts that a mix may take in the original's place
    passes_T: Bools
    score_T: NDArray[np.float32]  # NaN where there is none
    rows: int

    def first(self, mask_T: Bools) -> NDArray[np.int64]:
        """(N,) the first of each row's texts in the mask; -1 where there is none."""
        at_N = np.full(self.rows, -1)
        at = np.flatnonzero(mask_T)[::-1]
        at_N[self.row_T[at]] = at  # of several, what is written last stays: the first text
        return at_N

    def best(self, mask_T: Bools) -> NDArray[np.int64]:
        """(N,) that with the highest score; of equal ones, and without a score, the first."""
        at = np.flatnonzero(mask_T)
        score = np.where(np.isnan(self.score_T[at]), -np.inf, self.score_T[at])
        at = at[np.argsort(-score, kind="stable")]
        at_N = np.full(self.rows, -1)
        at_N[self.row_T[at[::-1]]] = at[::-1]
        return at_N


def mixed_texts(mix: Mix | None, flat: Flat, takes_made_N: Bools, least: float) -> Bools:
    """(T,) which texts a mix keeps of those that pass.

    `takes_made_N` says which rows take a text that was made, one of at least the score `least`; the
    others take their own, or a made one where their own does not pass.
    """
    if mix in (None, "laclip"):
        return flat.passes_T
    own_N = flat.first(flat.passes_T & flat.original_T)
    made_N = flat.best(flat.passes_T & flat.made_T)
    kept_T = np.zeros(len(flat.row_T), bool)
    if mix == "veclip":
        chosen = np.concatenate([own_N, made_N])
    else:
        if least > -np.inf:
            score_N = np.append(flat.score_T, np.float32(np.nan))[made_N]  # -1: of no text
            made_N = np.where(score_N >= np.float32(least), made_N, -1)
        chosen = np.where(takes_made_N, made_N, np.where(own_N >= 0, own_N, made_N))
    kept_T[chosen[chosen >= 0]] = True
    return kept_T
