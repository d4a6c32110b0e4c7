"""`clipmill concepts`: a list built from each source, and what is shown of one."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.metadata.concepts.load import load

ALL = ("--corpus", "few.txt", "--min-unigram-count", "1")
WORDNET = b"00001740 03 n 02 %s 0 thing 0 000 | it\n"


@pytest.fixture
def sources(tmp_path):
    """A folder with WordNet's files, captions and page views."""
    folder = tmp_path / "wordnet"
    folder.mkdir()
    for name, word in (("noun", b"Dog"), ("verb", b"run"), ("adj", b"red(a)"), ("adv", b"U.S.")):
        (folder / f"data.{name}").write_bytes(WORDNET % word)
    pq.write_table(pa.table({"text": ["a red fox"] * 3 + ["a blue fox"]}), tmp_path / "0.parquet")
    (tmp_path / "views").write_text("en Big_Ben 90 0\nde Berlin 80 0\n")
    return tmp_path


def test_a_list_is_built_from_all_its_sources(clipmill, sources):
    said = clipmill(
        *("concepts", "build", sources / "it.parquet", "--language", "en"),
        *("--wordnet", sources / "wordnet", "--corpus", sources / "0.parquet"),
        *("--titles", sources / "views", "--min-unigram-count", 3),
        *("--min-bigram-count", 3, "--min-pmi", 0.5),
    )
    assert said.code == 0, said.err
    made = load(str(sources / "it.parquet"))
    assert made.entries.to_pylist()[100:] == [
        *("dog", "red", "run", "u", "a", "fox", "a red", "red fox", "Big Ben")
    ]
    assert made.digest in said.out
    assert "109 entries" in said.out
    assert "numeral 100, wordnet 4" in said.out


def test_a_second_language_is_built_upon_a_first(clipmill, sources):
    first, both = sources / "en.parquet", sources / "both.parquet"
    english = ("concepts", "build", first, "--language", "en", "--wordnet", sources / "wordnet")
    assert clipmill(*english).code == 0
    titles = ("--titles", sources / "views", "--project", "de", "--language", "de")
    assert clipmill("concepts", "build", both, "--list", first, *titles).code == 0
    shown = clipmill("concepts", "show", both, "--json").json
    assert dict(map(tuple, shown["languages"])) == {"en": 104, "de": 101}
    assert shown["highest"] == [["Berlin", 80]]


def test_the_published_list_is_shown_with_what_its_rule_never_matches(clipmill, tmp_path):
    entries = ["dog", "U.S.", "3,5", "a , b", ",", "tab\tstop"]
    (tmp_path / "metadata.json").write_text(json.dumps(entries))
    said = clipmill("concepts", "show", tmp_path / "metadata.json")
    assert said.code == 0
    assert "6 entries" in said.out
    assert "3 can match by the rule `words` only" in said.out


def test_what_a_list_holds_for_nothing_is_shown(clipmill, tmp_path):
    (tmp_path / "metadata.json").write_text(json.dumps(["dog", "", "dog", "cat", "dog"]))
    said = clipmill("concepts", "show", tmp_path / "metadata.json")
    assert said.code == 0
    assert "2 entries" in said.out
    assert "blank 1, repeated 2" in said.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("show", "bad.json"), "no entry"),
        (("build", "it.parquet", "--list", "bad.json"), "no entry"),
        (("build", "it.parquet", "--list", "."), "name a file"),
        (("build", "it.parquet", "--wordnet", "nowhere"), "nowhere"),
        (("build", "it.parquet", "--corpus", "few.txt"), "gave no entry"),
        (("build", "it.parquet", *ALL, "--max-entries", "-1"), "--max-entries -1"),
    ],
)
def test_what_cannot_be_read_is_named_and_nothing_is_written(
    arguments, said, clipmill, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.json").write_text('[""]')
    (tmp_path / "few.txt").write_text("a word or two")
    answer = clipmill("concepts", *arguments)
    assert answer.code == 2
    assert said in answer.err
    assert not (tmp_path / "it.parquet").exists()
