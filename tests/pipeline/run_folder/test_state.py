"""What of a plan is done in a run folder, and what a changed file leaves of it."""

from types import SimpleNamespace

import pytest

from metadata.storage import Storage
from pipeline.errors import RecipeError
from pipeline.run_folder.live import live_stage
from pipeline.run_folder.ran import newest_recipe
from pipeline.run_folder.state import RunState, StageState, latest, summary

STAGES = """
  square: {uses: toy.power, from: numbers}
  after:  {uses: toy.power, from: square, read: {number: square.power}}
  shared: {uses: toy.shared, from: numbers}
"""


@pytest.fixture
def state(engine) -> RunState:
    """A finished run, read from its folder."""
    assert engine.run(STAGES).complete
    return latest(str(engine.folder / "run"))


def good(state: RunState) -> dict[str, list[int]]:
    return {name: sorted(stage.shards) for name, stage in state.stages.items()}


ALL = [0, 1, 2, 3]


def test_a_finished_run_is_good_in_every_shard(state):
    assert good(state) == {"numbers": ALL, "square": ALL, "after": ALL, "shared": ALL}
    assert all(stage.complete for stage in state.stages.values())
    assert live_stage(state, "square").reasons["sevenfold"] > 0


def test_a_shard_without_its_record_is_missing_and_so_is_what_was_made_of_it(state):
    state.stages["square"].folder.delete("000001.json")
    state.rescan("square")
    state.resolve("after")
    assert good(state) == {"numbers": ALL, "square": [0, 2, 3], "after": [0, 2, 3], "shared": ALL}


def test_a_dataset_stage_is_good_as_a_whole_or_not_at_all(state):
    state.stages["shared"].folder.delete("000001.json")
    state.rescan("shared")
    assert good(state)["shared"] == []
    assert state.stages["shared"].manifest is None


def test_of_a_root_that_shrank_the_shards_past_its_end_do_not_count(state):
    root = state.stages["numbers"]
    root.scan.manifest = SimpleNamespace(shards=3)
    state.resolve("numbers")
    assert sorted(root.shards) == [0, 1, 2]
    assert root.complete


def test_one_row_is_read_by_its_place(state):
    assert state.cell("square", 1, 2, ["power"])["power"] is None  # 14, a multiple of seven
    assert state.cell("square", 1, 3, ["power"])["power"] == 15**2
    assert len(state.uid("numbers", 1, 3)) == 32


def failure(crashed: bool = False):
    return SimpleNamespace(crashed=crashed)


@pytest.mark.parametrize(
    ("total", "shards", "failures", "changed", "words"),
    [
        (4, 4, {}, 0, "done"),
        (4, 0, {}, 0, "nothing yet"),
        (4, 3, {}, 0, "3 of 4 shards"),
        (4, 2, {2: failure(), 3: None}, 0, "2 of 4 shards, 1 failed"),
        (None, 2, {}, 0, "2 of ? shards"),
        (4, 3, {}, 1, "3 of 4 shards, 1 file gone or changed"),
        (4, 0, {}, 2, "nothing yet, 2 files gone or changed"),
    ],
)
def test_what_is_there_in_words(total, shards, failures, changed, words):
    state = StageState(
        planned=SimpleNamespace(is_row=True, is_root=False),
        folder=None,
        scan=SimpleNamespace(changed=changed),
        total=total,
        shards=dict.fromkeys(range(shards)),
        failures=failures,
    )
    assert summary(state) == words


def test_a_folder_is_seen_through_the_recipe_that_ran_there_last(engine):
    engine.run(STAGES)
    engine.run(STAGES, "square.exponent=3")
    run = Storage(str(engine.folder / "run"))
    _, ran = newest_recipe(run)
    assert ran["stages"]["square"]["exponent"] == 3
    assert latest(run.uri).plan.stages["square"].stage.exponent == 3


def test_a_folder_where_nothing_ran_and_a_torn_recipe_are_refused(engine):
    with pytest.raises(RecipeError, match="no run"):
        latest(str(engine.folder / "empty"))
    engine.run(STAGES)
    run = Storage(str(engine.folder / "run"))
    name, _ = newest_recipe(run)
    run.put(f"recipes/{name}", run.read(f"recipes/{name}")[:40], point="recipe")
    with pytest.raises(RecipeError, match="cannot be read"):
        latest(run.uri)
