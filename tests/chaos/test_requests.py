"""How many requests of a store a shard costs: counted between the engine and the store."""

import re
from collections import Counter

import pytest

from metadata.storage import Storage
from pipeline.engine.run import run_plan
from pipeline.executors.local import LocalExecutor
from pipeline.planning.plan import make_plan
from pipeline.planning.recipe import Recipe
from pipeline.progress import Lines
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
