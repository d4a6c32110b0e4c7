"""What of a plan is done in a run folder: one scan a stage, checked against its parents."""

import os
import shlex
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill.metadata.fingerprint import digest
from clipmill.metadata.parquet_file import read_at
from clipmill.metadata.record import Failure, Manifest, ShardState
from clipmill.metadata.records import RECORD, Records, are_made_of, counted, rows_by_reason
from clipmill.metadata.scan import Scan, scan
from clipmill.metadata.schema import REASON, UID
from clipmill.metadata.storage import Storage
from clipmill.pipeline.planning.plan import Plan, make_plan
from clipmill.pipeline.planning.planned import Binding, PlannedStage
from clipmill.pipeline.planning.recipe import Recipe
from clipmill.pipeline.run_folder.done import parents_of, standing
from clipmill.pipeline.run_folder.masks import SelectMask
from clipmill.pipeline.run_folder.ran import RanRecipe, newest_recipe
from clipmill.pipeline.run_folder.rows import (
    JoinedShards,
    PoolShards,
    StoredColumns,
    stored_columns,
)
from clipmill.pipeline.run_folder.shards import Shards, StatesByShard
from clipmill.pipeline.run_folder.variants import variant as variant_of

NONE = np.empty(0, np.int64)
READERS = 8  # folders of an object store that are listed at once


@dataclass
class StageState:
    """A stage's shards that are good today, its failures, and whether all of it is there."""

    planned: PlannedStage
    folder: Storage
    scan: Scan
    total: int | None = None  # shards there should be; None while its root is unknown
    shards: Shards = field(default_factory=lambda: Shards(Records(RECORD.empty_table()), NONE))
    failures: dict[int, Failure | None] = field(default_factory=dict)  # None: an earlier stage's
    manifest: Manifest | None = None  # good today

    @property
    def complete(self) -> bool:
        """All of it is there and good."""
        if self.planned.is_row or self.planned.is_root:
            return self.total is not None and len(self.shards) == self.total
        return self.manifest is not None

    @property
    def outputs(self) -> tuple[tuple[str, int], ...]:
        """Name and bytes of each file in the out/ of a complete stage."""
        return self.manifest.outputs if self.manifest else ()

    @property
    def columns(self) -> pa.Table:
        """The records of the good shards, every pass of them, as columns."""
        return self.scan.records.table(self.shards.numbers)

    @property
    def codes(self) -> list[str]:
        """The reasons that they count rows of, "" for the fine ones."""
        return list(rows_by_reason(self.columns))

    @property
    def seconds(self) -> float:
        """Seconds of work in all workers; of a dataset stage, from begin to end of its last run."""
        if self.manifest and self.manifest.seconds is not None and not self.planned.is_root:
            return self.manifest.seconds
        return float(sum(self.columns["seconds"].to_pylist()))

    def recorded(self, shard: int) -> dict[str, int] | None:
        """Rows of a good shard by reason, "" for the fine ones: as its record counts them.

        None where a later pass or another mask has changed that.
        """
        first, *later = self.scan.records[shard]
        mask = self.shards[shard].mask
        is_todays = not later and first.mask == (mask.digest if mask else None)
        return first.counts if is_todays and sum(first.counts.values()) == first.rows else None

    def all_recorded(self) -> tuple[dict[str, int], list[int]]:
        """The same of all good shards together, and those of which the records do not tell."""
        shard_N, records = self.shards.numbers, self.scan.records
        first, mask = records.first(shard_N), self.shards.mask
        is_told_N = (records.passes(shard_N) == 1) & (counted(first) == first["rows"].to_numpy())
        is_told_N &= same_mask(first, mask, shard_N)
        told = first if is_told_N.all() else first.filter(pa.array(is_told_N))
        return rows_by_reason(told), shard_N[~is_told_N].tolist()


def no_mask(records: pa.Table) -> NDArray[np.bool_]:
    """(R,) whether each record was made of all rows."""
    return np.asarray(records["mask"].is_null(), bool)


