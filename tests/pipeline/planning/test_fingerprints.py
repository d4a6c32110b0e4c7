"""What a stage's folder is named by, and what it is not."""

import pytest

ROW = "  power: {uses: toy.power, from: numbers, exponent: 2}\n"


def mark(engine, stages: str, stage: str = "power", *overrides: str) -> str:
    return engine.plan(stages, *overrides).stages[stage].fingerprint


def test_a_setting_moves_the_stage_and_all_after_it(engine):
    after = ROW + "  after: {uses: toy.power, from: power, read: {number: power.power}}\n"
    for stage in ("power", "after"):
        assert mark(engine, after, stage) != mark(engine, after, stage, "power.exponent=3")


def test_a_default_written_out_is_the_default(engine):
    assert mark(engine, ROW) == mark(engine, ROW.replace(", exponent: 2", ""))


@pytest.mark.parametrize(
    "override", ["numbers.path=/elsewhere", "numbers.shard_rows=5", "shared.partitions=9"]
)
def test_where_and_how_fast_move_nothing(engine, override):
    stages = ROW + "  shared: {uses: toy.shared, from: numbers}\n"
    for stage in ("numbers", "power", "shared"):
        assert mark(engine, stages, stage) == mark(engine, stages, stage, override)


def test_a_mask_moves_nothing(engine):
    chosen = "  chosen: {uses: select.where, from: numbers, where: number < 3}\n"
    masked = chosen + ROW.replace("exponent", "only: chosen, exponent")
    assert mark(engine, ROW) == mark(engine, masked)
    assert mark(engine, masked) == mark(engine, masked, "power", "chosen.where=number < 9")


def test_a_binding_moves_the_stage(engine):
    two = ROW + "  other: {uses: toy.power, from: numbers, exponent: 3}\n"
    last = "  last: {uses: toy.power, from: [power, other], read: {number: %s.power}}\n"
    assert mark(engine, two + last % "power", "last") != mark(engine, two + last % "other", "last")


def test_the_stages_name_and_its_seed_are_no_part_of_it(engine):
    renamed = ROW.replace("power:", "square:")
    assert mark(engine, ROW) == mark(engine, renamed, "square")
    assert mark(engine, ROW) == mark(engine, ROW, "power", "seed=5")


def test_a_version_moves_the_stage(engine, monkeypatch):
    before = mark(engine, ROW)
    from clipmill_own.toy.power import Power

    monkeypatch.setattr(Power, "version", 2)
    assert mark(engine, ROW) != before
