"""The variants of a run: what each keeps is what the funnel says, from records alone."""

from pathlib import Path

import pytest

from clipmill.metadata.storage import Storage
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.explore.against import Variants
from clipmill.pipeline.explore.columns import Columns
from clipmill.pipeline.ledger.answer import as_json
from clipmill.pipeline.ledger.rows.table import table
from clipmill.pipeline.ledger.selection.diff import diff
from clipmill.pipeline.ledger.selection.funnel import funnel
from clipmill.pipeline.ledger.selection.sides import side_of
from clipmill.pipeline.ledger.selection.variants import kept_by_ends, tried
from clipmill.pipeline.own_code import VARIABLE
from clipmill.pipeline.run_folder.state import RunState, latest
from clipmill.pipeline.run_folder.variants import run_again, variants
from clipmill.pipeline.verbs.diff import variants_text as text
from tests import numbered
from tests.artefacts import linked
from tests.engine_stages.harness import STAGES, write_pool
from tests.pipeline.ledger.test_funnel import opened
from tests.pipeline.run_folder.test_variants import write

pytestmark = pytest.mark.usefixtures("own_stages")
WIDER = numbered.STAGES.replace("c > 3", "c > 1")


@pytest.fixture(scope="module")
def folder(own_stages, numbered_run, tmp_path_factory):
    """A run folder that has seen two recipes, the first of them twice."""
    folder = linked(numbered_run, tmp_path_factory.mktemp("varied") / "folder")
    for stages in (WIDER, numbered.STAGES):
        numbered.run(folder, stages, numbered_run)
    return folder


@pytest.fixture(scope="module")
def other(own_stages, numbered_run, tmp_path_factory):
    """A run folder whose second recipe keeps by another rule."""
    folder = linked(numbered_run, tmp_path_factory.mktemp("other") / "folder")
    numbered.run(folder, numbered.STAGES.replace("e <> 9", "e <> 13"), numbered_run)
    return folder


def as_funnel(state: RunState) -> list[tuple[str, int, int]]:
    return [(end.stage, end.rows, end.kept) for end in funnel(state).ends]


def test_each_variant_keeps_what_its_funnel_says(folder):
    one, two = tried(str(folder / "run")).variants
    for found in (one, two):
        state = latest(str(folder / "run"), found.number)
        assert [(end.stage, end.rows, end.kept) for end in found.ends] == as_funnel(state)
        assert not found.left
    assert (one.ends[0].kept, two.ends[0].kept) == (4, 6)
    assert (one.is_last, two.is_last) == (True, False)
    (change,) = two.changes.settings
    assert (change.key, change.before, change.after) == ("first.where", "c > 3", "c > 1")


def test_rows_that_a_later_stage_failed_are_not_kept(folder):
    state = latest(str(folder / "run"))
    del state.stages["last"], state.stages["uids"]
    assert [(end.stage, end.kept) for end in kept_by_ends(state)] == [("first", 7)]


def test_counts_come_from_records_and_no_data_file_is_opened(other, monkeypatch):
    names = opened(monkeypatch)
    assert [one.ends[0].kept for one in tried(str(other / "run")).variants] == [4, 4]
    assert not names


def test_what_is_not_done_is_said_and_the_page_has_it_all(other, tmp_path):
    linked(other / "run", tmp_path / "run")
    late = latest(str(tmp_path / "run")).stages["late"]
    late.folder.delete(late.scan.records[1][0].name)
    page = text(tried(str(tmp_path / "run"))).splitlines()
    changed = variants(Storage(str(tmp_path / "run")))[0][1]
    assert page[0] == f"{tmp_path / 'run'}: 2 variants; * ran last"
    assert page[6].startswith("*  2  numbered  20")
    assert page[6].endswith("UTC  11 of 20 rows kept by 'first'; 4 of 7 stages done")
    assert page[7:] == [
        "        last.where: e <> 9 AND b < 18 -> e <> 13 AND b < 18",
        "        not done: late: 2 of 3 shards; last, uids: to be made again",
        f"        do:       {run_again(Storage(str(tmp_path / 'run')), changed)}",
    ]


@pytest.mark.slow("two more runs")
def test_an_older_variant_is_seen_as_it_stood_where_a_wider_mask_added_rows(numbered_copy):
    made = numbered_copy
    counted = as_json(funnel(made))
    columns = ["a", "e", "late.reason"]
    rows = [table(made, stage, columns).collect() for stage in ("pool", "late", "last")]
    uri = made.run.path
    for wider in ("c > 1", "c > 0"):
        numbered.run(Path(uri).parent, numbered.STAGES.replace("c > 3", wider))
        assert not RunState(made.plan, made.run).stages["last"].complete, "a run makes it again"
    for number, kept in ((1, 4), (2, 6), (3, 7)):
        seen = latest(uri, number)
        assert all(stage.complete for stage in seen.stages.values())
        assert table(seen, "last", ["a"]).collect().height == funnel(seen).ends[0].kept == kept
    seen = latest(uri, 1)
    assert as_json(funnel(seen)) == counted
    again = [table(seen, stage, columns).collect() for stage in ("pool", "late", "last")]
    assert all(one.equals(other) for one, other in zip(again, rows, strict=True))
    assert [one.left for one in tried(uri).variants] == [{}, {}, {}]
    assert diff(side_of("1", uri), side_of("3", uri)).gained == 3
    newest = latest(uri)
    assert Variants(uri, None).kept(1, Columns(newest, "pool"), "last")[1].sum() == 4


