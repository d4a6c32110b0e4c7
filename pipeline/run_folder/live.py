"""Progress of a run by stage: shown as bars, and stored in `live.json` for other processes.

`LiveReporter` updates it from events of jobs and workers, and stores it every few seconds;
`status` reads it. The last state stays: a killed run shows how far it came, and a stage's failure
is shown until the stage is run again.
"""

import contextlib
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Literal

import msgspec

from clipmill.metadata.damage import DamagedError
from clipmill.metadata.record import Failure, Record
from clipmill.metadata.sealed import put_sealed, read_sealed
from clipmill.metadata.storage import Storage
from clipmill.pipeline.errors import ClipmillError, LostLockError
from clipmill.pipeline.executors import Executor, Placed
from clipmill.pipeline.executors.telling import MORE_ROWS, ROWS, Notice, ProgressEvent
from clipmill.pipeline.run_folder import lock
from clipmill.pipeline.run_folder.claim import other_code
from clipmill.pipeline.run_folder.state import RunState, StageState, latest
from clipmill.pipeline.run_folder.words import kind_of

NAME = "live.json"
MOST_CAUSES = 20  # shown of a stage
READERS = 8  # threads, which wait for storage
STORE_S = 3.0  # between two stores of `live.json`
LEAST_S = 1.0  # of work, before a rate or the time left is shown

# found: done before this run. stopped: begun, but nobody works on it now.
Status = Literal["waiting", "running", "done", "found", "failed", "stopped"]
# part: the stages asked for are done, others not. gone: nobody works there, no end is stored.
Phase = Literal["starting", "running", "complete", "part", "failed", "stopped", "gone"]


@dataclass
class Cause:
    """The error that failed a stage, or one shard of it."""

    shard: int | None
    crashed: bool
    found: str
    where: str
    do: str

    @classmethod
    def of_shard(cls, failure: Failure) -> "Cause":
        return cls(failure.shard, failure.crashed, failure.found, failure.where, failure.do)


@dataclass
class Piece:
    """A shard or unit in work: its progress, and the values that its stage reports."""

    done: float
    all: float
    what: str = ""  # `steps`, `files`
    values: dict[str, float] = field(default_factory=dict)


@dataclass
class Live:
    """The progress of one stage. Times are seconds since the epoch.

    `rows` counts stored rows, `computed` those computed in this run. A dataset stage makes one call
    after another; `units` of `all_units` are done of the current one.
    """

    name: str
    uses: str
    folder: str
    needs: list[str]
    is_row: bool
    is_root: bool
    is_select: bool
    gives_rows: bool
    data: str | None = None
    rows_of: str | None = None
    status: Status = "waiting"
    shards: int = 0
    total: int | None = None
    found: int = 0  # shards stored before this run began the stage
    rows: int = 0
    files: int = 0
    computed: int = 0
    seconds: float = 0.0  # of work, in all workers
    reasons: dict[str, int] = field(default_factory=dict)
    causes: list[Cause] = field(default_factory=list)
    changed: int = 0  # files that are gone or have another size
    call: str = ""  # in words
    call_began: float = 0.0  # its first progress: before that it may wait for a worker
    call_moved: float = 0.0  # its last progress
    units: int = 0
    all_units: int = 0
    units_found: int = 0  # units before `call_began`, as those stored earlier
    pieces: dict[str, Piece] = field(default_factory=dict)
    began: float | None = None
    ended: float | None = None

    @property
    def kinds(self) -> dict[str, int]:
        """Counts of rows without a value by kind: failed, dropped, no input, not selected."""
        counted: Counter[str] = Counter()
        for reason, rows in self.reasons.items():
            if reason:
                counted[kind_of(reason, self.is_select, self.is_root)] += rows
        return dict(counted)

    @property
    def in_hand(self) -> float:
        """Sum over shards or units in work of the share that is done."""
        return sum(min(1.0, piece.done / piece.all) for piece in self.pieces.values() if piece.all)

    @property
    def share(self) -> float | None:
        """Share done, 0 to 1, of its shards or of the current call's units; None if unknown."""
        done, all_ = (
            (self.shards, self.total) if self.counts_shards else (self.units, self.all_units)
        )
        return min(1.0, (done + self.in_hand) / all_) if all_ else None

    @property
    def counts_shards(self) -> bool:
        """True where progress counts shards, False where it counts a call's units."""
        return self.is_row or not self.all_units

    def inside(self, *kinds: str) -> float:
        """Returns the rows of these kinds that are computed in shards not stored yet."""
        return sum(piece.done for piece in self.pieces.values() if piece.what in kinds)

    def rows_per_s(self, now: float) -> float | None:
        """Returns rows computed a second in this run; None without rows or in the first second."""
        elapsed = self.elapsed(now)
        rows = self.computed + self.inside(ROWS, MORE_ROWS)
        return rows / elapsed if elapsed and elapsed >= LEAST_S and rows else None

    def elapsed(self, now: float) -> float | None:
        """Returns seconds from its start in this run to its end or now; None if not begun."""
        return None if self.began is None else max(0.0, (self.ended or now) - self.began)

    def left_s(self, now: float) -> float | None:
        """Estimates seconds to the end of its shards or of its current call; None if unknown."""
        share = self.share
        if self.status != "running" or share is None or self.began is None:
            return None
        if self.counts_shards:
            before, spent = self.found / (self.total or 1), now - self.began
        else:
            before, spent = self.units_found / self.all_units, self.call_moved - self.call_began
        if share <= before or spent < LEAST_S:
            return None
        return spent * (1 - share) / (share - before)


