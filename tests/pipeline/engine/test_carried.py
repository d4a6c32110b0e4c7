"""A dataset stage over more and more shards: what its calls send, and that they store the same."""

import pickle
from dataclasses import replace
from functools import partial

import pytest

from metadata.storage import Storage
from pipeline.engine import shuffling
from pipeline.engine.run import run_plan
from pipeline.executors.local import LocalExecutor
from pipeline.planning.plan import make_plan
from pipeline.planning.recipe import Recipe
from pipeline.progress import Lines
from stages.ops.states import added
from tests.engine_stages.harness import toy_stages, write_pool
from tests.pipeline.conftest import Ran
from tests.pipeline.engine.test_context import with_value

KEPT = 400  # bytes at most that a name, or a number a shard of the unit's own, may add


class Sending(LocalExecutor):
    """Works here on what a worker would be sent, and notes how much that is."""

    def __init__(self) -> None:
        super().__init__(0)
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
    (first,) = ctx.launch(partial(launched, inputs.rows), 1).values()
    assert (count, first) == (int(total["rows"]), 0)
    moved = ctx.shuffle(inputs.rows, "number", 4)
    ctx.restore(ctx.map_shards(partial(with_value, partial(add, count)), moved))


def stored_as_they_lie(inputs, ctx):
    ctx.restore(ctx.map_shards(partial(with_value, partial(add, 1)), inputs.rows))


def count_one(rows, shard, task):
    return {"rows": len(rows.table(shard))}


def size(rows):
    import numpy as np

    return {"rows": np.array(len(rows))}


def launched(rows, rank, task):
    return {"first": rows.table(0)["number"][0].as_py()}


def add(count, number):
    return number + count


@pytest.fixture
def sizes(tmp_path):
    """The most bytes a unit is sent by each call of a stage over a pool of so many shards."""

    def run(function: str, shards: int) -> dict[str, int]:
        pool = write_pool(tmp_path / f"pool-{shards}", [2 * shards])
        stages = {
            "numbers": {"uses": "toy.numbers", "path": str(pool), "shard_rows": 2},
            "it": {"uses": "toy.program", "from": "numbers", "function": f"{__name__}:{function}"},
        }
        plan = make_plan(Recipe(name="it", path="it", seed=0, stages=stages))
        folder, executor = tmp_path / f"{function}-{shards}", Sending()
        ran = Ran(run_plan(plan, Storage(str(folder)), executor, Lines()), folder)
        assert ran.complete, ran.outcome.stopped
        more = 2 * shards if function == "every_call" else 1
        assert ran.column("it", "value") == [number + more for number in range(2 * shards)]
        assert not list((folder / "stages").glob("it-*/calls*")), "its journal went"
        return {name: most for name, most in executor.most.items() if name.startswith("it ")}

    with toy_stages():
        yield run


@pytest.mark.parametrize(
    ("function", "calls"), [("every_call", 5), ("stored_as_they_lie", 1)], ids=["all", "restore"]
)
def test_no_unit_is_sent_more_of_a_larger_pool(function, calls, sizes, monkeypatch):
    monkeypatch.setattr(shuffling, "FEW_RUNS", 64)  # each a file with a name: as many of both pools
    few, many = (sizes(function, shards) for shards in (70, 210))
    assert len(few) == calls
    assert few.keys() == many.keys()
    grown = {name: many[name] - few[name] for name in few}
    assert max(grown.values()) < KEPT, grown
