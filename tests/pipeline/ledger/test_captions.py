"""Captions of a run: counts against a loop over the rows, and what `why` says of one."""

import json
from collections import Counter
from dataclasses import replace

import pytest

from clipmill.metadata.uid import uid_of
from clipmill.pipeline.ledger.answer import as_json
from clipmill.pipeline.ledger.rows.captions import EXAMPLES, captions
from clipmill.pipeline.ledger.selection.why import why
from clipmill.pipeline.terminal import harmless
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
