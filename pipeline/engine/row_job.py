"""Runs row stages of one root together, shard by shard."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from clipmill.metadata.compaction import append, compact
from clipmill.metadata.damage import DamagedError
from clipmill.metadata.record import Record
from clipmill.pipeline.engine import attempts
from clipmill.pipeline.engine.chain import Chain, ShardItem
from clipmill.pipeline.engine.chain_run import ChainRun
from clipmill.pipeline.engine.failures import storage_error
from clipmill.pipeline.engine.first_shards import FirstShards
from clipmill.pipeline.engine.running import Running
from clipmill.pipeline.engine.units import file_of
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.executors import Step
from clipmill.pipeline.planning.planned import PlannedStage
from clipmill.pipeline.run_folder.state import StageState
from clipmill.pipeline.stage import RowStage

COMPACT_EVERY = 1000  # records of a stage: the most that a resume reads one by one


@dataclass
class RowJob:
    """Row stages of one root, in order; nobody else changes their states while the job runs."""

    running: Running
    stages: list[PlannedStage]
    blamed: str | None = field(default=None, init=False)  # stage whose error ended it; None: all
    uncompacted: dict[str, list[Record]] = field(default_factory=dict, init=False)  # by stage
    has_work: bool = field(default=False, init=False)  # a shard had something to do
    begun: dict[str, set[int]] = field(default_factory=dict, init=False)  # shards with attempts

    def run(self) -> list[DamagedError]:
        """Computes missing shards; returns the damaged files met, to be made again."""
        for stage in self._states():  # earlier stages of this run may have outdated some shards
            self.running.state.resolve(stage.planned.name)
            if self.running.retry or not stage.complete:
                stage.unseal()
            self.running.watcher.stage(stage.planned.name, stage.total, len(stage.shards))
            # No compaction may hold records that changed parents outdate, as they are made again.
            if np.setdiff1d(stage.scan.records.shards, stage.shards.numbers).size:
                compact(stage.folder, stage.columns)
                stage.scan.compacted = False
            self.begun[stage.planned.name] = attempts.of_shards(stage.folder)
        steps = self._steps()
        damaged: list[DamagedError] = []
        state, retry = self.running.state, self.running.retry
        try:
            # Stored shards are checked too, unless their rows are retried.
            names = [] if self.running.keep_going else [planned.name for planned in self.stages]
            settled = {name: () if retry else state.stages[name].shards for name in names}
            firsts = self._open([FirstShards(state, name, set(settled[name])) for name in names])
            # Closed early, the stream does not wait for work in progress.
            with closing(self.running.executor.stream(steps, self._items())) as results:
                for item in results:
                    damaged += item.damaged
                    self._take(item)
                    for first in firsts:
                        first.settled.add(item.shard)
                    firsts = self._open(firsts)
                    self._compact(COMPACT_EVERY)
            if damaged:
                self._compact(1)
            for stage in self._states():  # all work has ended: nobody reads its counts
                if self.has_work or self.begun[stage.planned.name]:
                    stage.folder.delete_folder(attempts.FOLDER)
        except DamagedError as met:  # by FirstShards, which reads counts of stored shards
            damaged.append(met)
        except OSError as error:
            raise storage_error(error, f"stage '{steps[0].name}'", state.run) from error
        return damaged

    def _open(self, firsts: list[FirstShards]) -> list[FirstShards]:
        """Returns those with more shards to come; raises StageError on a fault of most rows."""
        still = []
        for first in firsts:
            try:
                if first.is_open():
                    still.append(first)
            except StageError:
                self.blamed = first.stage
                raise
        return still

    def _states(self) -> list[StageState]:
        return [self.running.state.stages[planned.name] for planned in self.stages]

    def _steps(self) -> list[Step]:
        """Returns a step for each chain, whose stages share a worker and pass batches in memory."""
        running = self.running
        chains = [
            Chain(
                seed=running.plan.seed,
                run_id=running.run_id,
                run=running.state.run,
                stages=tuple(stages),
                stored=running.state.stored,
                models=running.state.digests(name for p in stages for name in p.folders),
                retry=running.retry,
                profile=next((p for p in stages if p.name == running.profile), None),
            )
            for stages in chained(self.stages)
        ]
        return [
            Step(
                name=" + ".join(planned.name for planned in chain.stages),
                start=partial(ChainRun, chain),
                resources=chain.stages[0].stage.resources,
            )
            for chain in chains
        ]

    def _items(self) -> Iterator[ShardItem]:
        """Yields a small item for each shard with something to do: states and records, no rows."""
        known = self.running.state.stages
        root = self.stages[0].root
        names = {planned.name for planned in self.stages}
        needs = {need for planned in self.stages for need in (*planned.sources, planned.only)}
        outside = [need for need in needs - names if need]
        if all(stage.complete for stage in self._states()) and not self.running.retry:
            return
        for shard in sorted(known[root].shards):
            stages = self._states()
            if all(shard in stage.shards for stage in stages) and not self.running.retry:
                continue
            states = {need: known[need].shards.get(shard) for need in outside}
            is_begun = any(shard in shards for shards in self.begun.values())
            self.has_work = True
            yield ShardItem(
                shard=shard,
                states={n: s for n, s in states.items() if s is not None},
                failed={n: None for n, s in states.items() if s is None},
                records={stage.planned.name: stage.scan.records.get(shard, []) for stage in stages},
                set_aside={
                    stage.planned.name: replace(
                        failure, crashed=failure.crashed and not self.running.crash_ok
                    )
                    for stage in stages
                    if (failure := stage.scan.failures.get(shard))
                },
                unchecked=frozenset(
                    stage.planned.name for stage in stages if shard in stage.scan.unchecked
                ),
                begun=is_begun,
                file=file_of(known[root].shards[shard]),
            )

    def _take(self, item: ShardItem) -> None:
        """Takes a finished shard's states, failures and records into the run's state."""
        known, watcher, shard = self.running.state.stages, self.running.watcher, item.shard
        own = {planned.name for planned in self.stages}
        again = {name for name in own if shard in known[name].shards}
        for name, failure in item.failed.items():
            if failure is not None:
                watcher.failed(name, failure)
            if name in own:
                known[name].failures[shard] = failure
        for name in item.states:
            if name in own:
                known[name].failures.pop(shard, None)
                known[name].scan.records.put(shard, item.records[name])
                known[name].shards.add(shard)
        for name, spent in item.spent.items():
            self.running.spent[name].add(spent)
        for name, record in item.new_records:
            watcher.shard(name, record, known[name].total, name in again)
            self.uncompacted.setdefault(name, []).append(record)

    def _compact(self, least: int) -> None:
        """Adds a part to the compaction of each stage with `least` uncompacted records."""
        for name, records in self.uncompacted.items():
            if len(records) >= least:
                stage = self.running.state.stages[name]
                append(stage.folder, stage.scan.parts, records)
                stage.scan.parts += 1
                records.clear()


def chained(stages: list[PlannedStage]) -> list[list[PlannedStage]]:
    """Returns the stages in topological order, split into chains that can share a worker."""
    left = list(stages)
    chains: list[list[PlannedStage]] = []
    placed: set[str] = set()
    inside = {planned.name for planned in stages}
    while left:
        ready = [p for p in left if all(n in placed for n in p.needs if n in inside)]
        fits = [p for p in ready if chains and _share_a_worker(chains[-1][-1], p)]
        if fits:
            chains[-1].append(fits[0])
        else:
            chains.append([ready[0]])
        placed.add(chains[-1][-1].name)
        left.remove(chains[-1][-1])
    return chains


def _share_a_worker(first: PlannedStage, second: PlannedStage) -> bool:
    assert isinstance(first.stage, RowStage)
    assert isinstance(second.stage, RowStage)
    return (
        first.only is None
        and second.only is None
        and first.stage.resources == second.stage.resources
        and first.stage.batch_rows == second.stage.batch_rows
    )
