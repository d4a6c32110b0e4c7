"""`plan --rows`: a larger run foretold from a smaller one, on hardware that a file describes."""

import json
from pathlib import Path

import pytest
import yaml

from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.run import run_plan
from clipmill.pipeline.executors.local import LocalExecutor
from clipmill.pipeline.ledger.forecast import Forecast, Hardware, forecast
from clipmill.pipeline.own_code import VARIABLE
from clipmill.pipeline.planning.plan import make_plan
from clipmill.pipeline.planning.recipe import Recipe
from clipmill.pipeline.progress import Lines
from clipmill.pipeline.run_folder.sessions import session
from clipmill.pipeline.run_folder.spent import Spent
from clipmill.pipeline.run_folder.state import RunState
from tests import numbered

TOYS = Path(__file__).parents[2] / "benchmarks" / "own_stages" / "stages"
STAGES = "  square: {uses: toy.power, from: numbers}\n  shared: {uses: toy.shared, from: square}\n"
NODES = {"nodes": 2, "cpus": 8, "memory_gb": 16, "gpus": 1, "usd_per_hour": 3}
PRICES = {"usd_per_gb_month": 1, "usd_per_million_puts": 5, "usd_per_million_gets": 0.4}


@pytest.fixture
def profile(tmp_path):
    def written(**keys):
        path = tmp_path / "nodes.yaml"
        path.write_text(yaml.safe_dump(NODES | PRICES | keys))
        return path

    return written


@pytest.fixture
def plan(clipmill, engine, profile):
    """`clipmill plan` of STAGES, as JSON or as the error."""

    def asked(*more, rows="310", **keys):
        engine.plan(STAGES)
        recipe, run = engine.folder / "recipe.yaml", engine.folder / "run"
        options = ("--out", run, "--rows", rows, "--hardware", profile(**keys), "--json", *more)
        return clipmill("plan", recipe, *options)

    return asked


def measured(folder, shards: int, rows: int) -> Forecast:
    """Forecasts a run over so many rows from one over so many shards of 500, at 1 ms a row."""
    stages = {
        "pool": {"uses": "toy.rows", "shards": shards, "shard_rows": 500},
        "affine": {"uses": "toy.affine", "from": "pool"},
        "letters": {"uses": "toy.letters", "from": "affine"},
        "language": {"uses": "annotate.language", "from": "pool"},
    }
    made = make_plan(Recipe(name="toy", path="toy.yaml", seed=0, stages=stages))
    run = Storage(str(folder / str(shards)))
    with session(run, "toy") as spent:
        for stage, work in run_plan(made, run, LocalExecutor(0), Lines()).spent.items():
            spent[stage] = Spent(cpu_s=work.rows / 1000, busy_s=work.busy_s, rows=work.rows)
    return forecast(RunState(made, run), rows, Hardware(nodes=1, cpus=1, memory_gb=4))


def test_a_run_ten_times_larger_takes_what_was_said(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(TOYS))
    said, taken = measured(tmp_path, 4, 20_000), measured(tmp_path, 40, 20_000)
    assert {stage.by for stage in said.stages} == {"cpu"}
    assert said.core_hours == pytest.approx(4 * 20 / 3600)  # four stages, 20 s each
    assert taken.core_hours == pytest.approx(said.core_hours)
    assert 0.8 < said.bytes / taken.bytes < 1.25
    assert (said.objects, said.puts, said.gets) == (taken.objects, taken.puts, taken.gets)


def test_rows_of_a_union_are_those_of_its_pools(tmp_path):
    names = {"a": "red", "b": "blue"}
    for name, text in names.items():
        (tmp_path / f"{name}.csv").write_text(f"url,text\nhttp://a.test/{name},{text}\n")
    stages = {n: {"uses": "ingest.url_list", "path": str(tmp_path / f"{n}.csv")} for n in names}
    stages["both"] = {"uses": "ingest.union", "from": ["a", "b"]}
    made = make_plan(Recipe(name="toy", path="toy.yaml", seed=0, stages=stages))
    state = run_plan(made, Storage(str(tmp_path / "run")), LocalExecutor(0), Lines()).state
    said = forecast(state, 20, Hardware(nodes=1, cpus=1, memory_gb=4))
    assert said.of_rows == 2
    assert {stage.stage: stage.rows for stage in said.stages} == {"a": 10, "b": 10, "both": 20}


