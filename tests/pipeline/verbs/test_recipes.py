"""`clipmill recipes`: what each is for, and the text of one."""

from pathlib import Path

import pytest

from clipmill.pipeline.planning.recipe import RECIPES

NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))


def test_each_says_what_it_does_follows_expects_and_measured(clipmill, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    said = clipmill("recipes").out
    paragraphs = said.split("\n\n")[:-1]
    assert [paragraph.partition(":")[0] for paragraph in paragraphs] == NAMES
    for paragraph in paragraphs:
        words = [line.split()[0] for line in paragraph.splitlines()[-3:]]
        assert words == ["follows", "expects", "measured"]
    assert max(map(len, said.splitlines())) <= 80
    heads = clipmill("recipes", "--json").json
    assert all(head[""] for head in heads.values())
    assert heads["smoke"]["Expects"] == "under 30 s; 600 rows in"
    assert heads["dfn"]["Run"].endswith("clipmill run dfn --out demo/dfn")


@pytest.mark.parametrize("name", NAMES)
def test_a_name_prints_the_recipe_as_it_is(name, clipmill):
    assert clipmill("recipes", name).out == Path(RECIPES, f"{name}.yaml").read_text()
