"""Loads stored columns of all rows of a root as arrays, each once, on request."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill.metadata.schema import IMAGE, POSITION, REASON, SHARD, UID
from clipmill.pipeline.errors import RecipeError, did_you_mean
from clipmill.pipeline.explore.cache import Cache
from clipmill.pipeline.planning.planned import Binding
from clipmill.pipeline.run_folder.state import RunState

# Shapes: N rows of a root.

Kind = Literal["number", "category", "text", "other"]
Bools = NDArray[np.bool_]
MOST_NAMES = 2000  # most values of a category; a column with more is searched instead
READERS = 4  # shards read at once
CACHE_BYTES = 400 << 20  # cache of arrays; the least recently used goes first
NOT_YET = "not done yet"  # reason for rows of shards that a stage has not finished


@dataclass(frozen=True)
class Numbers:
    """(N,) stored values, and whether each is present; NaN counts as missing."""

    values: NDArray[np.generic]
    is_there: Bools

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.is_there.nbytes

    def as_arrow(self) -> pa.Array:
        """Returns the column as stored: NaN stays NaN, not null."""
        null_N = ~self.is_there
        if self.values.dtype.kind == "f":
            null_N &= ~np.isnan(self.values)
        return pa.array(self.values, mask=null_N if null_N.any() else None)


@dataclass(frozen=True)
class Codes:
    """(N,) the index of each row's value among `names`; -1 if missing."""

    code: NDArray[np.int32]
    names: list[str]

    @property
    def nbytes(self) -> int:
        return self.code.nbytes

    def as_arrow(self) -> pa.Array:
        """Returns the column as stored."""
        code = pa.array(self.code, mask=self.code < 0)
        return pa.DictionaryArray.from_arrays(code, self.names).cast(pa.string())


@dataclass(frozen=True)
class Stored:
    """A column that a stage stores for the rows of a root, and its kind of question."""

    stage: str
    name: str
    kind: Kind
    type: str
    doc: str
    better: str | None = None
    is_cluster: bool = False

    @property
    def where(self) -> Binding:
        return self.stage, self.name

    @property
    def id(self) -> str:
        return f"{self.stage}.{self.name}"


class Columns:
    """The columns of one root; thread-safe."""

    def __init__(self, state: RunState, root: str) -> None:
        self.state, self.root = state, root
        self.shards = sorted(state.stages[root].shards)
        rows = [state.stages[root].shards[shard].rows for shard in self.shards]
        self.starts = np.cumsum([0, *rows])
        self.stored = {column.id: column for column in stored_columns(state, root)}
        self._cache = Cache[str, Numbers | Codes](CACHE_BYTES)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def column(self, name: str) -> Stored:
        """Returns the column named `stage.column`; RecipeError if there is none."""
        if name not in self.stored:
            raise RecipeError(
                f"no column '{name}'", "the question", did_you_mean(name, self.stored, "there are")
            )
        return self.stored[name]

    def as_stored(self, where: Binding) -> pa.Array | pa.ChunkedArray | None:
        """Returns a column of numbers or booleans, or cached text; None for any other."""
        column = self.stored.get(".".join(where))
        if column is None:
            return None
        if column.kind == "number":
            return self.numbers(column.id).as_arrow()
        if column.type == "bool":
            parts: dict[int, pa.ChunkedArray | None] = {}
            self.each_shard(lambda shard, _: parts.update({shard: self.read(where, shard)}))
            chunks = [part for shard in self.shards if (part := parts[shard]) is not None]
            return pa.chunked_array(chain.from_iterable(part.chunks for part in chunks), pa.bool_())
        if column.type != "string" or column.name == REASON.name:  # reasons are stored as codes
            return None
        cached = self._cache.get(column.id)
        return None if cached is None else cached.as_arrow()

    def numbers(self, name: str) -> Numbers:
        column = self._get(name)
        if isinstance(column, Numbers):
            return column
        raise RecipeError(f"'{name}' holds no numbers", "the question", "choose values instead")

    def codes(self, name: str) -> Codes:
        """Returns a column's codes; RecipeError for numbers, or too many values."""
        column = self._get(name)
        if isinstance(column, Codes):
            return column
        raise RecipeError(f"'{name}' holds numbers", "the question", "give a range instead")

    def places(self, rows: NDArray[np.int64]) -> list[tuple[int, int]]:
        """Returns shard and position of each row."""
        shard = np.searchsorted(self.starts, rows, side="right") - 1
        position = rows - self.starts[shard]
        return [(self.shards[s], int(p)) for s, p in zip(shard.tolist(), position, strict=True)]

    def every_place(self) -> dict[str, NDArray[np.int32]]:
        """Returns shard and position of all rows."""
        rows = np.diff(self.starts)
        first_N = np.repeat(self.starts[:-1], rows)
        return {
            SHARD.name: np.repeat(np.array(self.shards, np.int32), rows),
            POSITION.name: (np.arange(len(self)) - first_N).astype(np.int32),
        }

    def each_shard(self, work: Callable[[int, slice], None]) -> None:
        """Calls `work` with every shard and its rows, several at once; raises the first error."""
        rows = [slice(*self.starts[i : i + 2].tolist()) for i in range(len(self.shards))]
        with ThreadPoolExecutor(READERS) as pool:
            for _ in pool.map(work, self.shards, rows):
                pass

    def read(self, where: Binding, shard: int) -> pa.ChunkedArray | None:
        """Returns a column of one shard; None if the stage has not finished it."""
        stage, name = where
        shard_state = self.state.stages[stage].shards.get(shard)
        if shard_state is None:
            return None
        tables = self.state.stored[stage].read(shard_state, [name], 1 << 16)
        return pa.concat_tables(tables)[name]

    def _get(self, name: str) -> Numbers | Codes:
        with self._lock:  # one reader at a time: two that ask for one column read it once
            values = self._cache.get(name)
            if values is None:
                column = self.column(name)
                if column.kind == "number":
                    values = self._numbers(column)
                elif column.kind in ("category", "text"):
                    values = self._codes(column)
                else:
                    raise RecipeError(
                        f"'{name}' holds {column.type}: it is shown, and not asked",
                        "the question",
                        "let a stage write a number of it",
                    )
                self._cache.put(name, values, values.nbytes)
        return values

    def _numbers(self, column: Stored) -> Numbers:
        dtype = self.state.plan.schema(*column.where).to_pandas_dtype()
        values_N, is_there_N = np.zeros(len(self), dtype), np.zeros(len(self), bool)

        def work(shard: int, rows: slice) -> None:
            array = self.read(column.where, shard)
            if array is not None:
                is_there_N[rows] = pc.is_valid(array).to_numpy()
                values_N[rows] = pc.fill_null(array, 0).to_numpy()

        self.each_shard(work)
        if values_N.dtype.kind == "f":
            is_there_N &= ~np.isnan(values_N)
        return Numbers(values_N, is_there_N)

    def _codes(self, column: Stored) -> Codes:
        stage = self.state.stages[column.stage]

        def values(shard: int) -> pa.ChunkedArray | None:
            if column.name == REASON.name:
                if shard not in stage.shards:
                    rows = self.state.stages[self.root].shards[shard].rows
                    return pa.chunked_array([[NOT_YET] * rows], pa.string())
                recorded = stage.recorded(shard)
                if recorded is not None and recorded.keys() <= {""}:
                    return None
            array = self.read(column.where, shard)
            return None if array is None else array.cast(pa.string())

        return coded(self, values, column.id)


