"""A context in memory: what a root stage does with `ctx`, without the engine."""

import json
import pickle
from functools import partial
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pytest

from clipmill.metadata.schema import REASON, UID
from clipmill.pipeline.dataset import Inputs
from clipmill.pipeline.errors import ShardError
from clipmill.pipeline.stage import Worker


class Ctx:
    """Runs map and create_shards at once; what crosses a process is pickled or JSON, as there."""

    folder = "memory"
    worker = Worker(seed=0, stage="pool", device="cpu", threads=1, scratch=Path())

    def __init__(self, stage, wanted=None) -> None:
        every = (*stage.writes, *stage.virtual)
        self.wanted = frozenset(c.name for c in every) if wanted is None else wanted
        self.schema = pa.schema([(c.name, c.dtype) for c in (UID, *stage.writes, REASON)])
        self.shards: list[pa.Table | ShardError] = []
        self.sources: list[dict] = []

    def map(self, fn, items):
        fn = pickle.loads(pickle.dumps(fn))
        return [json.loads(json.dumps(fn(json.loads(json.dumps(item)), None))) for item in items]

    def create_shards(self, fn, sources):
        fn = pickle.loads(pickle.dumps(fn))
        self.sources = json.loads(json.dumps(sources))
        self.shards = [self.shard(fn, source) for source in self.sources]

    def create_shards_together(self, fn, groups):
        fn = pickle.loads(pickle.dumps(fn))
        groups = json.loads(json.dumps(groups))
        self.sources = [source for group in groups for source in group]
        for group in groups:
            try:
                self.shards += [self.whole(list(tables)) for tables in fn(group, None)]
            except ShardError:  # as the engine does: each of them alone
                self.shards += [self.shard(partial(one_alone, fn), source) for source in group]

    def shard(self, fn, source):
        try:
            return self.whole(list(fn(source, None)))
        except ShardError as error:
            return error

    def whole(self, tables):
        assert all(table.schema == self.schema for table in tables)
        assert all(table["uid"].null_count == 0 for table in tables)
        return pa.concat_tables([self.schema.empty_table(), *tables]).unify_dictionaries()


def one_alone(fn, source, task):
    return chain.from_iterable(fn([source], task))


@pytest.fixture
def run():
    """The context after a stage has run."""

    def run(stage, rows=(), wanted=None) -> Ctx:
        ctx = Ctx(stage, wanted)
        stage.run(Inputs(rows=rows), ctx)
        return ctx

    return run


@pytest.fixture
def pool_of(run):
    """All rows of a stage whose shards all succeed."""

    def pool_of(stage) -> pa.Table:
        return pa.concat_tables(run(stage).shards)

    return pool_of
