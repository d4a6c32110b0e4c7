"""Operations of a step, against a count by hand; no figure without a GPU."""

from types import SimpleNamespace

import pytest
import torch

from clipmill.stages.clip import training
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


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40", None),
        ("NVIDIA RTX A1000", None),
    ],
)
def test_a_card_has_the_peak_of_its_own_name(monkeypatch, name, peak):
    monkeypatch.setattr(training, "flops_of_step", lambda trainer, batch: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    on_gpu = SimpleNamespace(device="cuda:0"), SimpleNamespace(precision="bf16")
    trainer = SimpleNamespace(execution=on_gpu[0], schedule=on_gpu[1])
    assert steps_at_most(trainer, drawn(0, rows=2)) == peak
