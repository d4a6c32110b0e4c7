"""Finds the nearest evaluation sample of each row: by hash, by direction, or by caption pieces."""

from functools import lru_cache
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.sparse import csr_array

from clipmill.pipeline.errors import StageError
from clipmill.stages.dedup import _shingles as shingles
from clipmill.stages.dedup._plain import plain
from clipmill.stages.ops.tasks.evaluation import samples_in
from clipmill.stages.ops.vectors.matrices import as_matrix, unit_rows
from clipmill.stages.ops.vectors.nearest import nearest

# Shapes: N rows, M samples, D width of a vector; V distinct pieces of the samples, P pieces of all
# rows in a row, S pairs of a row and a sample that share a piece.

Nearest = tuple[NDArray[np.float32], NDArray[np.int64]]  # (N,) how near, and which sample
COMPARED = 2**22  # pairs of codes at a time
ROWS = 1024  # of captions at a time


class Codes:
    """Samples compared by Hamming distance, in bits."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self.code_M = column.to_numpy()

    def values(self, column: pa.ChunkedArray) -> tuple[NDArray[np.bool_], Any]:
        return column.is_valid().to_numpy(), column.drop_null().to_numpy()

    def nearest(self, code_N: NDArray[np.uint64]) -> Nearest:
        distance_N = np.empty(len(code_N), np.float32)
        which_N = np.empty(len(code_N), np.int64)
        step = max(1, COMPARED // len(self.code_M))
        for start in range(0, len(code_N), step):
            part = slice(start, start + step)
            distance_BM = np.bitwise_count(code_N[part, None] ^ self.code_M)
            which_N[part] = distance_BM.argmin(axis=1)
            distance_N[part] = distance_BM[np.arange(len(distance_BM)), which_N[part]]
        return distance_N, which_N


class Directions:
    """Samples compared by cosine, -1 to 1."""

    def __init__(self, column: pa.ChunkedArray, where: str) -> None:
        self.unit_MD, self.where = unit_rows(as_matrix(column)), where

    def values(self, column: pa.ChunkedArray) -> tuple[NDArray[np.bool_], Any]:
        unit_ND = unit_rows(as_matrix(column))
        defined_N = column.is_valid().to_numpy() & ~np.isnan(unit_ND).any(axis=1)
        return defined_N, unit_ND[defined_N]

    def nearest(self, unit_ND: NDArray[np.float32]) -> Nearest:
        wide, sample_wide = unit_ND.shape[1], self.unit_MD.shape[1]
        if len(unit_ND) and wide != sample_wide:
            raise StageError(
                found=f"embeddings {sample_wide} wide, and the pool's are {wide} wide",
                where=self.where,
                do="embed evaluation images with the model of the pool's embeddings",
            )
        which_N1, cosine_N1 = nearest(unit_ND, self.unit_MD)
        return np.clip(cosine_N1[:, 0], -1, 1), which_N1[:, 0].astype(np.int64)


class Captions:
    """Samples compared by the share of their pieces that a text has; 0 and -1 without any."""

    def __init__(self, column: pa.ChunkedArray, unit: shingles.Unit, size: int) -> None:
        self.unit, self.size = unit, size
        piece_P, end_M = pieces_of(plain(column), unit, size)
        self.piece_V, column_P = np.unique(piece_P, return_inverse=True)
        ends = np.append(0, end_M)
        self.pieces_M = np.diff(ends)
        shape = len(column), len(self.piece_V)
        self.has_VM = csr_array((np.ones(len(column_P), np.int32), column_P, ends), shape).T.tocsr()

    def values(self, column: pa.ChunkedArray) -> tuple[NDArray[np.bool_], Any]:
        text = plain(column)
        return text.is_valid().to_numpy(False), text.drop_null()

    def nearest(self, text: pa.Array) -> Nearest:
        share_N, which_N = np.zeros(len(text), np.float32), np.full(len(text), -1)
        for start in range(0, len(text), ROWS):
            part = slice(start, start + ROWS)
            share_N[part], which_N[part] = self._nearest(text[part])
        return share_N, which_N

    def _nearest(self, text: pa.Array) -> Nearest:
        piece_P, end_N = pieces_of(text, self.unit, self.size)
        place_P = np.searchsorted(self.piece_V, piece_P)
        known_P = np.append(self.piece_V, np.uint64(0))[place_P] == piece_P
        known_P &= place_P < len(self.piece_V)
        ends = np.append(0, np.cumsum(known_P))[np.append(0, end_N)]
        shape = len(text), len(self.piece_V)
        has_NV = csr_array((np.ones(ends[-1], np.int32), place_P[known_P], ends), shape)
        shared_NM = has_NV @ self.has_VM
        which_S, share_S = shared_NM.indices, shared_NM.data / self.pieces_M[shared_NM.indices]
        pairs_N = np.diff(shared_NM.indptr)
        row_S = np.repeat(np.arange(len(text)), pairs_N)
        order_S = np.lexsort((which_S, -share_S, row_S))
        some_N = np.flatnonzero(pairs_N)
        best = order_S[shared_NM.indptr[some_N]]
        share_N, which_N = np.zeros(len(text), np.float32), np.full(len(text), -1)
        share_N[some_N], which_N[some_N] = share_S[best], which_S[best]
        return share_N, which_N


# Each has `values`, (N,) the rows of a column that can be compared and their values, and `nearest`,
# how near the nearest sample of each value is and its number; the first of equals.
Samples = Codes | Directions | Captions


@lru_cache(maxsize=1)  # a worker needs the same samples for every shard
def opened(
    folder: str,
    names: tuple[str, ...],
    sha256: tuple[str, ...],
    compare: Literal["phash", "embedding", "caption"],
    pieces: tuple[shingles.Unit, int],
    tasks: str,
) -> list[tuple[pa.ChunkedArray, Samples]]:
    """Returns keys and samples of each task, as `put_samples` stored them in a folder.

    Captions are compared by `pieces`, their unit and size; `tasks` is where the samples come from.
    `sha256`, of all tasks, is a key of the cache only: a process may run the stage again.
    """
    by_task: list[tuple[pa.ChunkedArray, Samples]] = []
    for name in names:
        stored = samples_in(folder, name)
        samples: Samples
        match compare:
            case "phash":
                samples = Codes(stored["value"])
            case "embedding":
                samples = Directions(stored["value"], f"key `tasks`: task '{name}' in {tasks}")
            case "caption":
                samples = Captions(stored["value"], *pieces)
        by_task.append((stored["key"], samples))
    return by_task


def are_long(text: pa.Array, unit: shingles.Unit, size: int) -> pa.Array:
    """Returns whether each plain text has `size` units, hence a piece; false for null."""
    spaces = pc.count_substring(text, " ")
    units = pc.add(spaces, 1) if unit == "word" else pc.utf8_length(text)
    return pc.fill_null(pc.greater_equal(units, size), False)


def pieces_of(
    text: pa.Array, unit: shingles.Unit, size: int
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Returns (P,) the set of each plain text's runs of `size` units, and (N,) where each ends.

    It is empty for a null or fewer units.
    """
    is_long = are_long(text, unit, size)
    pieces = shingles.pieces(text.filter(is_long), unit, size)
    piece_P, end_L = shingles.distinct(shingles.hashes(pieces), pieces.end)
    return piece_P, np.append(0, end_L)[np.cumsum(is_long)]  # a short one ends where the last did
