"""A value beside its digest."""

import json

import pytest

from clipmill.metadata.sealed import Sealed, put_sealed, read_sealed, read_sealed_as
from clipmill.metadata.storage import Storage


@pytest.fixture
def folder(tmp_path) -> Storage:
    return Storage(str(tmp_path))


def test_a_value_is_read_back_as_json_holds_it(folder):
    value = {"b": [1, None], "a": {10: float("inf"), 2: "x"}, "t": (1, 2)}
    put_sealed(folder, "it.json", value, point="journal")
    read = {"b": [1, None], "a": {"10": float("inf"), "2": "x"}, "t": [1, 2]}
    assert read_sealed(folder, "it.json") == read


def test_a_value_that_is_torn_or_changed_is_none(folder):
    assert read_sealed(folder, "it.json") is None
    put_sealed(folder, "it.json", {"rows": 10}, point="journal")
    whole = folder.read("it.json")
    changed = json.loads(whole) | {"value": {"rows": "10"}}
    for data in (whole[:-1], whole.replace(b"10", b"11"), json.dumps(changed).encode()):
        folder.put("it.json", data, point="journal")
        assert read_sealed(folder, "it.json") is None


def test_a_value_of_one_is_none_of_another(folder):
    put_sealed(folder, "it.json", {"rows": 10}, point="journal", of="unit 1")
    assert read_sealed(folder, "it.json", of="unit 1") == {"rows": 10}
    assert read_sealed(folder, "it.json", of="unit 2") is None
    assert read_sealed(folder, "it.json") is None


def test_an_object_of_a_kind_is_read_with_its_digest_and_without_one_as_older_versions_had_it(
    folder,
):
    value = Sealed("a", {"b": 1})
    put_sealed(folder, "it.json", vars(value), point="journal")
    assert read_sealed_as(folder, "it.json", Sealed) == value
    whole = folder.read("it.json")
    folder.put("it.json", json.dumps({"rows": 10}).encode(), point="journal")
    assert read_sealed_as(folder, "it.json", dict[str, int]) == {"rows": 10}
    assert read_sealed_as(folder, "it.json", Sealed) is None
    for data in (whole[:-1], whole.replace(b"1", b"2"), whole.replace(b"value", b"valuf")):
        folder.put("it.json", data, point="journal")
        assert read_sealed_as(folder, "it.json", Sealed) is None
