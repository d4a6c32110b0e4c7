"""A table of a run in a bucket: the rows of a run on a disk."""

import pytest

from clipmill.pipeline.ledger.rows.table import table
from clipmill.pipeline.run_folder.state import latest
from tests.engine_stages.harness import clipmill_run, toy_stages, write_pool

pytestmark = pytest.mark.soak
RECIPE = """
stages:
  numbers: {{uses: toy.numbers, path: {pool}, shard_rows: 12}}
  power:   {{uses: toy.power, from: numbers}}
  few:     {{uses: select.where, from: power, where: number > 3}}
"""


def test_a_table_reads_a_bucket_as_a_disk(bucket, tmp_path):
    pool = write_pool(tmp_path / "pool", [20, 11])
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(RECIPE.format(pool=pool))
    found = []
    for out in (bucket.uri("table"), str(tmp_path / "run")):
        ended = clipmill_run(recipe, out, tmp_path / f"faults{len(found)}")
        assert ended.code == 0, ended.output
        with toy_stages():
            rows = table(latest(out), "few", ["number", "power"], where="number <> 9")
        found.append((rows.collect(), rows.tail(3).collect()))
    assert found[0][0].height > 9
    assert all(one.equals(other) for one, other in zip(*found, strict=True))
