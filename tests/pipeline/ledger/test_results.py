"""Results by arm: means and paired differences worked out by hand, and what names an arm."""

import argparse
from dataclasses import astuple

import pytest
import yaml

from metadata.stats import Estimate
from metadata.storage import Storage
from pipeline.engine.run import run_plan
from pipeline.errors import RecipeError
from pipeline.executors.local import LocalExecutor
from pipeline.ledger.results import Cell, Results, losses, over_seeds, results
from pipeline.planning.plan import make_plan
from pipeline.planning.recipe import Recipe
from pipeline.progress import Lines
from pipeline.verbs.report import add, text


def cells(found: Results) -> dict[str, Cell]:
    (row,) = found.rows
    assert (row.task, row.metric) == ("flags", "acc1")  # acc5 has no value there
    return {cell.arm: cell for cell in row.cells}


def test_arms_are_the_exports_and_differences_pair_equal_seeds(state):
    found = results(state, [])
    assert (found.arms, found.baselines) == (("raw", "shards"), ("raw",))
    raw, best = cells(found)["raw"], cells(found)["shards"]
    assert (raw.seeds, best.seeds) == (2, 2)
    assert raw.result.value == pytest.approx(0.25)
    assert best.result.value == pytest.approx(0.46)
    assert raw.against == (None,)
    # differences 0.20 and 0.22: mean 0.21, their deviation 0.01 * sqrt(2), over sqrt(2) seeds
    (against,) = best.against
    assert against.value == pytest.approx(0.21)
    assert against.low == pytest.approx(0.21 - 12.706 * 0.01)
    assert against.high == pytest.approx(0.21 + 12.706 * 0.01)


@pytest.mark.parametrize("name", ["shards", "best_models", "best_scores", "subset"])
def test_an_arm_is_named_by_any_stage_that_is_its_own(name, state):
    found = results(state, [name])
    assert found.baselines == ("shards",)
    assert cells(found)["raw"].against[0].value == pytest.approx(-0.21)


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


@pytest.mark.parametrize(
    ("values", "known"),
    [
        ([], None),
        ([0.3], Estimate(0.3)),
        ([1.0, 2.0, 3.0], Estimate(2.0, 2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5)),
    ],
)
def test_the_interval_is_students_and_one_seed_has_none(values, known):
    found = over_seeds(values)
    assert (found and astuple(found)) == (known and pytest.approx(astuple(known)))


def test_losses_are_those_stored(state):
    found = losses(state)
    assert [(curve.stage, curve.seed) for curve in found] == [
        *(("raw_models", "seed 0"), ("raw_models", "seed 1")),
        *(("best_models", "seed 0"), ("best_models", "seed 1")),
    ]
    assert {curve.uses for curve in found} == {"proof.learn"}
    assert (found[0].step[-1], found[0].loss[0]) == (99, 5.0)


def test_the_headline_is_one_metric_a_task_with_every_arm_and_difference(state):
    head, flags, note = text(results(state, [])).splitlines()
    assert head.split() == ["in", "points", "of", "100", "raw", "shards", "shards", "-", "raw"]
    assert flags.split() == ["flags", "acc1", "25.0", "46.0", "+21.0", "(+8.3", "to", "+33.7)"]
    assert note.startswith("seeds an arm: 2; a difference is of pairs")


TWICE = """
pool:  {uses: ingest.image_folder, path: none}
raw:   {uses: export.parquet, from: pool}
short: {uses: proof.learn, from: pool, data: raw, seeds: [0, 1]}
long:  {uses: proof.learn, from: pool, data: raw, seeds: [0, 1]}
short_scores: {uses: proof.grade, from: pool, model: "stage:short", acc1: [0.2, 0.3]}
long_scores:  {uses: proof.grade, from: pool, model: "stage:long", acc1: [0.5, 0.6]}
"""


@pytest.fixture(scope="module")
def trained_twice(state, tmp_path_factory):
    """A run that trains on one export in two ways."""
    stages = yaml.safe_load(TWICE)
    stages["pool"]["path"] = state.plan.recipe.stages["pool"]["path"]
    plan = make_plan(Recipe(name="twice", path="twice.yaml", seed=0, stages=stages))
    folder = Storage(str(tmp_path_factory.mktemp("twice")))
    return run_plan(plan, folder, LocalExecutor(0), Lines()).state


def test_two_trainings_of_one_export_are_two_arms_and_pair_by_seed(trained_twice):
    found = results(trained_twice, [])
    assert found.arms == ("raw/short", "raw/long")
    short, long = cells(found).values()
    assert short.result.value == pytest.approx(0.25)
    assert long.result.value == pytest.approx(0.55)
    assert astuple(long.against[0]) == pytest.approx((0.3, 0.3, 0.3))


def test_arms_on_one_export_bear_the_names_of_the_selects_that_chose_their_rows(state, tmp_path):
    stages = yaml.safe_load(TWICE)
    stages["pool"]["path"] = state.plan.recipe.stages["pool"]["path"]
    for select, training in (("few", "short"), ("all", "long")):
        where = f"text LIKE '%{'a' if select == 'few' else ''}%'"
        stages[select] = {"uses": "select.where", "from": "pool", "where": where}
        stages[training]["rows"] = select
    plan = make_plan(Recipe(name="masks", path="masks.yaml", seed=0, stages=stages))
    ran = run_plan(plan, Storage(str(tmp_path)), LocalExecutor(0), Lines()).state
    assert results(ran, []).arms == ("few", "all")
    assert results(ran, ["long"]).baselines == ("all",)


@pytest.mark.parametrize("name", ["raw/long", "long", "long_scores"])
def test_a_training_names_its_arm(name, trained_twice):
    assert results(trained_twice, [name]).baselines == ("raw/long",)


@pytest.mark.parametrize("name", ["raw", "pool"])
def test_a_stage_on_the_way_of_two_arms_is_no_baseline(name, trained_twice):
    with pytest.raises(RecipeError, match=rf"2 arms come from '{name}'\n.*\n.*raw/short, raw/long"):
        results(trained_twice, [name])
