"""A sealed stage: taken without a listing, and still no damage goes unseen."""

import weakref
from pathlib import Path

import numpy as np
import pytest

from clipmill.metadata import compaction, stage_seal
from clipmill.metadata.scan import glance, scan
from clipmill.metadata.stage_seal import SEAL, read_seal
from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.verify import repair, verify
from clipmill.pipeline.ledger.work import work
from clipmill.pipeline.progress import Lines
from clipmill.pipeline.run_folder.live import live_run
from clipmill.pipeline.run_folder.state import RunState, latest
from tests.engine_stages.harness import meaning
from tests.pipeline.engine.test_changed_files import data_files, flip

STAGES = """
  square: {uses: toy.power, from: numbers}
  shared: {uses: toy.shared, from: numbers}
  chosen: {uses: select.where, from: [square, shared], where: shared > 6}
  cube:   {uses: toy.power, from: numbers, only: chosen, exponent: 3}
"""
READ = f"{STAGES}  after: {{uses: toy.power, from: square, read: {{number: square.power}}}}\n"


@pytest.fixture(autouse=True)
def sealed(monkeypatch):
    """All stages are large, in row groups of two records; a start looks at no shard."""
    monkeypatch.setattr(stage_seal, "LARGE", 1)
    monkeypatch.setattr(compaction, "GROUP", 2)
    monkeypatch.setattr(stage_seal, "DRAWN", 0)


def shown(state: RunState) -> object:
    """What `status` and the report's table of work say, and every shard."""
    live = live_run(state, "complete")
    live.notes = []
    shards = {name: dict(stage.shards) for name, stage in state.stages.items()}
    codes = {name: sorted(stage.codes) for name, stage in state.stages.items()}
    return live, work(state), shards, codes


def folder_of(engine, stage: str) -> Storage:
    (path,) = (engine.folder / "run").glob(f"stages/{stage}-*")
    return Storage(str(path))


def test_it_answers_as_a_listing_does_and_lists_nothing(engine, monkeypatch):
    engine.run(STAGES)
    with monkeypatch.context() as patch:
        patch.setattr(stage_seal, "LARGE", 1000)
        listed = shown(latest(str(engine.folder / "run")))
    monkeypatch.setattr(Storage, "listing", None)
    state = latest(str(engine.folder / "run"))
    assert all(stage.complete and stage.seal for stage in state.stages.values())
    live_run(state, "complete")
    work(state)
    assert [name for name, stage in state.stages.items() if stage.scan.records._is_read] == []
    assert shown(state) == listed


def test_a_run_of_it_writes_nothing_and_a_wider_mask_opens_what_it_must(engine):
    before = engine.run(STAGES)
    again = engine.run(STAGES)
    for name in ("square", "shared", "chosen", "cube"):
        assert again.written(name) == before.written(name)
    wide = engine.run(STAGES, "chosen.where=shared > 3")
    assert wide.complete
    assert wide.written("square") == before.written("square")
    fresh = engine.run(STAGES, "chosen.where=shared > 3", out="fresh")
    assert wide.column("cube", "power") == fresh.column("cube", "power")


@pytest.mark.parametrize("damage", [flip, Path.unlink])
def test_what_no_start_looked_at_is_met_by_its_reader_and_made_again(engine, damage):
    expected = engine.run(READ, out="fresh").column("after", "power")
    engine.run(STAGES)
    for stage in ("numbers", "square"):
        damage(data_files(engine.folder / "run", stage)[3])
    mended = engine.run(READ)
    assert mended.complete
    assert mended.column("after", "power") == expected
    assert read_seal(folder_of(engine, "square"), scan(folder_of(engine, "square")).manifest)


@pytest.mark.parametrize("name", ["000001.json", "data"])
def test_verify_finds_what_is_gone_and_repair_has_it_made_again(engine, name):
    engine.run(STAGES)
    expected = meaning(Storage(str(engine.folder / "run")))
    state = latest(str(engine.folder / "run"))
    folder = folder_of(engine, "square")
    folder.delete(scan(folder).records[1][0].data if name == "data" else name)
    stages = verify(state.run, lambda done, total: None)
    assert [checked.folder for checked in stages if checked.damaged] == [
        state.plan.stages["square"].folder
    ]
    repair(state.plan, state.run, stages, lambda stage: None)
    assert engine.run(STAGES).complete
    assert meaning(Storage(str(engine.folder / "run"))) == expected


