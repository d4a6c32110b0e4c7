"""What of a plan is done in a run folder, and what a changed file leaves of it."""

import json
import random
import re
import shutil
from collections import Counter
from dataclasses import asdict
from types import SimpleNamespace

import pytest

from clipmill.metadata.record import Failure, Record, state_of
from clipmill.metadata.sealed import read_sealed_as
from clipmill.metadata.storage import Storage
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.run_folder.done import parents_of, standing
from clipmill.pipeline.run_folder.live import live_stage
from clipmill.pipeline.run_folder.ran import newest_recipe
from clipmill.pipeline.run_folder.state import RunState, StageState, latest, plan_of, summary

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


MASKED = """
  chosen: {uses: select.where, from: numbers, where: number < 3 OR number > 27}
  cube:   {uses: toy.power, from: numbers, only: chosen, exponent: 3}
  later:  {uses: toy.power, from: cube, read: {number: cube.power}}
  both:   {uses: toy.power, from: later, read: {number: later.power}, only: chosen}
"""
RULES = ["number < 3 OR number > 27", "number < 8", "number < 30"]


def by_shard(state: RunState, name: str):
    """What of a row stage is good and what has failed, judged shard by shard."""
    stage, good, failures = state.stages[name], {}, {}
    planned = stage.planned
    models = state.digests(planned.folders)
    for shard in state.stages[planned.root].shards:
        states = state.shard_states(planned, shard)
        if states is None or len(models) < len(planned.folders):
            if any(shard in state.stages[need].failures for need in planned.needs):
                failures[shard] = None
            continue
        parents = parents_of(planned, {name: it.digest for name, it in states.items()}, models)
        mask = states[planned.only] if planned.only else None
        found = stage.scan.records.get(shard, [])
        failure = stage.scan.failures.get(shard)
        verdict = standing(found, failure, parents, mask.digest if mask else None)
        if verdict == "good":
            if state.as_it_stood and mask:
                own = [record.number for record in found if record.mask in (None, mask.digest)]
                found = [record for record in found if record.number <= own[-1]]
            good[shard] = state_of(found, mask)
        elif verdict == "failed":
            failures[shard] = failure
    return good, failures


def counts_by_shard(state: RunState, name: str):
    stage, told, untold = state.stages[name], Counter(), []
    for shard in stage.shards:
        counts = stage.recorded(shard)
        if counts is None:
            untold.append(shard)
        else:
            told.update(counts)
    return told, untold


def damage(run: Storage, draw: random.Random) -> None:
    """Takes away some objects of the stages, and says of some shards that they have failed."""
    names = [entry.name for entry in run.entries("stages", below=True)]
    data = [name for name in names if re.search(r"/\d{6}[^/]*\.(json|parquet)$", name)]
    for name in draw.sample(data, draw.choice([0, 1, 2, 5])):
        run.delete(f"stages/{name}")
    records = [name for name in data if re.search(r"/\d{6}\.json$", name)]
    for name in draw.sample(records, 3):
        record = read_sealed_as(run, f"stages/{name}", Record)
        if record is not None:
            parents = draw.choice([record.parents, {"other": "x"}])
            failure = Failure(record.shard, parents, draw.random() < 0.5, "a", "b", "c")
            folder = name.rpartition("/")[0]
            text = json.dumps(asdict(failure)).encode()
            run.put(f"stages/{folder}/{failure.name}", text, point="failed")
            if draw.random() < 0.7:
                run.delete(f"stages/{name}")


@pytest.mark.slow("eight damaged runs")
def test_what_is_good_is_as_judged_shard_by_shard(engine):
    """Columns of shards with one pass, and the others by themselves."""
    for rule in (RULES[0], RULES[1], RULES[2], RULES[0]):
        assert engine.run(STAGES + MASKED, f"chosen.where={rule}").complete
    seen = Counter()
    for round_ in range(8):
        copy = engine.folder / f"copy-{round_}"
        shutil.copytree(engine.folder / "run", copy)  # with its times
        damage(Storage(str(copy)), random.Random(round_))
        run = Storage(str(copy))
        plan = plan_of(newest_recipe(run)[1], run)
        state = RunState(plan, Storage(str(copy)), as_it_stood=round_ % 2 == 1)
        for name, stage in state.stages.items():
            if stage.planned.is_row and not stage.planned.is_root:
                good, failures = by_shard(state, name)
                assert dict(stage.shards) == good
                assert stage.failures == failures
                assert list(stage.failures) == sorted(failures)
                digests = [it.digest for it in good.values()]
                assert stage.shards.digests().to_pylist() == digests
                passes = {len(stage.scan.records[shard]) for shard in good}
                seen.update(["several"] if max(passes, default=0) > 1 else [])
                seen.update("failed" if failure else "before" for failure in failures.values())
                seen.update(["lacking"] if len(good) < 4 else ["whole"])
            told, untold = stage.all_recorded()
            assert (Counter(told), untold) == counts_by_shard(state, name)
            seen.update(["untold"] if untold else ["told"])
            assert stage.shards.rows == sum(it.rows for it in stage.shards.values())
    assert seen.keys() == {"several", "failed", "before", "lacking", "whole", "untold", "told"}
