"""A process that ends within a stage, as far as a test's own can; and what is stored in the end."""

from typing import Any

from clipmill.metadata.passes import read_stage
from clipmill.pipeline.engine.run import Outcome
from clipmill.pipeline.run_folder import live


class KilledError(BaseException):
    """The end of a process, as far as one in this process can be."""


class Watcher(live.Watcher):
    """Notes the call of each unit that is done."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.known: dict[tuple[str, str], int] = {}

    def unit(self, name, call, done, total):
        before = self.known.get((name, call), done)  # a call first says what was done before it
        self.known[name, call] = done
        if done > before:
            self.calls.append(call)

    def begin(self, look):
        self.known.clear()


def rows_of(outcome: Outcome, stage: str, names: list[str]) -> list[dict[str, Any]]:
    """The stored rows of a stage, in the pool's order."""
    assert outcome.complete, outcome.stopped
    state = outcome.state.stages[stage]
    return [
        row
        for shard in sorted(state.shards)
        for table in read_stage(state.folder, state.shards[shard], names, 1024)
        for row in table.to_pylist()
    ]
