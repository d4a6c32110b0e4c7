"""The interface of stages: settings and declarations in a frozen dataclass, plain functions.

`uses: score.clip_score` in a recipe is the file `stages/score/clip_score.py`: the one RowStage or
DatasetStage in it. Its fields are its YAML keys; a comment beside or above each says what it means.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import pyarrow as pa
from msgspec import Meta

from clipmill.metadata.schema import Column
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.provided import Answers as Answers  # stages import all from here
from clipmill.pipeline.provided import Budget as Budget
from clipmill.pipeline.provided import Environment as Environment
from clipmill.pipeline.provided import Finding as Finding
from clipmill.pipeline.provided import Helper as Helper
from clipmill.pipeline.provided import LocalBudget, Remembered, StartHelper, only_in_a_run
from clipmill.pipeline.provided import Usage as Usage
from clipmill.pipeline.provided import ignored as ignored
from clipmill.pipeline.verdicts import Conditions as Conditions
from clipmill.pipeline.verdicts import Parts as Parts
from clipmill.pipeline.verdicts import Selects as Selects
from clipmill.pipeline.verdicts import Settles as Settles
from clipmill.pipeline.verdicts import Sign as Sign
from clipmill.pipeline.verdicts import Surveys as Surveys
from clipmill.pipeline.verdicts import Threshold as Threshold
from clipmill.pipeline.verdicts import Varies as Varies
from clipmill.pipeline.verdicts import Verdicts as Verdicts

if TYPE_CHECKING:
    from clipmill.pipeline.dataset import Context, Inputs

# Files in out/ that the report and the command line read, by content:
# loss      Parquet of `step` and `loss`, a row a step
# results   JSON, `models`: each with its `seed` and, by task, metrics with intervals
# leaks     JSON, `column`, the limits `at`, and by task `samples` and `rows` within each limit
# recall    JSON, `texts_drawn`: sampled texts with a near one, and how many were joined
# balance   JSON, `t` and the rows `matched`, `expected` and `kept`
# concepts  Parquet, a row a concept: `count` before, rows `kept`, its `t`
# listed    JSON, number of `uids` in a list, and how many of them are `missing`
# centroids Parquet, a row a cluster by number: its `centroid`, `rows` and `inertia`
Artifact = Literal[
    "loss", "results", "leaks", "recall", "balance", "concepts", "listed", "centroids", "notes"
]
Determinism = Literal["exact", "close", "recorded"]
Edge = Literal["rows", "data", "model", "start", "centroids", "targets"]
RowFunction = Callable[[pa.Table], pa.Table]
# For a stage that `streams`: batches in, as many batches out, in the same order. An async iterator
# runs in an event loop that lives as long as its worker.
StreamFunction = (
    Callable[[Iterator[pa.Table]], Iterator[pa.Table]]
    | Callable[[AsyncIterator[pa.Table]], AsyncIterator[pa.Table]]
)


# Types of settings with a range: the plan refuses other values and names the recipe's line;
# `clipmill stages NAME` prints the range.
ZeroUp = Annotated[int, Meta(ge=0)]
OneUp = Annotated[int, Meta(ge=1)]
Share = Annotated[float, Meta(gt=0, le=1)]  # of the rows, of pieces
Between0And1 = Annotated[float, Meta(gt=0, lt=1)]
Seconds = Annotated[float, Meta(ge=0.01, le=86_400)]  # of waiting: at most a day
Gigabytes = Annotated[float, Meta(gt=0, le=100_000)]  # of memory, a worker
Gpus = Annotated[float, Meta(ge=0, le=1024)]  # a worker; 0.5 shares one
Rate = Annotated[float, Meta(gt=0, le=10)]  # of learning
Decay = Annotated[float, Meta(ge=0, le=10)]  # of weights
NonEmpty = Annotated[str, Meta(min_length=1)]  # a path or a column


@dataclass(frozen=True, kw_only=True)
class Resources:
    """The resources of one worker of a stage; declared, never guessed from the planning machine."""

    cpus: int = 1
    gpus: float = 0
    memory_gb: float = 2


@dataclass(frozen=True, kw_only=True)
class Worker:
    """The surroundings of a stage's function: seed and recipe name for its random draws, device,
    threads, scratch disk, and services.

    `model` and `centroids` are the URIs of the stage folders that `model: "stage:x"` and
    `centroids: "stage:x"` name, else None. `pin(what, sha256)` checks bytes from outside the run,
    such as weights: StageError if this stage had others before. `tell(120, 235, "steps", loss=…)`
    reports the progress of a long piece of work; call it often, a few reports a second are shown.
    `row_done()` tells that one row of a batch is computed, so that progress moves inside a batch.
    `answers` are the stored ones of a `recorded` stage; `budget(limits)` is shared by its workers;
    `took(…)` records the usage of an answer. `environment(packages)` returns a Python with these
    packages, made once a machine; `start_helper(command, …)` starts a process that always ends
    with the worker.
    """

    seed: int
    stage: str
    device: str
    threads: int
    scratch: Path
    model: str | None = None
    centroids: str | None = None
    pin: Callable[[str, str], None] = ignored
    tell: Callable[..., None] = ignored
    row_done: Callable[[], None] = ignored
    answers: Answers = field(default_factory=Remembered)
    budget: Callable[[Mapping[str, float]], Budget] = LocalBudget
    took: Callable[[Usage], None] = ignored
    environment: Callable[[Environment], Path] = only_in_a_run
    start_helper: StartHelper = only_in_a_run


# (setting's value, worker, function that tries the environments that exist and returns the packages
# of the others) to the findings of `clipmill doctor`.
Proof = Callable[[str, Worker, Callable[[Sequence[Environment]], list[str]]], list[Finding] | None]


def location(default: Any = MISSING) -> Any:
    """Declares a setting of where or how fast, never what: it stays out of the fingerprint."""
    return field(default=default, metadata={"fingerprint": False})


def later(default: Any) -> Any:
    """Declares a setting added to an existing stage: its default stays out of the fingerprint.

    Stored results stay valid. The default must do what the stage did before.
    """
    return field(default=default, metadata={"fingerprint": "unless default"})


class Stage(ABC):
    """The declarations of both kinds of stage.

    Most stages set the properties here as class attributes, `reads = (TEXT,)`; a stage whose
    settings decide keeps a property.
    """

    version: ClassVar[int]  # raise it if a stored value may change, even in its last bit
    determinism: ClassVar[Determinism]
    takes: ClassVar[tuple[Edge | tuple[Edge, ...], ...]] = ("rows",)  # a tuple inside: one of them
    gives: ClassVar[tuple[Edge, ...]] = ("rows",)
    # Verbs find stages by the next three, each set in the class as `name = …`.
    # The setting that holds an SQL condition, which `show --where` applies to any rows.
    asked_in: ClassVar[str]
    # Its names in `export --to`; if there are several, its setting `format` chooses.
    formats: ClassVar[tuple[str, ...]]
    # (option of `doctor`, "model", "onnx" or "tasks", to a check; the check returns None for values
    # that another stage checks).
    proofs: ClassVar[tuple[tuple[str, Proof], ...]]

    @property
    def reads(self) -> tuple[Column | str, ...]:
        """Returns columns that an ancestor must have; a str is `name` or `stage.name`, any type."""
        return ()

    @property
    def optional_reads(self) -> tuple[Column | str | tuple[Column, ...], ...]:
        """Returns columns that it gets if an ancestor has them; of an inner tuple the first found.

        In a tuple, a column bound by `read` comes first.
        """
        return ()

    @property
    def writes(self) -> tuple[Column, ...]:
        return ()

    @property
    def learns(self) -> str | None:
        """Returns the column that limits the rows it learns from, or cuts by shares of; "" for all.

        `bench --hold-out` refuses what learnt from strangers.
        """
        return None

    @property
    def bounds(self) -> Mapping[str, tuple[float, float]]:
        """Returns the least and greatest possible value of written columns.

        The plan refuses thresholds outside, as no stored value can answer them.
        """
        return {}

    @property
    def prefers(self) -> tuple[tuple[str, str], ...]:
        """Returns sort keys, column and `asc` or `desc`, that choose which of two copies stays."""
        return ()

    @property
    def artifacts(self) -> tuple[tuple[Artifact, str], ...]:
        """Returns kind and name of files in out/; `*` is a model's prefix if there are several."""
        return ()

    @property
    def reasons(self) -> tuple[str, ...]:
        """Returns the codes that say why a row has no value."""
        return ()

    @property
    def transient(self) -> tuple[str, ...]:
        """Returns reasons that may pass: `--retry REASON` tries these rows again."""
        return ()

    @property
    def advice(self) -> Mapping[str, str]:
        """Returns what to do if most rows have a reason; for reasons that are faults, not verdicts.

        A row stage stops its run if its first shards fail for one of these or a transient reason.
        """
        return {}

    @property
    def resources(self) -> Resources:
        """Returns what the settings `cpus`, `gpus` and `memory_gb` say, else the defaults."""
        names = (each.name for each in fields(Resources) if hasattr(self, each.name))
        return Resources(**{name: getattr(self, name) for name in names})

    @property
    def note(self) -> str:
        """What `plan` says of its settings, which can be run; empty for most."""
        return ""

    @property
    def environments(self) -> tuple[Environment, ...]:
        """Returns other Pythons that its workers use: `plan` names them before they are made."""
        return ()

    @property
    def digests(self) -> Mapping[str, str]:
        """Returns digests of small files that its settings name and it has read, such as prompts.

        They count like settings: a stage with a changed prompt has another fingerprint.
        """
        return {}

    @property
    def least_rows(self) -> tuple[str, int] | None:
        """Returns a setting and the rows that it wants: the plan refuses a pool of fewer."""
        return None

    def check(self, types: Mapping[str, pa.DataType]) -> None:  # noqa: B027  # few need more
        """Raises ClipmillError if its settings do not fit the types of the columns it reads.

        Called by the plan, with uid among the names; for most stages `reads` is enough.
        """

    def hint(self, column: str, writers: tuple[str, ...] = ()) -> str:
        """Returns what to do if no ancestor has a column it reads; replaces the usual hint.

        With `writers`: if these ancestors have it, and none follows the other.
        """
        return ""

    def look(self) -> None:  # noqa: B027  # most read nothing from outside
        """Raises ClipmillError if a file that a setting names is missing or of another kind.

        Called by `plan`, and by `run` before it starts, for at most 2 s: reads nothing large.
        """


