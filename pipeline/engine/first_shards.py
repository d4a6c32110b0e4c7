"""The first shards of a row stage: where nearly all of their rows fail for one reason, it stops.

A server that is not there, a setting that forbids what the recipe wants, a wrong column: the rest
of the pool would fail the same way. Only reasons of faults count: see `Stage.advice`.
"""

from collections import Counter
from dataclasses import dataclass, field

from clipmill.metadata.passes import NOT_SELECTED
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.run_folder.state import RunState
from clipmill.pipeline.run_folder.words import as_sets

FIRST = 3  # shards, of those with rows; all where a pool has fewer
MOST = 0.95  # of their rows


@dataclass
class FirstShards:
    """What became of them, by reason. They are taken in the pool's order, whenever they end."""

    state: RunState
    stage: str
    settled: set[int]  # the shards that this run changes no more; they grow as it goes
    seen: list[int] = field(default_factory=list, init=False)  # those with rows
    counts: Counter[str] = field(default_factory=Counter, init=False)

    def __post_init__(self) -> None:
        planned = self.state.plan.stages[self.stage]
        self._left = sorted(self.state.stages[planned.root].shards)
        self._faults = {*planned.stage.advice, *planned.stage.transient}

    def is_open(self) -> bool:
        """Whether there is more to see; StageError where one fault took nearly all rows."""
        shards = self.state.stages[self.stage].shards
        while self._faults and self._left and len(self.seen) < FIRST:
            shard = self._left[0]
            if shard not in self.settled:
                return True
            del self._left[0]
            if shard not in shards:
                continue  # it was set aside as a whole
            counts = Counter(self.state.counts(self.stage, shard))
            del counts[NOT_SELECTED]
            if counts.total():
                self.seen.append(shard)
                self.counts += counts
        rows = self.counts.total()
        for reason in sorted(self._faults):
            if rows and self.counts[reason] >= MOST * rows:
                raise self._stop(reason, self.counts[reason] / rows, rows)
        return False

    def _stop(self, reason: str, share: float, rows: int) -> StageError:
        planned = self.state.plan.stages[self.stage]
        stage = planned.stage
        do = stage.advice.get(reason, "mend the cause")
        sets = as_sets(self.stage, do)
        sets += [f"--retry {reason}"] if reason in stage.transient else []
        again = f" with {' '.join(sets)}" if sets else ""
        return StageError(
            f"{share:.0%} of the first {rows:,} rows failed for one reason: {reason}",
            f"stage '{self.stage}' ({planned.uses}), shards {', '.join(map(str, self.seen))}",
            f"{do}; then run again{again}.  To go on all the same: --keep-going",
        )
