"""Features through the stage against the bare networks, and the ways to run a text tower.

    python -m tests.benchmarks.embedding

Aim: 90 % of the bare networks' throughput.
Measured (2026-11-25, EPYC with AVX-512 bf16, two shared cores at load 5): stage 1.01x (0.91 to
1.08) the bare networks. Text tower, against float32 padded to 77 tokens: bf16 weights 1.86x,
float32 at a batch's own length 4.98x, both 9.07x (8.34 to 10.10), with a cosine to the first of
0.99992 at least.
"""

import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from pipeline.stage import Worker
from stages.embed.features import Features
from stages.models import features as models
from stages.ops.pixels import PIXELS, rows_of
from tests.benchmarks.side_by_side import side_by_side

ROWS, SIDE, PADDED = 512, 200, 77
WORDS = [
    "red",
    "blue",
    "green",
    "round",
    "small",
    "large",
    "old",
    "sun",
    "moon",
    "star",
    "house",
    "tree",
    "cat",
    "dog",
    "flag",
]

rng = np.random.default_rng(0)
rgb_NHW3 = rng.integers(0, 256, (ROWS, SIDE, SIDE, 3), np.uint8)
texts = [" ".join(rng.choice(WORDS, rng.integers(2, 12))) for _ in range(ROWS)]
pixels = [{"height": SIDE, "width": SIDE, "rgb": rgb.tobytes()} for rgb in rgb_NHW3]
batch = pa.table({PIXELS.name: pa.array(pixels, PIXELS.dtype), "text": texts})
worker = Worker(seed=0, stage="it", device="cpu", threads=1, scratch=Path())
stage = Features().open(worker)
see, read = models.ImageFeatures("bfloat16"), models.TextFeatures("bfloat16")
wide = models.TextFeatures("float32")
squares = torch.from_numpy(rgb_NHW3[:, :128, :128]).permute(0, 3, 1, 2)
tokens = [it.ids for it in wide.tokenizer.encode_batch(texts)]


def bare() -> None:
    """The networks alone, on whole batches that are ready."""
    with torch.inference_mode():
        for start in range(0, ROWS, models.IMAGES):
            part = squares[start : start + models.IMAGES]
            see.network.extract_features(part.to(torch.bfloat16)).float().mean((2, 3))
    read(texts)


def through_the_stage() -> None:
    for start in range(0, ROWS, Features.batch_rows):
        stage(batch.slice(start, Features.batch_rows))


def padded(model: models.TextFeatures) -> np.ndarray:
    """Every text at one length, as a CLIP tower reads it."""
    filled = torch.tensor([ids + [0] * (PADDED - len(ids)) for ids in tokens])
    with torch.inference_mode():
        return torch.cat([models.minilm(model.weights, it) for it in filled.split(32)]).numpy()


assert rows_of(batch[PIXELS.name])[0].shape == (SIDE, SIDE, 3)
cosine_N = (padded(wide) * read(texts)).sum(1)
assert cosine_N.min() > 0.999, cosine_N.min()  # a fast wrong answer is no result
print("images and texts")
side_by_side(ROWS, 5, time.process_time, bare=bare, stage=through_the_stage)
print(f"texts; least cosine of the last to the first {cosine_N.min():.5f}")
side_by_side(
    ROWS,
    5,
    time.process_time,
    fp32_padded=lambda: padded(wide),
    bf16_padded=lambda: padded(read),
    fp32_own_length=lambda: wide(texts),
    bf16_own_length=lambda: read(texts),
)
