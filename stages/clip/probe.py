"""Measures a step's cost on this machine by a few steps on noise; for estimates only."""

import time
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
import torch

from clipmill.stages.clip.distributed import ALONE
from clipmill.stages.clip.loader import Batch
from clipmill.stages.clip.training import trainer_of

# Shapes: B rows of a batch, S pixels a side.

TEXT = "a drawing of a small red house beside a tree"
MOST_PIXELS = 400_000  # of a probe's batch: 64 rows of nano's, 7 of 224 pixels a side
STEPS = 5  # the first one, which allocates memory, does not count


def probed(settings: Any) -> tuple[float, float]:
    """Returns seconds per row of a training step, and seconds of embedding one picture.

    Error: on one core, no decoding, no loader, no other process; assumes that all steps cost the
    same, and CLIP's loss.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _probed(replace(settings, loss="clip", loss_settings=None, compile=False))
    finally:
        torch.set_num_threads(before)


def _probed(settings: Any) -> tuple[float, float]:
    trainer = trainer_of(settings, 0, "cpu", ALONE)
    model = trainer.model
    side = model.image_size
    rows = max(2, min(64, settings.batch_size, MOST_PIXELS // side**2))
    noise = np.random.default_rng(0).integers(0, 256, (rows, 3, side, side), np.uint8)
    tokens, starts = model.tokenize([TEXT] * rows)
    each = np.arange(rows)
    batch = Batch(
        pixels=noise,
        tokens=tokens,
        starts=starts[:-1],
        image_of=each,
        weights=np.ones(rows, np.float32),
        rows=each,
        index=each,
    )
    steps = []
    for _ in range(STEPS):
        began = time.perf_counter()
        trainer.learn(batch)
        steps.append(time.perf_counter() - began)
    model.eval()
    began = time.perf_counter()
    with torch.inference_mode():
        model.embed_images(torch.from_numpy(noise))  # as evaluation does, in float32
    return median(steps[1:]) / rows, (time.perf_counter() - began) / rows