def test_rows_outside_a_mask_take_no_work(own_stages, tmp_path):
    numbered.write_pool(tmp_path)
    made, run = numbered.plan_of(tmp_path), Storage(str(tmp_path / "run"))
    done = run_plan(made, run, LocalExecutor(0), Lines())
    rows = [done.spent[made.stages[name].folder].rows for name in ("two", "late")]
    assert rows == [13, 9]  # the first shard runs apart, to look at its failures
    said = forecast(done.state, 40, Hardware(nodes=1, cpus=1, memory_gb=4))
    assert {s.stage: s.rows for s in said.stages}["late"] == 22


def test_hours_dollars_and_requests_are_those_of_the_profile(plan, engine):
    engine.run(STAGES)
    said = json.loads(plan(rows_per_s={"numbers": 1e9, "square": 0.31, "shared": 1e9}).out)
    square = said["stages"][1]
    assert square["rows"] == 310
    assert square["by"] == "rate"
    assert square["hours"] == pytest.approx(1000 / 3600 / 16)  # of 16 cores
    assert said["bottleneck"] == "square"
    assert (said["rows"], said["of_rows"]) == (310, 31)
    # 40 shards: data and record each. A row stage puts its count, too, and reads one stage.
    assert [stage["objects"] for stage in said["stages"]] == [80, 80, 80]
    assert [stage["puts"] for stage in said["stages"]] == [80, 120, 80]
    assert [stage["gets"] for stage in said["stages"]] == [0, 80, 80]
    requests = (280 * 5 + 160 * 0.4) / 1e6
    assert said["usd"] == pytest.approx(said["hours"] * 2 * 3 + requests)
    assert said["usd_per_month"] == pytest.approx(said["bytes"] / 1e9)


def test_what_the_smaller_run_has_not_done_is_named(clipmill, engine, profile):
    engine.run(STAGES, until="square")
    recipe = engine.folder / "recipe.yaml"
    options = ("--out", engine.folder / "run", "--rows", "310", "--hardware", profile())
    assert "shared: not in it" in clipmill("plan", recipe, *options).out


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        ({"node": 1}, "unknown field `node`"),
        ({"nodes": 0}, "Expected `int` >= 1 - at `$.nodes`"),
        ({"memory_gb": 1}, "a worker takes 1 CPU, 0 GPU, 2 GB\n  where: stage 'numbers'"),
        ({"rows_per_s": {"squares": 3}}, "no stage 'squares'"),
    ],
)
def test_a_wrong_profile_is_refused_by_its_key(plan, engine, keys, found):
    engine.run(STAGES)
    said = plan(**keys)
    assert said.code == 2
    assert found in said.err


@pytest.mark.parametrize(
    ("more", "rows", "found"),
    [((), "many", "--rows many"), (("--probe-shards", "0"), "9", "--probe-shards 0")],
)
def test_a_wrong_argument_is_refused(plan, more, rows, found):
    said = plan(*more, rows=rows)
    assert said.code == 2
    assert found in said.err


def test_where_the_first_shards_fail_there_is_no_forecast(clipmill, engine, profile):
    script = engine.folder / "mood.json"
    script.write_text(json.dumps({"timeout": list(range(31))}))
    engine.plan(f"  copy: {{uses: toy.moody, from: numbers, script: {script}}}\n")
    recipe, run = engine.folder / "recipe.yaml", engine.folder / "run"
    options = ("--rows", "310", "--hardware", profile(), "--probe-shards", 3, "--workers", 0)
    said = clipmill("plan", recipe, "--out", run, *options)
    assert said.code == 1
    assert "failed for one reason: timeout" in said.err


def test_the_first_shards_are_run_and_a_run_goes_on_from_them(plan, engine):
    assert plan().code == 2  # nothing there to go by
    said = json.loads(plan("--probe-shards", 2, "--workers", 0).out)
    assert said["of_rows"] == 20
    run = engine.folder / "run"
    before = {path: path.stat().st_mtime_ns for path in run.glob("stages/square-*/*.parquet")}
    assert len(before) == 3  # two shards, and the compaction
    on = engine.run(STAGES)
    assert on.complete
    assert {path.stat().st_mtime_ns for path in before if path.name != "records.parquet"} < {
        *before.values()
    }
    fresh = engine.run(STAGES, out="fresh")
    assert on.column("shared", "shared") == fresh.column("shared", "shared")
    assert "'numbers' has 4 shards there" in plan("--probe-shards", 2).err
