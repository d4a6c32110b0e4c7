"""What a stage is: settings and declarations in a frozen dataclass, work in plain functions.

`uses: score.clip_score` in a recipe is the file `stages/score/clip_score.py`: the one class in it
that is a RowStage or a DatasetStage. Its fields are its YAML keys; what each means
stands beside it, or above it, as a comment.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence, Set
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import pyarrow as pa
from msgspec import Meta

from clipmill.metadata.schema import Column
from clipmill.pipeline.provided import Answers as Answers  # a stage's file imports all from here
from clipmill.pipeline.provided import Budget as Budget
from clipmill.pipeline.provided import Environment as Environment
from clipmill.pipeline.provided import Finding as Finding
from clipmill.pipeline.provided import Helper as Helper
from clipmill.pipeline.provided import (
    LocalBudget,
    Remembered,
    StartHelper,
    ignored,
    no_environment,
    no_helper,
)
from clipmill.pipeline.provided import Usage as Usage
from clipmill.pipeline.verdicts import Conditions as Conditions
from clipmill.pipeline.verdicts import Parts as Parts
from clipmill.pipeline.verdicts import Selects as Selects
from clipmill.pipeline.verdicts import Settles as Settles
from clipmill.pipeline.verdicts import Surveys as Surveys
from clipmill.pipeline.verdicts import Threshold as Threshold
from clipmill.pipeline.verdicts import Varies as Varies
from clipmill.pipeline.verdicts import Verdicts as Verdicts

if TYPE_CHECKING:
    from clipmill.pipeline.dataset import Context, Inputs

# Files in out/ that the report and the command line read, by what they hold:
# loss      Parquet of `step` and `loss`, a row a step
# results   JSON, `models`: of each its `seed` and, by task, its metrics with intervals
# leaks     JSON, `column`, the limits `at`, and by task `samples` and `rows` within each limit
# recall    JSON, `texts_drawn`: of some texts how many had a near one, and how many were joined
# balance   JSON, `t` and the rows `matched`, `expected` and `kept`
# concepts  Parquet, a row a concept: its `count` before, its rows `kept`, its `t`
# listed    JSON, `uids` that a list names, and how many of them are `missing`
# centroids Parquet, a row a cluster by its number: its `centroid`, its `rows`, their `inertia`
Artifact = Literal[
    "loss", "results", "leaks", "recall", "balance", "concepts", "listed", "centroids", "notes"
]
Determinism = Literal["exact", "close", "recorded"]
Edge = Literal["rows", "data", "model", "centroids", "targets"]
RowFunction = Callable[[pa.Table], pa.Table]
# Of a stage that `streams`: batches in, as many batches out, in their order. What an async one
# gives is iterated in an event loop that lives as long as its worker.
StreamFunction = (
    Callable[[Iterator[pa.Table]], Iterator[pa.Table]]
    | Callable[[AsyncIterator[pa.Table]], AsyncIterator[pa.Table]]
)


# Settings with a range: the plan refuses any other value, with its line of the recipe, and
# `clipmill stages NAME` prints the range.
ZeroUp = Annotated[int, Meta(ge=0)]
OneUp = Annotated[int, Meta(ge=1)]
Share = Annotated[float, Meta(gt=0, le=1)]  # of the rows, of pieces
Between0And1 = Annotated[float, Meta(gt=0, lt=1)]
Seconds = Annotated[float, Meta(ge=0.01, le=86_400)]  # of waiting: a day at most
Gigabytes = Annotated[float, Meta(gt=0, le=100_000)]  # of memory, a worker
Gpus = Annotated[float, Meta(ge=0, le=1024)]  # a worker; 0.5 shares one
Rate = Annotated[float, Meta(gt=0, le=10)]  # of learning
Decay = Annotated[float, Meta(ge=0, le=10)]  # of weights
NonEmpty = Annotated[str, Meta(min_length=1)]  # a path, a column: the empty text names none


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one worker of a stage needs; declared, never guessed from whoever plans."""

    cpus: int = 1
    gpus: float = 0
    memory_gb: float = 2


def unpinned(what: str, sha256: str) -> None:
    """Outside a run nothing is held to an earlier digest."""


def untold(done: float, all: float, what: str = "", **values: float) -> None:
    """Outside a run nobody asks how far it is."""


