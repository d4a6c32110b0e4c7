"""Runs a plan: waves of row stages stream through workers, dataset stages between them."""

import json
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from metadata.damage import DamagedError
from metadata.fingerprint import digest, settings_of
from metadata.outputs import NOTES, OUT, Noted, noted_outputs
from metadata.places import is_places
from metadata.record import Failure, Manifest, Record, fold
from metadata.storage import Storage
from pipeline import attempts, lock
from pipeline.chain import Chain, ShardItem
from pipeline.chain_run import ChainRun
from pipeline.claim import claim
from pipeline.context import RunContext
from pipeline.dataset import Inputs
from pipeline.errors import ClipmillError, LostLockError, StageError
from pipeline.executors import Executor, Step
from pipeline.failures import raised, storage_error
from pipeline.journal import StageRun
from pipeline.origin import refuse_another_pool, remember_pools
from pipeline.plan import Plan
from pipeline.planned import PlannedStage
from pipeline.repair import is_asked, refusal, take_away
from pipeline.rows import PoolShards
from pipeline.stage import DatasetStage, RowStage
from pipeline.state import RunState, StageState

FOLD_EVERY = 1000  # records: what a resume reads one by one at most


class Watcher(Protocol):
    """Who is told how a run goes: progress bars, or a log."""

    def stage(self, name: str, total: int | None, done: int) -> None: ...

    def shard(self, name: str, record: Record, total: int | None) -> None: ...

    def unit(self, name: str, call: str, done: int, total: int) -> None: ...

    def failed(self, name: str, failure: Failure) -> None: ...

    def damaged(self, name: str, found: DamagedError) -> None: ...

    def finished(self, name: str, state: StageState) -> None: ...


@dataclass
class Outcome:
    """How a run ended: the state of every stage, and why those that are not complete are not."""

    state: RunState
    stopped: dict[str, ClipmillError | None]  # stage to its error; None: waits for another

    @property
    def complete(self) -> bool:
        done = all(stage.complete for stage in self.state.stages.values())
        return done and not any(self.stopped.values())


def run_plan(
    plan: Plan,
    run: Storage,
    executor: Executor,
    watcher: Watcher,
    retry: tuple[str, ...] = (),
) -> Outcome:
    """Runs what is not done. Finished shards of a stage that fails stay."""
    with lock.held(run) as owned:
        refuse_another_pool(plan, owned)
        claim(plan, owned)
        remember_pools(plan, owned)
        return _Run(plan, owned, executor, watcher, retry).go()


