"""Samples named by uid, link or caption: the nearest way counts, and several are listed."""

import json

import pytest

from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.ledger.rows import samples as named
from clipmill.pipeline.ledger.rows.samples import samples
from clipmill.pipeline.ledger.selection.why import whys
from tests import numbered

pytestmark = pytest.mark.usefixtures("own_stages")
MORE = [
    {"url": "http://b.test/Ü.jpg", "text": "Two red DOGS\nat sea", "a": 31},
    {"url": "http://b.test/2", "text": "two red dogs", "a": 32},
    {"url": "http://b.test/3", "text": "20190504", "a": 33},
    {"url": "http://b.test/4", "text": None, "a": 34},
    {"url": None, "text": "row 1 again", "a": 36},
    {"url": "http://b.test/6", "text": "a (b) [c]* %", "a": 37},
]
A_OF = {row["text"]: row["a"] for row in MORE}


@pytest.fixture(scope="module")
def state(own_stages, tmp_path_factory):
    folder = tmp_path_factory.mktemp("named")
    numbered.write_pool(folder, MORE)
    return numbered.run(folder, numbered.STAGES[: numbered.STAGES.index("first:")])


def a_of(state, word: str) -> int:
    (found,) = whys(state, [word])
    return found.stages[0].values["a"]


@pytest.mark.parametrize(
    ("word", "a"),
    [
        (numbered.uid(7), 7),
        (numbered.uid(7)[:8].upper(), 7),
        ("http://a.test/1", 1),  # though ten links begin so
        ("row 1", 1),
        ("two red dogs", 32),  # equal goes before the one that only begins so in small letters
        ("Two red DOGS\n", 31),
        ("AT SEA", 31),
        ("20190504", 33),  # what could be a uid, and is none
        ("http://b.test/ü", 31),
        ("b.test/4", 34),
        ("(b) [c]*", 37),
    ],
)
def test_a_sample_is_named_by_uid_link_or_caption(word, a, state):
    assert a_of(state, word) == a


def test_several_are_answered_in_the_order_asked_even_twice(state):
    words = ["row 3", numbered.uid(2), "row 3", "http://a.test/5"]
    assert [it.stages[0].values["a"] for it in whys(state, words)] == [3, 2, 3, 5]


def test_what_several_have_lists_them_and_how_many_rows_there_are(state):
    with pytest.raises(RecipeError, match="of 12 rows begins with 'ROW 1'") as error:
        samples(state, ["ROW 1"])
    assert str(error.value).count("\n    ") == named.MOST_LISTED + 1  # and that there are more
    with pytest.raises(RecipeError, match="of 2 rows holds 'red d'") as error:
        samples(state, ["red d"])
    assert "Two red DOGS at sea" in str(error.value)


@pytest.mark.parametrize("word", ["", " ", "ro", "no such caption", "0" * 32, "%", "é"])
def test_what_names_nothing_is_said(word, state):
    with pytest.raises(RecipeError, match="no sample has the uid, link or caption"):
        samples(state, [word])


def test_a_shard_without_rows_has_no_such_caption(own_stages, tmp_path):
    (tmp_path / "pool.jsonl").write_text("")
    state = numbered.run(tmp_path, numbered.STAGES[: numbered.STAGES.index("one:")])
    with pytest.raises(RecipeError, match="no sample has the uid, link or caption"):
        samples(state, ["row 1"])


def test_where_a_uid_is_given_no_text_is_read(state, monkeypatch):
    monkeypatch.setattr(named, "stored", None)
    assert len(samples(state, [numbered.uid(7), numbered.uid(9)])) == 2


def test_the_rows_of_a_union_count_once(own_stages, tmp_path):
    numbered.write_pool(tmp_path)
    (tmp_path / "more.jsonl").write_text(json.dumps({"url": "http://b", "text": "other", "a": 1}))
    more = f"more: {{uses: ingest.url_list, path: {tmp_path / 'more.jsonl'}}}\n"
    both = "both: {uses: ingest.union, from: [pool, more]}\n"
    pool = numbered.STAGES[: numbered.STAGES.index("one:")]
    state = numbered.run(tmp_path, pool + more + both)
    with pytest.raises(RecipeError, match="of 11 rows begins with 'ROW 1'"):
        samples(state, ["ROW 1"])
    assert [it.root for it in samples(state, ["other"])[0]] == ["more", "both"]


def test_the_command_takes_several_and_prints_the_verdict_first(clipmill, numbered_run):
    run = ("--run", numbered_run / "run")
    said = clipmill("why", "row 9", "http://a.test/6", *run)
    assert said.code == 0, said.err
    first, second, hint = said.out.split("\n\n")
    assert first.splitlines()[0].startswith(numbered.uid(9))
    assert first.splitlines()[1] == "kept by 'first'"
    assert "dropped by 'last': e <> 9; e is 9" in first
    assert "caption: row 6\nlink: http://a.test/6" in second
    assert "kept by 'last'" in second
    assert second.count("c 6 is 3 above 3; 'first' keeps > 3") == 1, "not of 'last' again"
    assert hint == "-v shows all that every stage stored\n"
    told = clipmill("why", "row 9", *run, "-v").out
    assert "late  probe.copy: fine" in told
    assert told.startswith(first)
    several = clipmill("why", "row 9", "row 6", *run, "--json").json
    assert [it["uid"] for it in several] == [numbered.uid(9), numbered.uid(6)]
    wrong = clipmill("why", "row", *run)
    assert wrong.code == 2
    assert "of 20 rows begins with 'row'" in wrong.err
