"""Launches whose ranks die: all begin again, go on from their checkpoints, and are given up."""

import os
import signal

import pytest

from metadata.storage import Storage
from pipeline.engine import attempts
from tests.pipeline.engine.test_context import store


@pytest.fixture
def program(engine):
    """Runs one of the functions below as a dataset stage."""

    def run(function):
        name = f"{__name__}:{function}"
        return engine.run(f"  it: {{uses: toy.program, from: numbers, function: '{name}'}}\n")

    return run


def steps_of_a_rank_that_dies(inputs, ctx):
    result = ctx.launch(one_step_a_life, 1)
    store(inputs.rows, ctx, lambda n: n * 0 + result["steps"])


def one_step_a_life(rank, task):
    """Dies after each of its first five steps: more often than a launch that gets nowhere may."""
    checkpoints = task.checkpoints("it")
    step, path = checkpoints.newest() or (0, None)
    assert step == 0 or path.read_text() == f"at {step}"
    if step == 5:
        return {"steps": step}
    state = task.worker.scratch / "state"
    state.write_text(f"at {step + 1}")
    checkpoints.put(step + 1, state)
    os.kill(os.getpid(), signal.SIGKILL)


def test_ranks_begin_again_from_their_checkpoint_which_goes_with_the_stage(program, engine):
    ran = program("steps_of_a_rank_that_dies")
    assert ran.column("it", "value") == [5] * 31
    (stage,) = (engine.folder / "run/stages").glob("it-*")
    assert [path.name for path in stage.iterdir() if path.is_dir()] == []


def nothing_but_deaths(inputs, ctx):
    ctx.launch(die, 1)


def die(rank, task):
    os.kill(os.getpid(), signal.SIGKILL)


def test_ranks_that_die_four_times_stop_their_stage_until_it_is_told_to_try_again(program, engine):
    said = program("nothing_but_deaths").error("it")
    assert "stage 'it', 01-launch ended its worker 4 times" in said
    (count,) = (engine.folder / "run").glob("stages/it-*/calls-*/01-launch.attempt")
    attempts.forget(Storage(str(count.parents[1])))  # as --retry crashed does
    assert not count.exists()


def an_error_of_one_line(inputs, ctx):
    ctx.launch(divide, 1)


def divide(rank, task):
    return {"never": 1 / rank.rank}


def test_an_error_names_the_rank_and_the_line(program):
    said = program("an_error_of_one_line").error("it")
    assert "ZeroDivisionError: division by zero" in said
    assert "stage 'it', 01-launch, rank 0 of 1, test_launching.py:" in said
