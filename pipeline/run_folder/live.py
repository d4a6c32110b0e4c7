"""How a run goes, stage by stage: bars draw it, and `live.json` tells it to whoever asks elsewhere.

`Telling` keeps it from what jobs and workers say, and stores it every few seconds; `status` reads
it. What a run last said stays: so a killed run is known by how far it came, and a stage's failure
until the stage is run again.
"""

import contextlib
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import msgspec

from clipmill.metadata.damage import DamagedError
from clipmill.metadata.record import Failure, Record
from clipmill.metadata.sealed import put_sealed, read_sealed
from clipmill.metadata.storage import Storage
from clipmill.pipeline.errors import ClipmillError, LostLockError
from clipmill.pipeline.executors import Executor
from clipmill.pipeline.executors.telling import Told
from clipmill.pipeline.run_folder import lock
from clipmill.pipeline.run_folder.claim import other_code
from clipmill.pipeline.run_folder.state import RunState, StageState, latest
from clipmill.pipeline.run_folder.words import kind_of

NAME = "live.json"
MOST_CAUSES = 20  # of a stage that are told
READERS = 8  # threads, that wait for a store
STORE_S = 3.0  # between two of `live.json`
LEAST_S = 1.0  # of work, before a rate or a time left says anything

# found: done before this run. stopped: begun, and nobody works on it now.
Status = Literal["waiting", "running", "done", "found", "failed", "stopped"]
# part: all that was asked for. gone: nobody works there, and no run said that it ended.
Phase = Literal["starting", "running", "complete", "part", "failed", "stopped", "gone"]


@dataclass
class Cause:
    """Why a stage, or one shard of it, failed."""

    shard: int | None
    crashed: bool
    found: str
    where: str
    do: str

    @classmethod
    def of_error(cls, error: ClipmillError) -> "Cause":
        return cls(None, False, *error.args)

    @classmethod
    def of_shard(cls, failure: Failure) -> "Cause":
        return cls(failure.shard, failure.crashed, failure.found, failure.where, failure.do)


@dataclass
class Piece:
    """A shard or unit in a worker's hand: how much of it is done, and what its stage told."""

    done: float
    all: float
    what: str = ""  # `steps`, `files`
    values: dict[str, float] = field(default_factory=dict)


@dataclass
class Live:
    """One stage, as a run sees it. Times are seconds since the epoch.

    `rows` are stored, `computed` those that this run computed; `calls` of a dataset stage come one
    after the other, each with so many `units`.
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
    found: int = 0  # shards that were there when this run began with it
    rows: int = 0
    files: int = 0
    computed: int = 0
    seconds: float = 0.0  # of work, in all workers
    reasons: dict[str, int] = field(default_factory=dict)
    causes: list[Cause] = field(default_factory=list)
    changed: int = 0  # files that are gone, or of another size
    call: str = ""  # in words
    call_began: float = 0.0
    units: int = 0
    all_units: int = 0
    pieces: dict[str, Piece] = field(default_factory=dict)
    began: float | None = None
    ended: float | None = None

    @property
    def kinds(self) -> dict[str, int]:
        """Rows without a value by kind: failed, dropped, no input, not selected."""
        counted: Counter[str] = Counter()
        for reason, rows in self.reasons.items():
            if reason:
                counted[kind_of(reason, self.is_select, self.is_root)] += rows
        return dict(counted)

    @property
    def in_hand(self) -> float:
        """Shards or units in hand, each as the share of it that is done."""
        return sum(min(1.0, piece.done / piece.all) for piece in self.pieces.values() if piece.all)

    @property
    def share(self) -> float | None:
        """0 to 1: of its shards, or of the units of a dataset stage's call; None where unknown."""
        done, all_ = (
            (self.shards, self.total) if self.counts_shards else (self.units, self.all_units)
        )
        return min(1.0, (done + self.in_hand) / all_) if all_ else None

    @property
    def counts_shards(self) -> bool:
        """Whether its progress is that of its shards, not of a call before they come."""
        return self.is_row or not self.all_units

    def rows_per_s(self, now: float) -> float | None:
        """Rows that this run computes a second; None without rows, or for less than a second."""
        elapsed = self.elapsed(now)
        inside = sum(piece.done for piece in self.pieces.values() if piece.what == "rows")
        rows = self.computed + inside
        return rows / elapsed if elapsed and elapsed >= LEAST_S and rows else None

    def elapsed(self, now: float) -> float | None:
        """Seconds since it began in this run, to its end."""
        return None if self.began is None else max(0.0, (self.ended or now) - self.began)

    def left_s(self, now: float) -> float | None:
        """Seconds to the end of its shards, or of the call it is in, if it goes on so."""
        share = self.share
        if self.status != "running" or share is None or self.began is None:
            return None
        if self.counts_shards:
            before, spent = self.found / (self.total or 1), now - self.began
        else:
            before, spent = 0.0, now - self.call_began
        if share <= before or spent < LEAST_S:
            return None
        return spent * (1 - share) / (share - before)


