"""A chain of fused row stages, and the choice of stages to compute next on a shard."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from clipmill.metadata.damage import DamagedError
from clipmill.metadata.record import Failure, Record, ShardState
from clipmill.metadata.storage import Storage
from clipmill.pipeline.planning.planned import PlannedStage
from clipmill.pipeline.run_folder.done import parents_of
from clipmill.pipeline.run_folder.rows import StoredColumns
from clipmill.pipeline.run_folder.spent import Spent
from clipmill.pipeline.stage import RowStage


@dataclass(frozen=True, kw_only=True)
class Chain:
    """Row stages that run together shard by shard, with what they need of the run."""

    seed: int
    run_id: str
    run: Storage
    stages: tuple[PlannedStage, ...]
    stored: Mapping[str, StoredColumns]  # of every stage of the plan
    models: Mapping[str, str]  # stages whose files these stages read -> digest of the files
    retry: tuple[str, ...] = ()  # reasons whose rows are tried again
    profile: PlannedStage | None = None  # one of these stages


@dataclass(kw_only=True)
class ShardItem:
    """One shard on its way through chains, small: states and records by stage, no rows."""

    shard: int
    states: dict[str, ShardState]  # good ones only, of these stages and of the stages they read
    failed: dict[str, Failure | None]  # None: an earlier stage failed, not this one
    records: dict[str, list[Record]]
    set_aside: dict[str, Failure]  # failures of earlier runs
    unchecked: frozenset[str]  # stages to write without page checksums, as their lost file was
    begun: bool = True  # a worker may have died of it, so its attempts were counted
    ended: str = ""  # why the executor or the kernel ended the last worker on it, if they did
    killed: int = 0  # workers on it that somebody else killed
    file: str = ""  # `, FILE` of the pool, to name it in errors
    new_records: list[tuple[str, Record]] = field(default_factory=list)  # stored by this run
    damaged: list[DamagedError] = field(default_factory=list)
    spent: dict[str, Spent] = field(default_factory=dict)  # by stage

    def mask(self, planned: PlannedStage) -> ShardState | None:
        """Returns the select's shard that masks the stage; None if all rows are computed."""
        return self.states[planned.only] if planned.only else None

    def parents(self, planned: PlannedStage, models: Mapping[str, str]) -> dict[str, str]:
        """Returns the digests of the inputs of the stage's shard, by name."""
        digests = {name: state.digest for name, state in self.states.items()}
        return parents_of(planned, digests, models)

    def is_partial(self, planned: PlannedStage) -> bool:
        """Returns whether the stage computes only some rows: those of a mask or of a later pass."""
        return bool(planned.only or self.records.get(planned.name))

    def is_blocked(self, planned: PlannedStage) -> bool:
        """Returns whether a stage that it needs has failed on this shard."""
        return any(need in self.failed for need in planned.needs)


def next_together(todo: Sequence[PlannedStage], item: ShardItem) -> list[PlannedStage]:
    """Returns the stages to compute next, in one pass over the shard.

    `todo` is in topological order. A stage that computes only some rows goes alone; it may also
    turn out to be good once its parents are done. A stage with partial results waits until its
    parents are stored: partial results are stored under the parents' digests.
    """
    first, *rest = todo
    together = [first]
    if item.is_partial(first):
        return together
    open_needs = {planned.name for planned in todo}
    for planned in rest:
        journals = isinstance(planned.stage, RowStage) and planned.stage.journals
        inside = set() if journals else {other.name for other in together}
        missing = open_needs & set(planned.needs) - inside
        if not missing and not item.is_partial(planned):
            together.append(planned)
    return together
