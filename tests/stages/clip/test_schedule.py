"""learning_rate: the corners, and open_clip's own formula between."""

import math
from types import SimpleNamespace

import pytest
from open_clip_train.scheduler import cosine_lr

from clipmill.stages.clip.loop import learning_rate


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 0.1), (4, 0.5), (9, 1.0), (10, 1.0), (60, 0.5), (85, (1 - math.sqrt(0.5)) / 2)],
    ids=["first", "halfway up", "peak", "cosine begins", "halfway down", "three quarters"],
)
def test_known_steps(step, rate):
    assert learning_rate(step, peak=1.0, warmup_steps=10, steps=110) == pytest.approx(rate)


def test_no_step_stands_still_and_the_way_down_is_only_down():
    rates = [learning_rate(step, peak=2e-3, warmup_steps=20, steps=235) for step in range(235)]
    assert min(rates) > 0
    assert rates[:20] == sorted(rates[:20])
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert max(rates) == 2e-3


def test_without_a_warm_up_the_peak_is_first():
    assert learning_rate(0, peak=3.0, warmup_steps=0, steps=5) == 3.0


@pytest.mark.parametrize(("warmup_steps", "steps"), [(500, 3_125), (20, 235), (500, 125)])
def test_every_step_is_that_of_open_clips_trainer(warmup_steps, steps):
    optimiser = SimpleNamespace(param_groups=[{}])
    theirs = cosine_lr(optimiser, 5e-4, warmup_steps, steps)
    ours = [learning_rate(n, peak=5e-4, warmup_steps=warmup_steps, steps=steps) for n in range(125)]
    assert ours == pytest.approx([theirs(n) for n in range(125)], rel=1e-12)
    last = learning_rate(steps - 1, peak=5e-4, warmup_steps=warmup_steps, steps=steps)
    assert last == pytest.approx(theirs(steps - 1), rel=1e-9)
