"""A segment of row stages over one shard: read once, computed by batches, stored by stages.

This is what a worker runs. It decides from digests what is already done, so a repaired parent
redoes its own shard and no other; stages in one segment hand batches on in memory.
"""

import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from metadata.damage import DamagedError
from metadata.fingerprint import digest
from metadata.passes import NOT_SELECTED, read_stage, reason_where
from metadata.record import Failure, Record, ShardState, state_of
from metadata.schema import IMAGE, KEEP, PIXELS, POSITION, REASON, UID
from metadata.scratch import scratch_folder
from metadata.shard import ShardWriter, store
from metadata.storage import Storage
from pipeline import attempts
from pipeline.declared import as_declared, stored_schema
from pipeline.done import current, parents_of, standing
from pipeline.errors import ShardError, StageError
from pipeline.pins import pin
from pipeline.planned import Binding, PlannedStage
from pipeline.rows import Part, read_rows
from pipeline.stage import RowFunction, RowStage, Worker, unpinned


@dataclass(kw_only=True)
class ShardItem:
    """One shard on its way through row stages, small: states and records by stage, no rows."""

    shard: int
    states: dict[str, ShardState]  # good ones, of these stages and of those that they read
    failed: dict[str, Failure | None]  # None: not its own fault, an earlier stage's
    records: dict[str, list[Record]]
    set_aside: dict[str, Failure]  # failures of earlier runs
    unchecked: frozenset[str]  # stages whose lost file had no page checksums: made again alike
    retried: set[str] = field(default_factory=set)
    made: list[tuple[str, Record]] = field(default_factory=list)
    damaged: list[DamagedError] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Row stages that run together, and where the rest of their shards' columns are found."""

    seed: int
    run_id: str
    stages: tuple[PlannedStage, ...]
    parts: Mapping[str, Part]
    models: Mapping[str, str]  # stages that give one to these: the digest of their files
    retry: tuple[str, ...] = ()  # reasons whose rows are tried again

    def __call__(self) -> "SegmentRun":
        return SegmentRun(self)


