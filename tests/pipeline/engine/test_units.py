"""Units of work: their names, their results in the journal, and what an error becomes."""

import json
from types import SimpleNamespace

import pytest

from clipmill.metadata.damage import DamagedError
from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.own_shards import OneShard
from clipmill.pipeline.engine.units import Answer, Unit, Units, UnitsRun, units_of
from clipmill.pipeline.errors import CrashedError, ShardError, StageError
from clipmill.pipeline.stage import Resources

STAGE = SimpleNamespace(resources=Resources(), determinism="exact")
PLANNED = SimpleNamespace(name="it", uses="toy.it", stage=STAGE)


def doing(work, folder, journalled=True) -> UnitsRun:
    return UnitsRun(
        Units(
            planned=PLANNED,
            seed=0,
            run_id="a run",
            run=Storage(str(folder / "run")),
            folder=Storage(str(folder)),
            journal="calls/01-map",
            work=work,
            journalled=journalled,
            page_checksums=True,
            unchecked=frozenset(),
            local=frozenset(),
        )
    )


def test_a_unit_is_named_by_its_number_and_its_input():
    first, second = units_of([{"a": 1}, {"a": 1}])
    assert (first.key[:7], second.key[:7]) == ("000000-", "000001-")
    assert first.key[7:] == second.key[7:]
    assert units_of([{"a": 2}])[0].key != first.key


@pytest.mark.parametrize("journalled", [True, False])
def test_a_result_is_in_the_journal_where_it_is_kept_there(journalled, tmp_path):
    answer = doing(lambda item, task: {"twice": 2 * item}, tmp_path, journalled)(Unit("key", 4))
    assert answer.result_or_raise() == {"twice": 8}
    path = tmp_path / "calls/01-map/key.json"
    assert path.exists() == journalled
    if journalled:
        assert json.loads(path.read_text())["value"] == {"twice": 8}


def fails(error):
    def work(item, task):
        raise error

    return work


def test_an_error_of_one_unit_is_an_answer_and_one_of_the_stage_is_raised(tmp_path):
    bad = ShardError("bad", "there", "mend it")
    assert doing(fails(bad), tmp_path)(Unit("key", 1)).error is bad
    assert isinstance(doing(fails(ValueError("x")), tmp_path)(Unit("key", 1)).error, ShardError)
    with pytest.raises(StageError):
        doing(fails(StageError("bad", "there", "mend it")), tmp_path)(Unit("key", 1))


class KilledError(BaseException):
    """The end of a process, as far as one in this process can be."""


def test_a_unit_that_ended_its_worker_three_times_is_a_crash_and_names_its_stage(tmp_path):
    for _ in range(3):
        with pytest.raises(KilledError):
            doing(fails(KilledError()), tmp_path)(Unit("key", 1))
    error = doing(fails(KilledError()), tmp_path)(Unit("key", 1)).error
    assert isinstance(error, CrashedError)
    assert "stage 'it', unit key ended its worker 3 times" in str(error)


@pytest.mark.parametrize("given", [{"path": "a.tar"}, OneShard(1, {}, {"path": "a.tar"})])
def test_a_crash_names_the_file_that_was_read_and_why_its_worker_was_ended(given, tmp_path):
    unit = Unit("key", given, ended="it took 9 GB of memory")
    for _ in range(3):
        with pytest.raises(KilledError):
            doing(fails(KilledError()), tmp_path)(unit)
    said = str(doing(fails(KilledError()), tmp_path)(unit).error)
    assert "unit key, a.tar ended its worker 3 times: it took 9 GB of memory" in said
    assert "give fewer workers" in said


def test_an_answer_without_a_result_stops_the_stage():
    bad = Answer(Unit("key", 1), error=ShardError("bad", "there", "mend it"))
    with pytest.raises(StageError, match="bad"):
        bad.result_or_raise()
    with pytest.raises(DamagedError):
        Answer(Unit("key", 1), error=DamagedError("folder", "name", "torn")).result_or_raise()
