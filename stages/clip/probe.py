"""What a step costs on this machine, by a few steps on noise: for an estimate, and no more."""

import time

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from stages.clip.towers import new_model

# Shapes: B rows of a batch, S pixels a side.

TEXT = "a drawing of a small red house beside a tree"
MOST_PIXELS = 400_000  # of a probe's batch: 64 rows of nano's, 7 of 224 pixels a side
STEPS = 3  # of which the first, in which memory is taken, does not count


def probed(name: str, precision: str, threads: int) -> tuple[float, float]:
    """Seconds that a step takes for each of its rows, and of embedding one picture.

    Error: no decoding, no loader, no other process; and a step's cost is taken to be even.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return _probed(name, torch.bfloat16 if precision == "bf16" else torch.float32)
    finally:
        torch.set_num_threads(before)


def _probed(name: str, dtype: torch.dtype) -> tuple[float, float]:
    model = new_model(name, 0)
    optimiser = torch.optim.AdamW(model.parameters(), fused=True)
    side = model.image_size
    rows = max(2, min(64, MOST_PIXELS // side**2))
    noise = np.random.default_rng(0).integers(0, 256, (rows, 3, side, side), np.uint8)
    pixels = torch.from_numpy(noise)
    token, starts = model.tokenize([TEXT] * rows)
    token_T, start_B = torch.from_numpy(token), torch.from_numpy(starts[:-1])
    model.train()
    steps = []
    for _ in range(STEPS):
        began = time.perf_counter()
        image_BD = model.embed_images(pixels, dtype)
        text_BD = model.embed_texts(token_T, start_B, dtype)
        logit_BB = (model.scale * image_BD @ text_BD.T).float()
        loss = cross_entropy(logit_BB, torch.arange(rows))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        steps.append(time.perf_counter() - began)
    model.eval()
    began = time.perf_counter()
    with torch.inference_mode():
        model.embed_images(pixels, dtype)
    return min(steps[1:]) / rows, (time.perf_counter() - began) / rows
