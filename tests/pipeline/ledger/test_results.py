"""Results by arm: means and differences worked out by hand, what is an arm and what names it."""

import argparse
import json
from dataclasses import astuple, replace

import pytest
import yaml

from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.run import run_plan
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.executors.local import LocalExecutor
from clipmill.pipeline.ledger.answer import as_json
from clipmill.pipeline.ledger.proof.results import Cell, Results, losses, results
from clipmill.pipeline.ledger.summary import summary
from clipmill.pipeline.planning.plan import make_plan
from clipmill.pipeline.planning.recipe import Recipe
from clipmill.pipeline.progress import Lines
from clipmill.pipeline.verbs._summary_page import text as summary_text
from clipmill.pipeline.verbs.report import add, text
from clipmill.pipeline.verbs.run import scored

pytestmark = pytest.mark.usefixtures("own_stages")


def cells(found: Results) -> dict[str, Cell]:
    (row,) = found.rows
    assert (row.task, row.metric) == ("flags", "acc1")  # acc5 has no value there
    return {cell.arm: cell for cell in row.cells}


def test_arms_are_the_exports_with_the_mean_of_their_seeds_and_welchs_interval(state):
    found = results(state, [])
    assert (found.arms, found.baselines) == (("raw", "shards"), ("raw",))
    raw, best = cells(found)["raw"], cells(found)["shards"]
    assert (raw.seeds, best.seeds) == (2, 2)
    assert [seed for seed, _ in raw.by_seed] == [0, 1]
    assert sum(value for _, value in raw.by_seed) / 2 == pytest.approx(raw.result.value)
    assert raw.result.value == pytest.approx(0.21)
    assert best.result.value == pytest.approx(0.43)
    assert raw.against == (None,)
    # s² is 0.0002 of each arm, over two seeds each; t is 4.303 with two degrees of freedom
    apart = best.against[0].apart
    half = 4.3027 * 0.0002**0.5
    assert astuple(apart) == pytest.approx((0.22, 0.22 - half, 0.22 + half), abs=1e-5)
    assert best.against[0].paired is None  # 0.22 of both pairs: no noise to be sure by


@pytest.mark.parametrize("name", ["shards", "best_models", "best_scores", "subset"])
def test_an_arm_is_named_by_any_stage_that_is_its_own(name, state):
    found = results(state, [name])
    assert found.baselines == ("shards",)
    assert cells(found)["raw"].against[0].apart.value == pytest.approx(-0.22)


def test_several_baselines_give_a_difference_each(state):
    found = results(state, ["raw", "shards"])
    assert cells(found)["raw"].against[0] is None
    assert cells(found)["shards"].against[1] is None


@pytest.mark.parametrize("given", [["raw", "rules"], ["raw", "--baseline", "rules"]])
def test_baselines_are_given_together_or_one_by_one(given):
    parser = argparse.ArgumentParser()
    add(parser)
    assert parser.parse_args(["--run", "run", "--baseline", *given]).baseline == ["raw", "rules"]


def test_an_unknown_baseline_is_refused(state):
    with pytest.raises(RecipeError, match=r"no evaluated model comes from 'rwa'\n.*\n.*'raw'"):
        results(state, ["rwa"])


def test_losses_are_those_stored(state):
    found = losses(state)
    assert [(curve.stage, curve.seed) for curve in found] == [
        *(("raw_models", "seed 0"), ("raw_models", "seed 1")),
        *(("best_models", "seed 0"), ("best_models", "seed 1")),
    ]
    assert {curve.uses for curve in found} == {"proof.learn"}
    assert (found[0].step[-1], found[0].loss[0]) == (99, 5.0)


def test_the_text_has_the_best_arm_first_with_its_difference_and_verdict(state):
    tasks, metrics, best, raw, note, visible = text(results(state, [])).splitlines()
    assert tasks.split() == ["in", "points", "of", "100", "flags", "against", "raw"]
    assert metrics.split() == ["acc1"]
    assert best.split() == ["shards", "43.0", "±", "12.7", "+22.0", "±", "6.1,", "beats", "raw"]
    assert raw.split() == ["raw", "21.0", "±", "12.7"]
    assert note == "seeds an arm: 2; ± is half of a 95 % interval, of seeds and items"
    assert visible == "smallest difference that would have been seen: 7.6"


def test_a_runs_end_has_the_arms_in_the_words_of_the_report_without_the_tasks(state, monkeypatch):
    whole = text(results(state, []))
    assert scored(state) == whole  # of one task, which is its headline
    found = results(state, [])
    more = replace(found, tasks=(*found.tasks, replace(found.tasks[0], task="food")))
    assert "food" in text(more)
    assert text(more, each_task=False) == whole
    lines = summary_text(summary(state), "clipmill run", True, scored=whole).splitlines()
    first = lines.index(whole.splitlines()[0])
    assert lines[first - 1] == lines[first + len(whole.splitlines())] == ""
    assert "written" in lines[first:]
    monkeypatch.setattr("clipmill.pipeline.verbs.run.MOST_PICTURES", -1)
    assert scored(state) == ""


