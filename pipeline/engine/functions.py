"""Opens the functions of a chain's stages in a worker, and applies them to batches."""

import uuid
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.metadata.record import ShardState
from clipmill.metadata.schema import UID
from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.answers import FOLDER as ANSWERS
from clipmill.pipeline.engine.answers import StoredAnswers
from clipmill.pipeline.engine.budget import FOLDER as BUDGET
from clipmill.pipeline.engine.budget import SharedBudget
from clipmill.pipeline.engine.chain import Chain
from clipmill.pipeline.engine.declared import as_declared, stored_schema
from clipmill.pipeline.engine.helpers import HelperProcess
from clipmill.pipeline.engine.partial_results import PartialResults
from clipmill.pipeline.engine.worker import free_gpu, worker_of
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.planning.planned import Binding, PlannedStage
from clipmill.pipeline.provided import Usage, ignored
from clipmill.pipeline.run_folder.rows import read_rows
from clipmill.pipeline.run_folder.spent import Spent
from clipmill.pipeline.stage import RowFunction, RowStage, StreamFunction

if TYPE_CHECKING:
    from clipmill.pipeline.engine.streaming import EventLoop  # asyncio: only for stages that stream

OPENING = ""  # in `spent`: what no later shard takes

# Shapes: K rows of a batch that are computed.

Derive = Callable[[pa.ChunkedArray], Any]  # returns an array or a chunked one


@dataclass(kw_only=True)
class Batch:
    """Rows of a shard on their way through a chain, with columns read and columns computed."""

    start: int  # position in the shard of the batch's first row
    whole: pa.ChunkedArray  # uids of all rows of the batch
    row_K: NDArray[np.int64] | None = None  # indices of rows to compute; None: all
    columns: dict[Binding, pa.ChunkedArray]  # of the K rows to compute
    derived: dict[tuple[Derive, Binding], Any] = field(default_factory=dict)

    @property
    def rows_computed(self) -> NDArray[np.int64]:
        """(K,) indices within the batch of the rows to compute."""
        return np.arange(len(self.whole)) if self.row_K is None else self.row_K

    @property
    def positions(self) -> NDArray[np.int64]:
        """(K,) positions within the shard of the rows to compute."""
        return self.rows_computed + self.start

    def only(self, index: NDArray[np.int64]) -> "Batch":
        """Returns the batch with fewer rows to compute: those at `index` of its K rows."""
        taken = pa.array(index)
        columns = {binding: column.take(taken) for binding, column in self.columns.items()}
        row_K = self.rows_computed[index]
        return Batch(start=self.start, whole=self.whole, row_K=row_K, columns=columns)

    @cached_property
    def uids(self) -> pa.ChunkedArray:
        """(K,) uids of the rows to compute."""
        return self.whole if self.row_K is None else self.whole.take(pa.array(self.row_K))

    def inputs(self, planned: PlannedStage) -> pa.Table:
        """Returns uid and the columns that a stage reads, by the names it reads them by."""
        columns: dict[str, Any] = {UID.name: self.uids}
        for read, binding in planned.bindings[0].items():
            column = planned.derived.get(read)
            columns[read] = self.derive(column.derive, binding) if column else self.columns[binding]
        return pa.table(columns)

    def derive(self, derive: Derive, binding: Binding, compute: Derive | None = None) -> Any:
        """Returns a derived column, cached for the next stage; `compute` is a faster `derive`."""
        if (derive, binding) not in self.derived:
            self.derived[derive, binding] = (compute or derive)(self.columns[binding])
        return self.derived[derive, binding]


