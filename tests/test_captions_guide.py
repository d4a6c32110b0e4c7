"""docs/captions.md is true: its recipes are planned, its files read, its first run is done."""

import re
from pathlib import Path

import pytest

from pipeline.planning.plan import make_plan
from pipeline.planning.recipe import load_recipe
from stages.caption import _banks, _prompts
from stages.caption.rewrite import asked
from tests.test_docs import Follower, blocks

PAGE = (Path(__file__).parents[1] / "docs" / "captions.md").read_text(encoding="utf-8")
FILES = {it.file: it.text for it in blocks(PAGE) if re.search(r"\.yaml$", it.file or "")}
RECIPES = [name for name, text in FILES.items() if "\nstages:\n" in text]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_of_the_guide_is_planned(name, tmp_path):
    path = tmp_path / name
    path.write_text(FILES[name], encoding="utf-8")
    assert make_plan(load_recipe(str(path))).stages


def test_the_guides_own_bank_and_prompt_are_read(tmp_path):
    for name in ("mine-bank.yaml", "mine-prompt.yaml"):
        (tmp_path / name).write_text(FILES[name], encoding="utf-8")
    assert len(_banks.load(str(tmp_path / "mine-bank.yaml"), 3).pairs) == 3
    prompt = _prompts.load(str(tmp_path / "mine-prompt.yaml"), "prompts", may=("text",))
    assert prompt.places == {"text"}


def test_the_prompt_that_the_guide_shows_is_one_that_is_asked():
    (shown,) = (it.text for it in blocks(PAGE) if it.language == "text" and "=>" in it.text)
    bank = _banks.load("human", 3)
    pairs = [pair for line in shown.split("\n\n") for pair in bank.pairs if pair[0] in line]
    caption = shown.splitlines()[-1].removesuffix(" =>")
    assert len(pairs) == 3
    assert asked(bank.instruction, pairs, caption, "completion").text == shown.rstrip("\n")


@pytest.mark.chaos  # some processes
def test_the_first_run_is_done_and_its_probe_says_what_the_guide_shows(tmp_path):
    follower = Follower(tmp_path)
    for heading in ("## A first run", "### What it will cost"):
        follower.follow(PAGE.partition(heading)[2].partition("\n## ")[0], "captions.md")
    assert (tmp_path / "run").is_dir()
