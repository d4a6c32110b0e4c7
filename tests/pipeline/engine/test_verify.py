"""`clipmill verify`: every stored file against its record; `--repair` mends, and asks little."""

import json
import os
import re

import pytest

from clipmill.metadata import shard
from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine import verify
from clipmill.pipeline.engine.repair import take_away
from clipmill.pipeline.errors import LostLockError
from clipmill.pipeline.run_folder import lock
from tests.engine_stages.harness import meaning
from tests.pipeline.engine.test_changed_files import MADE, READ, data_files, flip

ASKED = """
  answers: {uses: toy.moody, from: numbers, script: %s}
  chosen:  {uses: select.where, from: answers, where: '"copy" >= 0'}
"""


@pytest.fixture
def asked(engine, monkeypatch):
    """A finished stage of recorded answers in row groups of 8, and the numbers it was asked."""
    from clipmill_own.toy.moody import Moody

    monkeypatch.setattr(Moody, "determinism", "recorded")
    monkeypatch.setattr(shard, "GROUP_ROWS", 4)
    script = engine.folder / "mood.json"
    script.write_text(json.dumps({"timeout": [3]}))
    stages = ASKED % script
    engine.run(stages, until="answers")
    log = script.with_suffix(".log")

    def since() -> list[int]:
        numbers = list(map(int, log.read_text().split()))
        log.write_text("")
        return numbers

    assert len(since()) == 31
    return stages, since


def test_a_run_as_it_was_stored_passes(engine, clipmill):
    engine.run(MADE)
    said = clipmill("verify", "--run", engine.folder / "run", "--json")
    assert said.code == 0
    files = {stage["folder"].split("/")[1].split("-")[0]: stage["files"] for stage in said.json}
    assert files == {"numbers": 4, "square": 4, "shared": 4, "chosen": 4, "cube": 4, "files": 4}
    assert not any(stage["damaged"] for stage in said.json)
    page = clipmill("verify", "--run", engine.folder / "run")
    assert page.out.splitlines()[-1] == "all 24 files are as they were stored"


def test_a_run_whose_next_start_is_refused_is_not_as_it_was_stored(engine, clipmill):
    engine.run(MADE)
    flip(engine.folder / "run" / "run.json")
    said = clipmill("verify", "--run", engine.folder / "run")
    assert said.code == 2
    assert "run/run.json" in said.err


def test_every_kind_of_damage_is_named_and_repaired(engine, clipmill):
    engine.run(MADE)
    run = engine.folder / "run"
    before = meaning(Storage(str(run)))
    square, shared, cube = (data_files(run, stage) for stage in ("square", "shared", "cube"))
    flip(square[0])
    shared[1].unlink()
    cube[0].write_bytes(cube[0].read_bytes()[:-3])
    file = next(run.glob("stages/files-*/out/1.txt"))
    flip(file)
    file.with_name("more.txt").write_text("mine")
    said = clipmill("verify", "--run", run, "--json")
    assert said.code == 1
    named = {bad["file"]: bad["found"] for stage in said.json for bad in stage["damaged"]}
    assert named.keys() == {
        square[0].name,
        shared[1].name,
        cube[0].name,
        "out/1.txt",
        "out/more.txt",
    }
    assert "digest" in named[square[0].name]
    assert named[shared[1].name] == "it is gone"
    assert "were stored" in named[cube[0].name]
    repaired = clipmill("verify", "--run", run, "--repair", "--workers", 0)
    assert repaired.code == 0, repaired.err
    assert meaning(Storage(str(run))) == before
    assert clipmill("verify", "--run", run).code == 0


def test_a_folder_is_listed_once_however_many_damaged_files_are_taken_away(tmp_path, monkeypatch):
    folder = Storage(str(tmp_path / "stage"))
    names = [f"{shard:06d}-{shard:016x}.parquet" for shard in range(20)]
    for name in (*names, "000003.json", "000003.p1.json", "000003.p2.json", "000003.p4.json"):
        folder.put(name, b"", "rename")
    listed = []
    for kind in ("entries", "listing", "folders"):
        whole = getattr(Storage, kind)
        monkeypatch.setattr(Storage, kind, lambda *given, w=whole: (listed.append(1), w(*given))[1])
    take_away(folder, names)
    assert len(listed) == 1
    assert sorted(entry.name for entry in folder.entries()) == ["000003.json", "000003.p4.json"]


