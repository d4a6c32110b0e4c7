"""From arms to a folder that runs: which rows each has, what is made once, what is refused."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.metadata.record import MANIFEST
from clipmill.metadata.sealed import put_sealed
from clipmill.metadata.storage import Storage
from clipmill.pipeline.bench import estimate, pool
from clipmill.pipeline.bench.pool import Runs
from clipmill.pipeline.bench.prepare import Prepared, prepared
from clipmill.pipeline.bench.recipe import Data, stages_of
from clipmill.pipeline.bench.spec import Arguments, Bench, Source, bench_of
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.executors.local import LocalExecutor
from clipmill.pipeline.planning.recipe import load_recipe
from clipmill.pipeline.progress import Lines
from clipmill.pipeline.run_folder import lock
from clipmill.pipeline.run_folder.state import latest
from clipmill.pipeline.verbs.bench import arms_page
from tests.memory import MemoryShards
from tests.pipeline.bench.conftest import ROWS, STAGES, caption, draw_pool, run_of, run_over

SETS = ("batch_size=4", "samples_seen=12", "warmup_steps=1")
THERE = [row for row in range(ROWS) if caption(row)]
LONG_ALONE = "long: {uses: select.where, from: caption, where: caption_words >= 4}\n"
LONG = [row for row in THERE if len(caption(row).split()) >= 4]


def prepare(out: Path, *, before: Bench | None = None, shards=1, **asked) -> Prepared:
    tasks = out.parent / "eval"
    test = tasks / "words" / "test"
    test.mkdir(parents=True, exist_ok=True)
    (test / "nshards.txt").write_text(f"{shards}\n")
    (test / "0.tar").touch()
    bench = bench_of(
        Arguments(tasks=str(tasks), sets=() if before else SETS, **asked), before, str(out)
    )
    watcher = Lines()
    try:
        return prepared(bench, Storage(str(out)), LocalExecutor(0), watcher)
    finally:
        watcher.over.set()


def places(out: Path, name: str) -> list[int]:
    """The rows of an arm by their number in the pool."""
    table = pq.read_table(out / "arms" / f"{name}.parquet")
    shard, position = (table[name].to_numpy() for name in ("shard", "position"))
    return sorted((shard * 15 + position).tolist())


@pytest.fixture(scope="module")
def made(drawn_run, tmp_path_factory) -> tuple[Path, Prepared]:
    out = tmp_path_factory.mktemp("made") / "bench"
    names = (f"long={drawn_run}:long", f"large={drawn_run}:large", f"all={drawn_run}:look")
    arms = prepare(out, arms=names, mixes=("both=long:0.5,large:0.5",), seeds=2)
    return out, arms


def test_an_arm_has_the_rows_that_its_stage_keeps(made):
    out, arms = made
    assert places(out, "long") == LONG
    assert places(out, "all") == THERE
    assert arms.rows["raw"].rows == len(THERE)
    assert (arms.rows["long"].rows, arms.rows["long"].lacking) == (len(LONG), 0)
    assert set(places(out, "both")) == {*places(out, "long"), *places(out, "large")}


def test_a_mixture_that_would_repeat_rows_without_end_is_refused(drawn_run, tmp_path):
    both = (f"long={drawn_run}:long",), ("both=long:1e-12,raw:1",)
    with pytest.raises(RecipeError, match=r"a row of 'raw' would stand 2\.82e\+11 times"):
        prepare(tmp_path / "bench", arms=both[0], mixes=both[1])
    assert str(Source(kind="mix", shares={"a": 0.001, "b": 0.999})) == "a 0.1%, b 99.9%"


def test_chance_is_an_arm_of_each_size_once(made):
    out, arms = made
    sizes = {arms.rows[name].rows for name in ("long", "large", "both")}
    random = [name for name in arms.arms if name.startswith("random")]
    assert random == [f"random_of_{size}" for size in sorted(sizes)]  # none as large as raw
    for size in sizes:
        assert len(places(out, f"random_of_{size}")) == size


def test_what_is_left_is_estimated_by_each_arms_own_samples_and_snapshots(
    drawn_run, tmp_path, monkeypatch
):
    longer = "longer=long,samples_seen=120,snapshots=4"
    both = f"long={drawn_run}:long", f"twin={drawn_run}:long"
    arms = prepare(tmp_path / "bench", arms=both, again=(longer,), seeds=2)
    monkeypatch.setattr(estimate, "pictures", lambda tasks: {"words": 3})
    monkeypatch.setattr(estimate, "DECODE_S", 0.5)
    monkeypatch.setattr(type(arms.plan.stages["raw"].stage), "probe", lambda stage: (2.0, 0.5))
    left = estimate.estimated(arms, Storage(str(tmp_path / "bench")), 1)
    assert left.trainings == 10  # raw, long, twin, longer, and as many by chance
    assert left.training_s == 2 * (12 + 12 + 12 + 120 + 12) / 5
    assert left.evaluation_s == 3 * (1 + 1 + 1 + 4 + 1) / 5
    assert (left.rescored, left.usd) == (0, None)
    long = {"seed-0.model.json": "", "seed-1.model.json": ""}
    monkeypatch.setattr(estimate, "_trained", lambda state, arms: {"long": long})
    left = estimate.estimated(arms, Storage(str(tmp_path / "bench")), 1)
    assert left.trainings == 6  # `twin` has equal models


def test_evaluations_of_trained_models_on_other_tasks_than_before_are_estimated(made, monkeypatch):
    folder, arms = made
    stage = arms.plan.stages["raw"].stage
    evaluation = arms.plan.stages["raw_scores"].stage
    trained = {"model.json": "", "seed-1.model.json": "", "at-50.model.safetensors": "half"}
    trained |= {"model.safetensors": "one", "seed-1.model.safetensors": "two"}
    trained["seed-1.average/model.safetensors"] = "mean"  # is not evaluated
    monkeypatch.setattr(estimate, "_trained", lambda state, arms: dict.fromkeys(arms, trained))
    monkeypatch.setattr(estimate, "pictures", lambda tasks: {"words": 3})
    monkeypatch.setattr(type(stage), "probe", lambda stage: (2.0, 0.499))
    scores = Storage(str(folder)).child("stages").child("raw_scores-0")
    scored = {"words": {"sha256": evaluation.task_digests()["words"]}}
    models = [{"model": "one", "tasks": scored}, {"model": "two", "tasks": scored}]
    scores.put("out/results.json", json.dumps({"models": models}).encode(), point="test")

    def left(outside: str, **settings) -> estimate.Estimate:
        stored = {"outside": outside, "settings": settings, "version": evaluation.version}
        put_sealed(scores, MANIFEST, stored, point="test")
        return estimate.estimated(arms, Storage(str(folder)), 2, 3600.0)

    before = left(evaluation.outside())
    assert (before.trainings, before.rescored, before.rescoring_s) == (0, 1, 1.5)  # "half"
    assert (before.seconds, before.usd) == (0.75, 0.75)
    assert "1 evaluation of models trained before; on 2 at a time: about 0.8 s, 0.75 USD" in (
        before.words()
    )
    assert left("touched").rescored == 1
    assert left(evaluation.outside(), embeddings=True).rescored == 3
    (folder.parent / "eval" / "words" / "test" / "0.tar").write_bytes(b"changed")
    assert left("touched").rescored == 3
    (folder.parent / "eval" / "words" / "test" / "0.tar").write_bytes(b"")


NESTED = """
first: {uses: select.where, from: caption, where: caption_words >= 2}
again: {uses: select.where, from: [first, caption], where: caption_words >= 1}
last: {uses: select.where, from: [again, caption], where: caption_words >= 4}
"""


def test_a_part_of_an_arm_is_beside_as_many_rows_of_that_arm_by_chance(tmp_path):
    run = run_of(tmp_path, STAGES.split("look:")[0] + NESTED, rows=20)
    named = tuple(f"{name}={run}:{name}" for name in ("first", "again", "last"))
    arms = prepare(tmp_path / "bench", arms=named, again=("slow=last,learning_rate=1e-4",), seeds=1)
    sizes = {name: arms.rows[name].rows for name in ("raw", "first", "again", "last")}
    assert sizes["raw"] > sizes["first"] == sizes["again"] > sizes["last"]
    of_last = f"random_of_{sizes['last']}_in_again"
    of_first = f"random_of_{sizes['first']}"
    chance = {name: arms.chance_of(name) for name in ("first", "again", "last", "slow")}
    assert chance == dict(first=of_first, again=of_first, last=of_last, slow=of_last)
    assert {name for name in arms.arms if name.startswith("random")} == {of_first, of_last}
    drawn = places(tmp_path / "bench", of_last)
    assert len(drawn) == sizes["last"]
    assert set(drawn) < set(places(tmp_path / "bench", "again"))
    assert arms.what(of_last) == "as many rows of again by chance"


HELD = """
home: {uses: select.where, from: caption, where: caption_words = 2}
every: {uses: select.where, from: caption, where: caption_words >= 0}
ranks:
  uses: score.mix
  from: [caption, home]
  weights: {caption_chars: 1}
  scale: rank
  over: home.keep