class RowStage(Stage):
    """A stage of one shard in, one shard out: same rows, same order, new columns."""

    batch_rows: ClassVar[int] = 1024  # rows of a batch, cut by position in the shard
    streams: ClassVar[bool] = False  # whether `open` returns a StreamFunction
    # For a stage that streams: whether finished batches are kept until the shard is stored. After a
    # kill in mid-shard it then requests only the others, and rows with a transient reason.
    journals: ClassVar[bool] = False
    # For an async stage that streams: whether it asks a model, and reports each answer's usage to
    # `worker.took`. `plan --probe` calls its function once a row, for many rows at once.
    asks: ClassVar[bool] = False

    @abstractmethod
    def open(self, worker: Worker) -> RowFunction | StreamFunction:
        """Loads what the work needs, once per worker; returns the function of one batch.

        The batch holds `uid` and the columns read; the result holds the columns written and
        `reason`, dictionary-encoded, null if the row has a value. The function of a stage that
        `streams` is called once a shard with all batches: it may take several before it yields the
        first, as memory allows.
        """


class DatasetStage(Stage):
    """A stage over all shards; it works by calls of `ctx`, and resumes at the call it was in.

    A root stage (`takes = ()`) may leave columns in its source: those named in `virtual` are read
    by `load_virtual` when a later stage needs them, and never copied.
    """

    joins_roots: ClassVar[bool] = False  # has shards of its own, and may join several roots
    # For a stage that gives no rows: it reads several roots one after another.
    reads_roots: ClassVar[bool] = False
    # Neighbouring shards that a unit of `reduce`, or of `restore` in the pool's own shards, reads.
    # Several if a shard takes milliseconds: a unit's files take one each.
    at_once: ClassVar[int] = 1
    virtual: tuple[Column, ...] = ()

    @abstractmethod
    def run(self, inputs: "Inputs", ctx: "Context") -> None:
        """Does the stage's work; ends in a call that stores its shards, files or model."""

    def outside(self) -> str:
        """Returns a digest of what it reads from outside the run; cheap, as each run calls it.

        If it changes, the stage runs again.
        """
        return ""

    def files(self) -> dict[str, int]:
        """Returns the files that a root reads: name below its path to bytes; cheap as a listing.

        A run folder belongs to the pool with these files; a root without files has no pool.
        """
        return {}

    def head(self, rows: int) -> pa.Table:
        """Returns a root's first rows as it would store them: uid, columns and reason.

        Reads no more than needed; ClipmillError if the settings do not fit the files.
        """
        raise NotImplementedError  # called only for a stage that reads files

    def look(self) -> None:
        """Checks that a root has files, and that its first rows fit the settings."""
        if self.files() and type(self).head is not DatasetStage.head:
            self.head(1)

    def check_columns(self, names: Set[str]) -> None:
        """Checks that a root's first file has these columns, which stages read, as it stores them.

        Error: ClipmillError where it does not.
        """

    def counts(self) -> Iterator[tuple[int, int]]:
        """Yields rows and shards of a root's files; nothing if only reading all of them tells."""
        return iter(())

    def candidates(self, rows: int) -> float | None:
        """Returns the expected pairs to compare among `rows`; None if they grow linearly."""
        return None

    def load_virtual(self, names: list[str], source: Mapping[str, Any]) -> pa.Table:
        """Reads virtual columns for every row of the shard made from `source`."""
        raise NotImplementedError  # called only for a stage with `virtual` columns


