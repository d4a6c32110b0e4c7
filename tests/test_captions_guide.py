"""docs/captions.md is true: its recipes are planned, its files read, its first run is done."""

import json
import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest

from clipmill.pipeline.planning.plan import make_plan
from clipmill.pipeline.planning.recipe import load_recipe
from clipmill.stages.caption import rewrite
from clipmill.stages.caption.rewrite import prompt_for
from clipmill.stages.models.generator import question_of
from clipmill.stages.models.prompts import load_prompt
from tests.test_docs import Follower, blocks

PAGE = (Path(__file__).parents[1] / "docs" / "captions.md").read_text(encoding="utf-8")
FILES = {it.file: it.text for it in blocks(PAGE) if re.search(r"\.yaml$", it.file or "")}
RECIPES = [name for name, text in FILES.items() if "\nstages:\n" in text]
COMMANDS = re.findall(r"^clipmill (?:run|plan) [^#\n].*$", PAGE.replace("\\\n", " "), re.MULTILINE)


def test_the_recipes_of_the_guide_are_planned(tmp_path):
    for name in RECIPES:
        path = tmp_path / name
        path.write_text(FILES[name], encoding="utf-8")
        assert make_plan(load_recipe(str(path))).stages, name
    assert RECIPES


def test_the_guides_own_bank_and_prompt_are_read(tmp_path):
    for name in ("mine-bank.yaml", "mine-prompt.yaml"):
        (tmp_path / name).write_text(FILES[name], encoding="utf-8")
    assert len(rewrite.bank_of(str(tmp_path / "mine-bank.yaml"), 3).pairs) == 3
    prompt = load_prompt(str(tmp_path / "mine-prompt.yaml"), "prompts", may=("text",))
    assert prompt.places == {"text"}


def test_the_prompt_that_the_guide_shows_is_one_that_is_asked():
    (shown,) = (it.text for it in blocks(PAGE) if it.language == "text" and "=>" in it.text)
    bank = rewrite.bank_of("human", 3)
    pairs = [pair for line in shown.split("\n\n") for pair in bank.pairs if pair[0] in line]
    caption = shown.splitlines()[-1].removesuffix(" =>")
    assert len(pairs) == 3
    prompt = prompt_for(bank.instruction, pairs, caption)
    assert question_of(prompt, "completion")["prompt"] == shown.rstrip("\n")


def test_the_runs_of_the_guide_are_planned(tmp_path):
    for command in COMMANDS:
        _, _, name, *options = shlex.split(command.partition(" #")[0])
        path = tmp_path / name
        if name in FILES:
            path.write_text(FILES[name], encoding="utf-8")
        sets = [value for option, value in pairwise(options) if option == "--set"]
        recipe = load_recipe(str(path) if name in FILES else name, sets)
        assert make_plan(recipe).stages, command
    assert COMMANDS


def test_headings_that_the_guide_leads_to_are_there():
    headings = re.findall(r"^#+ (.+)$", PAGE, re.MULTILINE)
    there = {re.sub(r"[^\w -]", "", it).lower().replace(" ", "-") for it in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE)) <= there


@pytest.mark.soak(cpu_s=60)  # a real model answers for a minute
def test_the_first_run_is_done(tmp_path):
    section = PAGE.partition("## A first run")[2].partition("\n## ")[0]
    Follower(tmp_path).follow(section, "captions.md")
    rows = (tmp_path / "texts" / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [text for row in rows for text in json.loads(row)["texts"]]
    assert {"original", "smollm2"} == {text["model"] or text["source"] for text in texts}
    assert (tmp_path / "run.html").is_file()


@pytest.mark.chaos  # some processes
def test_a_probe_says_what_the_guide_shows(tmp_path):
    section = PAGE.partition("### What it will cost")[2].partition("\n## ")[0]
    Follower(tmp_path).follow(section, "captions.md")
