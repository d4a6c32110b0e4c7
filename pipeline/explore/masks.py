"""Computes which rows meet a filter."""

import re
from functools import cached_property
from math import ceil, floor
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill.metadata.schema import UID
from clipmill.metadata.uid import halves
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.explore import questions
from clipmill.pipeline.explore.cache import Cache
from clipmill.pipeline.explore.columns import Bools, Columns, Numbers
from clipmill.pipeline.explore.lost import Lost, lost
from clipmill.pipeline.explore.moved import Counterfactuals

# Shapes: N rows of a root.

CACHE_BYTES = 100 << 20
FINE = "fine"  # shown for rows without a reason


class Masks:
    """The masks of one root's rows; recent ones are cached."""

    def __init__(self, columns: Columns) -> None:
        self.columns = columns
        self.counterfactuals = Counterfactuals(columns)
        self._cache = Cache[bytes, Bools](CACHE_BYTES)
        self._lost = Cache[str, Lost](CACHE_BYTES)

    def of(self, filter: questions.Filter) -> Bools:
        """Returns (N,) whether each row meets the filter."""
        key = msgspec.json.encode(filter)
        mask_N = self._cache.get(key)
        if mask_N is None:
            mask_N = self._made(filter)
            self._cache.put(key, mask_N, mask_N.nbytes)
        return mask_N

    def lost(self, end: str) -> Lost:
        causes = self._lost.get(end)
        if causes is None:
            causes = lost(self.columns, end)
            self._lost.put(end, causes, causes.nbytes)
        return causes

    def _made(self, filter: questions.Filter) -> Bools:
        match filter:
            case questions.Range():
                return within(self.columns.numbers(filter.column), filter.low, filter.high)
            case questions.OneOf():
                return self._one_of(filter)
            case questions.LostFor():
                lost, wanted = self.lost(filter.end), {*filter.causes}
                return np.array([cause in wanted for cause in lost.causes])[lost.code]
            case questions.Says():
                return self._says(filter)
            case questions.Uid():
                return self._uids(filter.begins.lower())

    def _one_of(self, filter: questions.OneOf) -> Bools:
        column = self.columns.column(filter.column)
        wants_none = None in filter.values
        if column.kind == "number":
            numbers = self.columns.numbers(filter.column)
            mask_N = equal_to_one(numbers, [v for v in filter.values if isinstance(v, float)])
            return np.asarray(mask_N | ~numbers.is_there if wants_none else mask_N)
        codes = self.columns.codes(filter.column)
        values = {str(value) for value in filter.values if value is not None}
        table = np.array([*(name in values for name in codes.names), wants_none])
        return table[codes.code]  # -1, a missing value, is the last

    def _says(self, filter: questions.Says) -> Bools:
        column = self.columns.column(filter.column)
        if column.kind not in ("text", "category"):
            raise RecipeError(f"'{filter.column}' holds no text", "the search", "search in another")
        mask_N = np.zeros(len(self.columns), bool)

        def work(shard: int, rows: slice) -> None:
            texts = self.columns.read(column.where, shard)
            if texts is not None:
                text = texts.cast(pa.string())
                hits = pc.match_substring(text, filter.words, ignore_case=True)
                mask_N[rows] = pc.fill_null(hits, False).to_numpy()

        self.columns.each_shard(work)
        return mask_N

    def _uids(self, digits: str) -> Bools:
        if not re.fullmatch("[0-9a-f]{1,32}", digits):
            problem = f"'{digits}' begins no uid"
            raise RecipeError(problem, "the search", "give its hex digits, 32 at most")
        low, high = (int(digits.ljust(32, end), 16) for end in "0f")
        top_N = self._first_halves
        mask_N = (top_N >= np.uint64(low >> 64)) & (top_N <= np.uint64(high >> 64))
        if len(digits) > 16:
            for row in np.flatnonzero(mask_N).tolist():
                ((shard, position),) = self.columns.places(np.array([row]))
                uid = self.columns.state.uid(self.columns.root, shard, position)
                mask_N[row] = uid.startswith(digits)
        return mask_N

    @cached_property
    def _first_halves(self) -> NDArray[np.uint64]:
        """Returns (N,) the first 64 bits of each uid."""
        top_N = np.zeros(len(self.columns), np.uint64)

        def work(shard: int, rows: slice) -> None:
            uids = self.columns.read((self.columns.root, UID.name), shard)
            if uids is not None:
                top_N[rows] = halves(uids)[:, 0]

        self.columns.each_shard(work)
        return top_N


def equal_to_one(numbers: Numbers, choices: list[float]) -> Bools:
    """Returns (N,) whether each value is one of these; false if its type cannot hold them."""
    dtype = numbers.values.dtype
    if dtype.kind != "f":
        ends = np.iinfo(dtype.name)
        whole = [int(value) for value in choices if value.is_integer()]
        candidates = np.array([value for value in whole if ends.min <= value <= ends.max], dtype)
    else:
        with np.errstate(over="ignore"):
            candidates = np.array(choices, dtype)
        candidates = candidates[np.isfinite(candidates)]
    return np.isin(numbers.values, candidates) & numbers.is_there


def within(numbers: Numbers, low: float | None, high: float | None) -> Bools:
    """Returns (N,) whether each value is in range; floats compare in their type, as in `where`, and
    integers exactly."""
    mask_N = numbers.is_there
    values_N: Any = numbers.values
    own = values_N.dtype.type if values_N.dtype.kind == "f" else None
    with np.errstate(over="ignore"):  # 1e39 is infinity in float32
        if low is not None:
            mask_N = mask_N & (values_N >= (own or ceil)(low))
        if high is not None:
            mask_N = mask_N & (values_N <= (own or floor)(high))
    return mask_N