@dataclass
class LiveRun:
    """The progress of a run: its process, times, and each stage of its plan."""

    run: str
    recipe: str
    phase: Phase
    stages: dict[str, Live]
    owner: str = ""
    host: str = ""
    pid: int = 0
    began: float | None = None
    updated: float | None = None
    ended: float | None = None
    notes: list[str] = field(default_factory=list)  # for the user
    halted: list[int] = field(default_factory=list)  # pids of workers paused by a signal
    placed: list[Placed] = field(default_factory=list)  # where workers are

    @property
    def works(self) -> bool:
        return self.phase in ("starting", "running")

    def left_s(self, now: float) -> float | None:
        """Estimates seconds until all running stages end; later stages are not counted."""
        known = [left for s in self.stages.values() if (left := s.left_s(now)) is not None]
        return max(known, default=None)


def live_stage(run: RunState, name: str) -> Live:
    """Returns the progress of a stage that nobody works on, from its folder."""
    state = run.stages[name]
    planned = state.planned
    causes = [Cause.of_shard(f) for f in state.failures.values() if f is not None]
    status: Status = "waiting"
    if state.complete:
        status = "done"
    elif causes or state.shards:
        status = "failed" if causes else "stopped"
    return Live(
        name=planned.name,
        uses=planned.uses,
        folder=planned.folder,
        needs=list(planned.needs),
        is_row=planned.is_row,
        is_root=planned.is_root,
        is_select=planned.is_select,
        gives_rows=planned.gives_rows,
        data=planned.data,
        rows_of=planned.kept_by,
        status=status,
        shards=len(state.shards),
        total=state.total,
        found=len(state.shards),
        rows=state.rows,
        files=len(state.outputs),
        seconds=round(state.seconds, 1),
        reasons=_reasons(run, name),
        causes=causes[:MOST_CAUSES],
        changed=state.scan.changed,
    )


def _reasons(run: RunState, name: str) -> dict[str, int]:
    """Counts rows by reason, as masks are today; of an unreadable file, by its first record."""

    def counts_of(shard: int) -> dict[str, int]:
        try:
            return run.counts(name, shard)
        except (DamagedError, OSError):
            return run.stages[name].scan.records[shard][0].counts

    recorded, unrecorded = run.stages[name].all_recorded()
    total = Counter(recorded)
    with ThreadPoolExecutor(READERS) as readers:
        for counts in readers.map(counts_of, unrecorded):
            total.update(counts)
    return dict(sorted((+total).items()))


