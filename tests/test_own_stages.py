"""Promise 7: stages in a user's own folder are planned, swept, explained and shown as ours are.

tests/own_stages/stages/mine/ has an annotator, a dedup stage with a nearness of its own and a
select stage. Nothing outside their files knows them.
"""

import json
import shutil
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from clipmill.metadata.schema import Column
from clipmill.pipeline.cli import main
from clipmill.pipeline.planning.settings import stage_class
from clipmill.pipeline.stage import Threshold, Verdicts
from tests.parsed import Page

pytestmark = pytest.mark.usefixtures("own_stages")
ROWS = 60
ANIMALS = ("zebra", "otter", "heron", "camel")
RECIPE = """
seed: 0
stages:
  pool:   {uses: ingest.url_list, path: pool.jsonl, shard_rows: 25}
  voices: {uses: mine.vowels, from: pool}
  alike:  {uses: mine.same_start, from: pool, letters: 6}
  first:
    uses: select.where
    from: [voices, alike]
    where: vowel_share >= 0.2 AND (shared_letters IS NULL OR shared_letters < 12)
  best:   {uses: mine.quota, from: [first, pool], rows: 3}
"""


def caption(row: int) -> str:
    if row % 10 == 0:
        return f"brr pssst {row:02d}"  # no vowels
    return f"{ANIMALS[row % 4]} {'beside the river' if row % 3 else 'on a hill'} {row:02d}"


