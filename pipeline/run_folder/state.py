"""Finds the done parts of a plan in a run folder: one scan a stage, checked against its parents."""

import os
import shlex
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from copy import copy
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
from clipmill.metadata.scan import Scan, glance
from clipmill.metadata.schema import LISTED, REASON, UID
from clipmill.metadata.stage_seal import SEAL, Seal
from clipmill.metadata.storage import Storage
from clipmill.pipeline import own_code
from clipmill.pipeline.planning.plan import Plan, make_plan
from clipmill.pipeline.planning.planned import Binding, PlannedStage
from clipmill.pipeline.planning.recipe import Recipe
from clipmill.pipeline.run_folder.claim import remembered_in
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
READERS = 8  # folders of an object store listed concurrently


@dataclass
class StageState:
    """A stage's current good shards, failures and manifest."""

    planned: PlannedStage
    folder: Storage
    scan: Scan
    total: int | None = None  # shards due; None while the root's are unknown
    shards: Shards = field(default_factory=lambda: Shards(Records(RECORD.empty_table()), NONE))
    failures: dict[int, Failure | None] = field(default_factory=dict)  # None: an earlier stage's
    manifest: Manifest | None = None  # only if it is good today
    seal: Seal | None = None  # only if all its shards are good as they were sealed

    @property
    def complete(self) -> bool:
        """True where all its shards, or its manifest, are good."""
        if self.planned.is_row or self.planned.is_root:
            return self.total is not None and len(self.shards) == self.total
        return self.manifest is not None

    @property
    def failed(self) -> int:
        """Number of shards that failed in this stage, not in an earlier one."""
        return sum(failure is not None for failure in self.failures.values())

    @property
    def outputs(self) -> tuple[tuple[str, int], ...]:
        """Name and size in bytes of each file in out/ of a complete stage."""
        return self.manifest.outputs if self.manifest else ()

    @property
    def columns(self) -> pa.Table:
        """Records of all passes of the good shards, as a table."""
        return self.scan.records.table(self.shards.numbers)

    @property
    def codes(self) -> list[str]:
        """The reasons in the records; "" stands for rows with a value."""
        return self.seal.codes if self.seal else list(rows_by_reason(self.columns))

    @property
    def rows(self) -> int:
        """Number of rows of all good shards."""
        sealed = self.scan.manifest if self.seal else None
        return sealed.rows if sealed else self.shards.rows

    @property
    def digest(self) -> str:
        """One digest of a complete stage: of its files and shards, or of its shards."""
        manifest = self.scan.manifest if self.seal else self.manifest
        if manifest is not None:
            return manifest.digest or manifest.inputs
        digests = self.shards.digests().to_pylist()
        return digest([list(pair) for pair in zip(self.shards, digests, strict=True)])

    @property
    def seconds(self) -> float:
        """Seconds of work in all workers; for a dataset stage, wall time of its last run."""
        if self.manifest and self.manifest.seconds is not None and not self.planned.is_root:
            return self.manifest.seconds
        if self.seal:
            return self.seal.seconds
        return float(sum(self.columns["seconds"].to_pylist()))

    def unseal(self) -> None:
        """Breaks the seal, before somebody writes to the folder."""
        self.folder.delete(SEAL)
        self.seal = self.scan.seal = None

    def recorded(self, shard: int) -> dict[str, int] | None:
        """Returns a good shard's rows by reason ("" for rows with a value), from its record.

        None if a later pass or another mask has changed the counts.
        """
        first, *later = self.scan.records[shard]
        mask = self.shards[shard].mask
        is_current = not later and first.mask == (mask.digest if mask else None)
        return first.counts if is_current and sum(first.counts.values()) == first.rows else None

    def all_recorded(self) -> tuple[dict[str, int], list[int]]:
        """Returns rows by reason of all good shards, and the shards whose records do not tell."""
        if self.seal and self.seal.counts is not None:
            return self.seal.counts, []
        shard_N, records = self.shards.numbers, self.scan.records
        first, mask = records.first(shard_N), self.shards.mask
        is_known_N = (records.passes(shard_N) == 1) & (counted(first) == first["rows"].to_numpy())
        is_known_N &= same_mask(first, mask, shard_N)
        known = first if is_known_N.all() else first.filter(pa.array(is_known_N))
        return rows_by_reason(known), shard_N[~is_known_N].tolist()


