"""How many requests of a store a shard costs: counted between the engine and the store."""

import re
from collections import Counter

import pytest

from clipmill.metadata.storage import Storage
from clipmill.metadata.uid_index import LEAST_SHARDS
from clipmill.pipeline.engine.run import run_plan
from clipmill.pipeline.executors.local import LocalExecutor
from clipmill.pipeline.ledger.rows.uids import rows_of
from clipmill.pipeline.planning.plan import make_plan
from clipmill.pipeline.planning.recipe import Recipe
from clipmill.pipeline.progress import Lines
from tests.engine_stages.harness import toy_stages, write_pool

pytestmark = pytest.mark.chaos


@pytest.fixture
def requests(proxy, bucket, tmp_path):
    """Requests by method that a stage makes over so many shards, once its root is done."""

    def count(stages, shards, rows) -> Counter:
        pool = write_pool(tmp_path / str(shards), [rows] * shards)
        numbers = {"uses": "toy.numbers", "path": str(pool), "shard_rows": rows}
        uri = bucket.uri(f"requests-{'-'.join(stages)}-{shards}-{rows}")
        uri = uri.replace(f":{bucket.port}", f":{proxy.port}")
        for until in ("numbers", None):
            proxy.asked.clear()
            recipe = Recipe(
                name="requests", path="requests", seed=0, stages={"numbers": numbers, **stages}
            )
            plan = make_plan(recipe, until)
            assert run_plan(plan, Storage(uri), LocalExecutor(0), Lines()).complete
        return Counter(
            asked.split()[0] for asked in proxy.asked if not re.search("live.json|lock.json", asked)
        )

    with toy_stages():
        yield count


@pytest.mark.parametrize(
    ("rows", "shards"), [(5, (2, 6)), (20_000, (1, 2))], ids=["a small file", "several row groups"]
)
def test_a_row_stage_makes_five_requests_a_shard(rows, shards, requests):
    stage = {"square": {"uses": "toy.power", "from": "numbers"}}
    few, many = (requests(stage, count, rows) for count in shards)
    more = {method: many[method] - few[method] for method in many}
    each = {method: count / (shards[1] - shards[0]) for method, count in more.items() if count}
    assert each == {"HEAD": 1, "GET": 1, "PUT": 3}


def test_a_uid_is_found_by_five_requests_however_many_shards_there_are(proxy, bucket, tmp_path):
    shards = LEAST_SHARDS + 1
    pool = write_pool(tmp_path / "pool", [3] * shards)
    numbers = {"uses": "toy.numbers", "path": str(pool), "shard_rows": 3}
    uri = bucket.uri("uids").replace(f":{bucket.port}", f":{proxy.port}")
    with toy_stages():
        plan = make_plan(Recipe(name="uids", path="uids", seed=0, stages={"numbers": numbers}))
        outcome = run_plan(plan, Storage(uri), LocalExecutor(0), Lines())
        assert outcome.complete
        uid = outcome.state.uid("numbers", shards - 1, 2)
        proxy.asked.clear()
        (found,) = rows_of(outcome.state, uid[:8])
    assert found.place == (shards - 1, 2)
    methods = Counter(asked.split()[0] for asked in proxy.asked if "lock.json" not in asked)
    assert methods == {"HEAD": 2, "GET": 3}  # of the index, its end and a block; then of the shard
