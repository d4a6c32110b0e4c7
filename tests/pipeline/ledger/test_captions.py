"""Captions of a run: counts against a loop over the rows, and what `why` says of one."""

import json
from collections import Counter
from dataclasses import replace

import pytest

from clipmill.metadata.uid import uid_of
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.explore.session import Session
from clipmill.pipeline.ledger import summary as summaries
from clipmill.pipeline.ledger.answer import as_json
from clipmill.pipeline.ledger.rows.captions import EXAMPLES, captions
from clipmill.pipeline.ledger.selection.funnel import funnel
from clipmill.pipeline.ledger.selection.texts import StageTexts
from clipmill.pipeline.ledger.selection.why import why
from clipmill.pipeline.ledger.summary import summary
from clipmill.pipeline.notebook.run import Run
from clipmill.pipeline.report.build import report
from clipmill.pipeline.terminal import harmless
from clipmill.pipeline.verbs import _summary_page
from clipmill.pipeline.verbs import funnel as funnel_page
from clipmill.pipeline.verbs.why import text
from tests import numbered

pytestmark = pytest.mark.usefixtures("own_stages")
STAGES = """
pool:   {uses: ingest.url_list, path: none, extra: {a: int64}, shard_rows: 15}
stars:  {uses: probe.says, from: pool, said: ["star", "a drawing of *"]}
moons:  {uses: probe.says, from: pool, said: ["moon *"], label: short}
judged: {uses: probe.judged, from: [stars, moons], captions: [stars.captions, moons.captions]}
best:   {uses: probe.chosen, from: judged, min_words: 3}
"""
# Of one caption no star is got, of another not the last; rows below 30 are kept.
FAILS = STAGES.replace("stars:  {", "stars:  {mute: 11th, hoarse: 12th, ") + (
    "few:    {uses: select.where, from: best, where: a < 30}\n"
)


def texts_of_row(row: int) -> list[tuple[str, str]]:
    """Source and text; every fifth row has a caption of one word, every seventh none."""
    if row % 7 == 0:
        return []
    own = "word" if row % 5 == 0 else f"the {row}th"
    made = [("stars", "star"), ("stars", f"a drawing of {own}"), ("moons", f"moon {own}")]
    return [("original", own), *made]


ROWS = range(40)


@pytest.fixture(scope="module")
def state(own_stages, tmp_path_factory):
    return ran(tmp_path_factory.mktemp("captions"), STAGES)


