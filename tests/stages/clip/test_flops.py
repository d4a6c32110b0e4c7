"""Operations of a step, against a count by hand; no figure without a GPU."""

import torch

from clipmill.stages.clip.loop import Schedule, Trainer
from clipmill.stages.clip.training import flops_of_step, steps_at_most
from clipmill.stages.towers.nano import Nano
from tests.stages.clip.exported import TINY
from tests.stages.clip.tiny_vit import drawn

ROWS = 12
SCHEDULE = Schedule(
    steps=9, learning_rate=1e-3, warmup_steps=1, weight_decay=0.1, precision="float32"
)


def by_hand() -> int:
    """Of nano's networks: 2 * rows * inputs * outputs a position; the backward is twice that."""
    first, second = TINY.channels
    side = TINY.image_size // 2
    stem = side**2 * 3 * first * 16
    one = 2 * side**2 * first * first * 9
    two = (side // 2) ** 2 * (first * second * 9 + second * second * 9 + first * second)
    texts = TINY.bag_width * TINY.hidden + TINY.hidden * TINY.width
    forward = 2 * ROWS * (stem + one + two + second * TINY.width + texts)
    of_pixels = 2 * ROWS * stem  # have no gradient
    return 3 * forward - of_pixels


def test_operations_are_those_counted_by_hand_and_nothing_is_learnt():
    trainer = Trainer(Nano(TINY), SCHEDULE)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    assert flops_of_step(trainer, drawn(0, rows=ROWS)) == by_hand()
    assert all(torch.equal(before[name], v) for name, v in trainer.model.state_dict().items())
    assert all(weight.grad is None for weight in trainer.model.parameters())


def test_a_processor_has_no_figure():
    assert steps_at_most(Trainer(Nano(TINY), SCHEDULE), drawn(0, rows=ROWS)) is None
