"""The context that the jobs of a run share: plan, state, executor and watcher."""

from collections import defaultdict
from dataclasses import dataclass, field

from clipmill.pipeline.executors import Executor
from clipmill.pipeline.planning.plan import Plan
from clipmill.pipeline.run_folder.live import LiveReporter
from clipmill.pipeline.run_folder.spent import Spent
from clipmill.pipeline.run_folder.state import RunState


@dataclass(frozen=True, kw_only=True)
class Running:
    """One run. Jobs read stages that have ended, and change the state of their own stages only."""

    plan: Plan
    state: RunState
    executor: Executor
    watcher: LiveReporter
    run_id: str
    retry: tuple[str, ...]  # reasons whose rows are tried again
    crash_ok: bool  # shards that ended their worker are tried again
    local: set[str] = field(default_factory=set)  # names of scratch folders that workers share
    spent: dict[str, Spent] = field(default_factory=lambda: defaultdict(Spent))  # by stage
    profile: str | None = None  # the stage whose workers are profiled
    most_shards: int | None = None  # of each root, for a run that shows what others will cost
    keep_going: bool = False  # do not stop a stage whose first shards fail for one reason
