"""`plan` and `doctor` name the Pythons that stages need beside this one."""

import sys

import pytest

from clipmill.pipeline.engine.environments import PACKAGES, cache_folder
from tests.engine_stages.harness import toy_stages, write_pool

RECIPE = """
stages:
  numbers: {{uses: toy.numbers, path: {pool}, shard_rows: 12}}
  helped: {{uses: toy.helped, from: numbers, log: a, gate: b, package: {package}}}
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPMILL_ENVIRONMENTS", str(tmp_path / "cache"))
    pool = write_pool(tmp_path / "pool", [3])

    def write(package: str) -> str:
        path = tmp_path / "it.yaml"
        path.write_text(RECIPE.format(pool=pool, package=package))
        return str(path)

    with toy_stages():
        yield write


def test_packages_that_are_here_need_no_python_of_their_own(recipe, clipmill):
    said = clipmill("plan", recipe("numpy>=2"), "-v")
    assert said.code == 0
    assert f"python    numpy>=2: {sys.executable}\n" in said.out
    assert "note" not in said.out


def test_a_python_that_is_to_be_made_is_told_before_the_run(recipe, clipmill, tmp_path):
    named = recipe("nosuch-thing>=3")
    note = "makes a Python of its own at the first run, with nosuch-thing>=3"
    assert f"note: 'helped': {note}" in clipmill("plan", named).out
    said = clipmill("plan", named, "-v").out
    assert f"python    nosuch-thing>=3: made at the first run, in {tmp_path / 'cache'}\n" in said
    assert f"note      {note}\n" in said
    stage = clipmill("plan", named, "--json").json["stages"][-1]
    assert stage["environments"] == [{"packages": ["nosuch-thing>=3"], "python": None}]
    assert not (tmp_path / "cache").exists()


def test_doctor_lists_those_that_were_made(recipe, clipmill):
    place = cache_folder() / "0123456789abcdef"
    place.mkdir(parents=True)
    (place / PACKAGES).write_text("one>=1\ntwo")
    assert f"ok    python of its own        one>=1, two: {place}" in clipmill("doctor").out
