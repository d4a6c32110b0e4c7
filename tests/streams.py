"""The function of a stage that streams, for tests that call functions batch by batch."""

import weakref
from collections.abc import Iterable

import pyarrow as pa

from clipmill.pipeline.engine.streaming import EventLoop, streamed
from clipmill.pipeline.stage import RowFunction, RowStage, StreamFunction, Worker


class OneByOne:
    """A stream function as one of a batch, with an event loop of its own."""

    def __init__(self, function: StreamFunction) -> None:
        self.function, self.events = function, EventLoop()
        weakref.finalize(self, self.events.close)

    def __call__(self, batch: pa.Table) -> pa.Table:
        (answer,) = self.all([batch])
        return answer

    def all(self, batches: Iterable[pa.Table]) -> list[pa.Table]:
        """The answers to batches of one shard."""
        return list(streamed(self.function, iter(batches), self.events, "a test"))


def row_function(stage: RowStage, worker: Worker) -> RowFunction | OneByOne:
    """What opening the stage gives, as a function of one batch whether it streams or not."""
    function = stage.open(worker)
    return OneByOne(function) if stage.streams else function
