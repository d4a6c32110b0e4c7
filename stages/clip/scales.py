"""Training scales: constants that are fixed so that two trainings differ by their data alone.

`debug` to `xlarge` are DataComp's. `nano` is our own, minutes on one processor core; `micro` is the
same for five times as many samples.
"""

from dataclasses import dataclass, replace
from typing import Literal

Sampling = Literal["epochs", "shards"]  # each row `repeats` times; or shards with replacement
Augment = Literal["shift", "crop"]  # shift the whole picture by some pixels; or crop at random


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Model, samples and optimiser of every training at one scale."""

    model: str
    samples_seen: int  # in all, independent of the number of rows
    batch_size: int  # pairs of a step, over all processes
    learning_rate: float  # the peak, after the warm-up
    warmup_steps: int
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    max_norm: float | None  # of the gradient of all weights; None: never clipped
    sampling: Sampling
    augment: Augment

    @property
    def steps(self) -> int:
        return self.samples_seen // self.batch_size


def _datacomp(
    model: str, samples: int, batch: int, rate: float, warmup: int = 500, beta2: float = 0.98
) -> Scale:
    """Returns a scale of DataComp's.

    Source: DataComp (Gadre et al. 2023), appendix on training, and its released scale_configs;
    betas, eps and decay are open_clip's defaults. Departs: bf16 for its fp16 amp.
    """
    return Scale(
        model=model,
        samples_seen=samples,
        batch_size=batch,
        learning_rate=rate,
        warmup_steps=warmup,
        beta1=0.9,
        beta2=beta2,
        eps=1e-6,
        weight_decay=0.2,
        max_norm=None,
        sampling="shards",
        augment="crop",
    )


NANO = Scale(
    model="nano",
    samples_seen=60_160,
    batch_size=256,
    learning_rate=2e-3,
    warmup_steps=20,
    beta1=0.9,
    beta2=0.98,
    eps=1e-6,
    weight_decay=0.1,
    max_norm=1.0,
    sampling="epochs",
    augment="shift",
)
SCALES = {
    "nano": NANO,
    "micro": replace(NANO, samples_seen=302_080),
    # As released: 125 steps, all within a warm-up of 500, so it ends at a quarter of its peak rate.
    "debug": _datacomp("ViT-B-32", 128_000, 1024, 1e-4),
    "small": _datacomp("ViT-B-32", 12_800_000, 4096, 5e-4),
    "medium": _datacomp("ViT-B-32", 128_000_000, 4096, 5e-4),
    "large": _datacomp("ViT-B-16", 1_280_000_000, 8192, 5e-4),
    "xlarge": _datacomp("ViT-L-14", 12_800_000_000, 90_112, 1e-3, 10_000, 0.95),
}
