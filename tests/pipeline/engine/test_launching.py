"""Launches whose ranks die: all begin again, go on from their checkpoints, and are given up."""

from functools import partial

import pytest

from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine import attempts, launching
from clipmill.pipeline.errors import RankLostError
from tests.pipeline.engine.programs import die, one_step_a_life, store


@pytest.fixture
def program(engine):
    """Runs one of the functions below as a dataset stage."""

    def run(function):
        name = f"{__name__}:{function}"
        return engine.run(f"  it: {{uses: toy.program, from: numbers, function: '{name}'}}\n")

    return run


def steps_of_a_rank_that_dies(inputs, ctx):
    """It dies after each of its steps: more often than a launch that gets nowhere may."""
    result = ctx.launch(partial(one_step_a_life, 3), 1)
    store(inputs.rows, ctx, lambda n: n * 0 + result["steps"])


@pytest.mark.slow("four ranks, one after another")
def test_ranks_begin_again_from_their_checkpoint_which_goes_with_the_stage(
    program, engine, monkeypatch
):
    monkeypatch.setattr(launching, "MOST_ATTEMPTS", 2)
    ran = program("steps_of_a_rank_that_dies")
    assert ran.column("it", "value") == [3] * 31
    (stage,) = (engine.folder / "run/stages").glob("it-*")
    assert [path.name for path in stage.iterdir() if path.is_dir()] == []


def nothing_but_deaths(inputs, ctx):
    ctx.launch(die, 1)


@pytest.mark.slow("four ranks, one after another")
def test_ranks_that_die_four_times_stop_their_stage_until_it_is_told_to_try_again(program, engine):
    said = program("nothing_but_deaths").error("it")
    assert "stage 'it', 01-launch ended its worker 4 times" in said
    (count,) = (engine.folder / "run").glob("stages/it-*/calls-*/01-launch.attempt")
    attempts.forget(Storage(str(count.parents[1])))  # as --retry crashed does
    assert not count.exists()


def deaths_with_their_machines(inputs, ctx, most=12):
    """More than a launch may have of its own, before its first checkpoint."""
    executor, launched, deaths = (
        ctx.calls.run.running.executor,
        ctx.calls.run.running.executor.launch,
        [],
    )

    def lost(*given):
        if len(deaths) < most:
            deaths.append(given)
            raise RankLostError("a rank of 1 died", "launch", "run again")
        return launched(*given)

    executor.launch = lost
    store(inputs.rows, ctx, lambda n: n * 0 + ctx.launch(one, 1)["one"])


def one(rank, task):
    return {"one": 1}


def deaths_without_end(inputs, ctx):
    deaths_with_their_machines(inputs, ctx, most=99)


def test_ranks_that_somebody_kills_again_and_again_end_their_run(program):
    said = program("deaths_without_end").error("it")
    assert "stage 'it', 01-launch was killed from outside 20 times, and got no further" in said
    assert program("deaths_with_their_machines").column("it", "value") == [1] * 31


def an_error_of_one_line(inputs, ctx):
    ctx.launch(divide, 1)


def divide(rank, task):
    return {"never": 1 / rank.rank}


def test_an_error_names_the_rank_and_the_line(program):
    said = program("an_error_of_one_line").error("it")
    assert "ZeroDivisionError: division by zero" in said
    assert "stage 'it', 01-launch, rank 0 of 1, test_launching.py:" in said
