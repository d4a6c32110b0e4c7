"""A dataset stage over more and more shards: what its calls send, and that they store the same."""

import pickle
from dataclasses import replace
from functools import partial

import pytest

from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine import shuffling
from clipmill.pipeline.engine.run import run_plan
from clipmill.pipeline.executors.local import LocalExecutor
from clipmill.pipeline.planning.plan import make_plan
from clipmill.pipeline.planning.recipe import Recipe
from clipmill.pipeline.progress import Lines
from clipmill.pipeline.run_folder import rows as by_reference
from clipmill.stages.ops.tables.rows import added
from tests.engine_stages.harness import toy_stages, write_pool
from tests.pipeline.conftest import Ran
from tests.pipeline.engine.programs import first_number, plus, with_value

KEPT = 100  # bytes at most that a name, or a number a shard of the unit's own, may add


class Sending(LocalExecutor):
    """Works here on what a worker would be sent, and notes how much that is."""

    def __init__(self) -> None:
        super().__init__(0, with_main=False)
        self.most: dict[str, int] = {}

    def stream(self, steps, items):
        (step,) = steps
        packed = pickle.dumps(step.start)

        def sent():
            for item in items:
                message = pickle.dumps(item)
                size = len(packed) + len(message)
                self.most[step.name] = max(size, self.most.get(step.name, 0))
                yield pickle.loads(message)

        return super().stream([replace(step, start=pickle.loads(packed))], sent())


def every_call(inputs, ctx):
    """Each number and how many there are, by rows that came home."""
    rows = ctx.keep_local(inputs.rows)
    count = sum(one["rows"] for one in ctx.map(partial(count_one, rows), list(range(len(rows)))))
    total = ctx.reduce(size, inputs.rows, added)
    (first,) = ctx.launch(partial(first_number, inputs.rows), 1).values()
    assert (count, first) == (int(total["rows"]), 0)
    moved = ctx.shuffle(inputs.rows, "number", 4)
    ctx.restore(ctx.map_shards(partial(with_value, partial(plus, count)), moved))


def stored_as_they_lie(inputs, ctx):
    ctx.restore(ctx.map_shards(partial(with_value, partial(plus, 1)), inputs.rows))


def count_one(rows, shard, task):
    return {"rows": len(rows.table(shard))}


def size(rows):
    import numpy as np

    return {"rows": np.array(len(rows))}


@pytest.fixture
def sizes(tmp_path):
    """The most bytes a unit is sent by each call of two stages over a pool of so many shards."""

    def run(shards: int) -> dict[str, int]:
        pool = write_pool(tmp_path / f"pool-{shards}", [2 * shards])
        stages = {"numbers": {"uses": "toy.numbers", "path": str(pool), "shard_rows": 2}} | {
            name: {"uses": "toy.program", "from": "numbers", "function": f"{__name__}:{name}"}
            for name in ("every_call", "stored_as_they_lie")
        }
        plan = make_plan(Recipe(name="it", path="it", seed=0, stages=stages))
        folder, executor = tmp_path / str(shards), Sending()
        ran = Ran(run_plan(plan, Storage(str(folder)), executor, Lines()), folder)
        assert ran.complete, ran.outcome.stopped
        for name, more in (("every_call", 2 * shards), ("stored_as_they_lie", 1)):
            assert ran.column(name, "value") == [number + more for number in range(2 * shards)]
            assert not list((folder / "stages").glob(f"{name}-*/calls*")), "its journal went"
        return {name: most for name, most in executor.most.items() if "numbers" not in name}

    with toy_stages():
        yield run


@pytest.mark.slow("seventy shards")
def test_no_unit_is_sent_more_of_a_larger_pool(sizes, monkeypatch):
    monkeypatch.setattr(by_reference, "BLOCK", 8)  # both pools are larger
    monkeypatch.setattr(shuffling, "FEW_RUNS", 8)  # each a file with a name: as many of both pools
    few, many = sizes(10), sizes(60)
    assert len(few) == 6
    assert few.keys() == many.keys()
    grown = {name: many[name] - few[name] for name in few}
    assert max(grown.values()) < KEPT, grown
