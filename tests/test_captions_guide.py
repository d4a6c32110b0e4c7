"""Recipes of docs/captions.md are planned as they stand there."""

import re
from pathlib import Path

import pytest

from pipeline.planning.plan import make_plan
from pipeline.planning.recipe import load_recipe
from tests.test_docs import blocks

PAGE = (Path(__file__).parents[1] / "docs" / "captions.md").read_text(encoding="utf-8")
RECIPES = {it.file: it.text for it in blocks(PAGE) if re.search(r"\.yaml$", it.file or "")}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_of_the_guide_is_planned(name, tmp_path):
    path = tmp_path / name
    path.write_text(RECIPES[name], encoding="utf-8")
    assert make_plan(load_recipe(str(path))).stages
