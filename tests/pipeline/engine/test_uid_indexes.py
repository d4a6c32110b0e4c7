"""Indexes of a root's uids in a run: made once, of the shards as they are, and asked by `why`."""

import shutil

import pytest

from clipmill.metadata import storage, uid_index
from clipmill.metadata.storage import Storage
from clipmill.pipeline.ledger.rows import uids as find
from clipmill.pipeline.ledger.rows.pictures import places_of_uids
from clipmill.pipeline.ledger.selection.why import why
from tests.engine_stages.harness import meaning, write_pool

STAGES = "  square: {uses: toy.power, from: numbers}\n"


class KilledError(BaseException):
    """The end of a process, as far as one in this process can be."""


@pytest.fixture
def engine(engine, monkeypatch):
    """A pool of ten shards, of which four have one index."""
    monkeypatch.setattr(uid_index, "LEAST_SHARDS", 2)
    monkeypatch.setattr(uid_index, "MOST_SHARDS", 4)
    write_pool(engine.pool, [7] * 10)
    return engine


def indexes(engine, out="run"):
    """Name to time."""
    found = (engine.folder / out).glob("stages/numbers-*/uids/*")
    return {path.name: path.stat().st_mtime_ns for path in found}


def uids(ran):
    """Of each shard, in hex."""
    return [[uid.hex() for uid in ran.column("numbers", "uid", shard)] for shard in range(10)]


@pytest.fixture
def opened(monkeypatch):
    """The data files of roots that are read for uids."""
    files, read = [], find.read_file

    def counted(folder, file, *more):
        files.append(file)
        return read(folder, file, *more)

    monkeypatch.setattr(find, "read_file", counted)
    return files


def test_only_the_shard_of_a_uid_is_read(engine, opened):
    ran = engine.run(STAGES)
    assert len(indexes(engine)) == 3
    state = ran.outcome.state
    for shard, each in enumerate(uids(ran)):
        opened.clear()
        found = why(state, each[3][:8])
        assert (found.uid, found.shard, found.position) == (each[3], shard, 3)
        assert opened == [state.stages["numbers"].shards[shard].files[0]]
    asked = [uids(ran)[8][2], "0" * 32, uids(ran)[1][0]]
    opened.clear()
    assert places_of_uids(state, "square", asked) == {asked[0]: (8, 2), asked[2]: (1, 0)}
    assert len(opened) == 2


def test_a_folder_without_indexes_is_read_as_before_and_gets_them_by_the_next_run(engine, opened):
    ran = engine.run(STAGES)
    before = indexes(engine)
    uid = uids(ran)[9][0]
    expected = why(ran.outcome.state, uid)
    shutil.rmtree(next((engine.folder / "run").glob("stages/numbers-*/uids")))
    opened.clear()
    assert why(ran.outcome.state, uid) == expected
    assert len(opened) == 10
    assert engine.run(STAGES).complete
    assert indexes(engine).keys() == before.keys()


def test_a_run_again_writes_none_and_a_pool_that_grows_only_the_last(engine, opened):
    engine.run(STAGES)
    before = indexes(engine)
    engine.run(STAGES)
    assert indexes(engine) == before
    (engine.pool / "91.txt").write_text("9001\n9002\n")
    ran = engine.run(STAGES)
    after = indexes(engine)
    assert len(after) == 3, "the one of the last shards as they were is gone"
    assert sum(before.get(name) == time for name, time in after.items()) == 2
    opened.clear()
    assert why(ran.outcome.state, ran.column("numbers", "uid", 10)[1].hex()).shard == 10
    assert len(opened) == 1


def test_a_shard_that_changed_is_read_as_long_as_no_index_knows_it(engine, opened):
    ran = engine.run(STAGES)
    state = ran.outcome.state
    write_pool(engine.pool / "more", [7], start=5000)
    (engine.pool / "more" / "0.txt").replace(engine.pool / "4.txt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clipmill.pipeline.engine.dataset_job.index_uids", lambda context: None)
        ran = engine.run(STAGES)
    state = ran.outcome.state
    uid = ran.column("numbers", "uid", 4)[2].hex()
    opened.clear()
    assert why(state, uid).shard == 4
    assert len(opened) == 4, "of its run"


def test_killed_at_any_index_and_run_again_it_ends_the_same(engine, monkeypatch):
    reached, points = storage.reached, []

    def kill(point, name):
        reached(point, name)
        if name.startswith("uids/"):
            points.append(point)
            if len(points) == number:
                raise KilledError

    number = 0
    with monkeypatch.context() as patch:
        patch.setattr(storage, "reached", kill)
        engine.run(STAGES, out="whole")
    whole = meaning(Storage(str(engine.folder / "whole")))
    assert points == ["write", "rename"] * 3
    for number in (1, 2, 5):
        points.clear()
        with monkeypatch.context() as patch:
            patch.setattr(storage, "reached", kill)
            with pytest.raises(KilledError):
                engine.run(STAGES, out=str(number))
        assert engine.run(STAGES, out=str(number)).complete
        assert meaning(Storage(str(engine.folder / str(number)))) == whole
