"""A process that ends within a stage, as far as a test's own can; and what is stored in the end."""

import contextlib
from collections.abc import Callable
from typing import Any

from metadata.passes import read_stage
from pipeline.engine.run import Outcome


class KilledError(BaseException):
    """The end of a process, as far as one in this process can be."""


class Watcher:
    """Counts the units that each call did, and dies after one of them."""

    def __init__(self, dies_after: int | None = None) -> None:
        self.calls: list[str] = []
        self.dies_after = dies_after
        self.known: dict[tuple[str, str], int] = {}

    def unit(self, name, call, done, total):
        before = self.known.get((name, call), done)  # a call first says what was done before it
        self.known[name, call] = done
        if done > before:
            self.did(call)

    def did(self, call):
        self.calls.append(call)
        if len(self.calls) == self.dies_after:
            raise KilledError

    def begin(self, look):
        self.known.clear()

    def stage(self, name, total, done): ...
    def shard(self, name, record, total): ...
    def failed(self, name, failure): ...
    def stopped(self, name, error): ...
    def finished(self, name, state): ...


class DiesOnceACall(Watcher):
    """Dies once in every call of a stage, or of all, after its first unit; a round is a call."""

    def __init__(self, stage: str | None = None) -> None:
        super().__init__()
        self.of, self.survived = stage, set[str]()

    def unit(self, name, call, done, total):
        if self.of in (None, name):
            super().unit(name, call, done, total)

    def did(self, call):
        super().did(call)
        if call not in self.survived:
            self.survived.add(call)
            raise KilledError


def until_it_ends(run: Callable[[], Any]) -> Any:
    """What the run gives when it does, begun again after every death."""
    found = None
    while found is None:
        with contextlib.suppress(KilledError):
            found = run()
    return found


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
