"""What rows are grouped by: language, source of a union, domain, size of the picture."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill.metadata.hosts import host_of
from clipmill.metadata.schema import LANGUAGE, SOURCE, URL
from clipmill.pipeline.ledger.stored import binding
from clipmill.pipeline.planning.planned import Binding
from clipmill.pipeline.run_folder.state import RunState

# Shapes: N rows, G groups.

GROUPS = 20  # that have a name of their own
NAMES = 1 << 18  # of groups that are counted, as hosts: some 200 bytes each
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


def rows_of_groups(column: pa.ChunkedArray) -> dict[str, int]:
    """The rows of each group of a dictionary-encoded column, in the order of its dictionary."""
    rows: Counter[str] = Counter()
    for codes in column.chunks:
        count = np.bincount(codes.indices.drop_null().to_numpy(), minlength=len(codes.dictionary))
        rows.update(dict(zip(codes.dictionary.to_pylist(), count.tolist(), strict=True)))
    return rows


@dataclass(frozen=True)
class Groups:
    """G groups that are told apart: the largest of a pool by name, all others together, none."""

    names: list[str]  # (G,)

    @classmethod
    def largest(cls, rows: Mapping[str, int]) -> "Groups":
        """The largest of these by name; of as large ones those that come first."""
        named = sorted(rows, key=lambda name: -rows[name])[:GROUPS]
        return cls([*named, "(others)", "(none)"])

    def codes(self, column: pa.ChunkedArray) -> NDArray[np.int8]:
        """(N,) the place of each row's group, of a dictionary-encoded column."""
        others, none = len(self.names) - 2, len(self.names) - 1
        named = pa.array(self.names[:others], pa.string())
        parts = [np.zeros(0, np.int8)]
        for codes in column.chunks:
            place = pc.index_in(codes.dictionary, value_set=named).fill_null(others)
            short = np.append(place.to_numpy(), none).astype(np.int8)
            parts.append(short[codes.indices.fill_null(len(codes.dictionary)).to_numpy()])
        return np.concatenate(parts)

    def counts(self, rows_G: NDArray[np.int64]) -> dict[str, int]:
        """Rows by name, the largest first; of groups that have any."""
        order = np.argsort(-rows_G, kind="stable").tolist()
        return {self.names[i]: int(rows_G[i]) for i in order if rows_G[i]}