def live_run(state: RunState, phase: Phase, before: LiveRun | None = None) -> LiveRun:
    """Returns a run's progress from its folder, with failures and times of the run `before`."""
    stages = {name: live_stage(state, name) for name in state.stages}
    for name, stage in stages.items():
        last = before.stages.get(name) if before else None
        if not last or last.folder != stage.folder:
            continue
        of_stage = [cause for cause in last.causes if cause.shard is None]
        if of_stage or stage.status != "done":  # a stage can fail although all its shards are done
            stage.causes = [*of_stage, *stage.causes][:MOST_CAUSES]
        if stage.causes:
            stage.status = "failed"
        elif stage.status == "done":
            stage.began, stage.ended, stage.computed = last.began, last.ended, last.computed
        elif last.status in ("running", "stopped"):
            stage.status = "stopped"
            stage.call, stage.units, stage.all_units = last.call, last.units, last.all_units
            stage.pieces = last.pieces
    notes = other_code(state.plan, state.run)
    return LiveRun(str(state.run), state.plan.recipe.path, phase, stages, notes=notes)


def read_live(run: Storage) -> LiveRun | None:
    """Reads the progress of the current or last run; None if it is missing or damaged."""
    value = read_sealed(run, NAME)
    try:
        return msgspec.convert(value, LiveRun) if value else None
    except msgspec.ValidationError:  # of another version
        return None


def status(uri: str) -> LiveRun:
    """Returns a working run's progress in two requests; else that of its folder and last run.

    The phase is `starting` before a run's first event, and `gone` after its process vanished.
    """
    run = Storage(uri)
    lease, last = lock.holder(run), read_live(run)
    if lease and last and last.owner == lease.owner:
        return last
    live = live_run(latest(uri), "starting" if lease else "complete", last)
    if lease:
        live.host, live.pid = lease.host, lease.pid
        return live
    if last:
        live.began, live.updated, live.ended = last.began, last.updated, last.ended
        live.host, live.pid = last.host, last.pid
    if not all(stage.status == "done" for stage in live.stages.values()):
        live.phase = _unfinished(last)
    return live


def _unfinished(last: LiveRun | None) -> Phase:
    """Returns the phase of a folder with unfinished stages, from its last run."""
    if last is None:
        return "stopped"
    if not last.ended:
        return "gone"
    return "part" if last.phase == "complete" else last.phase


def as_json(live: LiveRun, now: float) -> dict[str, Any]:
    """Returns the run and every stage as plain values, for --json."""
    plain = asdict(live) | {"left_s": _rounded(live.left_s(now))}
    plain["stages"] = [_stage_json(stage, now) for stage in live.stages.values()]
    return {name: plain[name] for name in RUN_JSON}


RUN_JSON = (
    *("run", "recipe", "phase", "host", "pid", "began", "updated", "ended", "left_s", "notes"),
    *("halted", "placed", "stages"),
)
STAGE_JSON = (
    *("name", "uses", "data", "rows_of", "status", "complete", "shards", "total", "rows"),
    *("seconds", "reasons", "kinds", "failures", "call", "units", "all_units", "in_hand"),
    *("rows_per_s", "elapsed_s", "left_s"),
)


def _stage_json(stage: Live, now: float) -> dict[str, Any]:
    plain = asdict(stage)
    plain |= {
        "complete": stage.status in ("done", "found"),
        "seconds": round(stage.seconds, 1),
        "reasons": {code: n for code, n in sorted(stage.reasons.items()) if code},
        "kinds": stage.kinds,
        "failures": plain["causes"],
        "in_hand": [*plain["pieces"].values()],
        "rows_per_s": _rounded(stage.rows_per_s(now)),
        "elapsed_s": _rounded(stage.elapsed(now)),
        "left_s": _rounded(stage.left_s(now)),
    }
    return {name: plain[name] for name in STAGE_JSON}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


# While a run works

Look = Callable[[], LiveRun]  # returns a snapshot of the run


class Watcher:
    """An observer of a run, such as bars or a log; this base class shows nothing.

    Stages run side by side, so calls come from several threads, but one at a time for each stage.
    """

    def begin(self, look: Look) -> None: ...
    def shard(self, name: str, record: Record, total: int | None) -> None: ...
    def unit(self, name: str, call: str, done: int, total: int) -> None: ...
    def failed(self, name: str, failure: Failure) -> None: ...
    def damaged(self, name: str, found: DamagedError) -> None: ...
    def stopped(self, name: str, error: ClipmillError) -> None: ...
    def finished(self, name: str, state: StageState) -> None: ...
    def noticed(self, notice: Notice) -> None: ...