def test_a_repair_whose_lock_another_run_has_taken_deletes_nothing(engine, monkeypatch):
    stages, run = "  square: {uses: toy.power, from: numbers}\n", Storage(f"{engine.folder}/run")
    engine.run(stages)
    flip(data_files(engine.folder / "run", "square")[0])
    damaged, files = verify.verify(run, lambda *_: None), lambda: set(run.entries(below=True))

    def taken_over(stage):
        lease = json.loads(run.read(lock.NAME))
        run.put(lock.NAME, json.dumps(lease | {"owner": "another"}).encode(), "lock")
        before.update(files())

    before = set()
    monkeypatch.setattr(verify, "is_recorded", taken_over)
    with pytest.raises(LostLockError):
        verify.repair(engine.plan(stages), run, damaged, engine.run)
    assert files() == before


def stored(engine, place):
    """One object of the run."""
    return next((engine.folder / "run/stages").glob(place))


def say_more_rows(path, keeps_time=False):
    """A changed byte in a record or a manifest: it is JSON still, and says one row more or less."""
    at, data = path.stat(), bytearray(path.read_bytes())
    place = re.search(rb'"rows": ?\d*(\d)', data).start(1)
    data[place] ^= 1
    path.write_bytes(data)
    if keeps_time:
        os.utime(path, ns=(at.st_atime_ns, at.st_mtime_ns))


RECORDS = ["square-*/000000.json", "numbers-*/000001.json", "shared-*/000002.json"]
MANIFESTS = ["numbers-*/manifest.json", "square-*/manifest.json", "shared-*/manifest.json"]


@pytest.mark.parametrize(
    "place",
    [
        RECORDS[0],
        MANIFESTS[0],
        *(pytest.param(it, marks=pytest.mark.chaos) for it in RECORDS[1:] + MANIFESTS[1:]),
    ],
)
def test_a_changed_byte_in_a_record_or_manifest_is_named_and_repaired(engine, clipmill, place):
    before = meaning(Storage(str(engine.run(MADE).folder)))
    run, path = engine.folder / "run", stored(engine, place)
    say_more_rows(path)
    said = clipmill("verify", "--run", run, "--json")
    assert said.code == 1
    named = [(stage["folder"], bad["file"]) for stage in said.json for bad in stage["damaged"]]
    assert named == [(f"stages/{path.parent.name}", path.name)]
    assert clipmill("verify", "--run", run, "--repair", "--workers", 0).code == 0
    assert clipmill("verify", "--run", run).code == 0
    assert meaning(Storage(str(run))) == before


def test_a_run_mends_changed_records_and_manifests_too(engine, clipmill):
    before = meaning(Storage(str(engine.run(MADE).folder)))
    for place in RECORDS + MANIFESTS:
        say_more_rows(stored(engine, place))
    assert engine.run(MADE).complete
    assert clipmill("verify", "--run", engine.folder / "run").code == 0
    assert meaning(Storage(str(engine.folder / "run"))) == before


def test_a_record_that_changed_behind_its_fold_is_named_and_repaired(engine, clipmill):
    """The disk has changed a byte of it, and no time: runs go by the compaction, which is whole."""
    engine.run(MADE)
    run, path = engine.folder / "run", stored(engine, RECORDS[0])
    say_more_rows(path, keeps_time=True)
    said = clipmill("verify", "--run", run)
    assert (said.code, said.out.count(f"{path.name}: not as it was stored")) == (1, 1)
    assert clipmill("verify", "--run", run, "--repair", "--workers", 0).code == 0
    assert clipmill("verify", "--run", run).code == 0


