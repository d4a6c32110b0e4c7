"""A dedup stage in the engine: killed while it drops rows it goes on, and it holds few of them."""

import contextlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine import context
from clipmill.pipeline.engine.context import RunContext
from clipmill.pipeline.engine.run import run_plan
from clipmill.pipeline.executors.local import LocalExecutor
from clipmill.pipeline.planning.plan import make_plan
from clipmill.pipeline.planning.recipe import Recipe
from tests.stages.killed import KilledError, Watcher, rows_of

ROWS = 160


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """Captions in chains: each shares most of its words with the one before it."""
    folder = tmp_path_factory.mktemp("chains")
    words = [f"word{number}" for number in range(ROWS + 9)]
    order = np.random.default_rng(0).permutation(ROWS).tolist()
    uids = [f"{number:032x}" for number in order]
    texts = [None if n % 40 == 0 else " ".join(words[n : n + 8]) for n in range(ROWS)]
    for part in range(2):
        columns = {"uid": uids[part::2], "url": uids[part::2], "text": texts[part::2]}
        pq.write_table(pa.table(columns), folder / f"{part}.parquet")
    return folder


@pytest.fixture
def run(pool, monkeypatch):
    """Runs the stage in a folder, in as many partitions as make its groups cross them."""
    monkeypatch.setattr(context, "PARTITION_ROWS", 80)
    same = {"uses": "dedup.minhash", "from": "pool", "unit": "word", "size": 1, "min_jaccard": 0.7}
    same["permutations"] = 32  # fewer bands, so fewer partitions
    stages = {"pool": {"uses": "ingest.datacomp", "path": str(pool)}, "same": same}

    def run(folder, watcher):
        plan = make_plan(Recipe(name="it", path="it.yaml", seed=0, stages=stages))
        outcome = run_plan(plan, Storage(str(folder)), LocalExecutor(0), watcher)
        assert outcome.complete, outcome.stopped
        return rows_of(outcome, "same", ["uid", "joined_at", "duplicate_of", "reason"])

    return run


class DiesInDrops(Watcher):
    """Dies once in every drop, at its first file."""

    def __init__(self) -> None:
        super().__init__()
        self.survived: set[str] = set()

    def drop(self, ctx, shuffled):
        file = shuffled.files[0]
        if file not in self.survived:
            ctx.run.folder.delete_folder = lambda _: ctx.run.folder.delete(file) or self.die(file)
        DROP(ctx, shuffled)

    def die(self, file: str) -> None:
        self.survived.add(file)
        raise KilledError


DROP = RunContext.drop


@pytest.mark.chaos
def test_killed_within_every_drop_the_rest_is_done_and_nothing_twice(run, tmp_path, monkeypatch):
    whole, dying = Watcher(), DiesInDrops()
    expected = run(tmp_path / "whole", whole)
    assert sum(row["duplicate_of"] is not None for row in expected) > ROWS / 2
    monkeypatch.setattr(RunContext, "drop", lambda ctx, shuffled: dying.drop(ctx, shuffled))
    found = None
    while found is None:
        with contextlib.suppress(KilledError):
            found = run(tmp_path / "killed", dying)
    assert found == expected
    assert dying.calls == whole.calls
    assert len(dying.survived) > 8


class Hoarding(Watcher):
    """Counts the calls whose shuffled rows are in storage."""

    def __init__(self, folder) -> None:
        super().__init__()
        self.folder, self.held = folder, 0

    def unit(self, name, call, done, total):
        super().unit(name, call, done, total)
        held = [path.name for path in self.folder.glob("stages/same-*/calls-*/*-shuffle.data")]
        self.held = max(self.held, len(held))


def test_storage_holds_a_round_at_most(run, tmp_path):
    watcher = Hoarding(tmp_path)
    run(tmp_path, watcher)
    shuffles = {call for call in watcher.calls if call.endswith("-shuffle")}
    assert watcher.held == 4, "the rows, and a round's three"
    assert len(shuffles) > 8