EVENTS = tuple(name for name in vars(Watcher) if not name.startswith("_"))


class Together(Watcher):
    """Watchers that each get every event, in turn."""

    def __init__(self, *watchers: Watcher) -> None:
        for event in EVENTS:
            setattr(self, event, partial(_tell, [getattr(each, event) for each in watchers]))


def _tell(calls: Sequence[Callable[..., None]], *event: Any) -> None:
    for call in calls:
        call(*event)


class LiveReporter:
    """The reporter of a run: keeps its `LiveRun` up to date, and passes events on to a watcher."""

    def __init__(self, state: RunState, folder: lock.Owned, watcher: Watcher) -> None:
        self.state, self.folder, self.watcher = state, folder, watcher
        self.live = live_run(state, "running", read_live(folder))
        self.live.owner, self.live.host = folder.hold.owner, socket.gethostname()
        self.live.pid = os.getpid()
        self.live.began = self.live.updated = time.time()
        for stage in self.live.stages.values():
            stage.began, stage.ended, stage.computed = None, None, 0
            if stage.status == "done":
                stage.status = "found"
            elif stage.status == "stopped":
                stage.status = "waiting"
            stage.pieces, stage.call, stage.units, stage.all_units = {}, "", 0, 0
        self._reporting: set[str] = set()  # stages with progress inside units of their call
        self._moving: set[str] = set()  # stages of whose call a unit has ended
        self._lock = threading.Lock()

    def look(self) -> LiveRun:
        """Returns a snapshot: values that jobs change in place are copied."""
        with self._lock:
            stages = {
                name: replace(stage, reasons={**stage.reasons}, pieces={**stage.pieces})
                for name, stage in self.live.stages.items()
            }
            return replace(self.live, stages=stages)

    def show_only(self, name: str, executor: Executor) -> None:
        """Shows one stage to the watcher, and stores nothing: this is no run of the recipe."""
        self.live.stages = {name: self.live.stages[name]}
        executor.on_told = self.on_event
        self.watcher.begin(self.look)

    @contextlib.contextmanager
    def kept(self, executor: Executor) -> Iterator[None]:
        """Stores `live.json` every few seconds while inside, and the run's end on leaving."""
        executor.on_told = self.on_event
        over = threading.Event()
        thread = threading.Thread(target=self._keep, args=(over, executor), daemon=True)
        self.watcher.begin(self.look)
        self._store()
        thread.start()
        phase: Phase = "stopped"
        try:
            yield
            is_whole = all(s.status in ("done", "found") for s in self.live.stages.values())
            phase = "complete" if is_whole else "failed"
        finally:
            over.set()
            thread.join()
            with self._lock:
                self.live.phase, self.live.ended = phase, time.time()
                self.live.halted, self.live.placed = [], []
                for stage in self.live.stages.values():
                    if stage.status == "running":
                        stage.status, stage.ended = "stopped", self.live.ended
            self._store()

    def _keep(self, over: threading.Event, executor: Executor) -> None:
        while not over.wait(STORE_S):
            halted, placed = executor.halted(), executor.placed()
            with self._lock:
                self.live.halted, self.live.placed = halted, placed
            self._store()

    def _store(self) -> None:
        """Stores `live.json`; errors are ignored, as progress must not stop the run."""
        live = self.look()
        live.updated = self.live.updated = time.time()
        with contextlib.suppress(OSError, LostLockError):
            put_sealed(self.folder, NAME, asdict(live), point="live")

    # Events of jobs

    def stage(self, name: str, total: int | None, done: int) -> None:
        fresh = live_stage(self.state, name)  # may read files, so outside the lock
        with self._lock:
            stage = self.live.stages[name]
            stage.total, stage.shards, stage.found = total, done, done
            if stage.status == "failed":  # in an earlier run; tried again now
                stage.status = "waiting"
            if stage.is_row:
                stage.rows, stage.reasons, stage.seconds = fresh.rows, fresh.reasons, fresh.seconds
                stage.causes = []
            else:
                if stage.began is None:
                    stage.rows, stage.reasons, stage.causes = 0, {}, []
                self._begin(stage)

    def shard(self, name: str, record: Record, total: int | None, again: bool = False) -> None:
        """Takes in a stored pass of a shard; `again`: one whose rows are counted already."""
        with self._lock:
            stage = self.live.stages[name]
            self._begin(stage, record.seconds)
            stage.pieces.pop(str(record.shard), None)
            stage.total = total
            again |= stage.shards == total
            stage.shards += not again
            stage.computed += record.computed
            stage.seconds += record.seconds
            if not again:
                stage.rows += record.rows
                if not record.number:  # `finished` counts the reasons of a later pass
                    for code, rows in record.counts.items():
                        stage.reasons[code] = stage.reasons.get(code, 0) + rows
            # Other stages of its job may go on; `finished` ends a stage with only found shards.
            if stage.is_row and stage.shards == total and stage.found < total:
                stage.status, stage.ended = "done", time.time()
        self.watcher.shard(name, record, total)

    def unit(self, name: str, call: str, done: int, total: int, words: str = "") -> None:
        with self._lock:
            stage = self.live.stages[name]
            self._begin(stage)
            stage.call_moved = time.time()
            is_new = stage.call != words or not done
            if is_new:
                self._moving.discard(name)
                self._reporting.discard(name)
            # Until its first unit ends, a call may wait for a worker that others keep busy.
            if is_new or name not in self._moving | self._reporting:
                stage.call_began, stage.units_found = stage.call_moved, done
            if not is_new:
                self._moving.add(name)
            if is_new or done == total:
                stage.pieces = {}
            stage.call, stage.units, stage.all_units = words, done, total
        if done:
            self.watcher.unit(name, call, done, total)

    def on_event(self, event: ProgressEvent | Notice) -> None:
        """Takes in a worker's progress on its shard or unit, or what the executor has to say."""
        if isinstance(event, Notice):
            self.watcher.noticed(event)
            return
        with self._lock:
            for name in self.live.stages.keys() & event.stages:  # workers may tell of a run before
                stage = self.live.stages[name]
                if not event.all:
                    stage.pieces.pop(event.key, None)
                elif stage.status not in ("done", "found", "failed"):  # else the event is late
                    self._begin(stage)
                    stage.call_moved = time.time()
                    if name not in self._reporting:  # its first progress: units so far were stored
                        stage.call_began, stage.units_found = stage.call_moved, stage.units
                        self._reporting.add(name)
                    piece = Piece(event.done, event.all, event.what, event.values)
                    stage.pieces[event.key] = piece

    def failed(self, name: str, failure: Failure) -> None:
        with self._lock:
            stage = self.live.stages[name]
            stage.pieces.pop(str(failure.shard), None)
            stage.causes = [*stage.causes, Cause.of_shard(failure)][-MOST_CAUSES:]
        self.watcher.failed(name, failure)

    def damaged(self, name: str, found: DamagedError) -> None:
        self.watcher.damaged(name, found)

    def stopped(self, name: str, error: ClipmillError) -> None:
        with self._lock:
            stage = self.live.stages[name]
            stage.status, stage.ended, stage.pieces = "failed", time.time(), {}
            stage.causes = [Cause(None, False, *error.args), *stage.causes][:MOST_CAUSES]
        self.watcher.stopped(name, error)

    def finished(self, name: str, state: StageState) -> None:
        fresh = live_stage(self.state, name)
        with self._lock:
            stage = self.live.stages[name]
            fresh.began, fresh.computed = stage.began, stage.computed
            if state.complete and not (stage.computed or stage.call):  # no work in this run
                fresh.status, fresh.began = "found", None
            elif stage.began is not None:
                fresh.ended = stage.ended or time.time()
            if not state.complete and not fresh.causes:
                fresh.status = "stopped" if stage.began is not None else "waiting"
            if stage.status != "failed" or stage.ended is None:  # an error of this run stays
                self.live.stages[name] = fresh
        self.watcher.finished(name, state)

    def _begin(self, stage: Live, ago_s: float = 0.0) -> None:
        if stage.began is None:
            stage.began = time.time() - ago_s
        stage.status = "running"