def test_the_manifest_of_another_stage_is_named_and_repaired(engine, clipmill):
    before = meaning(Storage(str(engine.run(MADE).folder)))
    run = engine.folder / "run"
    stored(engine, MANIFESTS[1]).write_bytes(stored(engine, MANIFESTS[0]).read_bytes())
    said = clipmill("verify", "--run", run)
    assert (said.code, said.out.count("manifest.json: not as it was stored")) == (1, 1)
    assert clipmill("verify", "--run", run, "--repair", "--workers", 0).code == 0
    assert meaning(Storage(str(run))) == before


def test_a_changed_record_of_what_was_made_once_is_named_and_repaired(engine, clipmill):
    engine.run("  learned: {uses: toy.learned, from: numbers}\n")
    run = engine.folder / "run"
    [made] = run.glob("once/*/made.json")
    flip(made)
    said = clipmill("verify", "--run", run)
    assert (said.code, said.out.count("/made.json: not as it was stored")) == (1, 1)
    assert clipmill("verify", "--run", run, "--repair", "--workers", 0).code == 0
    assert clipmill("verify", "--run", run).code == 0


def say(path, **fields):
    """A record as an older version stored it, without a digest, that says something else."""
    held = json.loads(path.read_text())
    path.write_text(json.dumps({**held.get("value", held), **fields}))


@pytest.mark.parametrize(
    "fields",
    [
        {"rows": 45},
        pytest.param({"computed": 45}, marks=pytest.mark.chaos),
        pytest.param({"rows": 45, "computed": 45}, marks=pytest.mark.chaos),
    ],
)
def test_a_record_of_before_the_seal_is_held_to_the_rows_of_its_file(engine, clipmill, fields):
    before = meaning(Storage(str(engine.run(MADE).folder)))
    run, path = engine.folder / "run", stored(engine, RECORDS[0])
    say(path, **fields)
    said = clipmill("verify", "--run", run)
    assert said.code == 1
    assert "12 rows, and its record says 45" in said.out
    assert clipmill("verify", "--run", run, "--repair", "--workers", 0).code == 0
    assert clipmill("verify", "--run", run).code == 0
    assert meaning(Storage(str(run))) == before


def test_answers_whose_record_has_changed_are_not_asked_for_again(engine, asked, clipmill):
    """Their compaction tells what it said."""
    stages, since = asked
    whole = engine.run(stages).column("answers", "copy")
    run, path = engine.folder / "run", stored(engine, "answers-*/000000.json")
    say_more_rows(path)
    after = engine.run(stages)
    assert "verify" in after.failures("answers")[0].do
    said = clipmill("verify", "--run", run, "--repair", "--workers", 0)
    assert said.code == 0, said.err
    assert "at most 0 rows are asked for again" in said.err
    assert clipmill("verify", "--run", run).code == 0
    assert engine.run(stages).column("answers", "copy") == whole
    assert since() == []


def test_answers_whose_record_nothing_tells_count_as_asked_for_again(engine, asked, clipmill):
    _, since = asked
    for name in ("records.parquet", "manifest.json"):  # the stage had not ended
        for path in (engine.folder / "run/stages").glob(f"answers-*/{name}"):
            path.unlink()
    say_more_rows(stored(engine, "answers-*/000000.json"))
    said = clipmill("verify", "--run", engine.folder / "run", "--repair", "--workers", 0)
    assert said.code == 0, said.err
    assert len(since()) == 12
    assert "at most 12 rows are asked for again" in said.err


@pytest.mark.chaos
@pytest.mark.parametrize("fields", [{"rows": 45}, {"computed": 45}])
def test_answers_whose_record_says_other_rows_are_mended(engine, asked, clipmill, fields):
    stages, since = asked
    run = engine.folder / "run"
    say(stored(engine, "answers-*/000000.json"), **fields)
    assert clipmill("verify", "--run", run, "--repair", "--workers", 0).code == 0
    assert since() == list(range(12))
    assert clipmill("verify", "--run", run).code == 0
    assert engine.run(stages).complete


def test_a_run_does_not_ask_twice_for_answers_that_are_damaged(engine, asked, clipmill):
    stages, since = asked
    run = engine.folder / "run"
    flip(data_files(run, "answers")[0])
    after = engine.run(stages)
    assert not after.complete
    assert "verify" in after.error("answers")
    assert since() == []


