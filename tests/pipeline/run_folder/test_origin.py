"""A run folder belongs to one pool: another is refused, and the same one may move and grow."""

import json
import shutil

import pytest

from clipmill.metadata.storage import Storage
from tests.engine_stages.harness import meaning, write_pool

STAGES = "  square: {uses: toy.power, from: numbers}\n"


@pytest.fixture
def done(engine, clipmill):
    """A finished run, and how to plan and run it over a pool at another path."""
    engine.plan(STAGES)  # writes the recipe
    recipe, out = engine.folder / "recipe.yaml", engine.folder / "run"
    assert clipmill("run", recipe, "--out", out, "--workers", 0).code == 0

    def over(path, verb="run"):
        more = ("--workers", 0) if verb == "run" else ()
        return clipmill(verb, recipe, "--out", out, "--set", f"numbers.path={path}", *more)

    return over


@pytest.mark.parametrize("verb", ["plan", "run"])
def test_another_pool_is_refused_and_the_first_one_stays(verb, done, engine, clipmill):
    before = meaning(Storage(str(engine.folder / "run")))
    other = write_pool(engine.folder / "other", [20, 0, 11], start=1000)
    (other / "1.txt").write_text("7\n")
    said = done(other, verb)
    assert said.code == 2
    assert "another pool: of 3 files known it has 0" in said.err
    assert str(other) in said.err
    assert f"belongs to path {engine.pool}" in said.err
    assert "use another --out" in said.err
    assert meaning(Storage(str(engine.folder / "run"))) == before


def test_the_same_relative_path_from_another_folder_is_another_pool(done, engine, monkeypatch):
    write_pool(engine.folder / "there" / "pool", [5], start=1000)
    monkeypatch.chdir(engine.folder)
    assert done("pool").code == 0
    monkeypatch.chdir(engine.folder / "there")
    assert done("pool").code == 2


@pytest.mark.parametrize("verb", ["plan", "run"])
def test_a_pool_that_moved_and_grew_is_the_same(verb, done, engine):
    square = next((engine.folder / "run").glob("stages/square-*/000000.json"))
    written = square.stat().st_mtime_ns
    for name in ("0.txt", "1.txt", "2.txt"):  # as a copy that keeps no time
        (engine.folder / "moved").mkdir(exist_ok=True)
        (engine.folder / "moved" / name).write_text((engine.pool / name).read_text())
    write_pool(engine.folder / "moved" / "new", [3])
    shutil.move(engine.folder / "moved" / "new" / "0.txt", engine.folder / "moved" / "3.txt")
    shutil.rmtree(engine.pool)
    assert done(engine.folder / "moved", verb).code == 0
    assert square.stat().st_mtime_ns == written
    if verb == "run":
        assert done(engine.folder / "moved", verb).code == 0


def test_a_pool_that_changes_in_its_place_stays_the_runs(done, engine):
    for file in engine.pool.iterdir():
        file.unlink()
    write_pool(engine.pool, [4, 5, 6, 7], start=50)
    assert done(engine.pool).code == 0
    moved = shutil.move(engine.pool, engine.folder / "moved")
    assert done(moved).code == 0  # what is known of it changed with it


def test_a_path_without_a_pool_is_said_by_its_stage(done, engine):
    assert done(engine.folder / "none", "plan").code == 0
    said = done(engine.folder / "none")
    assert said.code == 1
    assert "no *.txt file" in said.out
    assert done(engine.pool).code == 0


def test_a_pool_whose_root_never_ended_is_given_up_for_another(engine, clipmill, monkeypatch):
    engine.plan(STAGES)
    run = ("run", engine.folder / "recipe.yaml", "--out", engine.folder / "run", "--workers", 0)
    with monkeypatch.context() as patch:
        patch.setattr("clipmill.pipeline.engine.manifests.compact", lambda folder, records: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            clipmill(*run)
    other = write_pool(engine.folder / "other", [5], start=1000)
    assert clipmill(*run, "--set", f"numbers.path={other}").code == 0


def test_what_is_known_of_a_pool_is_where_it_lies_and_its_files(done, engine):
    [origin] = (engine.folder / "run").glob("stages/numbers-*/origin.json")
    held = json.loads(origin.read_text())
    assert held == {
        "at": {"path": str(engine.pool), "shard_rows": "12", "together": "1"},
        "files": {"0.txt": 50, "1.txt": 0, "2.txt": 33},
    }
