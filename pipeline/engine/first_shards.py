"""Stops a row stage if nearly all rows of its first shards fail for one reason.

With a server that is down, a wrong column or a setting that forbids what the recipe asks for, the
rest of the pool would fail likewise. Only reasons of faults count: see `Stage.advice`.
"""

import re
from collections import Counter, deque
from dataclasses import dataclass, field

from clipmill.metadata.passes import NOT_SELECTED
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.run_folder.state import RunState

FIRST = 3  # shards with rows; all if a pool has fewer
MOST = 0.95  # of their rows
SETTING = r"`(\w+): ([\w.]+)`"  # in a stage's advice: `key: value`


@dataclass
class FirstShards:
    """Counts by reason of the pool's first shards, not of those that happened to end first."""

    state: RunState
    stage: str
    settled: set[int]  # shards that this run changes no more; grows during the run
    seen: list[int] = field(default_factory=list, init=False)  # counted shards, all with rows
    counts: Counter[str] = field(default_factory=Counter, init=False)

    def __post_init__(self) -> None:
        planned = self.state.plan.stages[self.stage]
        self._left = deque(sorted(self.state.stages[planned.root].shards))
        self._faults = {*planned.stage.advice, *planned.stage.transient}

    def is_open(self) -> bool:
        """Returns whether more shards are to come; raises StageError on a fault of most rows."""
        shards = self.state.stages[self.stage].shards
        while self._faults and self._left and len(self.seen) < FIRST:
            shard = self._left[0]
            if shard not in self.settled:
                return True
            self._left.popleft()
            if shard not in shards:
                continue  # set aside as a whole
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
        options = [f"--set {self.stage}.{key}={value}" for key, value in re.findall(SETTING, do)]
        options += [f"--retry {reason}"] if reason in stage.transient else []
        again = f" with {' '.join(options)}" if options else ""
        return StageError(
            f"{share:.0%} of the first {rows:,} rows failed for one reason: {reason}",
            f"stage '{self.stage}' ({planned.uses}), shards {', '.join(map(str, self.seen))}",
            f"{do}; then run again{again}.  To go on all the same: --keep-going",
        )
