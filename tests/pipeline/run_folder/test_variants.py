"""The recipes that ran in a folder, each once: their numbers, their times, what differs."""

import json
import time
from types import SimpleNamespace

import pytest

from clipmill.metadata.fingerprint import digest
from clipmill.metadata.storage import Storage
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.run_folder import sessions
from clipmill.pipeline.run_folder.state import latest
from clipmill.pipeline.run_folder.variants import Change, Changes, changes, variant, variants

STAGES = "  square: {uses: toy.power, from: numbers}\n"


def exponents(run: Storage) -> list[int | None]:
    return [one.ran["stages"]["square"].get("exponent") for one in variants(run)[0]]


def test_each_recipe_is_one_variant_however_often_it_ran(engine):
    for sets in ([], ["square.exponent=3"], [], ["square.exponent=4"], ["square.exponent=3"]):
        engine.run(STAGES, *sets)
    run = Storage(str(engine.folder / "run"))
    assert exponents(run) == [None, 3, 4]
    assert [one.is_last for one in variants(run)[0]] == [False, True, False]
    assert latest(run.uri).plan.stages["square"].stage.exponent == 3
    assert latest(run.uri, 3).plan.stages["square"].stage.exponent == 4
    assert all(stage.complete for stage in latest(run.uri, 1).stages.values())


def test_a_run_that_stopped_early_and_another_name_make_no_variant_of_their_own(engine):
    engine.run(STAGES, until="numbers")
    engine.run(STAGES)
    (engine.folder / "recipe.yaml").rename(engine.folder / "other.yaml")
    run = Storage(str(engine.folder / "run"))
    assert exponents(run) == [None]
    assert len(list((engine.folder / "run" / "recipes").iterdir())) == 2


def write(run: Storage, stamp: str, **settings: object) -> str:
    """Stores a recipe as a run of that time would have."""
    ran = {
        **{"name": "it", "path": "it.yaml", "seed": 0, "overrides": [], "folders": {}},
        "stages": {"square": settings},
    }
    name = f"{stamp}{'0' * 9}-{digest(ran)[:12]}.json"
    run.put(f"recipes/{name}", json.dumps(ran).encode(), point="recipe")
    return name


def test_a_variant_last_ran_when_its_last_session_began(tmp_path, monkeypatch):
    run = Storage(str(tmp_path))
    write(run, "20261101T100000", n=1)
    write(run, "20261101T110000", n=2)
    write(run, "20261101T120000", n=1)  # 1 again; 2 had run until 11:30
    for hour, minute in ((10, 0), (11, 20), (12, 0), (13, 40)):
        began = 1793491200 + 3600 * hour + 60 * minute
        clock = SimpleNamespace(time=iter([began - 1, began + 60]).__next__)
        clock.gmtime, clock.strftime = time.gmtime, time.strftime
        monkeypatch.setattr(sessions, "time", clock)  # of no other thread
        with sessions.session(run, "it"):
            pass
        monkeypatch.undo()
    one, two = variants(run)[0]
    assert (one.first_ran, one.last_ran) == ("2026-11-01 09:59 UTC", "2026-11-01 13:39 UTC")
    assert (two.first_ran, two.last_ran) == ("2026-11-01 11:00 UTC", "2026-11-01 11:19 UTC")


def test_a_folder_from_before_there_were_sessions_goes_by_its_recipes(tmp_path):
    run = Storage(str(tmp_path))
    write(run, "20261101T100000", n=1)
    write(run, "20261101T110000", n=2)
    write(run, "20261102T100000", n=1)
    one, two = variants(run)[0]
    assert (one.first_ran, one.last_ran) == ("2026-11-01 10:00 UTC", "2026-11-02 10:00 UTC")
    assert (two.first_ran, two.last_ran) == ("2026-11-01 11:00 UTC", "2026-11-01 11:00 UTC")


def test_a_recipe_that_cannot_be_read_is_named_and_has_no_number(tmp_path):
    run = Storage(str(tmp_path))
    torn = write(run, "20261101T100000", n=1)
    run.put(f"recipes/{torn}", b"{", point="recipe")
    write(run, "20261101T110000", n=2)
    no_time = f"20269999T{'9' * 15}-{'0' * 12}.json"
    run.put(f"recipes/{no_time}", b"{}", point="recipe")
    (one,), unreadable = variants(run)
    assert (one.number, one.ran["stages"]["square"]["n"]) == (1, 2)
    assert unreadable == [torn, no_time]


def test_no_run_and_no_such_variant_are_refused(tmp_path):
    run = Storage(str(tmp_path))
    with pytest.raises(RecipeError, match="no run"):
        variants(run)
    write(run, "20261101T110000", n=2)
    for number in (0, 2, -1):
        with pytest.raises(RecipeError, match=f"no variant {number}: this folder has seen 1"):
            variant(run, number)


def recipe(**stages: dict) -> dict:
    return {"seed": 0, "stages": stages}


def test_what_differs_is_told_by_stage_and_key():
    before = recipe(a={"uses": "x.y", "top": {"rows": 3, "column": "c"}, "of": ["p"]}, b={})
    after = recipe(a={"uses": "x.y", "top": {"rows": 4, "column": "c"}, "of": ["p", "q"]}, c={})
    assert changes(before, after) == Changes(
        added=("c",),
        removed=("b",),
        settings=(
            Change(key="a.top.rows", before=3, after=4),
            Change(key="a.of", before=["p"], after=["p", "q"]),
        ),
    )
    assert changes(before, before) == Changes()
    (unset,) = changes(recipe(a={"n": 1}), recipe(a={})).settings
    assert unset == Change(key="a.n", before=1, after=None)
    (seed,) = changes(before, {**before, "seed": 7}).settings
    assert (seed.key, seed.before, seed.after) == ("seed", 0, 7)
