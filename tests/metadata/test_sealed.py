"""A value beside its digest."""

import json

import pytest

from clipmill.metadata.sealed import put_sealed, read_sealed
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