def ran(state, folder, text: str, **stages):
    """The state of a run of these stages over the drawn pool."""
    recipe = yaml.safe_load(text) | stages
    recipe["pool"]["path"] = state.plan.recipe.stages["pool"]["path"]
    plan = make_plan(Recipe(name="arms", path="arms.yaml", seed=0, stages=recipe))
    outcome = run_plan(plan, Storage(str(folder)), LocalExecutor(0), Lines())
    assert outcome.complete, outcome.stopped
    return outcome.state


ARMS = """
pool:  {uses: ingest.image_folder, path: none}
raw:   {uses: export.parquet, from: pool}
short: {uses: proof.learn, from: pool, data: raw, rate: 0.001, seeds: [0, 1]}
more:  {uses: proof.learn, from: pool, data: raw, rate: 0.001, seeds: [2, 3]}
long:  {uses: proof.learn, from: pool, data: raw, rate: 0.002, seeds: [0, 1]}
short_scores:
  uses: proof.grade
  from: pool
  pictures: 50
  model: stage:short
  acc1: [0.2, 0.22]
  chance: 0.2
more_scores:
  {uses: proof.grade, from: pool, pictures: 50, model: "stage:more", acc1: [0.24, 0.26], first: 2}
long_scores: {uses: proof.grade, from: pool, pictures: 50, model: "stage:long", acc1: [0.5, 0.6]}
again:       {uses: proof.grade, from: pool, pictures: 50, model: "stage:long", acc1: [0.5, 0.6]}
outside:
  uses: proof.grade
  from: pool
  pictures: 50
  model: checkpoint:elsewhere
  acc1: [0.3, 0.4, 0.5]
  seed: 0
"""


@pytest.fixture(scope="module")
def several(state, tmp_path_factory):
    """A run that trains on one export in two ways, one of them in two stages; and a model of
    elsewhere."""
    return ran(state, tmp_path_factory.mktemp("arms"), ARMS)


def test_an_arm_is_rows_and_settings_whose_seeds_are_joined(several):
    found = results(several, [])
    assert found.arms == ("raw (rate 0.001)", "raw (rate 0.002)", "outside")
    by_arm = {cell.arm: cell for cell in found.tasks[0].cells}
    assert [cell.seeds for cell in by_arm.values()] == [4, 2, 3]
    assert [round(cell.result.value, 3) for cell in by_arm.values()] == [0.23, 0.55, 0.4]


def test_items_that_all_seeds_miss_are_part_of_the_noise(several):
    found = results(several, [])
    long = found.headline.cells[1].against[0]
    assert found.fine == {"flags": "acc1"}
    assert (long.verdict, long.seeds) == ("better", (2, 4))
    # 16 of 50 pictures are hit by all of the one arm and none of the other
    assert long.items_error == pytest.approx((0.32 * 0.68 / 50) ** 0.5, rel=0.15)
    assert results(several, []) == found
    stored = json.dumps(as_json(found), allow_nan=False)
    assert f'"items_error": {long.items_error}' in stored


def test_an_arm_within_its_noise_of_guessing_is_marked(several):
    found = results(several, [])
    assert found.tasks[0].chance == 0.2
    assert [cell.near_chance for cell in found.tasks[0].cells] == [True, False, False]
    assert (found.epochs["raw (rate 0.001)"], found.overfit) == (10.0, [])


@pytest.mark.parametrize("name", ["raw (rate 0.002)", "long", "long_scores", "again"])
def test_a_training_names_its_arm(name, several):
    assert results(several, [name]).baselines == ("raw (rate 0.002)",)


@pytest.mark.parametrize("name", ["raw", "pool"])
def test_a_stage_on_the_way_of_two_arms_is_no_baseline(name, several):
    named = r"raw \(rate 0.001\), raw \(rate 0.002\)"
    with pytest.raises(RecipeError, match=rf"2 arms come from '{name}'\n.*\n.*{named}"):
        results(several, [name])


def test_arms_on_one_export_bear_the_names_of_the_selects_that_chose_their_rows(state, tmp_path):
    selects = {
        select: {"uses": "select.where", "from": "pool", "where": f"text LIKE '%{letter}%'"}
        for select, letter in (("few", "a"), ("all", ""))
    }
    trained = {
        name: yaml.safe_load(ARMS)[name] | {"rows": select}
        for name, select in (("short", "few"), ("long", "all"))
    }
    kept = {key: yaml.safe_load(ARMS)[key] for key in ("pool", "raw")}
    scores = {key: yaml.safe_load(ARMS)[key] for key in ("short_scores", "long_scores")}
    found = ran(state, tmp_path, yaml.safe_dump(kept | selects | trained | scores, sort_keys=False))
    assert results(found, []).arms == ("few", "all")
    assert results(found, ["long"]).baselines == ("all",)


def test_exports_of_other_runs_are_arms_of_their_own(state, several, tmp_path):
    kept = yaml.safe_load(ARMS)
    elsewhere = [run.stages[name].folder for run, name in ((several, "raw"), (state, "shards"))]
    stages: dict = {"pool": kept["pool"]}
    for name, folder in zip(("short", "long"), elsewhere, strict=True):
        stages[name] = {**kept["short"], "data": f"export:{folder}"}
        stages[f"{name}_scores"] = kept[f"{name}_scores"]
    found = ran(state, tmp_path, yaml.safe_dump(stages, sort_keys=False))
    assert [arm.partition(" (")[0] for arm in results(found, []).arms] == ["short", "long"]
    assert {cell.seeds for cell in results(found, []).tasks[0].cells} == {2}
