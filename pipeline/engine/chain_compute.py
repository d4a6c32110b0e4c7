"""Computes row stages over one shard: read once, computed by batches, stored by stage."""

import contextlib
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill.metadata.passes import NOT_SELECTED, read_stage, reason_where
from clipmill.metadata.record import Record, ShardState, state_of
from clipmill.metadata.schema import KEEP, POSITION, REASON, UID
from clipmill.metadata.shard import ShardWriter, store
from clipmill.pipeline.engine.chain import Chain, ShardItem
from clipmill.pipeline.engine.declared import stored_schema
from clipmill.pipeline.engine.functions import Batch, Functions, read_ahead, read_batches
from clipmill.pipeline.engine.partial_results import PartialResults
from clipmill.pipeline.executors.telling import MORE_ROWS, ROWS, ProgressReporter
from clipmill.pipeline.planning.planned import PlannedStage
from clipmill.pipeline.provided import ignored
from clipmill.pipeline.run_folder.done import parents_of
from clipmill.pipeline.run_folder.rows import StoredColumns
from clipmill.pipeline.stage import RowStage

# Shapes: N rows of the shard, K those of a batch that are computed.

File = tuple[Path, ShardWriter]


@dataclass(frozen=True)
class Computation:
    """One attempt to compute a shard through the stages of a chain."""

    chain: Chain
    functions: Functions
    item: ShardItem
    attempt: int  # 1 up

    def whole_shard(self, stages: list[PlannedStage]) -> dict[str, Record]:
        """Computes every row by stages that read the shard together; returns the records by stage.

        Columns that one stage writes are handed to the next in memory.
        """
        began = time.monotonic()
        inside = {planned.name for planned in stages}
        bindings = (binding for planned in stages for binding in planned.bindings[0].values())
        outside = [binding for binding in bindings if binding[0] not in inside]
        with ExitStack() as stack:
            known = self.item.states.get(stages[0].root)
            tell = stack.enter_context(self._progress(stages, known.rows if known else 0))
            files = [stack.enter_context(self._file(planned, None)) for planned in stages]
            read = read_batches(self.chain, self.item.states, stages[0], outside)
            batches = stack.enter_context(closing(ahead(read, stages)))
            partials = [stack.enter_context(self._partials(planned)) for planned in stages]
            for planned, (_, writer), rows in zip(stages, files, partials, strict=True):
                through = self._through(planned, batches, writer, rows)
                batches = stack.enter_context(closing(through))
            for batch in batches:
                tell(len(batch.uids))
            records: dict[str, Record] = {}
            states = dict(self.item.states)  # grows: earlier stages of the chain are parents too
            for planned, file in zip(stages, files, strict=True):
                digests = {name: state.digest for name, state in states.items()}
                parents = parents_of(planned, digests, self.chain.models)
                records[planned.name] = self._store(planned, file, began, [], None, parents)
                states[planned.name] = state_of([records[planned.name]], None)
            for rows in filter(None, partials):
                rows.drop()
            return records

    def missing_rows(self, planned: PlannedStage) -> dict[str, Record]:
        """Computes the rows due by the mask or `--retry`; returns {} if a record says none are."""
        began = time.monotonic()
        records, mask = self.item.records.get(planned.name, []), self.item.mask(planned)
        stored = self.chain.stored[planned.name]
        due_N = rows_due(stored, records, mask, self.chain.retry)
        if records and not due_N.any():
            return self._empty_pass(planned, records, mask)
        due = self._due(planned, due_N, bool(records))
        with (
            closing(ahead(due, [planned])) as batches,
            self._progress([planned], int(np.count_nonzero(due_N)), bool(records)) as tell,
            self._file(planned, records) as file,
            self._partials(planned) as partials,
            closing(self.functions.through(planned, batches, self.item.shard, partials)) as answers,
        ):
            for batch, answer in answers:
                row_K = batch.rows_computed
                if records:
                    position = pa.array((row_K + batch.start).astype(np.int32))
                    answer = answer.add_column(1, POSITION.name, position)
                elif len(row_K) < len(batch.whole):
                    answer = spread(answer, row_K, batch.whole)
                file[1].add(answer)
                tell(len(row_K))
            parents = self.item.parents(planned, self.chain.models)
            record = self._store(planned, file, began, records, mask, parents)
            if partials:
                partials.drop()
            return {planned.name: record}

    def _due(
        self, planned: PlannedStage, due_N: NDArray[np.bool_], is_sparse: bool
    ) -> Generator[Batch]:
        """Yields batches cut to the rows of `due_N`; if sparse, without the empty ones."""
        bindings = planned.bindings[0].values()
        for batch in read_batches(self.chain, self.item.states, planned, bindings):
            row_K = np.flatnonzero(due_N[batch.start : batch.start + len(batch.whole)])
            if len(row_K) or not is_sparse:
                yield batch if len(row_K) == len(batch.whole) else batch.only(row_K)

    def _through(
        self,
        planned: PlannedStage,
        batches: Iterator[Batch],
        writer: ShardWriter,
        partials: PartialResults | None,
    ) -> Generator[Batch]:
        """Yields the batches with the stage's columns added, once these are written."""
        shard = self.item.shard
        with closing(self.functions.through(planned, batches, shard, partials)) as answers:
            for batch, answer in answers:
                columns = {(planned.name, name): answer[name] for name in answer.column_names}
                batch.columns |= columns
                writer.add(answer)
                yield batch

    @contextlib.contextmanager
    def _progress(
        self, stages: Sequence[PlannedStage], rows: int, is_later: bool = False
    ) -> Iterator[Callable[[int], None]]:
        """Yields a function that reports progress: called with the number of rows just computed.

        Between its calls, rows count that every stage which streams has done.
        """
        reporter = ProgressReporter(tuple(planned.name for planned in stages), str(self.item.shard))
        done, total = 0, max(rows, 1)
        inside = {p.name: 0 for p in stages if isinstance(p.stage, RowStage) and p.stage.streams}

        def report() -> None:
            far = max(done, min(inside.values(), default=0))
            reporter(min(far, total), total, MORE_ROWS if is_later else ROWS)

        def more(rows: int) -> None:
            nonlocal done
            done += rows
            report()

        def row_done(name: str) -> None:
            inside[name] = inside.get(name, 0) + 1
            report()

        self.functions.row_done = row_done
        more(0)
        try:
            yield more
        finally:
            self.functions.row_done = ignored
            reporter.over()

    def _partials(self, planned: PlannedStage) -> AbstractContextManager[PartialResults | None]:
        """Opens the partial results of the stage's next pass; None if the stage keeps none."""
        assert isinstance(planned.stage, RowStage)
        if not planned.stage.journals:
            return contextlib.nullcontext()
        return PartialResults(
            self.chain.stored[planned.name].folder,
            planned,
            self.item.shard,
            len(self.item.records.get(planned.name, [])),
            self.item.parents(planned, self.chain.models),
            self.item.states[planned.root].rows,
        )

    @contextlib.contextmanager
    def _file(self, planned: PlannedStage, earlier: list[Record] | None) -> Iterator[File]:
        """Opens a scratch file for a pass, with its writer; after earlier passes it is sparse."""
        schema = stored_schema(planned.stage, sparse=bool(earlier))
        is_checked = planned.name not in self.item.unchecked
        with (
            self.chain.stored[planned.name].folder.scratch(planned.name) as path,
            ShardWriter(path, schema, is_checked) as writer,
        ):
            yield path, writer

    def _store(
        self,
        planned: PlannedStage,
        file: File,
        began: float,
        earlier: list[Record],
        mask: ShardState | None,
        parents: dict[str, str],
    ) -> Record:
        """Stores answers and their cost, then the data, then its record, which it returns."""
        self.functions.flush()
        path, writer = file
        return store(
            self.chain.stored[planned.name].folder,
            writer,
            path,
            {
                "shard": self.item.shard,
                "number": len(earlier),
                "rows": earlier[0].rows if earlier else writer.rows,
                "parents": parents,
                "mask": mask.digest if mask else None,
                "seconds": round(time.monotonic() - began, 3),
                "attempts": self.attempt,
            },
        )

    def _empty_pass(
        self, planned: PlannedStage, earlier: list[Record], mask: ShardState | None
    ) -> dict[str, Record]:
        """Stores a record without rows for this mask, unless an earlier one has that mask."""
        if mask is None or any(record.mask == mask.digest for record in earlier):
            return {}
        record = Record(
            shard=self.item.shard,
            number=len(earlier),
            data=None,
            size_bytes=0,
            sha256="",
            rows=earlier[0].rows,
            computed=0,
            uid_sha256="",
            parents=earlier[0].parents,
            mask=mask.digest,
        )
        folder = self.chain.stored[planned.name].folder
        folder.put(record.name, record.to_json().encode(), point="record")
        return {planned.name: record}