class SegmentRun:
    """A segment opened in a worker: its functions are loaded when first needed, and kept."""

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self.scratch = tempfile.TemporaryDirectory(dir=scratch_folder())
        self._opened: dict[str, RowFunction] = {}

    def __call__(self, item: ShardItem) -> ShardItem:
        """The item with each stage's state, or why it failed. Only a StageError is raised."""
        todo = list(self.segment.stages)
        while todo:
            group, todo = self._split(todo, item)
            if group:
                self._attempt(group, item)
        return item

    def _split(
        self, todo: list[PlannedStage], item: ShardItem
    ) -> tuple[list[PlannedStage], list[PlannedStage]]:
        """Stages to compute now, together; and stages to look at again after that."""
        group: list[PlannedStage] = []
        later: list[PlannedStage] = []
        for planned in todo:
            name = planned.name
            open_needs = set(planned.needs) & {other.name for other in (*group, *later)}
            if any(need in item.failed for need in planned.needs):
                item.failed[name] = None  # not its own fault: an earlier stage's
            elif group and self._alone(group[0], item):
                later.append(planned)
            elif open_needs:
                # With a record of its own it may still be good once its parent is done.
                fits = open_needs <= {other.name for other in group}
                fresh = fits and not self._alone(planned, item)
                (group if fresh else later).append(planned)
            elif not self._done(planned, item):
                (later if group and self._alone(planned, item) else group).append(planned)
        return group, later

    def _alone(self, planned: PlannedStage, item: ShardItem) -> bool:
        """Whether the stage computes some rows only, which cannot be fused."""
        return bool(planned.only or item.records.get(planned.name))

    def _done(self, planned: PlannedStage, item: ShardItem) -> bool:
        """Whether nothing is to be computed: the shard is good, or left alone after a crash."""
        name = planned.name
        parents = parents_of(planned, item.states, self.segment.models)
        mask = item.states[planned.only] if planned.only else None
        stored = item.records.get(name, [])
        records = item.records[name] = current(stored, parents)
        for record in [] if records else stored[:0:-1]:  # passes over rows that are no more
            self.segment.parts[name].folder.delete(record.name)
        failure = item.set_aside.get(name)
        found = standing(records, failure, parents, mask.digest if mask else None)
        if found == "failed" and failure and failure.crashed:
            item.failed[name] = failure
            return True
        if found != "good" or self._is_retried(name, item):
            return False
        item.states[name] = state_of(records, mask)
        return True

    def _is_retried(self, name: str, item: ShardItem) -> bool:
        """Whether some of its rows have a reason that is tried again: once a run."""
        if name in item.retried:
            return False
        item.retried.add(name)
        return any(
            reason in record.counts
            for record in item.records[name]
            for reason in self.segment.retry
        )

    def _attempt(self, group: list[PlannedStage], item: ShardItem) -> None:
        """Computes a group, counting attempts in storage; a failure is written down.

        A chain that fails, or has ended its worker, is done stage by stage: that tells whose
        fault it is, and what the others made stays.
        """
        first, shard = group[0], item.shard
        folder = self.segment.parts[first.name].folder
        parents = parents_of(first, item.states, self.segment.models)
        is_chain = len(group) > 1
        name = f"{shard:06d}.chain" if is_chain else f"{shard:06d}"
        try:
            attempts.attempt(
                partial(self._compute, group, item),
                folder,
                name,
                digest(parents),
                self.segment.run_id,
                f"stage '{' + '.join(planned.name for planned in group)}', shard {shard}",
                least=attempts.MAX_ATTEMPTS if is_chain else 1,
            )
        except DamagedError as found:  # an earlier stage's file: that one is made again first
            item.damaged.append(found)
            item.failed.update({planned.name: None for planned in group})
        except ShardError as error:
            if is_chain:
                self._attempt_each(group, item)
            else:
                item.failed[first.name] = attempts.fail(folder, shard, parents, error)
            attempts.end(folder, name)  # of a crash
        else:
            for planned in group:
                if failure := item.set_aside.get(planned.name):
                    self.segment.parts[planned.name].folder.delete(failure.name)

    def _attempt_each(self, group: list[PlannedStage], item: ShardItem) -> None:
        for planned in group:
            if any(need in item.failed for need in planned.needs):
                item.failed[planned.name] = None
            else:
                self._attempt([planned], item)

    def _compute(self, group: list[PlannedStage], item: ShardItem, number: int) -> None:
        if len(group) == 1:
            self._compute_rows(group[0], item, number)
        else:
            self._compute_shard(group, item, number)

    def _compute_shard(self, group: list[PlannedStage], item: ShardItem, number: int) -> None:
        """A fused group over the whole shard."""
        began = time.monotonic()
        item.records.update({planned.name: [] for planned in group})  # of a broken attempt
        shard = item.shard
        inside = {planned.name for planned in group}
        outside = {
            f"{stage}.{column}": (stage, column)
            for planned in group
            for stage, column in planned.bindings[0].values()
            if stage not in inside
        }
        with ExitStack() as stack:
            writers = [self._writer(stack, planned, item, sparse=False) for planned in group]
            for batch in self._read(group[0], item, outside):
                made: dict[str, pa.Table] = {}
                pixels: dict[Binding, pa.Array] = {}
                for planned, (_, writer) in zip(group, writers, strict=True):
                    columns = {UID.name: batch[UID.name]}
                    for read, (stage, column) in planned.bindings[0].items():
                        source = made[stage][column] if stage in made else None
                        whole = batch[f"{stage}.{column}"] if source is None else source
                        if read == PIXELS.name:
                            if (stage, column) not in pixels:
                                pixels[stage, column] = decode(whole)
                            whole = pixels[stage, column]
                        columns[read] = whole
                    made[planned.name] = self._call(planned, pa.table(columns), shard)
                    writer.add(made[planned.name])
            for planned, (path, writer) in zip(group, writers, strict=True):
                self._store(planned, item, writer, path, began, number, mask=None)

    def _compute_rows(self, planned: PlannedStage, item: ShardItem, number: int) -> None:
        """One stage over the rows that today's mask or `--retry` asks for: a pass."""
        began = time.monotonic()
        records = item.records.get(planned.name, [])
        mask = item.states[planned.only] if planned.only else None
        sparse = bool(records)
        chosen = self._chosen(planned, records, mask, item) if sparse or mask else None
        if sparse and chosen is not None and not chosen.any():
            self._store_nothing(planned, item, mask)
            return
        bindings = planned.bindings[0]
        reading = {
            IMAGE.name if read == PIXELS.name else read: bound for read, bound in bindings.items()
        }
        start = 0
        with ExitStack() as stack:
            path, writer = self._writer(stack, planned, item, sparse)
            for batch in self._read(planned, item, reading):
                rows, uids = len(batch), batch[UID.name]
                picked = None if chosen is None else np.flatnonzero(chosen[start : start + rows])
                if picked is not None and len(picked) == rows:
                    picked = None
                if picked is not None:
                    batch = batch.take(pa.array(picked))
                columns = {UID.name: batch[UID.name]}
                for read in bindings:
                    columns[read] = (
                        decode(batch[IMAGE.name]) if read == PIXELS.name else batch[read]
                    )
                if sparse and not len(batch):
                    start += rows
                    continue
                out = self._call(planned, pa.table(columns), item.shard)
                if sparse:
                    at = np.arange(rows) if picked is None else picked
                    position = pa.array((at + start).astype(np.int32))
                    out = out.add_column(1, POSITION.name, position)
                elif picked is not None and chosen is not None:
                    out = self._spread(planned, out, picked, uids)
                writer.add(out)
                start += rows
            self._store(planned, item, writer, path, began, number, mask)

    def _chosen(
        self,
        planned: PlannedStage,
        records: list[Record],
        mask: ShardState | None,
        item: ShardItem,
    ) -> Any:
        """(N,) whether each row is to be computed: in the mask and not yet, or up for retry."""
        part = self.segment.parts[planned.name]
        rows = records[0].rows if records else mask.rows if mask else 0
        inside = np.ones(rows, bool)
        if mask is not None and part.mask_folder is not None:
            keep = [
                pc.fill_null(table[KEEP.name], False).to_numpy(zero_copy_only=False)
                for table in read_stage(part.mask_folder, mask, [KEEP.name], 65_536)
            ]
            inside = np.concatenate(keep)
        if not records:
            return inside
        state = state_of(records, None)
        stored = replace(part, mask_folder=None).read(state, [REASON.name], 65_536)
        reason = pa.concat_tables(stored)[REASON.name].cast(pa.string())
        again = (NOT_SELECTED, *self.segment.retry)
        missing = pc.fill_null(pc.is_in(reason, pa.array(again)), False)
        return inside & missing.to_numpy(zero_copy_only=False)

    def _spread(
        self, planned: PlannedStage, out: pa.Table, picked: Any, uids: pa.ChunkedArray
    ) -> pa.Table:
        """Computed rows among all rows of the batch; the others null, `not_selected`."""
        index = np.zeros(len(uids), np.int64)
        outside = np.ones(len(uids), bool)
        index[picked] = np.arange(len(picked))
        outside[picked] = False
        spread = out.take(pa.array(index, mask=outside))
        columns: dict[str, Any] = {UID.name: uids}
        for column in planned.stage.writes:
            columns[column.name] = spread[column.name]
        columns[REASON.name] = reason_where(outside, NOT_SELECTED, spread[REASON.name])
        return pa.table(columns, schema=stored_schema(planned.stage))

    def _read(self, planned: PlannedStage, item: ShardItem, bindings: Mapping[str, Binding]) -> Any:
        assert planned.root is not None
        assert isinstance(planned.stage, RowStage)
        rows = planned.stage.batch_rows
        return read_rows(self.segment.parts, item.states, bindings, planned.root, rows)

    def _call(self, planned: PlannedStage, batch: pa.Table, shard: int) -> pa.Table:
        """The stage's answer for a batch, held to what the stage declares."""
        if planned.name not in self._opened:
            assert isinstance(planned.stage, RowStage)
            folder = self.segment.parts[planned.name].folder
            worker = worker_of(planned, self.segment.seed, Path(self.scratch.name), folder)
            if planned.model is not None:
                model = self.segment.parts[planned.model].folder.uri
                worker = replace(worker, model=model)
            self._opened[planned.name] = planned.stage.open(worker)
        out = self._opened[planned.name](batch)
        if len(out) != len(batch):
            raise StageError(
                f"{len(out)} rows came back for {len(batch)}",
                f"stage '{planned.name}' ({planned.uses}), shard {shard}",
                "a row stage keeps its rows",
            )
        if UID.name in out.column_names:
            out = out.drop_columns([UID.name])
        return as_declared(planned, out.add_column(0, UID.name, batch[UID.name]), shard)

    def _writer(
        self, stack: ExitStack, planned: PlannedStage, item: ShardItem, sparse: bool
    ) -> tuple[Path, ShardWriter]:
        folder = self.segment.parts[planned.name].folder
        path = stack.enter_context(folder.scratch(planned.name))
        checked = planned.name not in item.unchecked
        writer = ShardWriter(path, stored_schema(planned.stage, sparse), checked)
        return path, stack.enter_context(writer)

    def _store(
        self,
        planned: PlannedStage,
        item: ShardItem,
        writer: ShardWriter,
        path: Path,
        began: float,
        number: int,
        mask: ShardState | None,
    ) -> None:
        """Data, then its record; the item learns the shard's state."""
        records = item.records.setdefault(planned.name, [])
        record = store(
            self.segment.parts[planned.name].folder,
            writer,
            path,
            {
                "shard": item.shard,
                "number": len(records),
                "rows": records[0].rows if records else writer.rows,
                "parents": parents_of(planned, item.states, self.segment.models),
                "mask": mask.digest if mask else None,
                "seconds": round(time.monotonic() - began, 3),
                "attempts": number,
            },
        )
        self._note(planned, item, record, mask)

    def _store_nothing(
        self, planned: PlannedStage, item: ShardItem, mask: ShardState | None
    ) -> None:
        """A pass that found nothing to do: a record, so that it isn't looked for again."""
        records = item.records[planned.name]
        if mask is not None and all(record.mask != mask.digest for record in records):
            record = Record(
                shard=item.shard,
                number=len(records),
                data=None,
                size_bytes=0,
                sha256="",
                rows=records[0].rows,
                computed=0,
                uid_sha256="",
                parents=records[0].parents,
                mask=mask.digest,
            )
            folder = self.segment.parts[planned.name].folder
            folder.put(record.name, record.to_json().encode(), point="record")
            self._note(planned, item, record, mask)
        else:
            item.states[planned.name] = state_of(records, mask)

    def _note(
        self, planned: PlannedStage, item: ShardItem, record: Record, mask: ShardState | None
    ) -> None:
        item.records[planned.name].append(record)
        item.made.append((planned.name, record))
        item.states[planned.name] = state_of(item.records[planned.name], mask)


def worker_of(
    planned: PlannedStage, seed: int, scratch: Path, folder: Storage | None = None
) -> Worker:
    """What a stage is told of the place where it runs; without a folder nothing is pinned."""
    resources = planned.stage.resources
    return Worker(
        seed=seed,
        stage=planned.name,
        device="cuda" if resources.gpus else "cpu",
        threads=resources.cpus,
        scratch=scratch,
        pin=partial(pin, folder, planned.name) if folder else unpinned,
    )


def decode(image: pa.ChunkedArray) -> pa.Array:
    """The virtual PIXELS column of a batch; the kernel is named, as the engine knows no image."""
    return import_module("stages.ops.images").pixels_column(image)
