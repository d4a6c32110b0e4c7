"""A threshold put elsewhere, written as a recipe: it plans, and differs in that alone."""

import shlex
from decimal import Decimal

import pytest
import yaml

from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.planning.recipe import load_recipe
from clipmill.stages.select import _sql as sql
from clipmill.stages.select.where import Where


def test_the_recipe_differs_in_the_number_alone(drawings):
    found = drawings("recipe", threshold=drawings.threshold("min_side >= 30", 45))
    assert found["setting"] == "subset.where=min_side >= 45 AND aspect_ratio <= 3"
    before = drawings.session.state.plan.recipe.stages
    after = yaml.safe_load(found["text"])["stages"]
    assert after.pop("subset").pop("where") == "min_side >= 45 AND aspect_ratio <= 3"
    assert after == {name: keys for name, keys in before.items() if name != "subset"}
    words = shlex.split(found["command"])
    assert words[words.index("--set") + 1] == found["setting"]
    assert words[-2:] == ["--out", str(drawings.session.state.run)]


def test_a_size_is_a_setting_by_itself(drawings):
    found = drawings("recipe", threshold=drawings.threshold("top.fraction = 0.8", 0.25))
    assert found["setting"] == "subset.top.fraction=0.25"
    assert yaml.safe_load(found["text"])["stages"]["subset"]["top"]["fraction"] == 0.25


def test_a_saved_recipe_stands_beside_the_run_and_overwrites_nothing(drawings):
    wanted = drawings.threshold("aspect_ratio <= 3", 2.5)
    saved = [drawings("save", threshold=wanted) for _ in range(2)]
    files = [one["file"] for one in saved]
    assert shlex.split(saved[0]["command"])[:3] == ["clipmill", "run", files[0]]
    assert [file.rpartition("/")[2] for file in files] == ["run-2.yaml", "run-3.yaml"]
    recipe = load_recipe(files[0])
    assert recipe.stages["subset"]["where"] == "min_side >= 30 AND aspect_ratio <= 2.5"
    assert recipe.seed == drawings.session.state.plan.recipe.seed


def test_what_the_plan_or_the_stage_refuses_is_said(drawings):
    with pytest.raises(RecipeError, match=r"top\.fraction is 2"):
        drawings("query", threshold=drawings.threshold("top.fraction = 0.8", 2))
    wrong = {**drawings.threshold("aspect_ratio <= 3", 2), "text": "aspect_ratio <= 4"}
    with pytest.raises(RecipeError, match="no threshold `aspect_ratio <= 4`"):
        drawings("query", threshold=wrong)


@pytest.mark.parametrize(
    ("where", "name", "after"),
    [
        ("a >= 1", "a", "a >= 7"),
        ("(a >= 1 OR b < 2) AND NOT c IS NULL", "b", "(a >= 1 OR b < 7) AND NOT c IS NULL"),
        ("a BETWEEN 1 AND 3 AND b = 'x''y'", "a", "a BETWEEN 7 AND 3 AND b = 'x''y'"),
        ("-- note\n a > 1.50 -- more\n AND b <= 2", "b", "a > 1.50 AND b <= 7"),
        ("3 < a AND (b OR (c AND a <= 9))", "a", "7 < a AND (b OR (c AND a <= 9))"),
    ],
)
def test_a_condition_keeps_all_but_the_number(where, name, after):
    stage = Where(where=where)
    at = next(threshold for threshold in stage.thresholds() if threshold.name == name)
    key, text = stage.settled(at, Decimal(7))
    assert (key, text) == ("where", after)
    assert [it.text for it in sql.conjuncts(text)] == [it.text for it in sql.conjuncts(after)]
