"""The learning rate of every step."""

import math


def learning_rate(step: int, *, peak: float, warmup_steps: int, steps: int) -> float:
    """Straight up to the peak, then half a cosine down; steps count from 0.

    Source: open_clip's `cosine_lr`: the first step has peak / warmup_steps, and no step has 0.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    done = (step - warmup_steps) / (steps - warmup_steps)
    return peak * (1 + math.cos(math.pi * done)) / 2
