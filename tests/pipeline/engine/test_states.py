"""States in storage: the same bytes for the same arrays, and none where they are torn."""

import numpy as np
import pytest

from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.states import put_state, read_state


def test_a_state_is_stored_to_the_same_bytes_and_read_back(tmp_path):
    folder, again = Storage(str(tmp_path / "one")), Storage(str(tmp_path / "again"))
    state = {"b": np.arange(3), "a": np.float32(1.5), "file": np.arange(2)}  # savez has no "file"
    put_state(folder, "it", state, point="step")
    put_state(again, "it", dict(reversed(state.items())), point="step")
    assert folder.read("it") == again.read("it")
    back = read_state(folder, "it")
    assert back["a"] == state["a"]
    assert (back["b"].tolist(), back["file"].tolist()) == ([0, 1, 2], [0, 1])


def test_a_state_holds_no_pickle(tmp_path):
    with pytest.raises(ValueError, match="allow_pickle"):
        put_state(Storage(str(tmp_path)), "it", {"a": np.array([object()])}, point="step")


def test_the_state_of_another_step_is_none(tmp_path):
    folder = Storage(str(tmp_path))
    put_state(folder, "2.npz", {"a": np.arange(3)}, point="step")
    folder.put("1.npz", folder.read("2.npz"), point="step")
    assert read_state(folder, "1.npz") is None
    assert read_state(folder, "2.npz") is not None


def test_a_state_that_is_torn_or_something_else_is_none(tmp_path):
    folder = Storage(str(tmp_path))
    put_state(folder, "it", {"a": np.arange(40), "b": np.float32(1.5)}, point="step")
    whole = folder.read("it")
    for cut in range(0, len(whole), 7):
        folder.put("it", whole[:cut], point="step")
        assert read_state(folder, "it") is None
    for data in (b"{}", b"[1]", b"null", b'"x"'):
        folder.put("it", data, point="step")
        assert read_state(folder, "it") is None
