"""What a dataset stage works with: the doors of the engine, without the engine.

Every call that stores is numbered and journalled: run again after a crash, a finished call
returns its stored result at once, and an unfinished one does only its missing parts. Functions
handed to a call run in workers: they are module-level, or `functools.partial` of such.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.stage import Worker

State = dict[str, NDArray[np.generic]]  # what crosses shards: named arrays, stored as .npz
TableFunction = Callable[[pa.Table], pa.Table]


class Shards(Protocol):
    """Rows by shard, or by partition after a shuffle; each with uid, shard and position."""

    def __len__(self) -> int: ...

    def rows(self, index: int) -> int:
        """Rows of one shard, without reading it (of a pool-shaped one; -1 where unknown)."""
        ...

    def batches(self, index: int, batch_rows: int = 1024) -> Iterator[pa.Table]:
        """One shard, streamed: memory is bounded by a batch. Picklable: tasks may carry it."""
        ...

    def table(self, index: int) -> pa.Table:
        """One shard, whole."""
        ...

    def select(self, names: Iterable[str]) -> "Shards":
        """The rows with these columns only: an image that is not named is not read."""
        ...


class Mask(Protocol):
    """Which rows of an export the select stage keeps that `rows` names."""

    def times(self, file: str) -> NDArray[np.int32]:
        """(N,) how often each row of an exported file counts; 0 where it is not kept.

        Picklable: tasks may carry it. Memory is bounded by one shard of the pool.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """A dataset stage's inputs: what the plan gives it of the edges that it takes."""

    rows: Shards  # none where it takes no rows
    data: str = ""  # URI of the export's folder; empty where it takes no data
    mask: Mask | None = None  # of the export's rows; None where all of them are meant
    model: str | None = None  # URI of the folder of `model: "stage:x"`


class Task(Protocol):
    """One item's place of work inside `ctx.map`."""

    @property
    def worker(self) -> Worker: ...

    @property
    def page_checksums(self) -> bool:
        """Whether Parquet files in out/ get checksums: not where such a file had none before."""
        ...

    def put_file(self, name: str, path: Path) -> None:
        """Moves a scratch file to `out/<name>` in the stage's folder, whole or not at all."""
        ...


class Context(Protocol):
    """The calls of a dataset stage."""

    worker: Worker
    folder: str  # URI of the stage's folder
    wanted: frozenset[str]  # of the stage's columns those that a stage of the plan reads

    def map(
        self, fn: Callable[[Any, Task], Mapping[str, Any]], items: Sequence[Any]
    ) -> list[dict[str, Any]]:
        """fn of every item, in workers; results are small and JSON; items are JSON too, or a
        (JSON, Shards) pair is bound with functools.partial."""
        ...

    def create_shards(
        self,
        fn: Callable[[dict[str, Any], Task], Iterator[pa.Table]],
        sources: Sequence[dict[str, Any]],
    ) -> None:
        """The root's shards: number i holds the rows that fn streams from sources[i].

        A source is JSON and holds `digest`, which changes when its bytes do. A source that fails
        with ShardError fails that shard alone.
        """
        ...

    def map_shards(self, fn: TableFunction, over: Shards) -> Shards:
        """fn of every shard, when it is next stored or reduced: lazy, so nothing is written."""
        ...

    def shuffle(self, over: Shards, key: str, partitions: int | None = None) -> Shards:
        """The same rows in partitions by the hash of `key`: equal keys meet; memory is bounded
        by a partition. Nulls meet in one partition. Rows keep shard and position.

        A partition's number is the hash modulo how many there are: where a shuffle has n times as
        many as another, every n-th of them, from i on, has the keys of the other's partition i.
        """
        ...

    def partitions(self, over: Shards, more: int = 0) -> int:
        """How many partitions hold these rows, and `more` of another source, in memory each."""
        ...

    def drop(self, shuffled: Shards) -> None:
        """Frees the storage of what `shuffle` gave, which is not read again.

        To be called once all that was made of it is stored by later calls: so a stage that is
        killed and run again, which does the same, has no need of it either.
        """
        ...

    def restore(self, over: Shards) -> None:
        """Stores the stage's columns in the pool's shards and order; each row exactly once."""
        ...

    def reduce(
        self,
        fn: Callable[[pa.Table], State],
        over: Shards,
        merge: Callable[[State, State], State],
    ) -> State:
        """fn of every shard, merged in the order of the shards. Sums that are order-free
        (integers, fixed point) make the result independent of the shards' size."""
        ...

    def iterate(
        self,
        state: State,
        step: Callable[[State, int], State],
        rounds: int,
        until: Callable[[State], bool] | None = None,
    ) -> State:
        """step(state, round), `rounds` times or until `until`; the state is stored per step."""
        ...

    def launch(
        self,
        fn: Callable[[int, int, Task], Mapping[str, Any]],
        workers: int,
        gpus: float = 0,
    ) -> dict[str, Any]:
        """fn(rank, workers, task) on that many workers side by side; the result of rank 0."""
        ...
