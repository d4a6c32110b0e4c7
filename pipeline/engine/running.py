"""What the jobs of a run share: plan, state, executor, and whom to tell."""

from dataclasses import dataclass, field

from clipmill.pipeline.executors import Executor
from clipmill.pipeline.planning.plan import Plan
from clipmill.pipeline.run_folder.live import Telling
from clipmill.pipeline.run_folder.state import RunState


@dataclass(frozen=True, kw_only=True)
class Running:
    """One run. A job reads stages that have ended, and changes the state of its own stages only."""

    plan: Plan
    state: RunState
    executor: Executor
    watcher: Telling
    run_id: str
    retry: tuple[str, ...]  # reasons whose rows are tried again
    crash_ok: bool  # shards that ended their worker are tried again
    local: set[str] = field(default_factory=set)  # scratch folders that workers share, by name
    keep_going: bool = False  # a stage whose first shards fail for one reason does not stop