@pytest.mark.parametrize(("place", "again"), [(0.1, 8), (0.999, 12)])
def test_repair_asks_for_the_damaged_rows_alone(engine, asked, clipmill, place, again):
    """A row group of 8 where pages are damaged; the whole shard where the footer is."""
    stages, since = asked
    whole = engine.run(stages, out="other").column("chosen", "keep")
    since()
    run = engine.folder / "run"
    flip(data_files(run, "answers")[0], place)
    said = clipmill("verify", "--run", run, "--repair", "--workers", 0)
    assert said.code == 0, said.err
    assert f"{again} rows are asked for again" in said.err
    assert len(since()) == again
    after = engine.run(stages)
    assert after.complete
    assert after.column("chosen", "keep") == whole
    assert after.column("answers", "reason")[3] == "timeout"
    assert clipmill("verify", "--run", run).code == 0


def test_answers_whose_file_is_gone_are_asked_for_by_repair_alone(engine, asked, clipmill):
    stages, since = asked
    run = engine.folder / "run"
    data_files(run, "answers")[0].unlink()
    after = engine.run(stages)
    assert "verify" in after.failures("answers")[0].do
    assert since() == []
    assert clipmill("verify", "--run", run, "--repair", "--workers", 0).code == 0
    assert len(since()) == 12
    assert engine.run(stages).complete


def test_rows_that_were_tried_again_stay_where_their_pass_is_whole(engine, asked, clipmill):
    stages, since = asked
    run = engine.folder / "run"
    (engine.folder / "mood.json").write_text("{}")
    engine.run(stages, retry=("timeout",), until="answers")
    assert since() == [3]
    base = next(path for path in data_files(run, "answers") if path.name.startswith("000000-"))
    flip(base, 0.1)
    assert clipmill("verify", "--run", run, "--repair", "--workers", 0).code == 0
    assert len(since()) == 7
    assert engine.run(stages).column("answers", "copy")[:12] == list(range(12))


def test_answers_and_the_root_whose_rows_they_are_of_are_mended_together(engine, asked, clipmill):
    stages, since = asked
    run = engine.folder / "run"
    flip(data_files(run, "numbers")[0])
    flip(data_files(run, "answers")[0], 0.1)
    assert clipmill("verify", "--run", run, "--repair", "--workers", 0).code == 0
    assert len(since()) == 8
    assert clipmill("verify", "--run", run).code == 0
    assert engine.run(stages).complete


def test_stages_of_other_recipes_are_checked_and_left_to_these(engine, clipmill):
    engine.run(MADE)
    engine.run("  other: {uses: toy.power, from: numbers, exponent: 5}\n")
    run = engine.folder / "run"
    flip(data_files(run, "square")[0])
    said = clipmill("verify", "--run", run, "--repair", "--workers", 0)
    assert said.code == 1
    assert "1 of 28 files are damaged" in said.out
    assert "left to the recipes that made them: stages/square-" in said.err
    engine.run(READ)
    assert clipmill("verify", "--run", run).code == 0


def test_a_damaged_file_of_answers_is_named_and_keeps_what_can_be_read(engine, clipmill):
    log = engine.folder / "asked.log"
    stages = f"  asked: {{uses: toy.asker, from: numbers, log: {log}}}\n"
    engine.run(stages)
    run = engine.folder / "run"
    first, *others = sorted((run / "answers/new").iterdir())
    flip(first)
    said = clipmill("verify", "--run", run, "--json")
    assert said.code == 1
    [found] = [stage for stage in said.json if stage["folder"] == "answers"]
    assert found["files"] == len(others) + 1
    assert [damaged["file"] for damaged in found["damaged"]] == [f"new/{first.name}"]
    assert clipmill("verify", "--run", run, "--repair", "--workers", 0).code == 0
    assert clipmill("verify", "--run", run).code == 0
    stages_now = clipmill("status", "--run", run, "--json").json["stages"]
    assert {stage["name"]: stage["rows"] for stage in stages_now} == {"numbers": 31, "asked": 31}
    log.write_text("")
    engine.run(stages, "numbers.shard_rows=5")
    assert len(log.read_text().split()) < 31 - 7  # the other two shards' answers are there
