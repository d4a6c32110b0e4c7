"""What rows are grouped by: language, source of a union, domain, size of the picture."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from metadata.hosts import host_of
from metadata.schema import LANGUAGE, SOURCE, URL
from pipeline.ledger.stored import binding
from pipeline.planning.planned import Binding
from pipeline.run_folder.state import RunState

# Shapes: N rows.

GROUPS = 20  # that have a name of their own
MIN_SIDE = "min_side"  # in pixels, of the picture as it is stored
SIDES = (32, 64, 128, 200, 256, 384, 512, 1024)  # where a range of it begins
RANGES = (
    f"below {SIDES[0]} px",
    *(f"{low} to {high - 1} px" for low, high in pairwise(SIDES)),
    f"{SIDES[-1]} px and more",
)


def groupings(state: RunState, stage: str) -> dict[str, Binding]:
    """The stored columns that rows are grouped by: language, source of a union, domain, size."""
    columns = {"language": LANGUAGE.name, "source": SOURCE.name, "domain": URL.name}
    columns |= {"size": MIN_SIDE}
    bound = {name: binding(state, stage, column) for name, column in columns.items()}
    return {name: where for name, where in bound.items() if where is not None}


def group_of(name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The group of each row, dictionary-encoded; of a URL its host, of a shorter side its range.

    Null without one.
    """
    if name == "size":
        side_N = column.fill_null(-1).to_numpy()
        index_N = np.searchsorted(SIDES, side_N, side="right").astype(np.int32)
        index = pa.array(index_N, mask=side_N < 0)
        return pa.chunked_array([pa.DictionaryArray.from_arrays(index, RANGES)])
    named = host_of(column) if name == "domain" else column.cast(pa.string())
    return named.dictionary_encode()


@dataclass(frozen=True)
class Groups:
    """The group of every row: the largest of the pool by name, all others together."""

    names: list[str]
    codes: NDArray[np.int8]  # (N,)

    def counts(self, rows_N: NDArray[np.bool_]) -> dict[str, int]:
        """The number of these rows in each group, the largest first."""
        count = np.bincount(self.codes[rows_N], minlength=len(self.names))
        return {self.names[i]: int(count[i]) for i in np.argsort(-count, kind="stable") if count[i]}


def largest(column: pa.ChunkedArray) -> Groups:
    """The groups of a dictionary-encoded column, the largest of them by name."""
    codes = column.combine_chunks()
    codes = codes.chunk(0) if isinstance(codes, pa.ChunkedArray) else codes
    code_N = codes.indices.fill_null(len(codes.dictionary)).to_numpy()
    rows = np.bincount(code_N, minlength=len(codes.dictionary) + 1)
    ranked = np.argsort(-rows[:-1], kind="stable")
    named = ranked[:GROUPS]
    short = np.full(len(rows), len(named), np.int8)
    short[named] = np.arange(len(named))
    short[-1] = len(named) + 1
    names = [*codes.dictionary.take(pa.array(named)).to_pylist(), "(others)", "(none)"]
    return Groups(names, short[code_N])
