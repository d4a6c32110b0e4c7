"""How a run goes, stage by stage: bars draw it, and `live.json` tells it to whoever asks elsewhere.

The run that works in a folder stores it there every few seconds. What it last said stays: so a
killed run is known by how far it came, and a stage's failure until the stage is run again.
"""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import msgspec

from clipmill.metadata.damage import DamagedError
from clipmill.metadata.record import Failure
from clipmill.metadata.sealed import put_sealed, read_sealed
from clipmill.metadata.storage import Storage
from clipmill.pipeline.errors import ClipmillError
from clipmill.pipeline.run_folder.claim import other_code
from clipmill.pipeline.run_folder.lock import Lease
from clipmill.pipeline.run_folder.state import RunState
from clipmill.pipeline.run_folder.words import kind_of

NAME = "live.json"
MOST_CAUSES = 20  # of a stage that are told
READERS = 8  # threads, that wait for a store
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


def of_holder(live: LiveRun, lease: Lease) -> bool:
    """Whether it was said by the run that has the lock now."""
    return live.owner == lease.owner and live.ended is None


def as_json(live: LiveRun, now: float) -> dict[str, Any]:
    """Every stage: shards and rows done, seconds, rows by reason, failures; and the run itself."""
    return {
        "run": live.run,
        "recipe": live.recipe,
        "phase": live.phase,
        "host": live.host,
        "pid": live.pid,
        "began": live.began,
        "updated": live.updated,
        "ended": live.ended,
        "left_s": _rounded(live.left_s(now)),
        "notes": live.notes,
        "halted": live.halted,
        "stages": [_stage_json(stage, now) for stage in live.stages.values()],
    }


def _stage_json(stage: Live, now: float) -> dict[str, Any]:
    return {
        "name": stage.name,
        "uses": stage.uses,
        "data": stage.data,
        "rows_of": stage.rows_of,
        "status": stage.status,
        "complete": stage.status in ("done", "found"),
        "shards": stage.shards,
        "total": stage.total,
        "rows": stage.rows,
        "seconds": round(stage.seconds, 1),
        "reasons": {code: n for code, n in sorted(stage.reasons.items()) if code},
        "kinds": stage.kinds,
        "failures": [asdict(cause) for cause in stage.causes],
        "call": stage.call,
        "units": stage.units,
        "all_units": stage.all_units,
        "in_hand": [asdict(piece) for piece in stage.pieces.values()],
        "rows_per_s": _rounded(stage.rows_per_s(now)),
        "elapsed_s": _rounded(stage.elapsed(now)),
        "left_s": _rounded(stage.left_s(now)),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)