high: {uses: select.where, from: [ranks, every], read: {keep: every.keep}, where: mix_score < 0.5}
after: {uses: score.mix, from: caption, weights: {caption_chars: 1}}
late: {uses: select.where, from: after, where: mix_score < 0.5}
best: {uses: select.where, from: caption, top: {column: caption_chars, rows: 5}}
"""


def test_arms_have_the_rows_alone_that_nothing_learnt_from(tmp_path):
    run = run_of(tmp_path, STAGES.split("look:")[0] + HELD, rows=20)
    out = tmp_path / "bench"
    strangers = [row for row in range(20) if caption(row) and len(caption(row).split()) != 2]
    arms = prepare(out, arms=(f"high={run}:high", f"every={run}:every"), hold_out="home", seeds=1)
    assert places(out, "raw") == places(out, "every") == strangers
    assert places(out, "high") == [row for row in strangers if caption(row) == "disc"]
    assert arms.plan.recipe.stages["raw"]["subset"] == str(out / "arms" / "raw.parquet")
    assert (arms.rows["raw"].rows, arms.rows["every"].lacking) == (len(strangers), 0)
    for stage, found in (
        ("late", "'after' (score.mix) learns from rows that are held out"),
        ("best", "'best' (select.where) learns from rows that are held out"),
    ):
        with pytest.raises(RecipeError) as refused:
            prepare(tmp_path / stage, arms=(f"{stage}={run}:{stage}",), hold_out="home", seeds=1)
        assert refused.value.args[0] == found
    assert arms.what("raw") == "every row that 'home' drops"
    home = [row for row in range(20) if caption(row) and row not in strangers]
    both = (f"high={run}:high", f"late={run}:late")  # whatever they learnt from
    inside = prepare(tmp_path / "in", arms=both, hold_in="home", seeds=1)
    assert places(tmp_path / "in", "raw") == places(tmp_path / "in", "late") == home
    assert places(tmp_path / "in", "high") == [row for row in home if len(caption(row)) == 8]
    assert inside.what("raw") == "every row that 'home' keeps"
    with pytest.raises(RecipeError, match="no select 'caption' over its rows"):
        prepare(tmp_path / "no", arms=(f"high={run}:high",), hold_out="caption", seeds=1)


def test_a_row_without_a_verdict_is_neither_at_home_nor_a_stranger(monkeypatch):
    rows = MemoryShards(pa.table({"uid": [b"u"] * 4, "keep": [True, False, None, False]}))
    monkeypatch.setattr(pool, "stored", lambda *_: rows)
    monkeypatch.setattr(pool, "is_places", bool)
    monkeypatch.setattr(pool, "Outputs", lambda _: SimpleNamespace(names=["places"]))
    monkeypatch.setattr(pool, "read_places", lambda *_: np.array([[0, 0], [0, 1], [0, 2]]))
    monkeypatch.setattr(pool, "_digests", lambda *_: [])
    choice = SimpleNamespace(state=None, root="pool")
    for is_home, there in (True, [True, False, False, False]), (False, [False, True, False, False]):
        ground = SimpleNamespace(name="home", fingerprint=""), is_home
        assert pool.raw_rows(choice, None, ground).there[0].tolist() == there


def test_the_recipe_is_an_ordinary_one_in_which_an_arm_trains_and_is_scored(made):
    out, arms = made
    recipe = load_recipe(str(out / "bench.yaml"))
    assert recipe.stages == arms.plan.recipe.stages
    assert recipe.stages["long"]["subset"] == str(out / "arms" / "long.parquet")
    assert "subset" not in recipe.stages["raw"]
    assert recipe.stages["long_scores"] == {
        **{"uses": "evaluate.zero_shot", "model": "stage:long"},
        "tasks": str(out.parent / "eval"),
    }
    assert [name for name in arms.arms] == [
        "raw",
        "long",
        "large",
        "all",
        "both",
        *list(arms.arms)[5:],
    ]


def test_the_pictures_are_exported_once_and_none_is_copied(drawn_run, made):
    exports = list((drawn_run / "stages").glob("*/out/dataset.json"))
    assert [path.parts[-3].rpartition("-")[0] for path in exports] == ["export_pool_parquet"]
    out, arms = made
    stages = arms.plan.recipe.stages
    data = {keys["data"] for keys in stages.values() if keys["uses"] == "train.clip"}
    assert data == {"pixels"}  # decoded once, whatever the arms
    assert [name for name, keys in stages.items() if keys["uses"] == "export.pixels"] == ["pixels"]
    assert sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) < 100_000


def test_an_arm_whose_training_crops_or_draws_shards_reads_the_export_itself(drawn_run, tmp_path):
    arms = prepare(
        tmp_path / "bench",
        arms=(f"long={drawn_run}:long",),
        again=("drawn=long,sampling=shards",),
        seeds=1,
    )
    stages = arms.plan.recipe.stages
    export = stages["pixels"]["data"]
    read = {name: stages[name]["data"] for name in ("raw", "long", "drawn")}
    assert read == {"raw": "pixels", "long": "pixels", "drawn": export}
    sizes = {name: 224 if name == "long" else 48 for name in arms.arms}  # of another network
    data = {arm.rows: Data("/e", None) for arm in arms.arms.values()}
    stages = stages_of(arms.bench, arms.arms, data, sizes)
    assert (stages["raw"]["data"], stages["long"]["data"]) == ("pixels", "pixels_1")
    assert [stages[name]["image_size"] for name in ("pixels", "pixels_1")] == [48, 224]
    small = prepare(tmp_path / "small", arms=(f"long={drawn_run}:long",), scale="small", seeds=1)
    stages = small.plan.recipe.stages
    assert not [name for name, keys in stages.items() if keys["uses"] == "export.pixels"]
    trained = {name: small.plan.stages[name].stage for name in small.arms}
    assert {stages[name]["data"] for name in trained} == {export}
    assert {one.fixed.model for one in trained.values()} == {"ViT-B-32"}
    assert {(one.steps, one.batch_size) for one in trained.values()} == {(3, 4)}  # as --set says
    assert {one.learning_rate for one in trained.values()} == {5e-4}  # the scale's


def test_what_is_there_is_not_made_again_and_an_arm_more_leaves_the_others(drawn_run, tmp_path):
    out = tmp_path / "bench"
    first = prepare(out, arms=(f"long={drawn_run}:long",), seeds=2)
    stages = dict(first.plan.recipe.stages)
    times = {path: path.stat().st_mtime_ns for path in (out / "arms").iterdir()}
    listed = tmp_path / "uids.txt"
    uids = pq.read_table(out / "arms" / "long.parquet")["uid"].to_pylist()
    listed.write_text("\n".join(uid.hex() for uid in [*uids[:5], *uids[:3], b"\0" * 16]))
    lists = (f"few={listed}", f"trusted={listed}")
    more = prepare(out, before=first.bench, lists=lists, oracle=str(listed), seeds=3)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert (more.rows["few"].rows, more.rows["few"].samples) == (5, 8)
    assert (more.rows["few"].lacking, more.rows["few"].unknown) == (0, 1)
    assert "uids of no row of the pool: 1" in arms_page(more)
    assert more.rows["oracle"] == more.rows["trusted"] == more.rows["few"]
    assert list(more.arms)[-2:] == ["random_of_5", f"random_of_{len(LONG)}"]  # as in a new folder
    same = {name: keys for name, keys in more.plan.recipe.stages.items() if name in stages}
    assert same["long"] == {**stages["long"], "seeds": [0, 1, 2]}
    names = ["few", "trusted", "oracle"]
    assert list(json.loads((out / "bench.json").read_text())["arms"]) == ["long", *names]


@pytest.mark.parametrize("harm", ["torn", "gone", "all gone", "changed", "without its facts"])
def test_rows_of_an_arm_that_were_harmed_are_made_again(drawn_run, tmp_path, harm):
    out = tmp_path / "bench"
    asked = {"arms": (f"long={drawn_run}:long",), "seeds": 1}
    prepare(out, **asked)
    file = out / "arms" / "long.parquet"
    before = {path.name: path.read_bytes() for path in (out / "arms").iterdir()}
    if harm == "torn":
        file.write_bytes(before[file.name][:300])
    elif harm == "all gone":
        shutil.rmtree(file.parent)
        (out / "leaderboard.md").touch()  # it has been run: a folder of a bench by its list alone
    elif harm == "changed":
        pq.write_table(pq.read_table(file)[1:], file)
    else:
        (file if harm == "gone" else file.with_suffix(".json")).unlink()
    prepare(out, **asked)
    assert {path.name: path.read_bytes() for path in (out / "arms").iterdir()} == before


def test_facts_of_an_arm_that_hold_no_digest_are_taken(drawn_run, tmp_path):
    out = tmp_path / "bench"
    asked = {"arms": (f"long={drawn_run}:long",), "seeds": 1}
    first = prepare(out, **asked)
    facts = out / "arms" / "long.json"
    held = json.loads(facts.read_text())
    del held["sha256"]  # as benches wrote them at first
    facts.write_text(json.dumps(held))
    again = prepare(out, **asked)
    assert json.loads(facts.read_text()) == held
    assert again.rows["long"].rows == first.rows["long"].rows


def test_an_equal_export_of_the_run_is_read_where_it_is(drawn_run, tmp_path):
    stages = STAGES.split("nothing:")[0] + "mine: {uses: export.parquet, from: pool}\n"
    run = run_of(tmp_path, stages, rows=20)
    arms = prepare(tmp_path / "bench", arms=(f"long={run}:long",), seeds=1)
    (mine,) = (run / "stages").glob("mine-*")
    assert arms.plan.recipe.stages["pixels"]["data"] == f"export:{mine}"
    assert not list((run / "stages").glob("export_*"))


def test_a_vanished_shard_of_the_export_is_made_again(tmp_path):
    run = run_of(tmp_path, STAGES.split("look:")[0] + LONG_ALONE, rows=20)
    arms = prepare(tmp_path / "bench", arms=(f"long={run}:long",), seeds=1)
    (shard,) = run.glob("stages/export_*/out/00000.parquet")
    stored = shard.read_bytes()
    shard.unlink()
    again = prepare(tmp_path / "bench", arms=(f"long={run}:long",), seeds=1)
    assert shard.read_bytes() == stored
    assert again.rows == arms.rows


@pytest.mark.parametrize(
    ("stage", "found", "do"),
    [
        ("lnog", "no stage 'lnog'", "did you mean 'long'?"),
        ("nothing", "0 rows with a picture and a caption; a batch has 4", "leave the arm out"),
        ("few", "2 rows with a picture and a caption; a batch has 4", "--set batch_size=N"),
    ],
)
def test_an_arm_without_rows_is_refused(drawn_run, tmp_path, stage, found, do):
    with pytest.raises(RecipeError) as error:
        prepare(tmp_path / "bench", arms=(f"a={drawn_run}:{stage}",))
    assert error.value.args[0] == found
    assert do in error.value.args[2]
    assert "'a'" in error.value.args[1]
    prepare(tmp_path / "bench", arms=(f"b={drawn_run}:long",))  # the folder can be used


def test_a_task_that_is_half_there_is_refused_before_anything_is_made(drawn_run, tmp_path):
    with pytest.raises(RecipeError, match=r"says 2, and 1\.tar is missing") as error:
        prepare(tmp_path / "bench", arms=(f"a={drawn_run}:long",), shards=2)
    assert error.value.args[1] == f"--tasks {tmp_path}/eval/words/test/nshards.txt"
    assert not (tmp_path / "bench").exists()


def test_two_pools_in_one_bench_are_refused_with_both_names(drawn_run, tmp_path):
    other = run_of(tmp_path / "other", STAGES.split("large:")[0], rows=30)
    with pytest.raises(RecipeError) as error:
        prepare(tmp_path / "bench", arms=(f"a={drawn_run}:long", f"b={other}:long"))
    assert "'a' and 'b' are of two pools: 40 rows in 3 shards and 30 rows in 2" in str(error.value)
    assert str(drawn_run) in str(error.value)
    assert str(other) in str(error.value)
    arms = prepare(tmp_path / "bench", arms=(f"a={drawn_run}:long",), trusted=f"{other}:long")
    stages = arms.plan.recipe.stages
    assert stages["trusted"]["data"] != stages["a"]["data"] == stages["raw"]["data"]
    assert arms.rows["trusted"].rows == len([row for row in LONG if row < 30])


def test_other_pictures_under_the_same_names_are_refused_with_how_many(tmp_path):
    pool = tmp_path / "pool"
    pool.mkdir()
    draw_pool(pool, 20)
    one = run_over(pool, tmp_path / "one")
    for row in (2, 3):
        (pool / f"{row:03}.png").write_bytes((pool / f"{row + 2:03}.png").read_bytes())
    two = run_over(pool, tmp_path / "two")
    with pytest.raises(RecipeError) as error:
        prepare(tmp_path / "bench", arms=(f"a={one}:long", f"b={two}:large"))
    assert error.value.args == (
        "arms 'a' and 'b' have other pictures: 2 of 20 that both have differ in their SHA-256",
        f"'pool' of {one}, 'pool' of {two}",
        "name arms of one run, so that all are trained on the same pictures",
    )
    assert not list(tmp_path.glob("*/stages/export_*"))


def test_a_run_that_is_at_work_or_not_done_is_refused_with_numbers(drawn_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(drawn_run, run)
    with lock.held(Storage(str(run))), pytest.raises(RecipeError) as error:
        prepare(tmp_path / "bench", arms=(f"a={run}:long",))
    assert "a run that is at work: 7 of 7 stages are done" in error.value.args[0]
    runs = Runs()
    for _ in range(2):  # a second question is refused as the first
        with lock.held(Storage(str(run))), pytest.raises(RecipeError, match="at work"):
            runs.choice("a", str(run), "long")
    long = latest(str(run)).stages["long"].folder
    for name in ("000001.json", "records.parquet"):
        (Path(long.path) / name).unlink(missing_ok=True)
    with pytest.raises(RecipeError, match="stage 'long' is not done: "):
        prepare(tmp_path / "bench", arms=(f"a={run}:long",))


def test_a_setting_that_cannot_be_is_refused_before_anything_is_made(drawn_run, tmp_path):
    with pytest.raises(RecipeError, match="learning_rat"):
        prepare(tmp_path / "bench", arms=(f"a={drawn_run}:long",), again=("b=a,learning_rat=1",))
    assert not (tmp_path / "bench").exists()


def test_a_folder_of_something_else_is_left_alone(drawn_run, tmp_path):
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(RecipeError, match=r"other files: photo\.jpg"):
        prepare(tmp_path, arms=(f"a={drawn_run}:long",))
    with pytest.raises(RecipeError, match="holds other files"):
        prepare(drawn_run, arms=(f"a={drawn_run}:long",))  # its recipe would no longer be the last
    assert not (drawn_run / "bench.json").exists()
