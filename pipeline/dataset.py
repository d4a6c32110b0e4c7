"""The interface of dataset stages: their inputs, and the calls of their context.

Every call that stores is numbered and journalled: in a resumed run a finished call returns its
stored result at once, and an unfinished one does only its missing parts. Functions passed to a
call run in workers: they are module-level functions, or `functools.partial` of one.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypedDict

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.pipeline.stage import Worker

State = dict[str, NDArray[np.generic]]  # crosses shards: named arrays, stored as .npz
TableFunction = Callable[[pa.Table], pa.Table]


class Shards(Protocol):
    """Rows by shard, or by partition after a shuffle; each row has uid, shard and position."""

    def __len__(self) -> int: ...

    def rows(self, index: int) -> int:
        """Returns a shard's number of rows without reading it; -1 for a partition."""

    def batches(self, index: int, batch_rows: int = 1024) -> Iterator[pa.Table]:
        """Streams one shard; memory is bounded by a batch. Picklable: tasks may carry it."""

    def table(self, index: int) -> pa.Table:
        """Reads one shard whole."""

    def select(self, names: Iterable[str]) -> "Shards":
        """Returns the rows with these columns only; other columns are not read."""


class Step(TypedDict):
    """A stage in a data card: its settings as in the recipe, without local paths.

    URIs stay; a path on one machine means nothing elsewhere.
    """

    stage: str
    uses: str
    settings: dict[str, Any]


class Mask(Protocol):
    """The rows of an export that the select stage named by `rows` keeps."""

    def times(self, file: str) -> NDArray[np.int32]:
        """Returns (N,) how often each row of an exported file counts; 0 if it is not kept.

        Picklable: tasks may carry it. Memory is bounded by one shard of the pool.
        """


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """A dataset stage's inputs, by the edges that it takes."""

    rows: Shards  # empty if it takes no rows
    data: str = ""  # URI of the export's folder; empty if it takes no data
    mask: Mask | None = None  # of the export's rows; None for all
    model: str | None = None  # URI of the folder of `model: "stage:x"`
    start: str | None = None  # URI of the folder of `start: "stage:x"`
    centroids: str | None = None  # URI of the folder of `centroids: "stage:x"`
    targets: str | None = None  # URI of the export of `targets: "stage:x"`
    # Column that it reads to the model that made it: the `model` setting of the column's stage, or
    # USES@FINGERPRINT if that is a stage. Columns of stages without a `model` are left out.
    model_of: Mapping[str, str] = field(default_factory=dict)
    target_model_of: Mapping[str, str] = field(default_factory=dict)  # for those of `targets`
    own_model: str | None = None  # its own `model`, in the same form
    steps: tuple[Step, ...] = ()  # the stages before it, in the recipe's order


@dataclass(frozen=True, kw_only=True)
class Rank:
    """One process of a launch.

    `rendezvous` is where the ranks meet: `tcp://HOST:PORT`, on rank 0's machine, as
    torch.distributed takes it. If rank 0 finds the port taken, all ranks start with another.
    """

    rank: int
    of: int
    rendezvous: str


class Put(Protocol):
    """Moves a scratch file to a name in storage."""

    def __call__(self, name: str, path: Path) -> None: ...


class Checkpoints(Protocol):
    """The newest state of a long piece of work; deleted when the stage is complete."""

    def put(self, step: int, path: Path) -> None:
        """Moves a scratch file to storage, whole or not at all; deletes older checkpoints."""

    def newest(self) -> tuple[int, Path] | None:
        """Returns the last step with a whole file, and a copy of that file in scratch."""


class Task(Protocol):
    """The surroundings of a function of `map`, `create_shards` or `launch` in a worker."""

    @property
    def worker(self) -> Worker: ...

    @property
    def page_checksums(self) -> bool:
        """Returns whether Parquet files in out/ get checksums: not if one there had none."""

    def put_file(self, name: str, path: Path, sha256: str = "") -> None:
        """Moves a scratch file to `out/<name>` in the stage's folder, whole or not at all.

        Pass `sha256` if the file was hashed while it was written; else it is read again.
        """

    def checkpoints(self, name: str) -> Checkpoints:
        """Returns the checkpoints of a piece of this stage's work, on its present inputs.

        In a launch one rank puts them, and all ranks see the same.
        """

    def once(
        self, key: str, make: Callable[[Put], Mapping[str, Any]], prefix: str = ""
    ) -> dict[str, Any]:
        """Returns the JSON result of make(put); the files that it puts become `<prefix><name>` in
        `out/`.

        The key is a hex digest of all that the result depends on. A run folder makes each key once:
        later calls, of any stage, get the stored result and files. Two calls at the same time may
        both make it.
        """