def same_mask(
    records: pa.Table, mask: Shards | None, shard_N: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """(N,) whether the record of each shard was made under its mask of today, or under none."""
    if mask is None:
        return no_mask(records)
    masks = records["mask"].combine_chunks()
    return np.asarray(pc.fill_null(pc.equal(masks, mask.digests(shard_N)), False), bool)


class RunState:
    """The stages of a plan in a run folder."""

    def __init__(
        self,
        plan: Plan,
        run: Storage,
        scans: dict[str, Scan] | None = None,
        as_it_stood: bool = False,
    ) -> None:
        """`scans` keeps what folders hold, for plans that share some and are read one by one.

        `as_it_stood`: without the passes that wider masks of other recipes have added since.
        """
        self.plan = plan
        self.run = run
        self.as_it_stood = as_it_stood
        self.stored: dict[str, StoredColumns] = stored_columns(plan.stages, run)
        names = list(plan.stages)
        waits = READERS if not run.is_local else min(READERS, os.cpu_count() or 1)
        with ThreadPoolExecutor(waits) as pool:
            states = pool.map(lambda name: self._scanned(name, scans), names)
            self.stages = dict(zip(names, states, strict=True))
        for name in names:
            self.resolve(name)

    def rescan(self, name: str) -> None:
        """Reads a stage's folder again, and what of it is good."""
        self.stages[name] = self._scanned(name)
        self.resolve(name)

    def _scanned(self, name: str, scans: dict[str, Scan] | None = None) -> StageState:
        planned, folder = self.plan.stages[name], self.stored[name].folder
        known = scans.get(planned.folder) if scans is not None else None
        scanned = known or scan(folder)
        if scans is not None:
            scans[planned.folder] = scanned
        if planned.stage.determinism == "recorded":  # no answer is asked for twice by itself
            scanned.records = scanned.records.without(record.shard for record in scanned.lost)
            for record in scanned.lost:
                is_torn = record.name in scanned.torn
                found = "its record is damaged" if is_torn else "its answers are gone"
                place = f"{folder}/{record.name if is_torn else record.data}"
                do = f"clipmill verify --run {shlex.quote(str(self.run))} --repair"
                scanned.failures[record.shard] = Failure(
                    record.shard, record.parents, True, found, place, do
                )
        return StageState(planned, folder, scanned)

    def resolve(self, name: str) -> None:
        """Which of a stage's shards are good today; stages before it are resolved."""
        state = self.stages[name]
        state.shards = Shards(state.scan.records, NONE)
        state.failures, state.manifest = {}, None
        if state.planned.is_root:
            self._resolve_root(state)
        elif state.planned.is_row:
            self._resolve_rows(state)
        else:
            self._resolve_dataset(state)

    def _resolve_root(self, state: StageState) -> None:
        """Every shard that its manifest counts; whether the source has changed, its run asks."""
        manifest = state.scan.manifest
        state.total = manifest.shards if manifest else None
        shard_N = state.scan.records.shards
        if state.total is not None:
            shard_N = shard_N[shard_N < state.total]
        state.shards = Shards(state.scan.records, shard_N)
        state.failures = {s: f for s, f in state.scan.failures.items() if s not in state.shards}
        state.manifest = manifest if state.complete else None

    def _resolve_dataset(self, state: StageState) -> None:
        """All shards or none: its manifest names the inputs that all of them were made of."""
        planned, manifest = state.planned, state.scan.manifest
        inputs = self.inputs_digest(planned)
        state.total = self.stages[planned.root].total if planned.root else None
        if inputs is None or manifest is None or manifest.inputs != inputs or not manifest.digest:
            return
        if manifest.outputs != state.scan.outputs:
            return
        if planned.gives_rows and not manifest.outputs and self._is_opened(planned.name):
            return  # made before the stage left files: its rows stay, and the files are added
        records = state.scan.records
        table = records.table(records.shards)
        others_N = table["shard"].to_numpy()[~are_made_of(table, manifest.made_of)]
        good_N = np.setdiff1d(records.shards, others_N, assume_unique=True)
        if len(good_N) == manifest.shards:
            state.manifest, state.shards = manifest, Shards(records, good_N)

    def _is_opened(self, name: str) -> bool:
        """Whether a stage of the plan reads files in this one's out/."""
        return any(name in planned.folders for planned in self.plan.stages.values())

    def _resolve_rows(self, state: StageState) -> None:
        """Each shard by itself: made of its parents as they are now, under today's mask."""
        root = self.stages[state.planned.root]
        state.total = root.total
        ready_N = self._ready(state.planned)
        if len(ready_N):
            self._resolve_ready(state, ready_N)
        waiting = set(np.setdiff1d(root.shards.numbers, ready_N, assume_unique=True).tolist())
        for need in state.planned.needs:
            for shard in waiting & self.stages[need].failures.keys():
                state.failures[shard] = None
        state.failures = dict(sorted(state.failures.items()))

    def _ready(self, planned: PlannedStage) -> NDArray[np.int64]:
        """The shards of which all that a row stage reads is good."""
        if len(self.digests(planned.folders)) < len(planned.folders):
            return NONE
        ready_N = self.stages[planned.root].shards.numbers
        for need in (*planned.sources, *([planned.only] if planned.only else [])):
            ready_N = np.intersect1d(ready_N, self.stages[need].shards.numbers, assume_unique=True)
        return ready_N

    def _resolve_ready(self, state: StageState, ready_N: NDArray[np.int64]) -> None:
        """Those with one pass together, as columns; the few others as `standing` says."""
        planned, records = state.planned, state.scan.records
        mask = self.stages[planned.only].shards if planned.only else None
        sources = {name: self.stages[name].shards for name in planned.sources}
        models = self.digests(planned.folders)
        once_N = ready_N[records.passes(ready_N) == 1]
        first = records.first(once_N)
        digests = {name: shards.digests(once_N) for name, shards in sources.items()}
        is_good_N = are_made_of(first, parents_of(planned, digests, models))
        is_good_N &= no_mask(first) | same_mask(first, mask, once_N)
        good_N = once_N[is_good_N]
        failed_N = np.intersect1d(ready_N, np.array([*state.scan.failures], np.int64))
        several_N = ready_N[records.passes(ready_N) > 1]
        others, passes = [], {}
        for shard in np.setdiff1d(
            np.union1d(failed_N, several_N), good_N, assume_unique=True
        ).tolist():
            found, failure = records.get(shard, []), state.scan.failures.get(shard)
            parents = parents_of(
                planned, {s: of[shard].digest for s, of in sources.items()}, models
            )
            under = mask[shard].digest if mask is not None else None
            verdict = standing(found, failure, parents, under)
            if verdict == "good":
                others.append(shard)
                if self.as_it_stood and mask is not None:
                    own = [it.number for it in found if it.mask in (None, under)]
                    passes[shard] = [it for it in found if it.number <= own[-1]]
            elif verdict == "failed":
                state.failures[shard] = failure
        good_N = np.sort(np.append(good_N, np.array(others, np.int64)))
        state.shards = Shards(records, good_N, mask, passes)

    def shard_states(self, planned: PlannedStage, shard: int) -> dict[str, ShardState] | None:
        """The good shards, by stage, that this one is made of; None where one is missing."""
        needs = (*planned.sources, *([planned.only] if planned.only else []))
        states = {need: self.stages[need].shards.get(shard) for need in needs}
        good = {need: state for need, state in states.items() if state is not None}
        return good if len(good) == len(states) else None

    def digests(self, names: Iterable[str]) -> dict[str, str]:
        """The digest of what each of these stages left in out/, of those that are done."""
        manifests = {name: self.stages[name].manifest for name in names}
        return {name: manifest.digest for name, manifest in manifests.items() if manifest}

    def inputs_digest(self, planned: PlannedStage) -> str | None:
        """One digest of everything a dataset stage reads; None while some of it is missing."""
        parts: list[Any] = []
        for need in planned.needs:
            state = self.stages[need]
            if not state.complete:
                return None
            if need in planned.sources:
                parts.append([need, state.shards.digests().to_pylist()])
            if need in planned.folders and state.manifest:
                parts.append([need, state.manifest.digest])
        return digest(parts)

    def inputs(self, planned: PlannedStage) -> PoolShards | JoinedShards:
        """The rows a dataset stage reads, none where it takes none; its parents are complete."""
        bound = zip(planned.parents, planned.bindings, strict=False)
        members = [self._pool_shards(parent, bindings) for parent, bindings in bound]
        apart = planned.is_root or len(members) != 1
        return JoinedShards(tuple(members)) if apart else members[0]

    def mask(self, planned: PlannedStage) -> SelectMask | None:
        """Which rows of its data a dataset stage reads; None where all of them."""
        if planned.data is None or planned.kept_by is None:
            return None
        verdicts = self._pool_shards(planned.kept_by, planned.mask)
        return SelectMask(verdicts, self.stored[planned.data].folder)

    def _pool_shards(self, stage: str, bindings: dict[str, Binding]) -> PoolShards:
        """These columns of all rows of the stage's root; they are complete."""
        root = self.plan.stages[stage].root
        used = dict.fromkeys([root, *(source for source, _ in bindings.values())])
        return PoolShards(
            stored={source: self.stored[source] for source in used},
            states=StatesByShard(
                {source: self.stages[source].shards for source in used},
                range(self.stages[root].total or 0),
            ),
            bindings=bindings,
            root=root,
        )

    def counts(self, name: str, shard: int) -> dict[str, int]:
        """Rows of a stage's good shard by reason today; its file is read where no record tells."""
        recorded = self.stages[name].recorded(shard)
        if recorded is not None:
            return recorded
        tables = self.stored[name].read(self.stages[name].shards[shard], [REASON.name], 65_536)
        reasons = pa.concat_tables(tables)[REASON.name].cast(pa.string())
        counted = pc.value_counts(pc.fill_null(reasons, "")).to_pylist()
        return {count["values"]: count["counts"] for count in counted}

    def cell(self, name: str, shard: int, position: int, columns: list[str]) -> dict[str, Any]:
        """The columns of a stage at one row: one row group is read where the shard has one file."""
        stored, shard_state = self.stored[name], self.stages[name].shards[shard]
        if len(shard_state.files) == 1 and shard_state.mask is None:
            at = np.array([position])
            return dict(read_at(stored.folder, shard_state.files[0], columns, at).to_pylist()[0])
        start = 0
        for table in stored.read(shard_state, columns, 4096):
            if position < start + len(table):
                return dict(table.slice(position - start, 1).to_pylist()[0])
            start += len(table)
        raise IndexError(f"position {position} of {start} rows of shard {shard}")

    def uid(self, root: str, shard: int, position: int) -> str:
        """The uid of a row, in hex."""
        return str(self.cell(root, shard, position, [UID.name])[UID.name].hex())


def summary(state: StageState) -> str:
    """`done`, `3 of 12 shards`, `nothing yet`: what is there, in words."""
    if state.complete:
        return "done"
    gone = state.scan.changed
    damaged = f", {gone} {'file' if gone == 1 else 'files'} gone or changed" if gone else ""
    if not state.shards and not state.failures:
        return f"nothing yet{damaged}"
    total = "?" if state.total is None else state.total
    failed = sum(1 for failure in state.failures.values() if failure is not None)
    shards = f"{len(state.shards)} of {total} shards"
    return shards + (f", {failed} failed" if failed else "") + damaged


def latest(uri: str, variant: int | None = None) -> RunState:
    """The run folder seen through the recipe that ran there last, or one of its variants."""
    run = Storage(uri)
    if variant is not None:
        return seen_through(plan_of(variant_of(run, variant).ran), run)
    return RunState(plan_of(newest_recipe(run)[1]), run)


def seen_through(plan: Plan, run: Storage, scans: dict[str, Scan] | None = None) -> RunState:
    """The run folder through the plan of a variant, to be looked at.

    A wider mask of another one may have added rows to a stage with `only:` since, so that a run
    would make again what reads them: then as it stood, where more stages are complete so.
    """
    scans = {} if scans is None else scans
    today = RunState(plan, run, scans)
    if all(it.complete for it in today.stages.values()) or not any(
        planned.only for planned in plan.stages.values()
    ):
        return today
    stood = RunState(plan, run, scans, as_it_stood=True)
    return max(today, stood, key=lambda it: sum(stage.complete for stage in it.stages.values()))


def plan_of(ran: RanRecipe) -> Plan:
    """The whole plan of a recipe that ran, as it is made today."""
    return make_plan(
        Recipe(
            name=ran["name"],
            path=ran["path"],
            seed=ran["seed"],
            stages=ran["stages"],
            overrides=tuple(ran["overrides"]),
        )
    )