def no_mask(records: pa.Table) -> NDArray[np.bool_]:
    """Returns (R,) True for records that were made without a mask."""
    return np.asarray(records["mask"].is_null(), bool)


def same_mask(
    records: pa.Table, mask: Shards | None, shard_N: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Returns (N,) True for records made under the shard's current mask, or lack of one."""
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
        """Scans the stages' folders; `scans` caches them for several plans that share some.

        `as_it_stood`: leave out passes that wider masks of other recipes have added since.
        """
        self.plan = plan
        self.run = run
        self.as_it_stood = as_it_stood
        self.show_unsafe = False  # pages blur what scores as unsafe
        self.stored: dict[str, StoredColumns] = stored_columns(plan.stages, run)
        names = list(plan.stages)
        waits = READERS if not run.is_local else min(READERS, os.cpu_count() or 1)
        with ThreadPoolExecutor(waits) as pool:
            states = pool.map(lambda name: self._scanned(name, scans), names)
            self.stages = dict(zip(names, states, strict=True))
        for name in names:
            self.resolve(name)

    @property
    def row_stages(self) -> list[PlannedStage]:
        """The complete stages of rows, in topological order."""
        return [s.planned for s in self.stages.values() if s.complete and s.planned.gives_rows]

    def rescan(self, name: str) -> None:
        """Scans a stage's folder again, and resolves it."""
        self.stages[name] = self._scanned(name)
        self.resolve(name)

    def _scanned(self, name: str, scans: dict[str, Scan] | None = None) -> StageState:
        planned, folder = self.plan.stages[name], self.stored[name].folder
        known = scans.get(planned.folder) if scans is not None else None
        scanned = known or glance(folder)
        if scans is not None:
            scans[planned.folder] = scanned
        if (
            planned.stage.determinism == "recorded" and scanned.lost
        ):  # lost answers are asked for by --repair only
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
        """Finds a stage's current good shards; its needs must be resolved."""
        state = self.stages[name]
        state.shards = Shards(state.scan.records, NONE)
        state.failures, state.manifest, state.seal = {}, None, self._good_seal(state)
        if state.planned.is_root:
            self._resolve_root(state)
        elif state.planned.is_row:
            self._resolve_rows(state)
        else:
            self._resolve_dataset(state)
        if not state.complete:  # a file in out/ is gone, say
            state.seal = None

    @property
    def sealed(self) -> set[str]:
        """The paths of the folders that nobody has written to since they were sealed."""
        return {stage.folder.path for stage in self.stages.values() if stage.scan.seal}

    def _good_seal(self, state: StageState) -> Seal | None:
        """Returns a stage's seal if what it was made of is as it was then."""
        planned, manifest, seal = state.planned, state.scan.manifest, state.scan.seal
        if manifest is None or seal is None or (self.as_it_stood and planned.only):
            return None
        root = self.stages[planned.root].total if planned.root else None
        if planned.is_row and manifest.shards != root:
            return None
        return seal if planned.is_root or self.made_of(planned) == seal.made_of else None

    def made_of(self, planned: PlannedStage) -> dict[str, str]:
        """Returns the digest of each stage that this one reads, if all are complete."""
        needs = {need: self.stages[need] for need in planned.needs}
        if planned.is_root or not all(need.complete for need in needs.values()):
            return {}
        return {name: need.digest for name, need in needs.items()}

    def _resolve_root(self, state: StageState) -> None:
        """Takes every shard within the manifest's count; only a run checks the source itself."""
        manifest = state.scan.manifest
        state.total = manifest.shards if manifest else None
        shard_N = state.scan.records.shards
        if state.total is not None:
            shard_N = shard_N[shard_N < state.total]
        state.shards = Shards(state.scan.records, shard_N)
        state.failures = {s: f for s, f in state.scan.failures.items() if s not in state.shards}
        state.manifest = manifest if state.complete else None

    def _resolve_dataset(self, state: StageState) -> None:
        """Takes all shards or none: the manifest names the inputs of all."""
        planned, manifest = state.planned, state.scan.manifest
        sealed = manifest if state.seal else None
        inputs = sealed.inputs if sealed else self.inputs_digest(planned)
        state.total = self.stages[planned.root].total if planned.root else None
        if inputs is None or manifest is None or manifest.inputs != inputs or not manifest.digest:
            return
        if manifest.outputs != state.scan.outputs:
            return
        is_opened = any(planned.name in other.folders for other in self.plan.stages.values())
        if planned.gives_rows and not manifest.outputs and is_opened:
            return  # from a version that stored no files: a run keeps the rows and adds the files
        records = state.scan.records
        if state.seal:
            state.manifest, state.shards = manifest, Shards(records, records.shards)
            return
        table = records.table(records.shards)
        others_N = table["shard"].to_numpy()[~are_made_of(table, manifest.made_of)]
        good_N = np.setdiff1d(records.shards, others_N, assume_unique=True)
        if len(good_N) == manifest.shards:
            state.manifest, state.shards = manifest, Shards(records, good_N)

    def _resolve_rows(self, state: StageState) -> None:
        """Takes each shard that is made from its current parents, under the current mask."""
        root = self.stages[state.planned.root]
        state.total = root.total
        if state.seal:
            mask = self.stages[state.planned.only].shards if state.planned.only else None
            state.shards = Shards(state.scan.records, state.scan.records.shards, mask)
            return
        ready_N = self._ready(state.planned)
        if len(ready_N):
            self._resolve_ready(state, ready_N)
        waiting = set(np.setdiff1d(root.shards.numbers, ready_N, assume_unique=True).tolist())
        for need in state.planned.needs:
            for shard in waiting & self.stages[need].failures.keys():
                state.failures[shard] = None
        state.failures = dict(sorted(state.failures.items()))

    def _ready(self, planned: PlannedStage) -> NDArray[np.int64]:
        """Returns the shards whose inputs are all good."""
        if len(self.digests(planned.folders)) < len(planned.folders):
            return NONE
        ready_N = self.stages[planned.root].shards.numbers
        for need in (*planned.sources, *([planned.only] if planned.only else [])):
            ready_N = np.intersect1d(ready_N, self.stages[need].shards.numbers, assume_unique=True)
        return ready_N

    def _resolve_ready(self, state: StageState, ready_N: NDArray[np.int64]) -> None:
        """Resolves shards with one pass by column; the few others one by one, with `standing`."""
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
            stored, failure = records.get(shard, []), state.scan.failures.get(shard)
            parents = parents_of(
                planned, {s: shards[shard].digest for s, shards in sources.items()}, models
            )
            under = mask[shard].digest if mask is not None else None
            verdict = standing(stored, failure, parents, under)
            if verdict == "good":
                others.append(shard)
                if self.as_it_stood and mask is not None:
                    own = [record.number for record in stored if record.mask in (None, under)]
                    passes[shard] = [record for record in stored if record.number <= own[-1]]
            elif verdict == "failed":
                state.failures[shard] = failure
        good_N = np.sort(np.append(good_N, np.array(others, np.int64)))
        state.shards = Shards(records, good_N, mask, passes)

    def shard_states(self, planned: PlannedStage, shard: int) -> dict[str, ShardState] | None:
        """Returns the states of the shard's inputs, by stage; None if one is not good."""
        needs = (*planned.sources, *([planned.only] if planned.only else []))
        states = {need: self.stages[need].shards.get(shard) for need in needs}
        good = {need: state for need, state in states.items() if state is not None}
        return good if len(good) == len(states) else None

    def digests(self, names: Iterable[str]) -> dict[str, str]:
        """Returns the manifest's digest of each of these stages that is done."""
        manifests = {name: self.stages[name].manifest for name in names}
        return {name: manifest.digest for name, manifest in manifests.items() if manifest}

    def inputs_digest(self, planned: PlannedStage) -> str | None:
        """Returns one digest of a dataset stage's inputs; None while some are missing."""
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
        """Returns the rows that a dataset stage reads, if any; its parents must be complete."""
        bound = zip(planned.parents, planned.bindings, strict=False)
        members = [self._pool_shards(parent, bindings) for parent, bindings in bound]
        apart = planned.is_root or len(members) != 1
        return JoinedShards(tuple(members)) if apart else members[0]

    def mask(self, planned: PlannedStage) -> SelectMask | None:
        """Returns the mask of the data that a dataset stage reads; None if it reads all rows."""
        if planned.data is None or planned.kept_by is None:
            return None
        verdicts = self._pool_shards(planned.kept_by, planned.mask)
        return SelectMask(verdicts, self.stored[planned.data].folder)

    def _pool_shards(self, stage: str, bindings: dict[str, Binding]) -> PoolShards:
        """Returns these columns of all rows of the stage's root; they must be complete."""
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
        """Counts a good shard's rows by reason today; reads its file if its record cannot tell."""
        recorded = self.stages[name].recorded(shard)
        if recorded is not None:
            return recorded
        tables = self.stored[name].read(self.stages[name].shards[shard], [REASON.name], 65_536)
        reasons = pa.concat_tables(tables)[REASON.name].cast(pa.string())
        counted = pc.value_counts(pc.fill_null(reasons, "")).to_pylist()
        return {count["values"]: count["counts"] for count in counted}

    def cell(self, name: str, shard: int, position: int, columns: list[str]) -> dict[str, Any]:
        """Reads columns of one row; if the shard has one file, from a single row group."""
        stored, shard_state = self.stored[name], self.stages[name].shards[shard]
        if len(shard_state.files) == 1 and shard_state.mask is None and not shard_state.listed:
            row = np.array([position])
            return dict(read_at(stored.folder, shard_state.files[0], columns, row).to_pylist()[0])
        start = 0
        for table in stored.read(shard_state, columns, 4096):
            if position < start + len(table):
                return dict(table.slice(position - start, 1).to_pylist()[0])
            start += len(table)
        raise IndexError(f"position {position} of {start} rows of shard {shard}")

    def uid(self, root: str, shard: int, position: int) -> str:
        """Returns the uid of a row, in hex."""
        return str(self.cell(root, shard, position, [UID.name])[UID.name].hex())


def summary(state: StageState) -> str:
    """Returns a stage's progress in words: `done`, `3 of 12 shards`, `nothing yet`."""
    if state.complete:
        return "done"
    gone = state.scan.changed
    damaged = f", {gone} {'file' if gone == 1 else 'files'} gone or changed" if gone else ""
    if not state.shards and not state.failures:
        return f"nothing yet{damaged}"
    total = "?" if state.total is None else state.total
    shards = f"{len(state.shards)} of {total} shards"
    return shards + (f", {state.failed} failed" if state.failed else "") + damaged


def latest(uri: str, variant: int | None = None) -> RunState:
    """Reads a run folder by the recipe that ran there last, or by one of its variants."""
    run = Storage(uri)
    if variant is not None:
        return seen_through(plan_of(variant_of(run, variant).ran, run), run)
    return without_listed(RunState(plan_of(newest_recipe(run)[1], run), run))


def without_listed(state: RunState) -> RunState:
    """Hides from now on what rows hold that a stage has listed; returns the state."""
    for root in dict.fromkeys(stage.planned.root for stage in state.stages.values()):
        listing = [state.stages[name] for name in listing_over(state, root)]
        marks = tuple((stage.folder, copy(stage.shards)) for stage in listing)
        for stage in state.stages.values():
            if stage.planned.root == root:
                stage.shards.listed = marks
    return state


def listing_over(state: RunState, root: str) -> list[str]:
    """Returns the stages over a root that have listed some of its rows."""
    return [
        name
        for name, stage in state.stages.items()
        if stage.planned.root == root
        and LISTED in stage.planned.stage.reasons
        and LISTED in stage.codes
    ]


def seen_through(plan: Plan, run: Storage, scans: dict[str, Scan] | None = None) -> RunState:
    """Reads a run folder by the plan of a variant, for display.

    A wider mask of another variant may have added rows to a stage with `only:`, which outdates the
    stages after it. The state without these rows is returned if more of its stages are complete.
    """
    scans = {} if scans is None else scans
    today = without_listed(RunState(plan, run, scans))
    if all(stage.complete for stage in today.stages.values()) or not any(
        planned.only for planned in plan.stages.values()
    ):
        return today
    stood = without_listed(RunState(plan, run, scans, as_it_stood=True))
    return max(today, stood, key=lambda run: sum(stage.complete for stage in run.stages.values()))


def plan_of(ran: RanRecipe, run: Storage) -> Plan:
    """Plans a recipe that ran with today's code.

    A stage whose own code is missing is planned as the run remembers it.
    """
    own, there = remembered_in(run), own_code.own().keys()
    known = {name: own[folder] for name, folder in ran["folders"].items() if folder in own}
    return make_plan(
        Recipe(
            name=ran["name"],
            path=ran["path"],
            seed=ran["seed"],
            stages=ran["stages"],
            overrides=tuple(ran["overrides"]),
            folders=ran["folders"],
            remembered={name: old for name, old in known.items() if old.files.keys() - there},
        )
    )