@pytest.fixture(scope="module")
def finished(own_stages, tmp_path_factory):
    """A folder with a recipe, its pool, and a finished run."""
    folder = tmp_path_factory.mktemp("finished")
    rows = [{"url": f"https://x.test/{row}", "text": caption(row)} for row in range(ROWS)]
    (folder / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "mine.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["run", "mine.yaml", "--out", "run", "--workers", "0"]) == 0
    return folder


@pytest.fixture
def run(finished, tmp_path, monkeypatch, clipmill):
    """Runs one command beside a copy of it."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return clipmill


def test_a_threshold_outside_of_what_an_own_dedup_stage_stores_is_refused_at_plan(run):
    said = run("plan", "mine.yaml", "--set", "first.where=shared_letters < 4")
    assert said.code == 2
    assert "'alike' stores values from 6 to 1000" in said.err


def test_an_own_select_is_swept_as_a_run_with_that_number_selects(run):
    (one, *_, seven) = run(
        *("sweep", "--run", "run", "--stage", "best", "--vary", "rows=1:7:3", "--json")
    ).json["points"]
    for point, rows in ((one, 1), (seven, 7)):
        other = ("--set", f"best.rows={rows}")
        code = run("run", "mine.yaml", "--out", "run", "--workers", "0", *other).code
        (end,) = run("funnel", "--run", "run", "--json").json["ends"]
        assert code == (0 if end["kept"] else 1)
        assert point["kept"] == end["kept"]
    assert one["kept"] < seven["kept"]
    refused = run("sweep", "--run", "run", "--stage", "best", "--vary", "row=1:7:3")
    assert refused.code == 2
    assert "vary one of: rows" in refused.err


def test_why_explains_a_row_in_the_words_of_own_stages(run):
    (end,) = run("funnel", "--run", "run", "--json").json["ends"]
    example = {(cause["stage"], cause["reason"]): cause["example"] for cause in end["causes"]}
    sentences = {}
    for cause, uid in example.items():
        *_, last = run("why", uid, "--run", "run", "--json").json["ends"]
        sentences[cause] = last["sentence"]
    own = sentences["best", "over_quota"]
    assert "it is number " in own
    assert own.endswith("of its length, and 3 stay")
    copy = next(text for (_, reason), text in sentences.items() if "shared_letters" in reason)
    assert "near it, and better, is " in copy
    assert any(f": '{animal} " in copy for animal in ANIMALS)
    silent = next(text for (_, reason), text in sentences.items() if "vowel_share" in reason)
    assert "vowel_share is 0.0" in silent


def test_the_report_shows_own_scores_cuts_and_groups_of_copies(run, tmp_path):
    assert run("report", "--run", "run", "--out", "report.html").code == 0
    page = Page((tmp_path / "report.html").read_text())
    plots = [plot["aria-label"] for plot in page.all("svg")]
    for score, cut in (
        ("vowel_share", "vowel_share >= 0.2"),
        ("shared_letters", "shared_letters < 12"),
        ("quota_rank", "rows = 3"),
    ):
        assert any(plot.startswith(f"Histogram of {score}: ") and cut in plot for plot in plots)
    starts = Counter(caption(row)[:6] for row in range(ROWS))
    copies = sum(starts.values()) - len(starts)
    assert f"mine.same_start {copies}" in page.text
    assert "at shared_letters >= 12" in page.text


def broken(*_: object) -> None:
    raise KeyError("oops")


def too_few(self, threshold, values, rows, made):
    yield Verdicts(1.0, "rows = 1", np.ones(len(rows), bool))


def too_short(self, threshold, values, rows, made):
    yield from (Verdicts(float(value), "", np.ones(1, bool)) for value in values)


def elsewhere(self):
    return [Threshold(name="rows", column="nowhere", sign="<", value=3, text="rows = 3")]


SWEEP = ("sweep", "--run", "run", "--stage", "best", "--vary", "rows=1:4:1")


@pytest.mark.parametrize(
    ("method", "mistake", "command", "found"),
    [
        ("thresholds", broken, SWEEP, "`thresholds` of mine.quota failed: KeyError: 'oops'"),
        ("thresholds", broken, ("report", "--run", "run"), "`thresholds` of mine.quota failed"),
        ("thresholds", broken, ("plan", "mine.yaml"), "`thresholds` of mine.quota failed"),
        ("thresholds", elsewhere, ("plan", "mine.yaml"), "'nowhere' is neither read nor written"),
        ("verdicts", broken, SWEEP, "`verdicts` of mine.quota failed: KeyError: 'oops'"),
        ("verdicts", too_few, SWEEP, "1 answers for 4 values"),
        ("verdicts", too_short, SWEEP, "1 verdicts on 60 rows"),
    ],
)
def test_a_mistake_in_an_own_select_is_named_with_its_line(
    run, monkeypatch, method, mistake, command, found
):
    monkeypatch.setattr(stage_class("mine.quota", ""), method, mistake)
    said = run(*command)
    assert said.code == 2
    assert found in said.err
    assert "do:    mend the stage's file" in said.err


def test_a_mistake_in_the_words_of_an_own_select_is_named(run, monkeypatch):
    (end,) = run("funnel", "--run", "run", "--json").json["ends"]
    (uid,) = [it["example"] for it in end["causes"] if it["reason"] == "over_quota"]
    monkeypatch.setattr(stage_class("mine.quota", ""), "explain", broken)
    said = run("why", uid, "--run", "run")
    assert said.code == 2
    assert "`explain` of mine.quota failed: KeyError: 'oops'" in said.err


def test_a_column_that_names_what_nobody_knows_is_refused():
    with pytest.raises(ValueError, match=r"'a': 'keepers' is none of keeper, neighbour"):
        Column("a", pa.binary(16), "uid", "", names="keepers")
    with pytest.raises(ValueError, match=r"'a': 'lowest' is none of high, low"):
        Column("a", pa.float32(), "cosine", "", better="lowest")


def test_an_artifact_of_a_kind_that_nobody_reads_is_refused(run, monkeypatch):
    monkeypatch.setattr(stage_class("mine.quota", ""), "artifacts", (("losses", "loss.parquet"),))
    said = run("plan", "mine.yaml")
    assert said.code == 2
    assert "mine.quota declares loss.parquet to hold 'losses'" in said.err
    assert "do:    declare one of: loss, results" in said.err