def ahead(batches: Generator[Batch], stages: Sequence[PlannedStage]) -> Generator[Batch]:
    """Returns the batches, read and decoded ahead where a GPU would wait for them."""
    resources = stages[0].stage.resources
    return read_ahead(batches, stages, resources.cpus) if resources.gpus else batches


def rows_due(
    stored: StoredColumns, records: list[Record], mask: ShardState | None, retry: tuple[str, ...]
) -> NDArray[np.bool_]:
    """Returns (N,) True for rows to compute: in the mask, and missing or to be retried."""
    due_N = np.ones(records[0].rows if records else mask.rows if mask else 0, bool)
    if mask is not None and stored.mask_folder is not None:
        keep = [
            pc.fill_null(table[KEEP.name], False).to_numpy(zero_copy_only=False)
            for table in read_stage(stored.mask_folder, mask, [KEEP.name], 65_536)
        ]
        due_N = np.concatenate(keep)
    if not records:
        return due_N
    unmasked = replace(stored, mask_folder=None)
    tables = unmasked.read(state_of(records, None), [REASON.name], 65_536)
    reason = pa.concat_tables(tables)[REASON.name].cast(pa.string())
    again = pc.fill_null(pc.is_in(reason, pa.array((NOT_SELECTED, *retry))), False)
    due_N &= again.to_numpy(zero_copy_only=False)
    return due_N


def spread(answer: pa.Table, row_K: NDArray[np.int64], uids: pa.ChunkedArray) -> pa.Table:
    """Spreads the answer of rows `row_K` over the whole batch; the rest is null, `not_selected`."""
    index = np.zeros(len(uids), np.int64)
    outside = np.ones(len(uids), bool)
    index[row_K] = np.arange(len(row_K))
    outside[row_K] = False
    rows = answer.take(pa.array(index, mask=outside))
    columns: dict[str, Any] = {name: rows[name] for name in answer.column_names}
    columns[UID.name] = uids
    columns[REASON.name] = reason_where(outside, NOT_SELECTED, rows[REASON.name])
    return pa.table(columns, schema=answer.schema)
