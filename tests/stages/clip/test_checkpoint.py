"""Checkpoints of a training: which of them an interrupted one goes on from."""

from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.checkpoints import StoredCheckpoints
from clipmill.stages.clip.loop import Schedule, Trainer
from clipmill.stages.clip.named import new_model
from clipmill.stages.clip.saving import restore, store


def test_a_training_goes_on_from_its_newest_whole_state(tmp_path):
    schedule = Schedule(
        steps=9, learning_rate=1e-3, warmup_steps=1, weight_decay=0.1, precision="float32"
    )
    checkpoints = StoredCheckpoints(Storage(str(tmp_path)), "checkpoints", tmp_path)

    def at(step):
        trainer = Trainer(new_model("tiny", 0), schedule)
        trainer.losses, trainer.scales = [0.0] * step, [1.0] * step
        return trainer

    def restored():
        restore(trainer := at(0), checkpoints)
        return trainer.step

    assert restored() == 0
    for step in (2, 4):
        store(at(step), checkpoints, tmp_path)
    (newest,) = (tmp_path / "checkpoints").iterdir()
    assert restored() == 4
    held = newest.read_bytes()
    for torn in (b"", held[:5], held[:-1], b"{}"):
        newest.write_bytes(torn)
        assert restored() == 0