@dataclass(frozen=True, kw_only=True)
class Worker:
    """Where a stage's function runs: seed and recipe name for its coins, threads, scratch disk.

    `model` is the URI of the folder of the stage that `model: "stage:x"` names, else None;
    `centroids` that of `centroids: "stage:x"`.
    `pin(what, sha256)` is for bytes from outside the run, weights above all: StageError where this
    stage had others before. `tell(done, all, what, loss=…)` says how far a long piece of work is,
    `tell(120, 235, "steps")`: call it as often as you like, some words a second are passed on.
    `answers` are those that a `recorded` stage got before; `budget(limits)` is shared by its
    workers; `took(…)` is told what each answer took. `environment(packages)` is the Python that has
    them, made once a machine; `start_helper(command, …)` a process that ends with the worker,
    whatever happens.
    """

    seed: int
    stage: str
    device: str
    threads: int
    scratch: Path
    model: str | None = None
    centroids: str | None = None
    pin: Callable[[str, str], None] = unpinned
    tell: Callable[..., None] = untold
    answers: Answers = field(default_factory=Remembered)
    budget: Callable[[Mapping[str, float]], Budget] = LocalBudget
    took: Callable[[Usage], None] = ignored
    environment: Callable[[Environment], Path] = no_environment
    start_helper: StartHelper = no_helper


# Of a value of a setting, a worker, and a function of Pythons that a stage would ask for, which
# tries those that are made and returns the packages of the others: what `clipmill doctor` says.
Proof = Callable[[str, Worker, Callable[[Sequence[Environment]], list[str]]], list[Finding] | None]


def location(default: Any = MISSING) -> Any:
    """A setting that says where or how fast, never what: it stays out of the fingerprint."""
    return field(default=default, metadata={"fingerprint": False})


def later(default: Any) -> Any:
    """A setting that came after its stage: at its default it stays out of the fingerprint.

    What was stored before it came stays good. The default must do what the stage did before.
    """
    return field(default=default, metadata={"fingerprint": "unless default"})


