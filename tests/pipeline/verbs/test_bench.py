"""`clipmill bench`: from arms to a leaderboard; more arms, more seeds, what is not made again."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw

from pipeline.cli import main
from pipeline.pools.evaluation import EvaluationSet, write_set
from tests.pipeline.bench.conftest import run_of

SETS = ("batch_size=4", "samples_seen=12", "warmup_steps=1", "precision=float32")


def picture(number: int, folder: Path) -> bytes:
    image = Image.new("RGB", (24, 24), "white")
    ImageDraw.Draw(image).ellipse((2, 2, 8 + number, 20), fill=(19 * number % 256, 90, 9 * number))
    image.save(folder / "one.png")
    return (folder / "one.png").read_bytes()


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A finished run, and a folder of tasks: 14 classes, and captions of which one is a row's."""
    folder = tmp_path_factory.mktemp("benched")
    run_of(folder)
    images = {f"{n:02}": picture(n, folder) for n in range(14)}
    names = [f"disc {n}" for n in range(14)]
    classes = {key: number for number, key in enumerate(images)}
    write_set(EvaluationSet("discs", images, classes, names), folder / "tasks")
    captions = {key: [f"number {int(key)}"] for key in images}
    write_set(EvaluationSet("words", images, captions=captions), folder / "tasks")
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
    assert long["words"]["leaks"] > 0 != None  # captions that are rows', word for word
    assert all(row["verdict_raw"] in ("none", "better", "worse", "unclaimed", None) for row in rows)


def test_the_page_needs_nothing_beside_it(out):
    page = (out / "leaderboard.html").read_text()
    assert "default-src 'none'" in page
    assert "<script" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert page.count("<svg") >= 1
    markdown = (out / "leaderboard.md").read_text()
    assert "| arm | rows | epochs | mean of fine tasks |" in markdown
    assert "no difference to raw" in markdown or "beats" in markdown


def test_the_same_command_again_trains_nothing(place, out, capsys):
    before, page = models(out), (out / "leaderboard.html").read_bytes()
    capsys.readouterr()
    assert bench(place, "--out", out) == 0
    said = capsys.readouterr().out
    assert models(out) == before
    assert (out / "leaderboard.html").read_bytes() == page
    assert "nothing is left to train" in said
    assert "smallest difference it could have seen" in said


def test_an_arm_more_and_a_seed_more_reuse_the_rest(place, out, capsys):
    before = models(out)
    assert bench(place, "--out", out, "--add", f"again={place}/run:long", "--estimate") == 0
    assert "2 trainings" in capsys.readouterr().out
    assert bench(place, "--out", out, "--arm", "fast=long,learning_rate=4e-3", "--json") == 0
    ranked = json.loads(capsys.readouterr().out)
    assert {line["arm"] for line in ranked["lines"]} > {"raw", "long", "again", "fast"}
    assert {path: models(out)[path] for path in before} == before
    fast = next(line for line in ranked["lines"] if line["arm"] == "fast")
    assert fast["settings"] == {"learning_rate": 0.004}
    values = {line["arm"]: line["result"]["value"] for line in ranked["lines"]}
    assert values["again"] == values["long"]  # equal rows, equal seeds: equal models


def test_one_seed_claims_nothing(place, capsys):
    arguments = (f"long={place}/run:long", "--tasks", place / "tasks", "--seeds", "1")
    assert bench(place, *arguments, "--out", place / "one") == 0
    said = capsys.readouterr().out
    assert "one seed: no interval is claimed, against raw: " in said
    table = said.partition("epochs")[2].partition("no interval")[0]
    assert "long" in table
    assert "one seed, so nothing tells luck from worth" in said


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (("--add", "long={}/run:long"), "no bench there to add to"),
        (("long={}/run:lnog", "--tasks", "{}/tasks"), "did you mean 'long'?"),
        (("long={}/run:nothing", "--tasks", "{}/tasks"), "0 rows with a picture"),
        (("long={}/run:long", "--tasks", "{}/pool"), "--tasks"),
        (("long={}/run:long", "--tasks", "{}/tasks", "--seeds", "0"), "--seeds 0"),
    ],
)
def test_what_cannot_be_is_refused_with_2(place, tmp_path, clipmill, arguments, found):
    sets = (word for one in SETS for word in ("--set", one))
    given = (one.format(place) for one in arguments)
    said = clipmill("bench", *given, "--out", tmp_path / "b", *sets)
    assert said.code == 2
    assert found in said.err