@dataclass
class LiveRun:
    """A run: who works there, since when, and each stage of its plan."""

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
    notes: list[str] = field(default_factory=list)  # what a user should know
    halted: list[int] = field(default_factory=list)  # processes of workers that a signal stopped

    @property
    def works(self) -> bool:
        return self.phase in ("starting", "running")

    def left_s(self, now: float) -> float | None:
        """Seconds that the running stages need, side by side: those after them come on top."""
        known = [left for s in self.stages.values() if (left := s.left_s(now)) is not None]
        return max(known, default=None)


def live_stage(run: RunState, name: str) -> Live:
    """What lies in a stage's folder, as the state of a stage that nobody works on."""
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
        rows=state.shards.rows,
        files=len(state.outputs),
        seconds=round(state.seconds, 1),
        reasons=_reasons(run, name),
        causes=causes[:MOST_CAUSES],
        changed=state.scan.changed,
    )


def _reasons(run: RunState, name: str) -> dict[str, int]:
    """Rows by reason today; where a file cannot be read, as its record first counted them."""

    def of(shard: int) -> dict[str, int]:
        try:
            return run.counts(name, shard)
        except (DamagedError, OSError):
            return run.stages[name].scan.records[shard][0].counts

    told, untold = run.stages[name].all_recorded()
    total = Counter(told)
    with ThreadPoolExecutor(READERS) as readers:
        for counts in readers.map(of, untold):
            total.update(counts)
    return dict(sorted((+total).items()))


def live_run(state: RunState, phase: Phase, before: LiveRun | None = None) -> LiveRun:
    """What lies in a run folder; what a run `before` said of failures and times is kept."""
    stages = {name: live_stage(state, name) for name in state.stages}
    for name, stage in stages.items():
        said = before.stages.get(name) if before else None
        if not said or said.folder != stage.folder:
            continue
        told = [cause for cause in said.causes if cause.shard is None]
        if told or stage.status != "done":  # a stage may be whole, and what it holds no use
            stage.causes = [*told, *stage.causes][:MOST_CAUSES]
        if stage.causes:
            stage.status = "failed"
        elif stage.status == "done":
            stage.began, stage.ended, stage.computed = said.began, said.ended, said.computed
        elif said.status in ("running", "stopped"):
            stage.status = "stopped"
            stage.call, stage.units, stage.all_units = said.call, said.units, said.all_units
            stage.pieces = said.pieces
    notes = other_code(state.plan, state.run)
    return LiveRun(str(state.run), state.plan.recipe.path, phase, stages, notes=notes)


def put_live(run: Storage, live: LiveRun) -> None:
    """Stores it; the holder of the lock does."""
    put_sealed(run, NAME, asdict(live), point="live")


def read_live(run: Storage) -> LiveRun | None:
    """What the run that works there, or the last one, said; None where nothing can be read."""
    held = read_sealed(run, NAME)
    try:
        return msgspec.convert(held, LiveRun) if held else None
    except msgspec.ValidationError:  # another version's
        return None


def status(uri: str) -> LiveRun:
    """The run that works there, in two requests; else what its folder holds, and why it stopped.

    A run that has begun and told nothing yet is `starting`. One whose holder is gone is `gone`.
    """
    run = Storage(uri)
    lease, said = lock.holder(run), read_live(run)
    if lease and said and said.owner == lease.owner and said.ended is None:
        return said
    found = live_run(latest(uri), "starting" if lease else "complete", said)
    if lease:
        found.host, found.pid = lease.host, lease.pid
        return found
    if said:
        found.began, found.updated, found.ended = said.began, said.updated, said.ended
        found.host, found.pid = said.host, said.pid
    if not all(stage.status == "done" for stage in found.stages.values()):
        found.phase = _unfinished(said)
    return found


def _unfinished(said: LiveRun | None) -> Phase:
    """How the last run ended, of a folder where stages are not done."""
    if said is None:
        return "stopped"
    if not said.ended:
        return "gone"
    return "part" if said.phase == "complete" else said.phase


def as_json(live: LiveRun, now: float) -> dict[str, Any]:
    """Every stage: shards and rows done, seconds, rows by reason, failures; and the run itself."""
    plain = asdict(live) | {"left_s": _rounded(live.left_s(now))}
    plain["stages"] = [_stage_json(stage, now) for stage in live.stages.values()]
    return {name: plain[name] for name in RUN_JSON}


