"""On an object store too: checkpoints, and what is made once, which is copied within the store."""

import pytest

from clipmill.metadata.outputs import noted_outputs
from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.checkpoints import StoredCheckpoints
from clipmill.pipeline.engine.once import made_once

pytestmark = pytest.mark.soak
KEY = "0123456789abcdef"


def test_what_is_made_once_is_copied_to_the_next_and_made_again_where_it_is_damaged(
    bucket, tmp_path
):
    run, calls = Storage(bucket.uri("made")), []

    def make(put):
        calls.append(1)
        path = tmp_path / "scratch"
        path.write_text("weights")
        put("model", path)
        return {"loss": 0.5}

    def ask(stage: str) -> int:
        folder = run.child(stage)
        assert made_once(run, KEY, make, folder, "seed-1.") == {"loss": 0.5}
        assert folder.read("out/seed-1.model") == b"weights"
        assert noted_outputs(folder).keys() == {"seed-1.model"}
        return len(calls)

    assert [ask("first"), ask("second")] == [1, 1]
    (model,) = [e.name for e in run.entries(f"once/{KEY}", below=True) if e.name != "made.json"]
    run.put(f"once/{KEY}/{model}", b"weightx", point="rename")
    assert ask("third") == 2


def test_the_newest_whole_checkpoint_is_found(bucket, tmp_path):
    folder = Storage(bucket.uri("steps"))
    door = StoredCheckpoints(folder, "calls/checkpoints/it", tmp_path)
    for step in (9, 10):
        path = tmp_path / "state"
        path.write_text(f"at {step}")
        door.put(step, path)
    assert len(folder.entries("calls/checkpoints/it")) == 1
    folder.put(f"calls/checkpoints/it/{11:012d}-{'0' * 32}", b"torn", point="step")
    step, path = door.newest()
    assert (step, path.read_text()) == (10, "at 10")