class Context(Protocol):
    """The calls of a dataset stage."""

    worker: Worker
    folder: str  # URI of the stage's folder
    wanted: frozenset[str]  # columns of this stage that others in the plan read

    def say(self, words: str) -> None:
        """Names the following calls in progress displays, for example `comparing captions`.

        An empty text restores the default name. Changes nothing that is stored.
        """

    def map(
        self, fn: Callable[[Any, Task], Mapping[str, Any]], items: Sequence[Any]
    ) -> list[dict[str, Any]]:
        """Returns fn of every item, computed in workers, in the items' order.

        Items and results are small JSON; Shards that fn reads are bound by functools.partial.
        """

    def create_shards(
        self,
        fn: Callable[[dict[str, Any], Task], Iterator[pa.Table]],
        sources: Sequence[dict[str, Any]],
    ) -> None:
        """Creates the root's shards: number i holds the rows that fn streams from sources[i].

        A source is JSON with a `digest` that changes when its bytes do. A ShardError fails that
        shard alone.
        """

    def create_shards_together(
        self,
        fn: Callable[[list[dict[str, Any]], Task], Iterator[Iterator[pa.Table]]],
        groups: Sequence[Sequence[dict[str, Any]]],
    ) -> None:
        """Creates shards like create_shards, but reads a group of sources in one call of fn.

        fn yields each source's rows as an iterator. The shard stays the unit of resume: fn gets the
        sources that are not stored yet. A group that fails is read again source by source, so that
        only the bad ones are set aside.
        """

    def map_shards(self, fn: TableFunction, over: Shards) -> Shards:
        """Applies fn to every shard, lazily: when it is next stored or reduced."""

    def keep_local(self, over: Shards) -> Shards:
        """Caches rows on the workers' scratch disks, as far as these have room.

        For rows that several calls read: each machine keeps what its workers read, in the temporary
        folder, until the stage ends. Select the columns that the calls need first; call it before
        the rounds, not in each.
        """

    def shuffle(self, over: Shards, key: str, partitions: int | None = None) -> Shards:
        """Partitions rows by the hash of `key`: equal keys meet, and so do nulls.

        Rows keep shard and position; memory is bounded by a partition. A row's partition is its
        hash modulo their number: of n * k partitions, i, i + n, i + 2n ... have the keys that
        partition i of n has.
        """

    def partitions(self, over: Shards, more: int = 0) -> int:
        """Returns how many partitions of these rows and `more` others fit in memory each."""

    def drop(self, shuffled: Shards) -> None:
        """Deletes a shuffle's storage; its rows cannot be read afterwards.

        Call it when the results made from it are stored: a resumed stage makes the same calls, and
        gets those results from the journal.
        """

    def restore(self, over: Shards) -> None:
        """Stores the stage's columns in the pool's shards and order; each row exactly once."""

    def reduce(
        self, fn: Callable[[pa.Table], State], over: Shards, merge: Callable[[State, State], State]
    ) -> State:
        """Merges fn of every shard, in shard order; large states as a tree, in workers.

        Sums of integers or fixed point depend neither on the cut into shards nor on the tree.
        """

    def iterate(
        self,
        state: State,
        step: Callable[[State, int], State],
        rounds: int,
        until: Callable[[State], bool] | None = None,
    ) -> State:
        """Returns the state after `rounds` of step(state, round), or when `until`; stores each."""

    def launch(self, fn: Callable[[Rank, Task], Mapping[str, Any]], workers: int) -> dict[str, Any]:
        """Runs fn in `workers` fresh processes at once, one a rank; returns rank 0's result.

        Each has the stage's resources, with GPUs of its own. If one dies, all start again, at most
        three times: fn resumes from its checkpoints.
        """