def need_types(
    types: Mapping[str, pa.DataType],
    names: Iterable[str],
    where: str,
    do: str = "name columns of numbers",
    kinds: tuple[Callable[[pa.DataType], bool], ...] = (pa.types.is_integer, pa.types.is_floating),
) -> None:
    """Raises StageError for the first of the columns whose type is of none of the kinds."""
    for name in names:
        if not any(is_kind(types[name]) for is_kind in kinds):
            raise StageError(f"column '{name}' holds {types[name]}", where, do)


def edges_taken(stage: Stage | type[Stage]) -> tuple[Edge, ...]:
    """Returns the kinds of edge that a stage may take."""
    return tuple(
        kind for edge in stage.takes for kind in (edge if isinstance(edge, tuple) else (edge,))
    )


def settings_fields(stage: Stage | type[Stage]) -> tuple[Field[Any], ...]:
    """Returns a stage's fields: its recipe keys."""
    return fields(stage)  # type: ignore[arg-type]  # a dataclass: checked when its file is read


def optional_columns(stage: Stage) -> tuple[Column | str, ...]:
    """Returns every optional column of a stage, with all alternatives."""
    return tuple(
        column
        for choice in stage.optional_reads
        for column in (choice if isinstance(choice, tuple) else (choice,))
    )
