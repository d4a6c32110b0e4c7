"""What a dataset stage is given, and the calls that it makes; the engine behind them is elsewhere.

Every call that stores is numbered and journalled: run again after a crash, a finished call
returns its stored result at once, and an unfinished one does only its missing parts. Functions
handed to a call run in workers: they are module-level, or `functools.partial` of such.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypedDict

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.pipeline.stage import Worker

State = dict[str, NDArray[np.generic]]  # what crosses shards: named arrays, stored as .npz
TableFunction = Callable[[pa.Table], pa.Table]


class Shards(Protocol):
    """Rows by shard, or by partition after a shuffle; each with uid, shard and position."""

    def __len__(self) -> int: ...

    def rows(self, index: int) -> int:
        """Rows of one shard, without reading it; -1 of a partition, where only reading tells."""
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


class Step(TypedDict):
    """A stage as a data card tells of it: its settings are those the recipe gives, but for places.

    A place is told where it is a URI: the path on one machine means nothing elsewhere.
    """

    stage: str
    uses: str
    settings: dict[str, Any]


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
    centroids: str | None = None  # and of `centroids: "stage:x"`
    targets: str | None = None  # and of the export that `targets: "stage:x"` names
    # By column that it reads, which model made it: what the writer's `model` names, or for a stage
    # USES@FINGERPRINT. Columns of a stage without that setting are not in it.
    model_of: Mapping[str, str] = field(default_factory=dict)
    target_model_of: Mapping[str, str] = field(default_factory=dict)  # the same of `targets`
    own_model: str | None = None  # what its own `model` names, in the same words
    told: tuple[Step, ...] = ()  # the stages before it, in the recipe's order


@dataclass(frozen=True, kw_only=True)
class Rank:
    """One process of a launch.

    `rendezvous` is where the ranks meet: `tcp://HOST:PORT`, on rank 0's machine, as
    torch.distributed takes it. The port was free a moment ago; where rank 0 finds it taken, all
    begin again with another.
    """

    rank: int
    of: int
    rendezvous: str


class Put(Protocol):
    """Stores a scratch file under a name: it moves there."""

    def __call__(self, name: str, path: Path) -> None: ...


class Checkpoints(Protocol):
    """The newest state of a long piece of work; it goes when the stage is complete."""

    def put(self, step: int, path: Path) -> None:
        """Stores a scratch file, which moves there, whole or not at all; older ones go."""
        ...

    def newest(self) -> tuple[int, Path] | None:
        """The greatest step of which the file is whole, and a copy of it in scratch."""
        ...


class Task(Protocol):
    """Where a function of `map`, `create_shards` or `launch` runs."""

    @property
    def worker(self) -> Worker: ...

    @property
    def page_checksums(self) -> bool:
        """Whether Parquet files in out/ get checksums: not where such a file had none before."""
        ...

    def put_file(self, name: str, path: Path, sha256: str = "") -> None:
        """Moves a scratch file to `out/<name>` in the stage's folder, whole or not at all.

        Whoever hashed what it wrote says the file's digest, or it is read again for that.
        """
        ...

    def checkpoints(self, name: str) -> Checkpoints:
        """Those of one piece of work of this stage, on its inputs as they are now.

        Of a launch, one rank puts them, and all see the same.
        """
        ...

    def once(
        self, key: str, make: Callable[[Put], Mapping[str, Any]], prefix: str = ""
    ) -> dict[str, Any]:
        """What make(put) returns, which JSON can hold; the files that it put, as `<prefix><name>`
        in `out/`.

        The key is a digest, in hex digits, of all that the result depends on. In one run folder it
        is made once, by whichever stage asks first: every other stage, or the same one with other
        settings, gets result and files from there. Two that ask at the same time may both make it.
        """
        ...


class Context(Protocol):
    """The calls of a dataset stage."""

    worker: Worker
    folder: str  # URI of the stage's folder
    wanted: frozenset[str]  # columns of this stage that another stage of the plan reads

    def say(self, words: str) -> None:
        """Names what the calls from here on do, for whoever watches: `comparing captions`.

        An empty text names them by their kind again. It changes nothing that is stored.
        """
        ...

    def map(
        self, fn: Callable[[Any, Task], Mapping[str, Any]], items: Sequence[Any]
    ) -> list[dict[str, Any]]:
        """fn of every item, in workers, in the order of the items.

        Items and results are small and JSON; Shards that fn reads are bound by functools.partial.
        """
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

    def create_shards_together(
        self,
        fn: Callable[[list[dict[str, Any]], Task], Iterator[Iterator[pa.Table]]],
        groups: Sequence[Sequence[dict[str, Any]]],
    ) -> None:
        """As create_shards, where neighbours are read as one: fn of a group streams each's rows.

        The shard stays the unit of resume: fn is given those of a group that are not stored. A
        group that fails is read again source by source, so that only the bad ones are set aside.
        """
        ...

    def map_shards(self, fn: TableFunction, over: Shards) -> Shards:
        """fn of every shard, when it is next stored or reduced: lazy, so nothing is written."""
        ...

    def keep_local(self, over: Shards) -> Shards:
        """The same rows, which are read from storage once where the workers' scratch has room.

        For rows that several calls read: each machine keeps what its workers read, in the temporary
        folder, until the stage ends. Give it the rows with the columns that the calls need and no
        others; before the rounds, not in each.
        """
        ...

    def shuffle(self, over: Shards, key: str, partitions: int | None = None) -> Shards:
        """The same rows in partitions by the hash of `key`: equal keys meet, and so do nulls.

        Rows keep shard and position; memory is bounded by a partition. A partition's number is the
        hash modulo their count: so of n * k partitions, i, i + n, i + 2n ... have the keys that
        partition i has of n.
        """
        ...

    def partitions(self, over: Shards, more: int = 0) -> int:
        """How many partitions hold these rows, and `more` of another source, in memory each."""
        ...

    def drop(self, shuffled: Shards) -> None:
        """Frees the storage of a shuffle, whose rows cannot be read after that.

        Call it when the results made of them are stored: a stage that is killed and run again makes
        the same calls, and gets those results from the journal.
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
        """fn of every shard, merged in the order of the shards; large states by workers, as a tree.

        Sums of integers or of fixed point do not depend on how rows are cut into shards, nor on
        the tree.
        """
        ...

    def iterate(
        self,
        state: State,
        step: Callable[[State, int], State],
        rounds: int,
        until: Callable[[State], bool] | None = None,
    ) -> State:
        """The state after step(state, round), `rounds` times or until `until`; each is stored."""
        ...

    def launch(self, fn: Callable[[Rank, Task], Mapping[str, Any]], workers: int) -> dict[str, Any]:
        """fn of every rank, in so many fresh processes side by side; the result of rank 0.

        Each has the stage's resources, with GPUs of its own. Where one dies, all begin again, three
        times at most: fn goes on from its checkpoints.
        """
        ...