def test_a_recipe_that_makes_no_plan_today_says_why(tmp_path):
    numbered.write_pool(tmp_path)
    run = Storage(str(tmp_path / "run"))
    write(run, "20260101T100000", uses="mine.gone")
    numbered.run(tmp_path)
    one, two = tried(run.uri).variants
    assert "mine.gone" in one.refused
    assert (one.ends, two.ends[0].kept) == ((), 4)
    assert "makes no plan today: " in text(tried(run.uri))
    with pytest.raises(RecipeError, match=r"mine\.gone"):
        latest(run.uri, 1)


def test_the_verbs_look_through_a_variant(folder, clipmill, tmp_path):
    run = ("--run", folder / "run")
    assert "         4  20.0%  kept by 'last'" in clipmill("funnel", *run).out
    for number, kept in ((1, 4), (2, 6)):
        said = clipmill("funnel", *run, "--variant", number, "--json")
        assert said.json["ends"][0]["kept"] == kept
        said = clipmill("why", numbered.uid(2), *run, "--variant", number)
        assert ("dropped by 'first'" in said.out) == (number == 1)
        out = tmp_path / f"uids-{number}"
        made = ("--to", "uid_list", "--out", out, "--workers", 0, "--json")
        assert clipmill("export", *run, "--variant", number, *made).json["exported"] == kept
    said = clipmill("report", *run, "--variant", 2)
    assert said.out == f"{folder / 'run-variant-2.html'}\n"
    page = (folder / "run-variant-2.html").read_text()
    assert "Variant 2 of this run folder." in page
    assert "--variant 2</code>" in page
    assert "c &gt; 1" in page
    said = clipmill("funnel", *run, "--variant", 3)
    assert (said.code, "no variant 3: this folder has seen 2" in said.err) == (2, True)


@pytest.mark.parametrize("sides", [(), ("1",)])
def test_one_side_is_nothing_to_compare(sides, folder, clipmill):
    run = ("--run", folder / "run") if sides else ()
    said = clipmill("diff", *sides, *run)
    assert said.code == 2
    assert "nothing to compare with" in said.err
    assert "or --run to list variants" in said.err


def test_the_list_as_json(folder, clipmill):
    said = clipmill("diff", "--run", folder / "run", "--json")
    assert [one["number"] for one in said.json["variants"]] == [1, 2]
    assert said.json["variants"][1]["changes"]["settings"] == [
        {"key": "first.where", "before": "c > 3", "after": "c > 1"}
    ]
    assert clipmill("diff", "--run", folder / "none").code == 2
    assert Storage(str(folder / "run")).has("run.json")


def test_a_retry_says_which_variants_it_makes_stale_and_their_command(
    tmp_path, clipmill, monkeypatch
):
    monkeypatch.setenv(VARIABLE, str(STAGES / "stages"))
    pool, script, out = write_pool(tmp_path / "pool", [20, 11]), tmp_path / "mood.json", "run"
    monkeypatch.chdir(tmp_path)
    script.write_text('{"timeout": [5, 13]}')
    recipe = f"""
stages:
  numbers: {{uses: toy.numbers, path: {pool}, shard_rows: 12}}
  copy: {{uses: toy.moody, from: numbers, script: {script}}}
  after: {{uses: toy.power, from: copy, read: {{number: copy.copy}}}}
  few: {{uses: select.where, from: after, where: power < 200}}
"""
    (tmp_path / "it.yaml").write_text(recipe)
    run = ("run", "it.yaml", "--out", out, "--workers", 0)
    other = ("--set", "few.where=power < 100")
    assert clipmill(*run).code == clipmill(*run, *other).code == 0
    script.write_text("{}")
    again = f"clipmill run it.yaml --set 'few.where=power < 100' --out {tmp_path / out}"
    retried = clipmill(*run, "--retry", "timeout")
    assert "note: --retry makes variant 2 stale, which shares rows that" in retried.err
    assert f"it is made again by {again}\n" in retried.err
    assert "  variant 2 is stale: it shares rows that were tried again. Run\n" in retried.out
    assert f"\n  {again}\n" in retried.out
    assert f"        do:       {again}" in clipmill("diff", "--run", out).out.splitlines()
    refused = clipmill("diff", 1, 2, "--run", out)
    assert (refused.code, f"  do:    {again}; or name" in refused.err) == (2, True)
    assert "stale" not in clipmill(*run, "--retry", "timeout").err, "nothing is left to retry"
    assert clipmill(*run, *other).code == clipmill("diff", 1, 2, "--run", out).code == 0
    (tmp_path / "it.yaml").write_text(recipe.replace("< 200", "< 201"))
    known, _ = variants(Storage(out))
    assert run_again(Storage(out), known[0]) == (
        f"clipmill run it.yaml --out {tmp_path / out}, once it.yaml is as it was:"
        f" recipes/{known[0].file} has its stages"
    )


@pytest.mark.parametrize("more", [(), ("--free", "1")])
def test_a_page_is_of_two_sides_alone(more, folder, clipmill, tmp_path):
    said = clipmill("diff", "--run", folder / "run", *more, "--html", tmp_path / "page.html")
    assert (said.code, "--html without two to compare" in said.err) == (2, True)
