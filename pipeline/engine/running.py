"""What the jobs of a run share: plan, state, executor, and whom to tell."""

from dataclasses import dataclass
from typing import Protocol

from metadata.damage import DamagedError
from metadata.record import Failure, Record
from pipeline.executors import Executor
from pipeline.planning.plan import Plan
from pipeline.run_folder.state import RunState, StageState


class Watcher(Protocol):
    """Who is told how a run goes: progress bars, or a log.

    Stages run side by side, so the calls come from several threads: of one stage one at a time.
    """

    def stage(self, name: str, total: int | None, done: int) -> None: ...

    def shard(self, name: str, record: Record, total: int | None) -> None: ...

    def unit(self, name: str, call: str, done: int, total: int) -> None: ...

    def failed(self, name: str, failure: Failure) -> None: ...

    def damaged(self, name: str, found: DamagedError) -> None: ...

    def finished(self, name: str, state: StageState) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Running:
    """One run. A job reads stages that have ended, and changes the state of its own stages only."""

    plan: Plan
    state: RunState
    executor: Executor
    watcher: Watcher
    run_id: str
    retry: tuple[str, ...]  # reasons whose rows are tried again
    crash_ok: bool  # shards that ended their worker are tried again
    keep_going: bool = False  # a stage whose first shards fail for one reason does not stop
