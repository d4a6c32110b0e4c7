"""How many requests of a store a shard costs: counted between the engine and the store."""

import re
from collections import Counter

import pytest

from clipmill.metadata import stage_seal
from clipmill.metadata.storage import Storage
from clipmill.metadata.uid_index import LEAST_SHARDS
from clipmill.pipeline.engine.run import run_plan
from clipmill.pipeline.executors.local import LocalExecutor
from clipmill.pipeline.ledger.rows.uids import rows_of
from clipmill.pipeline.planning.plan import make_plan
from clipmill.pipeline.planning.recipe import Recipe
from clipmill.pipeline.progress import Lines
from clipmill.pipeline.run_folder.live import status
from clipmill.pipeline.run_folder.state import latest
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


def kinds(proxy) -> Counter:
    """Requests by what a store charges for, without those of the lock."""
    asked = [each for each in proxy.asked if "lock.json" not in each]
    return Counter("LIST" if "list-type" in each else each.split()[0] for each in asked)


STARTS = {"start": latest, "status": status}
OF_RUN = {  # beside those of the stages
    "start": Counter(HEAD=3, GET=2, LIST=1),
    "status": Counter(HEAD=6, GET=4, LIST=1),
}
# Manifest, compaction, manifest again; of a sealed stage manifest, seal, and of the compaction its
# end, its columns and its size, and two of each shard that is drawn.
OF_STAGE = {"listed": Counter(HEAD=3, GET=3, LIST=1), "sealed": Counter(HEAD=3 + 1 + 2 * 2, GET=4)}


@pytest.mark.parametrize("verb", STARTS)
@pytest.mark.parametrize("kind", OF_STAGE)
def test_a_start_asks_a_store_the_same_however_many_shards_there_are(
    verb, kind, proxy, bucket, tmp_path, monkeypatch
):
    monkeypatch.setattr(stage_seal, "LARGE", 1 if kind == "sealed" else 1000)
    monkeypatch.setattr(stage_seal, "DRAWN", 2)
    counted = []
    for shards in (3, 6):
        pool = write_pool(tmp_path / str(shards), [5] * shards)
        uri = bucket.uri(f"start-{verb}-{kind}-{shards}")
        uri = uri.replace(f":{bucket.port}", f":{proxy.port}")
        stages = {
            "numbers": {"uses": "toy.numbers", "path": str(pool), "shard_rows": 5},
            "square": {"uses": "toy.power", "from": "numbers"},
        }
        with toy_stages():
            plan = make_plan(Recipe(name="start", path="start", seed=0, stages=stages))
            assert run_plan(plan, Storage(uri), LocalExecutor(0), Lines()).complete
            proxy.asked.clear()
            STARTS[verb](uri)
        counted.append(kinds(proxy))
    of_stages = OF_STAGE[kind] + OF_STAGE[kind]
    assert counted == [OF_RUN[verb] + of_stages] * 2
