"""Concepts: rules and reasons through the stage, languages, digests. Matching: test_substrings."""

import dataclasses
import json
import weakref

import pyarrow as pa
import pytest

from clipmill.metadata.concepts.load import concept_list, of_entries, save
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.stage import Worker
from clipmill.stages.annotate.concepts import Concepts

ENTRIES = ["dog", "The", "red dog", "U.S.", "中文", "the"]


@pytest.fixture
def listed(tmp_path):
    """Stores a list, and returns its path."""

    def listed(*parts: pa.Table) -> str:
        path = str(tmp_path / "concepts.parquet")
        save(concept_list(pa.concat_tables(parts or [of_entries(ENTRIES)])), path)
        return path

    return listed


@pytest.fixture
def worker(tmp_path):
    return Worker(seed=0, stage="matched", device="cpu", threads=1, scratch=tmp_path)


@pytest.fixture
def matched(listed, worker):
    def run(
        texts: list, languages: list | None = None, path: str | None = None, **settings
    ) -> dict:
        batch = pa.table({"text": pa.array(texts, pa.string())})
        if languages is not None:
            batch = batch.append_column("language", pa.array(languages, pa.string()))
        stage = Concepts(concepts=path or listed(), by_language=languages is not None, **settings)
        return stage.open(worker)(batch).to_pydict()

    return run


@pytest.mark.parametrize(
    ("rule", "ids"),
    [
        ("metaclip", [[0, 1, 2], None, None]),
        ("metaclip2", [[0, 1, 2], [4], None]),
        ("words", [[0, 1, 2], [4], [3]]),
    ],
)
def test_each_rule_finds_its_concepts_in_ascending_order(rule, ids, matched):
    out = matched(["The red dog, a dog.", "大中文字", "us (U.S. Army)"], rule=rule)
    assert out["concept_ids"] == ids


def test_undefined_captions_are_null_with_a_reason_and_spare_their_neighbours(matched):
    out = matched([None, "a dog", "", " \t\n", "nothing here", "dog"])
    assert out["concept_ids"] == [None, [0], None, None, None, [0]]
    assert out["reason"] == ["no_text", None, "empty_text", "empty_text", "no_concept", None]


def test_rows_with_concepts_carry_the_digest_of_the_list(matched):
    digest = concept_list(of_entries(ENTRIES)).digest
    assert matched(["dog", "cat"])["concept_list"] == [digest, None]


def test_a_list_with_repeats_and_blanks_is_matched_without_them(matched, tmp_path):
    (tmp_path / "metadata.json").write_text(json.dumps(["dog", "", "dog", "red dog"]))
    out = matched(["a red dog", "a  cat"], path=str(tmp_path / "metadata.json"))
    assert out["concept_ids"] == [[0, 1], None]


def test_a_caption_meets_the_concepts_of_its_language_only(matched, listed):
    english, german = of_entries(["gift", "die"], language="en"), of_entries(["gift"], "x", "de")
    path = listed(english, german)
    out = matched(["a gift"] * 4, ["en", "de", "fr", None], path=path)
    assert out["concept_ids"] == [[0], [2], None, None]
    assert out["reason"] == [None, None, "no_list", "no_language"]


def test_languages_in_any_order_give_every_row_its_own(matched, listed):
    parts = [of_entries([f"w{i}", "both"], language=name) for i, name in enumerate(("en", "de"))]
    texts, names = (
        ["both w0", "both w1", "w1", "w0", None, "both"],
        ["de", "en", "de", "en", "en", "de"],
    )
    out = matched(texts, names, path=listed(*parts))
    assert out["concept_ids"] == [[3], [1], [2], [0], None, [3]]


def test_another_list_than_the_digest_names_stops_the_stage(matched, listed):
    with pytest.raises(StageError) as error:
        matched(["dog"], digest="0" * 32)
    assert "key `digest`" in str(error.value)
    digest = concept_list(of_entries(ENTRIES)).digest
    assert matched(["dog"], digest=digest)["concept_ids"] == [[0]]


def test_the_list_is_pinned_at_first_use(listed, worker):
    pinned: dict[str, str] = {}
    worker = dataclasses.replace(worker, pin=pinned.setdefault)
    Concepts(concepts=listed()).open(worker)
    assert pinned == {"the concept list": concept_list(of_entries(ENTRIES)).digest}


@pytest.mark.parametrize("data", [None, "{}", '[""]'])
def test_no_list_or_a_bad_one_stops_the_stage_with_what_to_do(data, matched, tmp_path):
    if data is not None:
        (tmp_path / "bad.json").write_text(data)
    with pytest.raises(StageError, match="clipmill concepts build"):
        matched(["dog"], path=str(tmp_path / "bad.json"))


def test_a_caption_of_ten_megabytes_is_matched_like_any_other(matched):
    out = matched(["dog " * 2_500_000 + "The", "red dog"])
    assert out["concept_ids"] == [[0, 1], [0, 2]]


def test_finders_that_are_used_no_more_are_gone_without_a_search_for_garbage(listed, worker):
    function = Concepts(concepts=listed(), by_language=False).open(worker)
    function(pa.table({"text": ["a dog"]}))
    gone = weakref.ref(function.keywords["lists"])
    del function
    assert gone() is None
