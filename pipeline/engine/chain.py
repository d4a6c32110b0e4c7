"""A chain: row stages that run together, shard by shard; and which of them are due on a shard."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from clipmill.metadata.damage import DamagedError
from clipmill.metadata.record import Failure, Record, ShardState
from clipmill.metadata.storage import Storage
from clipmill.pipeline.planning.planned import PlannedStage
from clipmill.pipeline.run_folder.done import parents_of
from clipmill.pipeline.run_folder.rows import StoredColumns
from clipmill.pipeline.stage import RowStage


@dataclass(frozen=True, kw_only=True)
class Chain:
    """Row stages that run together, and what they need to know of the run."""

    seed: int
    run_id: str
    run: Storage
    stages: tuple[PlannedStage, ...]
    stored: Mapping[str, StoredColumns]  # of every stage of the plan
    models: Mapping[str, str]  # stages that give one to these: the digest of their files
    retry: tuple[str, ...] = ()  # reasons whose rows are tried again


@dataclass(kw_only=True)
class ShardItem:
    """One shard on its way through chains, small: states and records by stage, no rows."""

    shard: int
    states: dict[str, ShardState]  # good ones, of these stages and of those that they read
    failed: dict[str, Failure | None]  # None: not its own fault, an earlier stage's
    records: dict[str, list[Record]]
    set_aside: dict[str, Failure]  # failures of earlier runs
    unchecked: frozenset[str]  # stages whose lost file had no page checksums: made again alike
    begun: bool = True  # a worker may have died of it: its attempts were counted
    ended: str = ""  # why the executor ended the last worker that had it, where it did
    made: list[tuple[str, Record]] = field(default_factory=list)
    damaged: list[DamagedError] = field(default_factory=list)

    def mask(self, planned: PlannedStage) -> ShardState | None:
        """The shard of the select stage whose rows alone are computed."""
        return self.states[planned.only] if planned.only else None

    def parents(self, planned: PlannedStage, models: Mapping[str, str]) -> dict[str, str]:
        """The digests of what the stage's shard is made of."""
        digests = {name: state.digest for name, state in self.states.items()}
        return parents_of(planned, digests, models)

    def is_partial(self, planned: PlannedStage) -> bool:
        """Whether the stage computes only some rows: of a mask, or in a later pass."""
        return bool(planned.only or self.records.get(planned.name))

    def is_blocked(self, planned: PlannedStage) -> bool:
        """Whether a stage that it needs has failed here."""
        return any(need in self.failed for need in planned.needs)


def next_together(todo: Sequence[PlannedStage], item: ShardItem) -> list[PlannedStage]:
    """The stages that are computed next, in one go over the shard.

    `todo` has needs before those who need them. A stage that computes some rows only goes alone;
    it may also turn out to be good, once its parents are done. One that keeps its finished batches
    waits until its parents are stored: what is kept is kept for their digests.
    """
    first, *rest = todo
    together = [first]
    if item.is_partial(first):
        return together
    open_needs = {planned.name for planned in todo}
    for planned in rest:
        inside = {other.name for other in together} if not _journals(planned) else set()
        missing = open_needs & set(planned.needs) - inside
        if not missing and not item.is_partial(planned):
            together.append(planned)
    return together


def _journals(planned: PlannedStage) -> bool:
    return isinstance(planned.stage, RowStage) and planned.stage.journals
