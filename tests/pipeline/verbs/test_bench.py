"""`clipmill bench`: from arms to a leaderboard; more arms, more seeds, what is not made again."""

import json
import shlex
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest

from clipmill.metadata.record import Manifest
from clipmill.metadata.sealed import read_sealed_as
from clipmill.metadata.storage import Storage
from clipmill.pipeline.bench.estimate import Estimate
from clipmill.pipeline.cli import main
from clipmill.pipeline.engine.journal import journal_of
from clipmill.pipeline.engine.run import run_plan
from clipmill.pipeline.executors.local import LocalExecutor
from clipmill.pipeline.planning.plan import make_plan
from clipmill.pipeline.planning.recipe import load_recipe
from clipmill.pipeline.progress import Lines
from clipmill.pipeline.verbs.bench import _next as next_commands
from tests.pipeline.bench.conftest import STAGES, run_of, run_over, tasks_of
from tests.stages.task_folders import write_tasks

SETS = ("batch_size=4", "samples_seen=12", "warmup_steps=1", "precision=float32")


chaos = pytest.mark.chaos  # what trains


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A finished run, and a folder of tasks."""
    folder = tmp_path_factory.mktemp("benched")
    run_of(folder)
    tasks_of(folder / "tasks")
    return folder


def bench(place: Path, *arguments: str) -> int:
    sets = [word for one in SETS for word in ("--set", one)] if arguments[0] != "--out" else []
    return main(["bench", *map(str, arguments), *sets, "--workers", "0"])


@pytest.fixture(scope="module")
def out(place) -> Path:
    """A bench of one arm beside raw and chance, two seeds each."""
    arguments = (f"long={place}/run:long", "--tasks", place / "tasks", "--seeds", "2")
    assert bench(place, *arguments, "--out", place / "bench") == 0
    return place / "bench"


def models(out: Path) -> dict[Path, int]:
    """When each model was written."""
    return {path: path.stat().st_mtime_ns for path in out.glob("stages/*/out/*model.safetensors")}


@chaos
def test_the_leaderboard_has_each_arm_by_each_task(out):
    rows = pq.read_table(out / "leaderboard.parquet").to_pylist()
    arms = {row["arm"] for row in rows}
    assert {"raw", "long"} < arms
    (random,) = arms - {"raw", "long"}
    long = {row["task"]: row for row in rows if row["arm"] == "long"}
    assert random == f"random_of_{long['discs']['rows']}"
    assert set(long) == {"mean of fine tasks", "discs", "words"}
    top = long["mean of fine tasks"]
    assert top["value"] == pytest.approx((long["discs"]["value"] + long["words"]["value"]) / 2)
    raw = next(row for row in rows if row["arm"] == "raw" and row["task"] == top["task"])
    assert top["minus_raw"] == pytest.approx(top["value"] - raw["value"])
    assert raw["minus_raw"] is None
    assert top["epochs"] == pytest.approx(12 / (top["rows"] - 1))  # one does not decode
    assert {row["seeds"] for row in rows} == {2}
    scores = pl.read_csv(out / "scores.csv").filter(
        arm="long", task="words", metric="image_retrieval_recall@5"
    )
    assert scores["seed"].to_list() == [0, 1]
    assert scores["value"].mean() == pytest.approx(long["words"]["value"])
    assert 'href="scores.csv"' in (out / "leaderboard.html").read_text()
    assert long["words"]["leaks"] > 0  # captions that are rows', word for word
    (leaks,) = out.glob("stages/leaks-*/out/leaks.parquet")
    shown = pl.read_parquet(leaks).filter(kind="picture").unique(["task", "sample"])
    assert (
        f"- its rows show {len(shown)} pictures of the tasks: "
        in (out / "leaderboard.md").read_text()
    )
    assert all(row["verdict_raw"] in ("none", "better", "worse", "unclaimed", None) for row in rows)


@chaos
def test_the_page_needs_nothing_beside_it(out):
    page = (out / "leaderboard.html").read_text()
    assert "default-src 'none'" in page
    assert "<script" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert page.count("<svg") == page.count("with 95 % intervals") == 2  # by size, by cost
    markdown = (out / "leaderboard.md").read_text()
    assert "| arm | rows | epochs | mean of fine tasks |" in markdown
    assert "no difference to raw" in markdown or "beats" in markdown


@chaos
def test_the_same_command_again_trains_nothing(place, out, capsys):
    before, page = models(out), (out / "leaderboard.html").read_bytes()
    capsys.readouterr()
    assert bench(place, "--out", out) == 0
    said = capsys.readouterr().out
    assert models(out) == before
    assert (out / "leaderboard.html").read_bytes() == page
    assert "nothing is left to train" in said
    assert "smallest difference it could have seen" in said


@chaos
def test_an_arm_more_and_a_seed_more_reuse_the_rest(place, out, capsys):
    before = models(out)
    assert bench(place, "--out", out, "--add", f"again={place}/run:long", "--estimate") == 0
    assert "nothing is left to train" in capsys.readouterr().out  # `long` has those models
    assert bench(place, "--out", out, "--arm", "fast=long,learning_rate=4e-3", "--json") == 0
    ranked = json.loads(capsys.readouterr().out)
    assert {line["arm"] for line in ranked["lines"]} > {"raw", "long", "again", "fast"}
    assert {path: models(out)[path] for path in before} == before
    fast = next(line for line in ranked["lines"] if line["arm"] == "fast")
    assert fast["settings"] == {"learning_rate": 0.004}
    values = {line["arm"]: line["result"]["value"] for line in ranked["lines"]}
    assert values["again"] == values["long"]  # equal rows, equal seeds: equal models
    cost = {line["arm"]: line["seconds"] for line in ranked["lines"]}
    assert cost["again"] == cost["long"] > 0  # which were trained once


@chaos
def test_stored_trainings_say_what_more_seeds_would_see_and_nothing_is_trained(place, out, capsys):
    before = models(out)
    assert bench(place, "--out", out, "--power", "99.9", "--json") == 0
    power = json.loads(capsys.readouterr().out)
    assert power["least"]["40"]["value"] < power["least"]["3"]["value"]
    assert power["needed"][0]["seeds"] == 3
    assert bench(place, "--out", out, "--seeds", "3", "--estimate") == 0
    capsys.readouterr()
    assert bench(place, "--out", out, "--power", "99.9", "--json") == 0
    assert json.loads(capsys.readouterr().out) == power  # by the two seeds that are trained
    assert models(out) == before


@chaos
def test_an_arm_whose_rows_have_changed_is_not_counted_as_trained(tmp_path, capsys):
    run_of(tmp_path)
    write_tasks(tmp_path / "tasks")
    shutil.rmtree(tmp_path / "tasks" / "words")
    arguments = (f"long={tmp_path}/run:long", "--tasks", tmp_path / "tasks", "--seeds", "1")
    # Snapshots are no trainings, and these ones read the export itself.
    sets = ("--set", "snapshots=2", "--set", "sampling=shards")
    assert bench(tmp_path, *arguments, *sets, "--out", tmp_path / "bench") == 0
    assert "6 seen" in (tmp_path / "bench" / "leaderboard.md").read_text()  # by five classes
    (sealed,) = tmp_path.glob("bench/stages/raw-*/manifest.json")
    manifest = read_sealed_as(Storage(str(sealed.parent)), sealed.name, Manifest)
    sealed.unlink()  # as if killed behind its last seed
    (sealed.parent / journal_of(manifest.made_of)).mkdir()
    capsys.readouterr()
    assert bench(tmp_path, "--out", tmp_path / "bench", "--estimate") == 0
    assert "nothing is left to train" in capsys.readouterr().out
    run_over(tmp_path / "pool", tmp_path / "run", STAGES.replace("words >= 4", "words >= 2"))
    capsys.readouterr()
    assert bench(tmp_path, "--out", tmp_path / "bench", "--estimate") == 0
    assert "2 trainings" in capsys.readouterr().out  # `long`, and as many rows by chance
    assert bench(tmp_path, "--out", tmp_path / "bench", "--seeds", "2", "--estimate") == 0
    assert "5 trainings" in capsys.readouterr().out


@chaos
@pytest.mark.drawn(one_in=3, cpu_s=30)
def test_a_seed_is_trained_once_whatever_the_list_and_the_arm(place, tmp_path):
    out = tmp_path / "bench"
    arguments = (f"long={place}/run:long", "--tasks", place / "tasks", "--seeds", "1")

    def trained() -> set[str]:
        """What the folder keeps of trainings; of each there is one log, too."""
        kept = {path.parts[-3] for path in out.glob("once/*/*/model.safetensors")}
        assert len(list(out.glob("stages/*/log/*log.jsonl"))) == len(kept)
        return kept

    assert bench(place, *arguments, "--out", out) == 0
    first = trained()
    assert len(first) == 3  # raw, long, and as many by chance
    assert bench(place, "--out", out, "--seeds", "2") == 0
    both = trained()
    assert first < both
    assert len(both) == 6
    recipe = load_recipe(str(out / "bench.yaml"))
    for keys in recipe.stages.values():
        if keys["uses"] == "train.clip":
            keys["seeds"] = [1]
    outcome = run_plan(make_plan(recipe), Storage(str(out)), LocalExecutor(0), Lines())
    assert outcome.complete, outcome.stopped
    assert trained() == both
    assert bench(place, "--out", out, "--add", f"large={place}/run:large") == 0
    assert len(trained()) == 10  # two seeds of it, and of as many by chance
    assert both < trained()


@chaos
@pytest.mark.drawn(one_in=3, cpu_s=12)
def test_probes_stand_beside_zero_shot_and_count_for_no_headline(place, tmp_path, capsys):
    write_tasks(tmp_path / "tasks")
    arguments = (f"long={place}/run:long", "--tasks", tmp_path / "tasks", "--seeds", "1")
    assert bench(place, *arguments, "--out", tmp_path / "bench", "--judge", "zero_shot,probe") == 0
    rows = pq.read_table(tmp_path / "bench" / "leaderboard.parquet").to_pylist()
    found = {(row["arm"], row["task"]): row for row in rows}
    tasks = {task for _, task in found}
    assert tasks == {"mean of fine tasks", "colours", "colours_ridge", "words"}
    for arm in ("raw", "long"):
        probed = found[arm, "colours_ridge"]
        assert (probed["metric"], probed["chance"], probed["seeds"]) == ("acc1", 0.2, 1)
        mean, words = (found[arm, task]["value"] for task in ("mean of fine tasks", "words"))
        assert mean == words  # five classes are no fine task, of a probe neither


@chaos
@pytest.mark.drawn(one_in=3, cpu_s=20)
def test_snapshots_give_each_arm_a_curve_and_no_arm_of_their_own(place, tmp_path, capsys):
    arguments = (f"long={place}/run:long", "--tasks", place / "tasks", "--seeds", "2")
    grown = ("--set", "snapshots=2", "--json")
    assert bench(place, *arguments, "--out", tmp_path / "bench", *grown) == 0
    ranked = json.loads(capsys.readouterr().out)
    values = {line["arm"]: line["result"]["value"] for line in ranked["lines"]}
    assert len(values) == 3  # raw, long, and as many by chance
    assert {line["seeds"] for line in ranked["lines"]} == {2}
    for curve in ranked["curves"]:
        assert curve["share"] == [0.5, 1.0]
        assert curve["result"][-1]["value"] == pytest.approx(values[curve["arm"]])
    assert {curve["arm"] for curve in ranked["curves"]} == values.keys()
    assert "6 seen" in (tmp_path / "bench" / "leaderboard.md").read_text()


@chaos
def test_a_bench_that_fails_prints_no_text_where_json_is_asked_for(place, tmp_path, capsys):
    tasks_of(tmp_path / "tasks")
    for shard in (tmp_path / "tasks" / "words").rglob("*.tar"):
        shard.write_bytes(b"no tar")
    arguments = (f"long={place}/run:long", "--tasks", tmp_path / "tasks", "--seeds", "1")
    assert bench(place, *arguments, "--out", tmp_path / "bench", "--json") == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "words" in said.err
    assert f"delete {tmp_path}/bench/bench.json and name the others again" in said.err


@chaos
def test_one_seed_claims_nothing(place, capsys):
    arguments = (f"long={place}/run:long", "--tasks", place / "tasks", "--seeds", "1")
    assert bench(place, *arguments, "--out", place / "one") == 0
    said = capsys.readouterr().out
    assert "one seed: no interval is claimed, against raw: " in said
    table = said.partition("epochs")[2].partition("no interval")[0]
    assert "long" in table
    assert "one seed, so nothing tells luck from worth" in said
    assert "95 % intervals" not in (place / "one" / "leaderboard.html").read_text()


@pytest.mark.soak(cpu_s=2)  # by the clock
def test_what_a_training_takes_is_told_within_a_factor_of_two_and_stands_in_the_table(place):
    out = place / "timed"
    arguments = [f"long={place}/run:long", "--tasks", str(place / "tasks"), "--seeds", "1"]
    sets = ["--set", "batch_size=8", "--set", "samples_seen=160", "--set", "warmup_steps=1"]
    assert main(["bench", *arguments, *sets, "--out", str(out), "--workers", "0"]) == 0
    rows = pq.read_table(out / "leaderboard.parquet").to_pylist()
    assert all(row["seconds"] == pytest.approx(160 / row["samples_per_s"]) for row in rows)
    took = {row["arm"]: row["seconds"] for row in rows}
    training = make_plan(load_recipe(str(out / "bench.yaml"))).stages["raw"].stage
    told = [160 * training.probe()[0] for _ in range(3)]  # other processes make one slow
    assert min(told) < 2 * max(took.values())
    assert max(told) > min(took.values()) / 2
    assert "against cost" in (out / "leaderboard.html").read_text()


WORDED = """
pool:    {uses: ingest.image_folder, path: none, shard_rows: 15}
caption: {uses: annotate.caption, from: pool}
said:    {uses: probe.says, from: pool, said: ["star *", "a picture of * by a patient hand"]}
weight:  {uses: probe.weighs, from: pool}
long:    {uses: select.where, from: [caption, said, weight], where: caption_words >= 4}
"""
DIRECT = """
shards: {{uses: export.parquet, from: long}}
direct: {{uses: train.clip, data: shards, {settings}}}
plain:  {{uses: train.clip, data: "{raw}", subset: {rows}, {settings}}}
"""


@chaos
@pytest.mark.usefixtures("own_stages")
def test_texts_and_weights_that_a_stage_wrote_arrive_in_the_training(place, tmp_path):
    run = run_of(tmp_path, WORDED)
    arguments = (f"long={run}:long", "--tasks", place / "tasks", "--seeds", "1")
    assert bench(place, *arguments, "--out", tmp_path / "bench") == 0
    rows = pq.read_table(tmp_path / "bench" / "arms" / "long.parquet")
    assert len(set(rows["loss_weight"].to_pylist())) > 1
    assert {len(texts) for texts in rows["texts"].to_pylist()} == {3}
    listed = tmp_path / "uids.txt"
    listed.write_text("\n".join(uid.hex() for uid in rows["uid"].to_pylist()))
    settings = ", ".join(one.replace("=", ": ") for one in SETS)
    raw = load_recipe(str(tmp_path / "bench" / "bench.yaml")).stages["pixels"]["data"]
    text = WORDED + DIRECT.format(settings=settings, rows=listed, raw=raw)
    again = run_over(tmp_path / "pool", tmp_path / "again", text)

    def model(folder: Path, stage: str) -> bytes:
        (path,) = folder.glob(f"stages/{stage}-*/out/model.safetensors")
        return path.read_bytes()

    trained = model(tmp_path / "bench", "long")
    assert trained == model(again, "direct")  # on an export of that stage
    assert trained != model(again, "plain")  # the same rows with the pool's captions


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (("--add", "long={}/run:long"), "no bench there to add to"),
        (("long={}/run:lnog", "--tasks", "{}/tasks"), "did you mean 'long'?"),
        (("long={}/run:nothing", "--tasks", "{}/tasks"), "0 rows with a picture"),
        (("long={}/gone:long", "--tasks", "{}/tasks"), "arm 'long', run {}/gone"),
        (("long={}/run:long", "--tasks", "{}/tasks", "--by", "no"), "arm 'long', run {}/run"),
        (("long={}/run:long", "--tasks", "{}/tasks", "--set", "no=1"), "arguments, arm 'raw', key"),
        (("long={}/run:long", "--tasks", "{}/pool"), "--tasks"),
        (("long={}/run:long", "--tasks", "{}/tasks", "--seeds", "0"), "--seeds 0"),
        (("long={}/run:long", "--tasks", "{}/tasks", "--power"), "with other arms or seeds"),
        (("long={}/run:long", "--tasks", "{}/pool/000.png"), "where: {}/pool/000.png"),
        (("a={}/run:long", "--tasks", "{}/tasks", "--import", "b={}/no"), "uids: no such file"),
        (("--seeds", "2"), "and no bench there"),
        (("--power", "--estimate"), "--power and --estimate together"),
        *((("--power", "2", points), f"--power {points}") for points in ("-2", "0", "nan", "inf")),
        *((("--usd-per-hour", usd), f"--usd-per-hour {usd}") for usd in ("-3", "0", "nan", "inf")),
    ],
)
def test_what_cannot_be_is_refused_with_2(place, tmp_path, clipmill, arguments, found):
    sets = (word for one in SETS for word in ("--set", one))
    given = (one.format(place) for one in arguments)
    said = clipmill("bench", *given, "--out", tmp_path / "b", *sets)
    assert said.code == 2
    assert found.format(place) in said.err


def test_a_bench_whose_run_is_gone_says_where_its_last_leaderboard_is(tmp_path, clipmill):
    rows = {"long": {"kind": "stage", "run": f"{tmp_path}/gone", "stage": "long"}}
    stored = {
        "scale": "nano",
        "seeds": 1,
        "tasks": "/t",
        "rows": rows,
        "arms": {"long": {"rows": "long"}},
    }
    (tmp_path / "bench.json").write_text(json.dumps(stored))
    before = clipmill("bench", "--out", tmp_path)
    (tmp_path / "leaderboard.md").touch()
    after, other = (
        clipmill("bench", "--out", tmp_path),
        clipmill("bench", "--out", tmp_path, "--seeds", 2),
    )
    assert {said.code for said in (before, after, other)} == {2}
    assert f"arm 'long', run {tmp_path}/gone\n  do:    bring it back, or name another" in after.err
    last = f"the last leaderboard is {tmp_path}/leaderboard.md"
    assert [last in said.err for said in (before, after, other)] == [False, True, False]


def test_an_estimate_is_json_where_that_is_asked_for(place, tmp_path, clipmill, monkeypatch):
    cost = Estimate(trainings=3, training_s=50, evaluation_s=10, workers=2, is_measured=True)
    name = "clipmill.pipeline.bench.estimate.estimated"
    monkeypatch.setattr(name, lambda bench, out, workers, usd: replace(cost, usd_per_hour=usd))
    given = (f"long={place}/run:long", "--tasks", f"{place}/tasks", "--out", tmp_path / "b")
    sets = (word for one in SETS for word in ("--set", one))
    said = clipmill("bench", *given, *sets, "--estimate", "--json", "--usd-per-hour", "30")
    assert said.code == 0
    assert said.json == {**asdict(replace(cost, usd_per_hour=30)), "seconds": 120, "usd": 1.0}
    assert "3 trainings, about 50 s and 10 s to evaluate each" in said.err


def test_the_next_commands_can_be_pasted_from_a_folder_with_a_space(tmp_path):
    out = f"{tmp_path}/my bench"
    here, on_cluster = next_commands(out, Storage(out)).splitlines()
    assert shlex.split(here) == ["clipmill", "bench", "--out", out]
    assert shlex.split(on_cluster)[2] == f"{out}/bench.yaml"
    assert shlex.split(on_cluster)[-2:] == ["--out", out]


def test_a_damaged_list_of_arms_is_not_taken_for_a_new_bench(place, tmp_path, clipmill):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "bench.json").write_text('{"arms": {"long"')
    given = (f"long={place}/run:long", "--tasks", f"{place}/tasks")
    said = clipmill("bench", *given, "--out", tmp_path / "b")
    assert said.code == 2
    assert f"{tmp_path}/b/bench.json" in said.err
    assert "name every arm again" in said.err
    assert (tmp_path / "b" / "bench.json").read_text() == '{"arms": {"long"'