@pytest.mark.parametrize("name", ["000003.json", "data", "records.parquet"])
def test_a_start_that_looks_at_a_damaged_shard_lists_its_folder(engine, name, monkeypatch):
    engine.run(STAGES)
    folder = folder_of(engine, "square")
    folder.delete(scan(folder).records[3][0].data if name == "data" else name)
    monkeypatch.setattr(stage_seal, "DRAWN", 4)
    found = latest(str(engine.folder / "run")).stages["square"]
    assert found.seal is None
    assert sorted(found.shards) == [0, 1, 2] if name != "records.parquet" else [0, 1, 2, 3]


def test_a_file_of_out_that_is_gone_is_seen_by_every_start(engine):
    files = f"{STAGES}  centre: {{uses: toy.centre, from: numbers, rounds: 2}}\n"
    expected = engine.run(files).outcome.state.stages["centre"].outputs
    (folder,) = (engine.folder / "run").glob("stages/centre-*")
    next((folder / "out").iterdir()).unlink()
    found = latest(str(engine.folder / "run")).stages["centre"]
    assert (found.seal, found.complete, found.rows) == (None, False, 0)
    assert engine.run(files).outcome.state.stages["centre"].outputs == expected


def test_each_start_draws_shards_of_its_own(engine, monkeypatch):
    engine.run(STAGES)
    folder = folder_of(engine, "square")
    seal = read_seal(folder, scan(folder).manifest)
    monkeypatch.setattr(stage_seal, "DRAWN", 2)
    draws = {
        tuple(entry.name for entry in stage_seal._drawn(folder, seal, np.random.default_rng(seed)))
        for seed in range(50)
    }
    assert len(draws) == 6  # pairs of four shards
    assert all(len(draw) == 5 for draw in draws)  # data and record of each, and the compaction


def test_a_changed_compaction_is_not_believed(engine):
    engine.run(STAGES)
    state = latest(str(engine.folder / "run"))
    expected = {name: dict(stage.shards) for name, stage in state.stages.items()}
    flip(Path(folder_of(engine, "square").locate("records.parquet")), 0.2)
    state = latest(str(engine.folder / "run"))
    assert state.stages["square"].seal
    state.stages["square"].shards.digests()
    assert {name: dict(stage.shards) for name, stage in state.stages.items()} == expected


def test_whoever_writes_to_it_breaks_the_seal_first(engine):
    engine.run(STAGES)
    held = []

    class Looking(Lines):
        def shard(self, name, record, total):
            held.append((name, folder_of(engine, name).has(SEAL)))

    (engine.pool / "0.txt").write_text("".join(f"{number}\n" for number in range(5, 25)))
    assert engine.run(STAGES, watcher=Looking()).complete
    assert {name for name, _ in held} == {"numbers", "square", "shared", "chosen", "cube"}
    assert not any(is_sealed for _, is_sealed in held)


def test_a_changed_pool_outdates_what_is_sealed_after_it(engine):
    engine.run(STAGES)
    (engine.pool / "0.txt").write_text("".join(f"{number}\n" for number in range(5, 25)))
    engine.run(STAGES, until="numbers")
    plan, run = engine.plan(STAGES), Storage(str(engine.folder / "run"))
    good = {name: sorted(stage.shards) for name, stage in RunState(plan, run).stages.items()}
    assert good.pop("numbers") == [0, 1, 2, 3]
    assert good == {"square": [2, 3], "shared": [], "chosen": [], "cube": []}


def test_records_that_are_used_no_more_are_gone_without_a_search_for_garbage(engine):
    engine.run(STAGES)
    records = glance(folder_of(engine, "square")).records
    assert records.state(0, None)
    gone = weakref.ref(records)
    del records
    assert gone() is None
