"""Concept lists: what is stored and read back, which are refused, what the digest names."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.metadata.concepts.load import (
    MAX_ENTRY_CHARS,
    SCHEMA,
    ConceptListError,
    concept_list,
    load,
    of_entries,
    save,
)


def listed(*entries, language=None):
    return concept_list(of_entries(list(entries), language=language))


def test_a_stored_list_is_the_same_when_read(tmp_path):
    whole = pa.concat_tables(
        [of_entries(["dog", "a dog"], "wordnet"), of_entries(["Hund", "dog"], "unigram", "de")]
    )
    made = concept_list(whole)
    save(made, str(tmp_path / "it.parquet"))
    read = load(str(tmp_path / "it.parquet"))
    assert read.digest == made.digest
    assert read.table.to_pylist() == made.table.to_pylist()
    assert read.table.schema.names == SCHEMA.names


def test_the_published_json_is_read_in_its_order(tmp_path):
    (tmp_path / "metadata.json").write_text(json.dumps(["dog", "U.S.", "中文"]))
    read = load(str(tmp_path / "metadata.json"))
    assert read.entries.to_pylist() == ["dog", "U.S.", "中文"]
    assert read.digest == listed("dog", "U.S.", "中文").digest


def test_the_digest_names_entries_languages_and_order_and_nothing_else():
    same = concept_list(of_entries(["a", "bc"], "wordnet"))
    assert listed("a", "bc").digest == same.digest
    others = [listed("bc", "a"), listed("ab", "c"), listed("a", "bc", "d"), listed("a")]
    others += [listed("a", "bc", language="en"), listed("a", "bc", language="")]
    digests = [other.digest for other in others]
    assert len({*digests, same.digest}) == len(digests) + 1


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([], "no entry"),
        (["", " ", None], "no entry"),
        (["", "x" * (MAX_ENTRY_CHARS + 1)], "longer than 1,024 characters: number 1 'xxx"),
        (["x" * 10_000_000], "longer than"),
    ],
    ids=["none", "all blank", "long", "10 MB"],
)
def test_entries_that_cannot_be_matched_are_refused_by_number(entries, said):
    with pytest.raises(ConceptListError) as error:
        listed(*entries)
    assert said in str(error.value)
    assert len(str(error.value)) < 300


def test_blank_and_repeated_entries_are_dropped_and_counted(tmp_path):
    """MetaCLIP's automaton finds a repeated entry by one id only; here it is the first."""
    entries = ["b", "", "a", "b", " \t", "b", "B"]
    (tmp_path / "metadata.json").write_text(json.dumps(entries))
    read = load(str(tmp_path / "metadata.json"))
    assert read.entries.to_pylist() == ["b", "a", "B"]
    assert read.dropped == {"blank": 2, "repeated": 2}
    clean = listed("b", "a", "B")
    assert (clean.dropped, clean.digest) == ({}, read.digest)
    assert listed("a", None).dropped == {"blank": 1}


def test_one_entry_may_stand_in_two_languages():
    both = pa.concat_tables([of_entries(["Gift"], language="en"), of_entries(["Gift"], "x", "de")])
    found = {name: ids.to_pylist() for name, ids in concept_list(both).by_language()}
    assert found == {"en": [0], "de": [1]}


def test_languages_keep_their_ids_in_order():
    parts = [of_entries(["a"], language="en"), of_entries(["b"]), of_entries(["c"], language="en")]
    found = {
        name: ids.to_pylist() for name, ids in concept_list(pa.concat_tables(parts)).by_language()
    }
    assert found == {None: [1], "en": [0, 2]}


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"[1]", b"7", b"PAR1 and no more", b"\xff\xfe", b"[" * 100_000, b'["\\ud800"]'],
)
def test_a_file_that_is_no_list_is_refused_by_name(data, tmp_path):
    (tmp_path / "it").write_bytes(data)
    with pytest.raises(ConceptListError, match="it: "):
        load(str(tmp_path / "it"))


def test_a_parquet_without_the_columns_is_refused(tmp_path):
    pq.write_table(pa.table({"entry": ["a"]}), tmp_path / "it.parquet")
    with pytest.raises(ConceptListError, match="source"):
        load(str(tmp_path / "it.parquet"))


def test_entries_changed_under_a_digest_are_refused(tmp_path):
    save(listed("a", "b"), str(tmp_path / "it.parquet"))
    table = pq.read_table(tmp_path / "it.parquet")
    pq.write_table(table.slice(1), tmp_path / "it.parquet")  # which keeps the digest in the schema
    with pytest.raises(ConceptListError, match="not those of its digest"):
        load(str(tmp_path / "it.parquet"))


def test_a_list_that_is_not_there_says_so(tmp_path):
    with pytest.raises(FileNotFoundError):
        load(str(tmp_path / "it.parquet"))
