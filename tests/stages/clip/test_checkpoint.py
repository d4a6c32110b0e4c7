"""Checkpoints of a training: which of them an interrupted one goes on from."""

from stages.clip.checkpoint import Checkpoints
from stages.clip.loop import Schedule, Trainer
from stages.clip.towers import new_model


def test_checkpoints_of_other_inputs_dont_count_and_the_newest_of_ours_does(tmp_path):
    schedule = Schedule(
        steps=9, learning_rate=1e-3, warmup_steps=1, weight_decay=0.1, precision="float32"
    )

    def at(step):
        trainer = Trainer(new_model("tiny", 0), schedule)
        trainer.losses, trainer.scales = [0.0] * step, [1.0] * step
        return trainer

    def restored(inputs):
        Checkpoints(str(tmp_path), inputs).restore(trainer := at(0))
        return trainer.step

    assert restored("ours") == 0
    Checkpoints(str(tmp_path), "theirs").store(at(8))
    assert restored("ours") == 0
    for step in (2, 4):
        Checkpoints(str(tmp_path), "ours").store(at(step))
    newest, _theirs = sorted((tmp_path / "checkpoints").iterdir())
    assert restored("ours") == 4
    held = newest.read_bytes()
    Checkpoints(str(tmp_path), "ours").store(at(2))
    newest.write_bytes(held)  # two, as where a kill came before the older one went
    assert restored("ours") == 4
    for torn in (b"", held[:5], held[:-1], b"{}"):
        newest.write_bytes(torn)
        assert restored("ours") == 2