RUN_JSON = (
    *("run", "recipe", "phase", "host", "pid", "began", "updated", "ended", "left_s", "notes"),
    *("halted", "stages"),
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

Look = Callable[[], LiveRun]  # the run as it stands; a copy, so that it stays as it is


class Watcher:
    """Whom a run shows itself to: bars, or a log. This one shows nothing.

    Stages run side by side, so the calls come from several threads: of one stage one at a time.
    """

    def begin(self, look: Look) -> None: ...
    def shard(self, name: str, record: Record, total: int | None) -> None: ...
    def unit(self, name: str, call: str, done: int, total: int) -> None: ...
    def failed(self, name: str, failure: Failure) -> None: ...
    def damaged(self, name: str, found: DamagedError) -> None: ...
    def stopped(self, name: str, error: ClipmillError) -> None: ...
    def finished(self, name: str, state: StageState) -> None: ...


class Telling:
    """Keeps the run's `LiveRun` as its jobs go on, and hands each event to a watcher."""

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
        self._lock = threading.Lock()

    def look(self) -> LiveRun:
        """What jobs change in place is copied, all else shared."""
        with self._lock:
            stages = {
                name: replace(stage, reasons={**stage.reasons}, pieces={**stage.pieces})
                for name, stage in self.live.stages.items()
            }
            return replace(self.live, stages=stages)

    def show_only(self, name: str, executor: Executor) -> None:
        """Shows one stage to the watcher, and stores nothing: its work is no run of the recipe."""
        self.live.stages = {name: self.live.stages[name]}
        executor.on_told = self.told
        self.watcher.begin(self.look)

    @contextlib.contextmanager
    def kept(self, executor: Executor) -> Iterator[None]:
        """Inside it `live.json` is stored every few seconds; last, it says how the run ended."""
        executor.on_told = self.told
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
                self.live.phase, self.live.ended, self.live.halted = phase, time.time(), []
                for stage in self.live.stages.values():
                    if stage.status == "running":
                        stage.status, stage.ended = "stopped", self.live.ended
            self._store()

    def _keep(self, over: threading.Event, executor: Executor) -> None:
        while not over.wait(STORE_S):
            halted = executor.halted()
            with self._lock:
                self.live.halted = halted
            self._store()

    def _store(self) -> None:
        """What is told must not stop what is done: a store that fails now is asked again later."""
        live = self.look()
        live.updated = self.live.updated = time.time()
        with contextlib.suppress(OSError, LostLockError):
            put_live(self.folder, live)

    # What the jobs say

    def stage(self, name: str, total: int | None, done: int) -> None:
        fresh = live_stage(self.state, name)  # it may open files: nobody waits for that
        with self._lock:
            stage = self.live.stages[name]
            stage.total, stage.shards, stage.found = total, done, done
            if stage.status == "failed":  # before: it is tried again
                stage.status = "waiting"
            if stage.is_row:
                stage.rows, stage.reasons, stage.seconds = fresh.rows, fresh.reasons, fresh.seconds
                stage.causes = []
            else:
                if stage.began is None:
                    stage.rows, stage.reasons, stage.causes = 0, {}, []
                self._begin(stage)

    def shard(self, name: str, record: Record, total: int | None) -> None:
        with self._lock:
            stage = self.live.stages[name]
            self._begin(stage, record.seconds)
            stage.pieces.pop(str(record.shard), None)
            stage.total = total
            stage.shards = stage.shards + 1 if total is None else min(total, stage.shards + 1)
            stage.rows += record.rows
            stage.computed += record.computed
            stage.seconds += record.seconds
            if record.number == 0:  # of a later pass the file tells, once the stage is done
                for code, rows in record.counts.items():
                    stage.reasons[code] = stage.reasons.get(code, 0) + rows
            if stage.is_row and stage.shards == total and stage.found < total:
                stage.status, stage.ended = "done", time.time()  # its job may go on
        self.watcher.shard(name, record, total)

    def unit(self, name: str, call: str, done: int, total: int, words: str = "") -> None:
        with self._lock:
            stage = self.live.stages[name]
            self._begin(stage)
            if stage.call != words or not done:
                stage.call_began = time.time()
            if stage.call != words or done in (0, total):
                stage.pieces = {}
            stage.call, stage.units, stage.all_units = words, done, total
        if done:
            self.watcher.unit(name, call, done, total)

    def told(self, said: Told) -> None:
        """A worker's word on the piece in its hand."""
        with self._lock:
            for name in said.stages:
                stage = self.live.stages[name]
                if not said.all:
                    stage.pieces.pop(said.key, None)
                elif stage.status not in ("done", "found", "failed"):  # a word may come late
                    self._begin(stage)
                    stage.pieces[said.key] = Piece(said.done, said.all, said.what, said.values)

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
            stage.causes = [Cause.of_error(error), *stage.causes][:MOST_CAUSES]
        self.watcher.stopped(name, error)

    def finished(self, name: str, state: StageState) -> None:
        fresh = live_stage(self.state, name)
        with self._lock:
            stage = self.live.stages[name]
            fresh.began, fresh.computed = stage.began, stage.computed
            if state.complete and not (stage.computed or stage.call):
                fresh.status, fresh.began = "found", None
            elif stage.began is not None:
                fresh.ended = stage.ended or time.time()
            if not state.complete and not fresh.causes:
                fresh.status = "stopped" if stage.began is not None else "waiting"
            self.live.stages[name] = fresh
        self.watcher.finished(name, state)

    def _begin(self, stage: Live, ago_s: float = 0.0) -> None:
        if stage.began is None:
            stage.began = time.time() - ago_s
        stage.status = "running"
