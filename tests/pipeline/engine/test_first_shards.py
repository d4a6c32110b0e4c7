"""First shards that fail for one reason: their stage stops, says what to do, keeps what it has."""

import json

import pytest

from tests.engine_stages.harness import write_pool

ROWS = 60  # in five shards


@pytest.fixture
def moody(engine):
    """Runs toy.moody over a pool, with a stage before and one after it; these numbers time out."""
    write_pool(engine.pool, [ROWS, 0, 0])
    script = engine.folder / "mood.json"
    stages = (
        "  square: {uses: toy.power, from: numbers}\n"
        f"  copy: {{uses: toy.moody, from: numbers, script: {script}}}\n"
        "  twice: {uses: toy.power, from: copy, read: {number: copy.copy}}\n"
        "  files: {uses: toy.files, from: twice, read: {number: twice.power}}\n"
    )

    def run(timeout, **options):
        script.write_text(json.dumps({"timeout": list(timeout)}))
        return engine.run(stages, **options)

    return run


def seen(engine) -> int:
    """Rows that toy.moody was given, in all runs."""
    return len((engine.folder / "mood.log").read_text().splitlines())


WORDS = """\
100% of the first 36 rows failed for one reason: timeout
  where: stage 'copy' (toy.moody), shards 0, 1, 2
  do:    mend the cause; then run again with --retry timeout.\
  To go on all the same: --keep-going"""


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow("a worker begins"))])
def test_it_stops_and_only_it_is_blamed(engine, moody, workers):
    ran = moody(range(ROWS), workers=workers)
    assert ran.error("copy") == WORDS
    assert not ran.complete
    assert {name: error for name, error in ran.outcome.stopped.items() if error} == {
        "copy": ran.outcome.stopped["copy"]
    }
    assert len(ran.records("copy")) >= 3
    if workers == 0:
        assert seen(engine) == 36
        assert moody([]).error("copy") == WORDS
        assert seen(engine) == 36, "a rerun asks for nothing"


def test_keep_going_goes_on_and_a_rerun_without_stops_again(engine, moody):
    first = moody(range(ROWS))
    whole = moody(range(ROWS), keep_going=True)
    assert whole.complete
    assert seen(engine) == ROWS
    kept = {name: time for name, time in first.written("copy").items() if name.startswith("0")}
    assert kept.items() <= whole.written("copy").items()
    again = moody(range(ROWS))
    assert again.error("copy") == WORDS
    assert again.written("copy").keys() == whole.written("copy").keys()
    assert seen(engine) == ROWS


def test_a_retry_that_helps_goes_on_and_one_that_does_not_stops_with_the_same_words(moody):
    moody(range(ROWS))
    assert moody(range(ROWS), retry=("timeout",)).error("copy") == WORDS
    assert moody([], retry=("timeout",)).complete
    assert moody([]).complete


def test_fewer_rows_than_nearly_all_are_no_reason_to_stop(moody):
    assert moody(range(2, ROWS)).complete  # 34 of the first 36


def test_what_later_shards_lose_is_none_either(moody):
    assert moody(range(12, ROWS)).complete


def test_a_pool_of_fewer_shards_is_judged_by_all_of_them(engine, moody):
    write_pool(engine.pool, [20, 0, 0])
    ran = moody(range(20))
    assert ran.error("copy").startswith("100% of the first 20 rows failed for one reason: timeout")
    assert (
        len(ran.records("copy")) == 4
    )  # two without a row: all that there is, and nothing is made of it
    assert ran.outcome.stopped["files"] is None
    assert not ran.outcome.state.stages["files"].complete


def test_what_needs_only_the_stages_that_are_done_runs(engine):
    write_pool(engine.pool, [20, 0, 0])
    script = engine.folder / "mood.json"
    script.write_text(json.dumps({"timeout": list(range(20))}))
    ran = engine.run(
        "  square: {uses: toy.power, from: numbers}\n"
        f"  copy: {{uses: toy.moody, from: numbers, script: {script}}}\n"
        "  same: {uses: dedup.exact, from: square, columns: [power]}\n"
        "  late: {uses: toy.power, from: [square, same], read: {number: square.power}}\n"
    )
    assert [name for name, error in ran.outcome.stopped.items() if error] == ["copy"]
    assert ran.outcome.state.stages["square"].complete
    assert ran.outcome.state.stages["late"].complete


def test_a_verdict_is_none(engine):
    ran = engine.run("  none: {uses: select.where, from: numbers, where: number < 0}\n")
    assert ran.complete
    assert ran.column("none", "reason") == ["number < 0"] * 31


def test_rows_outside_a_mask_do_not_count(engine, moody):
    script = engine.folder / "mood.json"
    script.write_text(json.dumps({"timeout": list(range(ROWS))}))
    ran = engine.run(
        "  few: {uses: select.where, from: numbers, where: number >= 30}\n"
        f"  copy: {{uses: toy.moody, from: numbers, only: few, script: {script}}}\n"
    )
    assert ran.error("copy").startswith("100% of the first 30 rows failed")
    assert "shards 2, 3, 4\n" in ran.error("copy")