def ran(folder, text: str):
    rows = [
        {"url": f"http://a.test/{row}", "text": dict(texts_of_row(row)).get("original"), "a": row}
        for row in ROWS
    ]
    (folder / "pool.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return numbered.run(folder, text)


def uid(row: int) -> str:
    return uid_of(f"http://a.test/{row}", dict(texts_of_row(row)).get("original") or "").hex()


def test_counts_are_those_of_a_loop_over_the_rows(state):
    (found,) = captions(state)
    every, kept = Counter(), Counter()
    for row in ROWS:
        for source, said in texts_of_row(row):
            every[source] += 1
            kept[source] += len(said.split()) >= 3
    gone = {source: every[source] - kept[source] for source in every}
    assert (found.stage, found.chosen_by) == ("judged", "best")
    assert found.texts == every
    assert list(found.texts) == ["original", "moons", "stars"]
    assert found.kept == kept
    assert found.reasons == {"min_words": gone}
    assert found.rows == sum(bool(texts_of_row(row)) for row in ROWS)
    assert found.fell_back == 0


def test_examples_are_rows_with_their_texts_and_no_more_than_twenty(state):
    (found,) = captions(state)
    assert len(found.examples) == EXAMPLES
    assert len({example.place for example in found.examples}) == EXAMPLES
    for example in found.examples:
        shard, position = example.place
        row = 15 * shard + position
        texts = example.texts.texts
        assert [(it.source, it.text) for it in texts] == texts_of_row(row)
        for it in texts:
            words = len(it.text.split())
            assert it.values["text_words"] == words
            assert it.values["text_clip_score"] == pytest.approx(len(it.text) / 100)
            assert it.reason == (None if words >= 3 else "min_words")


def test_rows_that_fell_back_are_counted(own_stages, tmp_path):
    state = ran(tmp_path, STAGES.replace("min_words: 3", "min_words: 9"))
    (found,) = captions(state)
    assert found.fell_back == found.rows
    assert found.kept == {"original": found.rows, "moons": 0, "stars": 0}


def test_without_a_select_each_stage_has_its_own_list(own_stages, tmp_path):
    text_of = "\n".join(STAGES.splitlines()[:4])
    found = captions(ran(tmp_path, text_of))
    assert [(it.stage, it.chosen_by, it.fell_back) for it in found] == [
        ("stars", None, None),
        ("moons", None, None),
    ]
    assert found[0].texts == {"stars": 2 * found[0].rows}


def test_why_shows_each_caption_with_its_source_its_values_and_its_verdict(state):
    place = why(state, uid(5))
    (texts,) = place.captions
    assert [it.reason for it in texts.texts] == ["min_words", "min_words", None, "min_words"]
    said = text(place, True).splitlines()
    at = said.index("captions of 'judged', chosen by 'best'")
    assert said[at + 1 :] == [
        " 1  original; left out: min_words",
        "      word",
        "      words 1, clip_score 0.04",
        " 2  stars, rewrite, by none, with said@00000000; left out: min_words",
        "      star",
        "      words 1, clip_score 0.04",
        " 3  stars, rewrite, by none, with said@00000001; kept",
        "      a drawing of word",
        "      words 4, clip_score 0.17",
        " 4  moons, short, by none, with said@00000000; left out: min_words",
        "      moon word",
        "      words 2, clip_score 0.09",
    ]
    assert not [line for line in said[:at] if "{" in line], "no list is printed raw"


def test_a_row_without_a_text_has_no_captions(state):
    assert why(state, uid(7)).captions == ()


def test_a_hostile_caption_takes_no_more_than_its_lines(state):
    place = why(state, uid(5))
    (texts,) = place.captions
    bad = replace(texts.texts[0], text="\x1b[2Jcaptions of 'x'\n 1  kept\r" + "w" * 100_000)
    hostile = replace(place, captions=(replace(texts, texts=(bad,)),))
    lines = text(hostile, True).splitlines()
    block = lines[lines.index("captions of 'judged', chosen by 'best'") :]
    assert max(map(len, block)) <= 80
    assert len(block) < 12
    assert harmless("\n".join(block)).count("\\u001b") == 1
    assert as_json(hostile)["captions"][0]["texts"][0]["text"] == bad.text


def by_hand() -> dict[str, StageTexts]:
    """The texts of each stage of FAILS, from a loop over the rows."""
    every = {name: Counter() for name in ("stars", "moons", "judged", "best", "few")}
    lost: dict[str, dict[str, Counter]] = {name: {} for name in every}

    def lose(stage: str, source: str, reason: str) -> None:
        every[stage][source] += 1
        lost[stage].setdefault(reason, Counter())[source] += 1

    for row in ROWS:
        for source, said in texts_of_row(row):
            if row == 11 and source == "stars":
                lose("stars", source, "timeout")
            elif row == 12 and said.startswith("a drawing"):
                lose("stars", source, "missing")
            else:
                stages = [source] if source != "original" else []
                for stage in (*stages, "judged"):
                    every[stage][source] += 1
                if len(said.split()) < 3:
                    lose("best", source, "min_words")
                else:
                    every["best"][source] += 1
                    if row < 30:
                        every["few"][source] += 1
                    else:
                        lose("few", source, "with their row")
    return {
        stage: StageTexts(
            stage=stage,
            texts=dict(texts),
            kept={
                source: count - sum(gone[source] for gone in lost[stage].values())
                for source, count in texts.items()
            },
            lost={
                reason: {source: counts[source] for source in texts}
                for reason, counts in lost[stage].items()
            },
        )
        for stage, texts in every.items()
    }


@pytest.fixture(scope="module")
def fails(own_stages, tmp_path_factory):
    return ran(tmp_path_factory.mktemp("fails"), FAILS)


def test_texts_are_counted_at_each_stage_like_rows_and_add_up(fails):
    found = funnel(fails).texts
    assert {texts.stage: texts for texts in found} == by_hand()
    for texts in found:
        for source, count in texts.texts.items():
            gone = sum(counts[source] for counts in texts.lost.values())
            assert texts.kept[source] + gone == count > 0
    assert summary(fails).texts == found


def test_the_last_lines_of_a_run_say_how_many_texts_stay_and_why_the_others_went(fails):
    page = _summary_page.text(summary(fails), "clipmill run it.yaml --out run", True)
    before, _, after = page.partition("\ntexts\n")
    assert "rows kept by 'few'" in before
    assert after.splitlines()[:3] == [
        "  65 of 68 texts made by 'stars'; gone: 2 by timeout, 1 missing",
        "  60 of 133 texts of the pool, 'moons', 'stars' stay in 'best'; gone: 73 by min_words",
        "  43 of 60 texts of 'moons', 'stars' stay in 'few'; gone: 17 with their row",
    ]


def test_the_texts_of_a_large_pool_are_counted_too_at_a_runs_end(fails, monkeypatch):
    few = summary(fails).texts
    monkeypatch.setattr(summaries, "MOST_ROWS", 0)
    assert summary(fails).texts == few
    assert "texts\n  65 of 68 texts" in _summary_page.text(summary(fails), "again", True)
    assert not Session(str(fails.run), fails.run.path + "/new.yaml").facts()["texts"]


def test_funnel_report_explorer_notebook_and_why_tell_of_texts(fails):
    said = "43 of 60 texts of 'moons', 'stars' stay in 'few'; gone: 17 with their row"
    lines = funnel_page.text(funnel(fails), {"pool"}).splitlines()
    at = lines.index("       133 100.0%  texts of 'best'")
    assert lines[at + 1 : at + 3] == [
        "       -73  54.9%  min_words",
        "        60  45.1%  stay: 0 of 34 original, 28 of 34 moons, 32 of 65 stars",
    ]
    run = str(fails.run)
    escaped = said.replace("'", "&#39;")
    assert f'<p class="headline">{escaped}.</p>' in report(fails)
    assert said in Session(run, fails.run.path + "/new.yaml").facts()["texts"]
    assert escaped in Run(run).funnel()._repr_html_()
    lines = text(why(fails, uid(5))).splitlines()
    left = "original by min_words, stars by min_words, moons by min_words"
    assert f"texts: 1 of 4 stay in 'best'; left out: {left}" in lines


def test_a_run_whose_texts_do_not_add_up_fails(own_stages, tmp_path):
    state = ran(tmp_path, STAGES.replace("min_words: 3", "min_words: 1, forgets: true"))
    with pytest.raises(StageError, match="48 of 48 texts have no reason to go, and 36 are stored"):
        summary(state)
    with pytest.raises(StageError, match="stage 'best', shard 0"):
        funnel(state)


def test_texts_that_a_select_takes_from_lists_and_cuts_are_counted_with_its_numbers(
    own_stages, tmp_path
):
    ends = """
lists:  {uses: select.captions, from: [stars, moons], captions: [stars.captions, moons.captions],
         where: words >= 3}
cut:    {uses: select.captions, from: judged, checks: false, cuts: {short: 0.15, stars: 0.05}}
"""
    found = {it.stage: it for it in funnel(ran(tmp_path, STAGES + ends)).texts}
    assert found["lists"].kept == found["best"].kept
    assert found["lists"].texts == found["best"].texts
    assert found["cut"].lost.keys() == {"short < 0.15", "stars < 0.05"}
