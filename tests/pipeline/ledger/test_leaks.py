"""Leaked rows: the limits that tell something, and rows under the task they are nearest to."""

from clipmill.pipeline.ledger.findings import leaks as module
from clipmill.pipeline.ledger.findings.leaks import LIMITS, SHOWN, TaskCounts, leaks, limits
from clipmill.pipeline.ledger.rows.near import Cut
from clipmill.pipeline.ledger.rows.stored import rows_at
from tests.drawn import HOSTILE, ROWS, caption


def test_rows_are_counted_at_the_strictest_limits_up_to_one_past_the_cut():
    counts = {"at": [0, 1, 2, 3], "tasks": {"a": {"samples": 5, "rows": [1, 2, 3, 9]}}}
    at, tasks = limits(counts, Cut("d", "<=", 1), {"a": 2, "b": 7})
    assert at == (0, 1, 2)
    assert tasks == (TaskCounts(task="a", samples=5, too_short=0, nearest=2, within=(1, 2, 3)),)
    counts = {"at": [0.5, 0.9, 1.0], "tasks": {"a": {"samples": 5, "rows": [9, 4, 1]}}}
    at, (task,) = limits(counts, Cut("c", ">=", 0.9), {})
    assert (at, task.within) == ((1.0, 0.9, 0.5), (1, 4, 9))
    many = {"at": list(range(20)), "tasks": {"a": {"samples": 5, "rows": list(range(20))}}}
    at, _ = limits(many, Cut("d", "<=", 99), {})
    assert at == tuple(range(20))[-LIMITS:]


def test_a_limit_that_adds_no_row_is_left_out_but_for_the_last_at_the_cut():
    def at(number: float, **rows: list[int]) -> list[int]:
        tasks = {task: {"samples": 5, "rows": within} for task, within in rows.items()}
        shown, _ = limits({"at": [0, 1, 2, 3, 4], "tasks": tasks}, Cut("d", "<=", number), {})
        return list(shown)

    even = [1, 1, 4, 4, 6]
    assert at(2, a=even) == [0, 2, 4]
    assert at(3, a=even) == [0, 2, 3, 4]
    assert at(0, a=even) == [0, 2]
    assert at(2, a=even, b=[0, 1, 1, 1, 1]) == [0, 1, 2, 4]
    assert at(2, a=[0] * 5) == [0, 2, 4]
    assert at(-1, a=even) == [0]


def test_leaked_rows_stand_under_the_task_of_their_nearest_sample(state):
    (found,) = leaks(state)
    assert found.cut == Cut("eval_overlap", ">=", 1)  # no select has one
    tales = [row for row in range(ROWS) if caption(row) == HOSTILE]
    assert found.reached == len(tales) + 2
    assert found.at == (1.0, 0.1)  # no row has a part of a caption, so no limit adds one
    within = (len(tales),) * 2
    assert found.tasks == (
        TaskCounts(task="tales", samples=1, too_short=0, nearest=len(tales), within=within),
        TaskCounts(task="numbers", samples=3, too_short=1, nearest=2, within=(2, 2)),
    )
    counts = {of.task: (of.rows, len(of.places)) for of in found.shown}
    assert counts == {"tales": (len(tales), SHOWN), "numbers": (2, 2)}
    (numbers,) = (of for of in found.shown if of.task == "numbers")
    bound = {"text": ("pool", "text"), "key": (found.stage, found.sample)}
    assert rows_at(state, bound, numbers.places) == [
        {"text": "drawing number 7", "key": "n/7"},
        {"text": "drawing number 18", "key": "n/18"},
    ]


def test_of_very_many_leaked_rows_some_of_each_task_are_held_and_all_are_counted(
    state, monkeypatch
):
    (whole,) = leaks(state)
    monkeypatch.setattr(module, "SHARDS", 2)
    assert leaks(state) == [whole]
    monkeypatch.setattr(module, "OF_TASK", 2)
    (found,) = leaks(state)
    assert (found.reached, found.tasks) == (whole.reached, whole.tasks)
    for few, many in zip(found.shown, whole.shown, strict=True):
        assert (few.task, few.rows) == (many.task, many.rows)
        assert len(few.places) == 2
    assert found.shown[1].places == whole.shown[1].places
    root = state.plan.stages[found.stage].root
    (text,) = {
        row["text"] for row in rows_at(state, {"text": (root, "text")}, found.shown[0].places)
    }
    assert text == HOSTILE