class Stage(ABC):
    """What both kinds declare.

    What is a property here is a class attribute in most stages, as `reads = (TEXT,)`, and a
    property where the settings decide.
    """

    version: ClassVar[int]  # raised when a stored value may change, by a last bit even
    determinism: ClassVar[Determinism]
    takes: ClassVar[tuple[Edge | tuple[Edge, ...], ...]] = ("rows",)  # a tuple inside: one of them
    gives: ClassVar[tuple[Edge, ...]] = ("rows",)
    # What a verb finds a stage by; each stands in the class as `name = …`.
    # The setting that holds a condition in SQL, which `show --where` asks of any rows.
    asked_in: ClassVar[str]
    # What `export --to` says for it; where there are several, its setting `format` says which.
    formats: ClassVar[tuple[str, ...]]
    # By what `doctor` is asked about, "model" or "tasks": what is found; None of a value that is
    # another stage's to tell of.
    proofs: ClassVar[tuple[tuple[str, Proof], ...]]

    @property
    def reads(self) -> tuple[Column | str, ...]:
        """Columns that an ancestor must have; a str is `name` or `stage.name`, of any type."""
        return ()

    @property
    def optional_reads(self) -> tuple[Column | str | tuple[Column, ...], ...]:
        """Columns that it gets where an ancestor has them; a tuple inside: the first that is there.

        Of several, one that `read` binds comes first.
        """
        return ()

    @property
    def writes(self) -> tuple[Column, ...]:
        return ()

    @property
    def bounds(self) -> Mapping[str, tuple[float, float]]:
        """The least and the greatest value that a written column can have.

        The plan refuses a threshold outside of them, since no stored value answers it.
        """
        return {}

    @property
    def prefers(self) -> tuple[tuple[str, str], ...]:
        """Column and `asc` or `desc`, in turn: which of two alike rows stays."""
        return ()

    @property
    def artifacts(self) -> tuple[tuple[Artifact, str], ...]:
        """What files in out/ hold, and their names; `*` is the prefix of one of several models."""
        return ()

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why a row may have no value."""
        return ()

    @property
    def transient(self) -> tuple[str, ...]:
        """Reasons that pass: `--retry REASON` tries these rows again."""
        return ()

    @property
    def advice(self) -> Mapping[str, str]:
        """What to do where most rows have a reason: of those that speak of a fault, not a verdict.

        A row stage whose first shards fail for one of these, or for one that passes, stops its run.
        """
        return {}

    @property
    def resources(self) -> Resources:
        return Resources()

    @property
    def note(self) -> str:
        """What `plan` says of its settings, which can be run; empty for most."""
        return ""

    @property
    def environments(self) -> tuple[Environment, ...]:
        """Other Pythons that its workers ask for: `plan` names them before they are made."""
        return ()

    @property
    def digests(self) -> Mapping[str, str]:
        """Of small files that its settings name and that it read when it was made, as prompts.

        They count as settings do: a stage whose prompt has changed is another stage.
        """
        return {}

    def check(self, types: Mapping[str, pa.DataType]) -> None:  # noqa: B027  # few have more
        """Raises ClipmillError where its settings ask what columns of these types cannot answer.

        Asked at plan, by the names that it reads, uid among them; `reads` says all that most need.
        """

    def hint(self, column: str, writers: tuple[str, ...] = ()) -> str:
        """What to do where no ancestor has a column that it reads, in the place of what is near.

        With `writers`: where these ancestors have it, and none follows the other.
        """
        return ""

    def look(self) -> None:  # noqa: B027  # most read nothing from outside
        """Raises ClipmillError where a file that a setting names is not there, or another kind.

        Asked by `plan`, and by `run` before it starts, for 2 s at most: nothing large is read.
        """


class RowStage(Stage):
    """One shard in, one shard out: same rows, same order, new columns."""

    batch_rows: ClassVar[int] = 1024  # rows of a batch, cut by position in the shard
    streams: ClassVar[bool] = False  # whether `open` returns a StreamFunction
    # Of a stage that streams: whether finished batches are kept until the shard is stored, so that
    # one killed in mid-shard asks the web only for the others, and for rows whose reason passes.
    journals: ClassVar[bool] = False
    # Of an async stage that streams: whether it asks a model, and tells `worker.took` what each
    # answer took. `plan --probe` calls its function once a row, for many rows side by side.
    asks: ClassVar[bool] = False

    @abstractmethod
    def open(self, worker: Worker) -> RowFunction | StreamFunction:
        """Loads what the work needs, once per worker; returns the function of one batch.

        The batch holds `uid` and the columns read; the result holds the columns written and
        `reason`, dictionary-encoded, null where the row is fine. The function of a stage that
        `streams` is called once a shard, with all its batches: it may take some before it gives
        the first back, as many as its memory holds.
        """


class DatasetStage(Stage):
    """Sees all shards; works through `ctx`, so that a killed stage resumes at the call it was in.

    A root stage (`takes = ()`) may keep columns where its source has them: those named in
    `virtual` are read by `load_virtual` when a later stage asks, and never copied.
    """

    joins_roots: ClassVar[bool] = False  # its shards are its own: two roots may meet in it
    # Of a stage that gives no rows: it reads those of several roots one after another.
    reads_roots: ClassVar[bool] = False
    # Neighbouring shards that a unit of `reduce`, or of `restore` in the pool's own shards, reads:
    # several where each takes milliseconds, as the files that a unit leaves take one each.
    at_once: ClassVar[int] = 1
    virtual: tuple[Column, ...] = ()

    @abstractmethod
    def run(self, inputs: "Inputs", ctx: "Context") -> None:
        """Ends in a call that stores this stage's shards, files or model."""

    def outside(self) -> str:
        """A digest of what it reads from outside the run, cheap as a listing: asked at each run.

        Where it changes, the stage runs again.
        """
        return ""

    def files(self) -> dict[str, int]:
        """Of a root, the files it reads: name below its path, and bytes; cheap as a listing.

        A run folder belongs to the pool that has them; a root without any is of no pool.
        """
        return {}

    def head(self, rows: int) -> pa.Table:
        """Of a root, its first rows as it would store them: uid, its columns and reason.

        Reads no more than that, in no run; ClipmillError where its settings do not fit the files.
        """
        raise NotImplementedError  # asked only of a stage that reads files

    def look(self) -> None:
        """Of a root, that there are files and that the first rows fit the settings."""
        if self.files() and type(self).head is not DatasetStage.head:
            self.head(1)

    def check_columns(self, names: Set[str]) -> None:
        """Checks that a root's first file has these columns, which stages read, as it stores them.

        Error: ClipmillError where it does not.
        """

    def counts(self) -> Iterator[tuple[int, int]]:
        """Of a root, rows and shards of its files, in turn; none where only reading tells."""
        return iter(())

    def candidates(self, rows: int) -> float | None:
        """Pairs that it expects to compare among so many rows; None where they grow as the rows."""
        return None

    def load_virtual(self, names: list[str], source: Mapping[str, Any]) -> pa.Table:
        """The named virtual columns of every row of the shard that was made from `source`."""
        raise NotImplementedError  # asked only of a stage that names some in `virtual`


def edges_taken(stage: Stage | type[Stage]) -> tuple[Edge, ...]:
    """The kinds of edge that a stage may take."""
    return tuple(
        kind for one in stage.takes for kind in (one if isinstance(one, tuple) else (one,))
    )


def settings_fields(stage: Stage | type[Stage]) -> tuple[Field[Any], ...]:
    """The fields of a stage: its recipe keys."""
    return fields(stage)  # type: ignore[arg-type]  # a dataclass: checked where its file is read


def optional_columns(stage: Stage) -> tuple[Column | str, ...]:
    """Every column that a stage reads where it is there, those of which it takes one too."""
    return tuple(
        column
        for one in stage.optional_reads
        for column in (one if isinstance(one, tuple) else (one,))
    )
