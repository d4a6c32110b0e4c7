"""A training step of the nano scale against a plain torch loop: what bf16 and layout are worth.

    python -m tests.benchmarks.nano_step

Plain: the same towers and loss in float32, images as NCHW, torch's default AdamW. Ours: bfloat16
copies of float32 weights, channels last, fused AdamW; and the same in float32. One thread, batches
of 256; CPU time, for others share the cores. The losses of the first steps are checked equal:
float32 to 1e-3 relative, bfloat16 to 3e-2. A processor without bfloat16 arithmetic may turn the
order round: choose `precision: float32` there.
"""

import copy
from time import process_time

import numpy as np
import torch
from torch import nn

from clipmill.stages.clip.embedded import whole
from clipmill.stages.clip.loader import Batch
from clipmill.stages.clip.loop import Precision, Schedule, Trainer, learning_rate
from clipmill.stages.clip.named import new_model
from clipmill.stages.clip.nano import NANO, Nano
from clipmill.stages.clip.towers import matrices_first
from clipmill.stages.losses.clip import loss as info_nce
from tests.benchmarks.side_by_side import begin, side_by_side

STEPS, WARMUP, PEAK = 118, 10, 2e-3
ROWS, TOKENS, CHECKED = 256, 30, 6


def main() -> str:
    torch.set_num_threads(1)
    batch = random_batch()
    plain = PlainLoop()
    ours, full = (trainer(precision) for precision in ("bf16", "float32"))
    for step in range(CHECKED):  # a fast wrong answer is no result
        expected = plain.learn(batch)
        for learner, tolerance in ((full, 1e-3), (ours, 3e-2)):
            learner.learn(batch)
            np.testing.assert_allclose(learner.losses[step], expected, rtol=tolerance)
    ratios = side_by_side(
        ROWS,
        rounds=9,
        clock=process_time,
        plain=lambda: plain.learn(batch),
        float32=lambda: full.learn(batch),
        bf16=lambda: ours.learn(batch),
    )
    return f"float32 {ratios['float32']}, bf16 {ratios['bf16']} a plain loop"


def random_batch() -> Batch:
    """Noise: the arithmetic does not care, and the loss falls as it is learnt by heart."""
    rng = np.random.default_rng(0)
    return Batch(
        pixels=rng.integers(0, 256, (ROWS, 3, NANO.image_size, NANO.image_size), np.uint8),
        tokens=rng.integers(0, NANO.buckets, ROWS * TOKENS, np.int32),
        starts=np.arange(0, ROWS * TOKENS, TOKENS),
        weights=np.ones(ROWS, np.float32),
        rows=np.arange(ROWS),
        image_of=np.arange(ROWS),
        index=np.arange(ROWS),
    )


def trainer(precision: Precision) -> Trainer:
    schedule = Schedule(
        steps=STEPS, learning_rate=PEAK, warmup_steps=WARMUP, weight_decay=0.1, precision=precision
    )
    return Trainer(new_model("nano", 0), schedule)


class PlainLoop:
    """As a tutorial has it."""

    def __init__(self) -> None:
        self.model: Nano = copy.deepcopy(new_model("nano", 0)).to(
            memory_format=torch.contiguous_format
        )
        matrices, others = matrices_first(self.model)
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0}]
        self.optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-6)
        self.step = 0

    def learn(self, batch: Batch) -> float:
        image_N3HW = torch.from_numpy(batch.pixels).float() / 127.5 - 1
        image_ND = nn.functional.normalize(self.model.image(image_N3HW), dim=1)
        tokens, starts = torch.from_numpy(batch.tokens), torch.from_numpy(batch.starts)
        text_ND = nn.functional.normalize(self.model.text(tokens, starts, torch.float32), dim=1)
        loss = info_nce(whole(image_ND, text_ND, self.model.log_scale.exp())).mean()
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.step, peak=PEAK, warmup_steps=WARMUP, steps=STEPS)
        self.optimiser.step()
        self.step += 1
        return loss.item()


if __name__ == "__main__":
    begin(main)