def read_batches(
    chain: Chain,
    states: Mapping[str, ShardState],
    planned: PlannedStage,
    bindings: Iterable[Binding],
) -> Generator[Batch]:
    """Yields a shard's batches with these columns, cut as the stage wants them."""
    assert isinstance(planned.stage, RowStage)
    reading, start = {f"{stage}.{column}": (stage, column) for stage, column in bindings}, 0
    batch_rows = planned.stage.batch_rows
    for table in read_rows(chain.stored, states, reading, planned.root, batch_rows):
        columns = {binding: table[name] for name, binding in reading.items()}
        yield Batch(start=start, whole=table[UID.name], columns=columns)
        start += len(table)


def read_ahead(
    batches: Generator[Batch], stages: Sequence[PlannedStage], cpus: int
) -> Generator[Batch]:
    """Yields the batches; each is read, and its pictures decoded, while the one before is used."""

    def in_parts(derive: Derive, column: pa.ChunkedArray) -> pa.ChunkedArray:
        rows = max(1, -(-len(column) // cpus))
        parts = [column.slice(start, rows) for start in range(0, len(column), rows)] or [column]
        return pa.chunked_array(list(threads.map(derive, parts)))

    def next_batch() -> Batch | None:
        if (batch := next(batches, None)) is None:
            return None
        for planned in stages:
            for read, column in planned.derived.items():
                binding = planned.bindings[0][read]
                if binding in batch.columns:  # else a stage of this chain writes it
                    batch.derive(column.derive, binding, partial(in_parts, column.derive))
        return batch

    with closing(batches), ThreadPoolExecutor(cpus) as threads, ThreadPoolExecutor(1) as reader:
        following = reader.submit(next_batch)
        while (batch := following.result()) is not None:
            following = reader.submit(next_batch)
            yield batch


class Functions:
    """The functions of a chain's stages, each opened at its first call and cached."""

    def __init__(
        self, chain: Chain, scratch: Path, took: Callable[[Usage], None] = ignored
    ) -> None:
        self.chain = chain
        self.scratch = scratch
        self.took = took
        self.row_done: Callable[[str], None] = ignored  # called with a stage's name
        self.spent: defaultdict[str, Spent] = defaultdict(Spent)  # in functions that do not stream
        self.answers = StoredAnswers(chain.run.child(ANSWERS))
        self._budgets: dict[tuple[Any, ...], SharedBudget] = {}
        self._opened: dict[str, RowFunction | StreamFunction] = {}
        self._helpers: list[HelperProcess] = []

    def through(
        self,
        planned: PlannedStage,
        batches: Iterator[Batch],
        shard: int,
        partials: PartialResults | None = None,
    ) -> Generator[tuple[Batch, pa.Table]]:
        """Yields each batch with the stage's answer, in the columns that the stage declares.

        Rows in the partial results are not computed again; computed rows are added to them.
        """
        assert isinstance(planned.stage, RowStage)
        place = f"stage '{planned.name}' ({planned.uses}), shard {shard}"
        if planned.stage.streams:
            yield from self._streamed(planned, batches, shard, place, partials)
            return
        schema = stored_schema(planned.stage)
        for batch in batches:
            function, inputs = cast(RowFunction, self.function(planned)), batch.inputs(planned)
            with self.spent[planned.name].measured():
                answer = function(inputs)
            if len(answer) != len(batch.uids):
                raise StageError(
                    f"{len(answer)} rows came back for {len(batch.uids)}",
                    place,
                    "a row stage keeps its rows",
                )
            yield batch, _declared(planned, batch, answer, shard, schema)

    def _streamed(
        self,
        planned: PlannedStage,
        batches: Iterator[Batch],
        shard: int,
        place: str,
        partials: PartialResults | None,
    ) -> Iterator[tuple[Batch, pa.Table]]:
        from clipmill.pipeline.engine.streaming import streamed

        under_way: deque[tuple[Batch, Batch | None]] = deque()  # batches, and their unanswered rows

        def inputs() -> Iterator[pa.Table]:
            for batch in batches:
                unanswered = _unanswered(batch, partials) if partials else batch
                under_way.append((batch, unanswered))
                if unanswered is not None:
                    yield unanswered.inputs(planned)

        def finished() -> Iterator[tuple[Batch, pa.Table]]:
            """Yields the batches at the head of the queue that have all their answers."""
            while partials and under_way and under_way[0][1] is None:
                batch, _ = under_way.popleft()
                yield batch, partials.rows(batch.positions)

        function = cast(StreamFunction, self.function(planned))
        schema = stored_schema(planned.stage)
        with closing(streamed(function, inputs(), self.events, place)) as answers:
            for answer in answers:
                yield from finished()
                batch, unanswered = under_way.popleft()
                assert unanswered is not None
                answer = _declared(planned, unanswered, answer, shard, schema)
                if partials:
                    partials.add(unanswered.positions, answer)
                    answer = _joined(batch, unanswered, answer, partials)
                yield batch, answer
            yield from finished()

    def flush(self) -> None:
        """Stores the stages' answers and the amounts they have spent."""
        self.answers.flush()
        for budget in self._budgets.values():
            budget.flush()

    def _budget(self, folder: Storage, limits: Mapping[str, float]) -> SharedBudget:
        key = (folder.uri, *sorted(limits.items()))
        if key not in self._budgets:
            self._budgets[key] = SharedBudget(folder, uuid.uuid4().hex, limits, self.answers.store)
        return self._budgets[key]

    def function(self, planned: PlannedStage) -> RowFunction | StreamFunction:
        if planned.name not in self._opened:
            with self.spent[OPENING].measured():
                self._opened[planned.name] = self._open(planned)
        return self._opened[planned.name]

    def _open(self, planned: PlannedStage) -> RowFunction | StreamFunction:
        assert isinstance(planned.stage, RowStage)
        stored = self.chain.stored
        model = stored[planned.model].folder if planned.model else None
        centroids = stored[planned.centroids].folder if planned.centroids else None
        folder = stored[planned.name].folder
        worker = worker_of(
            planned,
            self.chain.seed,
            self.scratch,
            folder,
            model,
            centroids,
            answers=self.answers,
            budget=partial(self._budget, folder.child(BUDGET)),
            took=self.took,
            row_done=lambda: self.row_done(planned.name),
            hold=self._helpers.append,
        )
        return planned.stage.open(worker)

    @cached_property
    def events(self) -> "EventLoop":
        """The event loop of all stages of the chain, for all shards."""
        from clipmill.pipeline.engine.streaming import EventLoop

        return EventLoop()

    def close(self) -> None:
        """Ends the event loop and the servers of the stages, and drops their models."""
        if "events" in vars(self):
            self.events.close()
        for helper in self._helpers:
            helper.stop()
        self._opened.clear()
        free_gpu(self.chain.stages)


def _unanswered(batch: Batch, partials: PartialResults) -> Batch | None:
    """Returns the batch cut to rows without a stored answer; None if all have one."""
    has_K = partials.has(batch.positions)
    if not has_K.any() and len(has_K):
        return batch
    return None if has_K.all() else batch.only(np.flatnonzero(~has_K))


def _joined(
    batch: Batch, unanswered: Batch, answer: pa.Table, partials: PartialResults
) -> pa.Table:
    """Returns the answer of the whole batch: new and stored rows, in the batch's order."""
    if unanswered is batch:
        return answer
    position_K = batch.positions
    has_K = partials.has(position_K)
    whole = pa.concat_tables([answer, partials.rows(position_K[has_K])]).unify_dictionaries()
    order = np.argsort(np.concatenate([np.flatnonzero(~has_K), np.flatnonzero(has_K)]))
    return whole.take(pa.array(order))


def _declared(
    planned: PlannedStage, batch: Batch, answer: pa.Table, shard: int, schema: pa.Schema
) -> pa.Table:
    if UID.name in answer.column_names:
        answer = answer.drop_columns([UID.name])
    return as_declared(planned, answer.add_column(0, UID.name, batch.uids), shard, schema)
