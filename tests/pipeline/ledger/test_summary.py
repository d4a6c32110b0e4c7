"""How a run ended: kept and lost, what may pass, what is empty."""

import json
from dataclasses import replace

import pytest

from clipmill.pipeline.ledger import summary as summaries
from clipmill.pipeline.ledger.selection.funnel import funnel
from clipmill.pipeline.ledger.summary import Passing, summary
from clipmill.pipeline.verbs._summary_page import text
from tests.engine_stages.harness import write_pool


def test_it_counts_what_the_funnel_counts(state):
    answer = summary(state, 1.5)
    ends = {end.stage: end for end in funnel(state).ends}
    assert ends.keys() <= {ending.stage for ending in answer.endings}
    for ending in answer.endings:
        end = ends[ending.stage]
        assert (ending.rows, ending.kept, ending.is_first) == (end.rows, end.kept, True)
        lost = {(lost.stage, lost.reason): lost.rows for lost in ending.lost}
        assert lost == {(cause.stage, cause.reason): cause.rows for cause in end.causes}
        assert [lost.rows for lost in ending.lost] == sorted(lost.values(), reverse=True)
    assert answer.exports == funnel(state).exports
    assert (answer.seconds, answer.stages, answer.empty) == (1.5, len(state.stages), ())
    assert (answer.passing, answer.set_aside, answer.never, answer.report) == ((), {}, (), None)


def test_rows_that_a_later_stage_failed_are_not_kept(moody, engine):
    many = "  many: {uses: select.where, from: numbers, where: number >= 10}\n"
    later = f"{{uses: toy.moody, from: numbers, only: many, script: {engine.folder}/mood.json}}\n"
    state = moody([5, 20, 30], f"{many}  later: {later}")
    [ending], [end] = summary(state).endings, funnel(state).ends
    assert (ending.kept, len(ending.lost)) == (end.kept, len(end.causes)) == (19, 2)


def test_of_a_large_pool_no_file_is_opened(state, monkeypatch):
    monkeypatch.setattr(summaries, "MOST_ROWS", 0)
    monkeypatch.setattr(summaries, "losses", None)
    for stored in state.stored.values():
        monkeypatch.setattr(type(stored), "read", None)
    for ending in summary(state).endings:
        assert not ending.is_first
        assert ending.kept + sum(lost.rows for lost in ending.lost) == ending.rows
        assert {lost.stage for lost in ending.lost} == {ending.stage}


def test_of_a_line_in_which_one_stage_alone_loses_rows_no_file_is_opened(engine, monkeypatch):
    few = "  few: {uses: select.where, from: numbers, where: number >= 30}\n"
    state = engine.run(few).outcome.state
    monkeypatch.setattr(summaries, "losses", None)
    [ending] = summary(state).endings
    assert (ending.kept, ending.is_first, [lost.rows for lost in ending.lost]) == (1, True, [30])


@pytest.fixture
def moody(engine):
    """Runs toy.moody over the pool of 31 rows, these of which time out, and more stages."""
    script = engine.folder / "mood.json"

    def run(timeout, more="", **options):
        script.write_text(json.dumps({"timeout": list(timeout)}))
        stages = f"  copy: {{uses: toy.moody, from: numbers, script: {script}}}\n{more}"
        return engine.run(stages, keep_going=True, **options).outcome.state

    return run


def test_without_a_select_the_last_stage_of_rows_tells(moody):
    twice = "  twice: {uses: toy.power, from: copy, read: {number: copy.copy}}\n"
    [ending] = summary(moody([5], twice)).endings
    assert (ending.stage, ending.rows, ending.kept) == ("twice", 31, 25)
    whole = summary(moody(range(31), out="none"))
    [ending] = whole.endings
    assert (ending.stage, ending.kept, whole.empty) == ("copy", 0, ("copy",))


def test_a_stage_beside_the_select_that_has_no_value_at_all_is_told(moody):
    few = "  few: {uses: select.where, from: numbers, where: number >= 30}\n"
    told = summary(moody(range(31), few)).endings
    assert [(ending.stage, ending.kept) for ending in told] == [("few", 1), ("copy", 0)]


def test_of_a_root_every_row_is_there_and_an_empty_pool_is_empty(engine):
    [ending] = summary(engine.run("").outcome.state).endings
    assert (ending.stage, ending.rows, ending.kept, ending.lost) == ("numbers", 31, 31, ())
    write_pool(engine.pool, [0, 0, 0])
    none = summary(engine.run("", out="none").outcome.state)
    assert none.empty == ("numbers",)


def test_what_may_pass_is_counted_as_it_is_after_a_retry(moody):
    [passing] = summary(moody([5, 6])).passing
    assert (passing.stage, passing.rows, passing.reasons) == ("copy", 31, {"timeout": 2})
    [passing] = summary(moody([5], retry=("timeout",)), retry=["timeout"]).passing
    assert passing.reasons == {"timeout": 1}
    done = summary(moody([], retry=("timeout",)), retry=["timeout", "refused", "crashed"])
    assert (done.passing, done.never) == ((), ("refused",))


def test_rows_are_tried_again_for_the_commonest_reason_first_and_never_before_a_setting(moody):
    reasons = {"unresolvable": 1, "refused": 149}
    answer = summary(moody([]))
    answer = replace(answer, passing=(Passing(stage="copy", rows=150, reasons=reasons),))
    again = "clipmill run it.yaml --out run"
    assert f"\n  {again} --retry refused --retry unresolvable\n" in text(answer, again, False)
    said = text(answer, again, False, ("--set copy.x=true",))
    assert f"next\n  {again} --set copy.x=true\n" in said
    assert "--retry" not in said


def test_while_a_stage_of_rows_is_not_complete_nothing_has_ended(moody, engine):
    moody([])
    (engine.folder / "mood.json").write_text(json.dumps({"raise": [20]}))
    more = f"  copy: {{uses: toy.moody, from: numbers, script: {engine.folder}/mood.json}}\n"
    answer = summary(engine.run(more, out="torn").outcome.state)
    assert (answer.endings, answer.empty, answer.set_aside) == ((), (), {"copy": 1})


def test_no_note_is_cut_however_long_it_is(moody):
    note = "expect these to be kept first, " * 20 + "99 of 100\nof them"
    answer = replace(summary(moody([])), notes={"copy": (note,)})
    assert f"notes\n  copy: {' '.join(note.split())}\n" in text(answer, "again", True)