def coded(columns: Columns, values: Callable[[int], pa.ChunkedArray | None], name: str) -> Codes:
    """Returns the texts of all shards as codes, with names in alphabetical order."""
    code_N = np.full(len(columns), -1, np.int32)
    place: dict[str, int] = {}
    lock = threading.Lock()

    def work(shard: int, rows: slice) -> None:
        array = values(shard)
        if array is None:
            return
        encoded = array.combine_chunks().dictionary_encode()
        encoded = encoded.chunk(0) if isinstance(encoded, pa.ChunkedArray) else encoded
        with lock:
            texts = encoded.dictionary.to_pylist()
            indices = [place.setdefault(text, len(place)) for text in texts]
            if len(place) > MOST_NAMES:
                raise RecipeError(
                    f"'{name}' has more than {MOST_NAMES:,} values",
                    "the question",
                    "search for a part of it instead",
                )
        lookup = np.array([*indices, -1], np.int32)
        index = encoded.indices.fill_null(len(indices)).to_numpy(zero_copy_only=False)
        code_N[rows] = lookup[index]

    columns.each_shard(work)
    names = sorted(place)
    rank = {text: number for number, text in enumerate(names)}
    order = np.array([*(rank[text] for text in place), -1], np.int32)
    return Codes(order[code_N], names)


def stored_columns(state: RunState, root: str) -> Iterator[Stored]:
    """Yields the columns that each stage stores for a root's rows, and its reasons."""
    for name, planned in state.plan.stages.items():
        if planned.root != root or not planned.gives_rows:
            continue
        for column in planned.stage.writes:
            if column.name in (IMAGE.name, UID.name, POSITION.name):
                continue
            dtype = state.plan.schema(name, column.name)
            yield Stored(
                stage=name,
                name=column.name,
                kind=kind_of(dtype),
                type=str(dtype),
                doc=column.doc,
                better=column.better,
                is_cluster=column.names == "cluster",
            )
        yield Stored(name, REASON.name, "category", "string", REASON.doc)


def kind_of(dtype: pa.DataType) -> Kind:
    """Returns how values of a type can be queried."""
    if pa.types.is_integer(dtype) or pa.types.is_floating(dtype):
        return "number"
    if pa.types.is_boolean(dtype) or pa.types.is_dictionary(dtype):
        return "category"
    return "text" if pa.types.is_string(dtype) or pa.types.is_large_string(dtype) else "other"
