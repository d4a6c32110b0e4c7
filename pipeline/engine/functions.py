"""The functions of a chain's stages in a worker, and what they make of batches."""

import uuid
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

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
from clipmill.pipeline.stage import RowFunction, RowStage, StreamFunction

if TYPE_CHECKING:
    from clipmill.pipeline.engine.streaming import EventLoop  # asyncio: only for stages that stream

# Shapes: K rows of a batch that are computed.


@dataclass(kw_only=True)
class Batch:
    """Rows of a shard on their way through a chain: what was read, and what its stages made."""

    start: int  # position in the shard of its first row
    whole: pa.ChunkedArray  # the uids of all its rows
    row_K: NDArray[np.int64] | None = None  # those that are computed; None: all
    columns: dict[Binding, pa.ChunkedArray]  # of those that are computed
    derived: dict[tuple[Callable[..., pa.Array], Binding], pa.Array] = field(default_factory=dict)

    @property
    def rows_computed(self) -> NDArray[np.int64]:
        """(K,) their places among all rows."""
        return np.arange(len(self.whole)) if self.row_K is None else self.row_K

    @property
    def positions(self) -> NDArray[np.int64]:
        """(K,) the positions in the shard of those that are computed."""
        return self.rows_computed + self.start

    def only(self, of_K: NDArray[np.int64]) -> "Batch":
        """The batch, of which these are computed alone: their places among those that were."""
        taken = pa.array(of_K)
        columns = {binding: column.take(taken) for binding, column in self.columns.items()}
        row_K = self.rows_computed[of_K]
        return Batch(start=self.start, whole=self.whole, row_K=row_K, columns=columns)

    @cached_property
    def uids(self) -> pa.ChunkedArray:
        """The uids of those that are computed."""
        return self.whole if self.row_K is None else self.whole.take(pa.array(self.row_K))

    def given(self, planned: PlannedStage) -> pa.Table:
        """uid and the columns that a stage reads, by the names it reads them.

        What is derived for it is kept, and taken from there by the next.
        """
        given: dict[str, Any] = {UID.name: self.uids}
        for read, binding in planned.bindings[0].items():
            given[read] = self.columns[binding]
            if column := planned.derived.get(read):
                key = (column.derive, binding)
                if key not in self.derived:
                    self.derived[key] = column.derive(self.columns[binding])
                given[read] = self.derived[key]
        return pa.table(given)


class Functions:
    """The functions of a chain's stages, each opened when first called, and kept."""

    def __init__(
        self, chain: Chain, scratch: Path, took: Callable[[Usage], None] = ignored
    ) -> None:
        self.chain = chain
        self.scratch = scratch
        self.took = took
        self.answers = StoredAnswers(chain.run.child(ANSWERS))
        self._budgets: dict[tuple[Any, ...], SharedBudget] = {}
        self._opened: dict[str, RowFunction | StreamFunction] = {}
        self._helpers: list[HelperProcess] = []

    def through(
        self,
        planned: PlannedStage,
        batches: Iterator[Batch],
        shard: int,
        kept: PartialResults | None = None,
    ) -> Generator[tuple[Batch, pa.Table]]:
        """Each batch, and the stage's answer in the columns that it declares.

        What is `kept` is not asked for, and what is asked for is kept there.
        """
        assert isinstance(planned.stage, RowStage)
        place = f"stage '{planned.name}' ({planned.uses}), shard {shard}"
        if planned.stage.streams:
            yield from self._streamed(planned, batches, shard, place, kept)
            return
        schema = stored_schema(planned.stage)
        for batch in batches:
            answer = cast(RowFunction, self.function(planned))(batch.given(planned))
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
        kept: PartialResults | None,
    ) -> Iterator[tuple[Batch, pa.Table]]:
        from clipmill.pipeline.engine.streaming import streamed

        under_way: deque[tuple[Batch, Batch | None]] = deque()  # what was read, and asked for of it

        def given() -> Iterator[pa.Table]:
            for batch in batches:
                asked = _unanswered(batch, kept) if kept else batch
                under_way.append((batch, asked))
                if asked is not None:
                    yield asked.given(planned)

        def finished() -> Iterator[tuple[Batch, pa.Table]]:
            """Those that are first in turn, and of which nothing is asked for."""
            while kept and under_way and under_way[0][1] is None:
                batch, _ = under_way.popleft()
                yield batch, kept.rows(batch.positions)

        function = cast(StreamFunction, self.function(planned))
        schema = stored_schema(planned.stage)
        with closing(streamed(function, given(), self.events, place)) as answers:
            for answer in answers:
                yield from finished()
                batch, asked = under_way.popleft()
                assert asked is not None
                answer = _declared(planned, asked, answer, shard, schema)
                if kept:
                    kept.add(asked.positions, answer)
                    answer = _joined(batch, asked, answer, kept)
                yield batch, answer
            yield from finished()

    def flush(self) -> None:
        """Stores what stages were answered and have spent."""
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
            hold=self._helpers.append,
        )
        return planned.stage.open(worker)

    @cached_property
    def events(self) -> "EventLoop":
        """One for all stages of the chain, from shard to shard."""
        from clipmill.pipeline.engine.streaming import EventLoop

        return EventLoop()

    def close(self) -> None:
        """Ends the stages' event loop and servers, and drops their models."""
        if "events" in vars(self):
            self.events.close()
        for helper in self._helpers:
            helper.stop()
        self._opened.clear()
        free_gpu(self.chain.stages)


def _unanswered(batch: Batch, kept: PartialResults) -> Batch | None:
    """The rows of a batch that are to be asked for; None where there are none."""
    has_K = kept.has(batch.positions)
    if not has_K.any() and len(has_K):
        return batch
    return None if has_K.all() else batch.only(np.flatnonzero(~has_K))


def _joined(batch: Batch, asked: Batch, answer: pa.Table, kept: PartialResults) -> pa.Table:
    """The answer for the rows that were asked for among those that are kept."""
    if asked is batch:
        return answer
    position_K = batch.positions
    has_K = kept.has(position_K)
    whole = pa.concat_tables([answer, kept.rows(position_K[has_K])]).unify_dictionaries()
    order = np.argsort(np.concatenate([np.flatnonzero(~has_K), np.flatnonzero(has_K)]))
    return whole.take(pa.array(order))


def _declared(
    planned: PlannedStage, batch: Batch, answer: pa.Table, shard: int, schema: pa.Schema
) -> pa.Table:
    if UID.name in answer.column_names:
        answer = answer.drop_columns([UID.name])
    return as_declared(planned, answer.add_column(0, UID.name, batch.uids), shard, schema)