class _Run:
    def __init__(
        self,
        plan: Plan,
        run: Storage,
        executor: Executor,
        watcher: Watcher,
        retry: tuple[str, ...],
    ) -> None:
        self.plan = plan
        self.executor = executor
        self.watcher = watcher
        self.retry = tuple(reason for reason in retry if reason != "crashed")
        self.crash_ok = "crashed" in retry
        self.run_id = uuid.uuid4().hex
        self.state = RunState(plan, run)
        self.stopped: dict[str, ClipmillError | None] = {}
        self.ended: set[str] = set()
        self.healed: set[tuple[str, str]] = set()  # damaged files that were taken away
        run.sweep()
        for name, stage in self.state.stages.items():
            if self.crash_ok:
                attempts.forget(stage.folder)
            watcher.stage(name, stage.total, len(stage.shards))

    def go(self) -> Outcome:
        """Alternates until nothing can start: all row stages that can, then one dataset stage."""
        while True:
            wave = self._wave()
            if wave:
                self._run_wave(wave)
                continue
            stage = self._next_dataset()
            if stage is None:
                break
            self._run_dataset(stage)
        for name in self.plan.stages:
            if name not in self.ended:
                self.stopped.setdefault(name, None)
        self.state.run.sweep()  # of workers that died
        return Outcome(self.state, self.stopped)

    # Waves of row stages

    def _wave(self) -> list[PlannedStage]:
        """Row stages of one root whose other needs have ended, in order."""
        wave: list[PlannedStage] = []
        for planned in self.plan.stages.values():
            if not planned.is_row or planned.name in self.ended | self.stopped.keys():
                continue
            inside = {other.name for other in wave}
            ready = all(need in self.ended or need in inside for need in planned.needs)
            if ready and (not wave or wave[0].root == planned.root):
                wave.append(planned)
        return wave

    def _run_wave(self, wave: list[PlannedStage]) -> None:
        root = wave[0].root
        assert root is not None
        for planned in wave:  # stages of this run may have changed what is good
            self.state.resolve(planned.name)
            stage = self.state.stages[planned.name]
            self.watcher.stage(planned.name, stage.total, len(stage.shards))
            self._drop_stale(stage)
        segments = [
            Chain(
                seed=self.plan.seed,
                run_id=self.run_id,
                stages=tuple(group),
                stored=self.state.stored,
                models=self.state.digests([p.model for p in group if p.model]),
                retry=self.retry,
            )
            for group in _segments(wave)
        ]
        steps = [
            Step(
                name=" + ".join(planned.name for planned in segment.stages),
                start=partial(ChainRun, segment),
                resources=segment.stages[0].stage.resources,
            )
            for segment in segments
        ]
        unfolded = 0
        damaged: list[DamagedError] = []
        try:
            for item in self.executor.stream(steps, self._items(wave)):
                damaged += item.damaged
                unfolded += self._take(item)
                if unfolded >= FOLD_EVERY:
                    self._fold(wave)
                    unfolded = 0
        except StageError as error:
            self._stop(wave, error)
            return
        except OSError as error:
            self._stop(wave, storage_error(error, f"stage '{steps[0].name}'"))
            return
        if damaged:
            self._fold(wave)
            self._heal(wave, damaged)
            return
        for planned in wave:
            self._finish(self.state.stages[planned.name])

    def _items(self, wave: list[PlannedStage]) -> Iterator[ShardItem]:
        """One item for each shard with something to do; small: states and records, no rows."""
        root = wave[0].root
        assert root is not None
        names = {planned.name for planned in wave}
        needs = {need for planned in wave for need in (*planned.sources, planned.only) if need}
        for shard in sorted(self.state.stages[root].shards):
            stages = [self.state.stages[planned.name] for planned in wave]
            if all(shard in stage.shards for stage in stages) and not self.retry:
                continue
            outside = {need: self.state.stages[need].shards.get(shard) for need in needs - names}
            yield ShardItem(
                shard=shard,
                states={n: s for n, s in outside.items() if s is not None},
                failed={n: None for n, s in outside.items() if s is None},
                records={stage.planned.name: stage.scan.records.get(shard, []) for stage in stages},
                set_aside={
                    stage.planned.name: replace(
                        failure, crashed=failure.crashed and not self.crash_ok
                    )
                    for stage in stages
                    if (failure := stage.scan.failures.get(shard))
                },
                unchecked=frozenset(
                    stage.planned.name for stage in stages if shard in stage.scan.unchecked
                ),
            )

    def _take(self, item: ShardItem) -> int:
        """Notes what became of a shard; returns how many records were made."""
        shard = item.shard
        for name, failure in item.failed.items():
            stage = self.state.stages[name]
            if failure is not None or stage.planned.is_row:
                stage.failures[shard] = failure
            if failure is not None:
                self.watcher.failed(name, failure)
        for name, shard_state in item.states.items():
            stage = self.state.stages[name]
            if stage.planned.is_row and name in item.records:
                stage.shards[shard] = shard_state
                stage.failures.pop(shard, None)
                stage.scan.records[shard] = item.records[name]
        for name, record in item.made:
            self.watcher.shard(name, record, self.state.stages[name].total)
        return len(item.made)

    def _drop_stale(self, stage: StageState) -> None:
        """Takes records whose parents changed out of the fold, before they are made again."""
        if any(shard not in stage.shards for shard in stage.scan.records):
            fold(stage.folder, stage.records)
            stage.scan.folded = False

    def _fold(self, wave: list[PlannedStage]) -> None:
        for planned in wave:
            stage = self.state.stages[planned.name]
            fold(stage.folder, stage.records)

    # Dataset stages

    def _next_dataset(self) -> PlannedStage | None:
        for planned in self.plan.stages.values():
            if planned.is_row or planned.name in self.ended | self.stopped.keys():
                continue
            if all(self.state.stages[need].complete for need in planned.needs):
                return planned
        return None

    def _run_dataset(self, planned: PlannedStage) -> None:
        self.state.resolve(planned.name)
        stage = self.state.stages[planned.name]
        assert isinstance(planned.stage, DatasetStage)
        try:
            outside = planned.stage.outside()
        except OSError as error:
            self._stop([planned], storage_error(error, planned.where))
            return
        if stage.complete and not planned.is_root:
            if stage.manifest and stage.manifest.outside == outside:
                self._finish(stage)
                return
            stage.folder.delete("manifest.json")
            self.state.rescan(planned.name)
            stage = self.state.stages[planned.name]
        self.watcher.stage(planned.name, stage.total, 0)
        inputs = self.state.inputs_digest(planned)
        assert inputs is not None
        made_of = {"inputs": inputs, **({"outside": outside} if outside else {})}
        before = stage.scan.manifest
        is_remade = before is not None and before.made_of == made_of
        page_checksums = before.page_checksums if before and is_remade else True
        rows = self.state.inputs(planned)
        context = RunContext(
            StageRun(
                planned=planned,
                seed=self.plan.seed,
                run_id=self.run_id,
                folder=stage.folder,
                executor=self.executor,
                made_of=made_of,
                known=stage.scan,
                crash_ok=self.crash_ok,
                home=rows if isinstance(rows, PoolShards) else None,
                page_checksums=page_checksums,
                wanted=self.plan.read_of(planned.name),
                on_shard=lambda record, total: self.watcher.shard(planned.name, record, total),
                on_unit=lambda call, done, n: self.watcher.unit(planned.name, call, done, n),
            )
        )
        model = self.state.stored[planned.model].folder.uri if planned.model else None
        data = self.state.stored[planned.data].folder.uri if planned.data else ""
        began = time.monotonic()
        try:
            if not planned.is_root and context.journal not in stage.folder.folders():
                stage.folder.delete_folder(OUT)  # made of other inputs, or damaged
                stage.folder.delete_folder(NOTES)
                stage.folder.put(f"{context.journal}/begun.json", b"{}", point="journal")
            mask = self.state.mask(planned)
            planned.stage.run(Inputs(rows=rows, data=data, mask=mask, model=model), context)
            stored = noted_outputs(stage.folder)
        except LostLockError:
            raise
        except DamagedError as found:
            self._heal([planned], [found])
            return
        except ClipmillError as error:
            self._stop([planned], StageError(*error.args))
            return
        except OSError as error:
            self._stop([planned], storage_error(error, planned.where))
            return
        except Exception as error:
            self._stop([planned], StageError(*raised(error, planned.where), "mend the stage"))
            return
        for failure in context.failures.values():
            self.watcher.failed(planned.name, failure)
        self._manifest_dataset(planned, stage, context, made_of, stored, time.monotonic() - began)
        self.state.rescan(planned.name)
        stage = self.state.stages[planned.name]
        if planned.is_root:
            stage.total = context.shards
            stage.failures.update(context.failures)
        self._finish(stage)

    def _manifest_dataset(
        self,
        planned: PlannedStage,
        stage: StageState,
        context: RunContext,
        made_of: dict[str, str],
        stored: dict[str, Noted],
        seconds: float,
    ) -> None:
        """The stage's manifest, last."""
        if planned.is_root:
            for shard in [s for s in stage.scan.records if s >= context.shards]:
                stage.folder.delete(f"{shard:06d}.json")  # the pool has shrunk
        if context.failures:
            stage.folder.delete("manifest.json")
            fold(stage.folder, context.records.values())
            return
        records = [context.records[shard] for shard in sorted(context.records)]
        outputs = tuple((name, noted.size_bytes) for name, noted in stored.items())
        told = [file for file in outputs if not is_places(file[0])]
        made = Manifest(
            shards=len(records),
            rows=sum(record.rows for record in records),
            **made_of,
            digest=digest([*made_of.values(), [r.sha256 for r in records], told]),
            outputs=outputs,
            output_sha256={name: noted.sha256 for name, noted in stored.items()},
            page_checksums=context.page_checksums,
            seconds=round(seconds, 3),
        )
        self._put_manifest(stage, made, records)

    # Damage

    def _heal(self, reading: list[PlannedStage], damaged: list[DamagedError]) -> None:
        """Takes damaged files away, so that the next wave makes them again. Each once a run."""
        names = {part.folder.uri: name for name, part in self.state.stored.items()}
        refused = False
        for found in {(found.folder, found.name): found for found in damaged}.values():
            name = names.get(found.folder)
            planned = self.plan.stages[name] if name else None
            place = (found.folder, found.name)
            if planned is None or is_asked(planned.stage) or place in self.healed:
                refused = True
                stopped = planned or reading[0]
                self.stopped[stopped.name] = refusal(found, planned, self.state.run)
                continue
            self.watcher.damaged(planned.name, found)
            self.healed.add(place)
            take_away(self.state.stages[planned.name].folder, found.name)
            self._reopen(planned.name)
        for planned in reading if refused else []:  # what can't be read is not read again
            if planned.is_row:
                self._finish(self.state.stages[planned.name])
            else:
                self.stopped.setdefault(planned.name, None)

    def _reopen(self, name: str) -> None:
        """The stage and all after it are looked at again: some of it is to be made."""
        self.state.rescan(name)
        after = {name}
        for planned in self.plan.stages.values():
            if after & set(planned.needs):
                after.add(planned.name)
                self.state.resolve(planned.name)
        self.ended -= after

    # Ends

    def _finish(self, stage: StageState) -> None:
        planned = stage.planned
        self.ended.add(planned.name)
        if planned.is_row and stage.complete:
            made = Manifest(
                shards=len(stage.shards),
                rows=sum(state.rows for state in stage.shards.values()),
                inputs=digest([[s, stage.shards[s].digest] for s in sorted(stage.shards)]),
            )
            self._put_manifest(stage, made, stage.records)
        elif stage.complete and not stage.scan.folded:
            fold(stage.folder, stage.records)
        if stage.complete:
            self._tidy(stage)
        else:
            self.stopped.setdefault(planned.name, None)
        self.watcher.finished(planned.name, stage)

    def _tidy(self, stage: StageState) -> None:
        """Takes away the journal of a finished stage, and what a killed run left of its attempts.

        A root keeps the results of its calls: what it scanned is not scanned again.
        """
        for name in stage.scan.attempts:
            stage.folder.delete(name)
        if stage.planned.is_row:
            return
        kept = "calls" if stage.planned.is_root else ""
        for name in stage.folder.folders(kept):
            if kept or name.startswith("calls-") or name == NOTES:
                stage.folder.delete_folder(f"{kept}/{name}".lstrip("/"))

    def _put_manifest(self, stage: StageState, made: Manifest, records: list[Record]) -> None:
        """Fold and manifest, where they say something new."""
        held = stage.scan.manifest
        if held and replace(held, seconds=made.seconds) == made and stage.scan.folded:
            return
        fold(stage.folder, records)
        planned = stage.planned
        whole = {
            "stage": planned.name,
            "uses": planned.uses,
            "version": planned.stage.version,
            "determinism": planned.stage.determinism,
            "settings": settings_of(planned.stage),
            "fingerprint": planned.fingerprint,
            **vars(made),
        }
        text = json.dumps(whole, sort_keys=True, indent=1)
        stage.folder.put("manifest.json", text.encode(), point="manifest")
        stage.scan.manifest = made

    def _stop(self, stages: list[PlannedStage], error: ClipmillError) -> None:
        for planned in stages:
            self.stopped[planned.name] = error
            self.state.rescan(planned.name)


def _segments(wave: list[PlannedStage]) -> list[list[PlannedStage]]:
    """The wave in an order that keeps needs first, cut where stages cannot run together."""
    left = list(wave)
    segments: list[list[PlannedStage]] = []
    placed: set[str] = set()
    inside = {planned.name for planned in wave}
    while left:
        ready = [p for p in left if all(n in placed for n in p.needs if n in inside)]
        fits = [p for p in ready if segments and _fuse(segments[-1][-1], p)]
        if fits:
            segments[-1].append(fits[0])
        else:
            segments.append([ready[0]])
        placed.add(segments[-1][-1].name)
        left.remove(segments[-1][-1])
    return segments


def _fuse(one: PlannedStage, other: PlannedStage) -> bool:
    assert isinstance(one.stage, RowStage)
    assert isinstance(other.stage, RowStage)
    return (
        one.only is None
        and other.only is None
        and one.stage.resources == other.stage.resources
        and one.stage.batch_rows == other.stage.batch_rows
    )
