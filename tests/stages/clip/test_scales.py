"""The scales: DataComp's constants and steps, and a model that reads what its scale says."""

from dataclasses import replace

import pytest

from clipmill.stages.clip.named import reads
from clipmill.stages.clip.scales import SCALES


@pytest.mark.parametrize(
    ("name", "model", "samples", "batch", "rate", "warmup", "beta2", "steps"),
    [
        ("debug", "ViT-B-32", 128_000, 1_024, 1e-4, 500, 0.98, 125),
        ("small", "ViT-B-32", 12_800_000, 4_096, 5e-4, 500, 0.98, 3_125),
        ("medium", "ViT-B-32", 128_000_000, 4_096, 5e-4, 500, 0.98, 31_250),
        ("large", "ViT-B-16", 1_280_000_000, 8_192, 5e-4, 500, 0.98, 156_250),
        ("xlarge", "ViT-L-14", 12_800_000_000, 90_112, 1e-3, 10_000, 0.95, 142_045),
    ],
)
def test_datacomps_constants(name, model, samples, batch, rate, warmup, beta2, steps):
    scale = SCALES[name]
    assert (scale.model, scale.samples_seen, scale.batch_size) == (model, samples, batch)
    assert (scale.learning_rate, scale.warmup_steps, scale.steps) == (rate, warmup, steps)
    assert (scale.beta1, scale.beta2, scale.eps, scale.weight_decay) == (0.9, beta2, 1e-6, 0.2)
    assert (scale.max_norm, scale.sampling, scale.augment) == (None, "shards", "crop")


def test_nano_is_as_it_was_measured():
    scale = SCALES["nano"]
    assert (scale.samples_seen, scale.batch_size, scale.steps) == (60_160, 256, 235)
    assert (scale.learning_rate, scale.warmup_steps, scale.weight_decay) == (2e-3, 20, 0.1)
    assert (scale.max_norm, scale.sampling, scale.augment) == (1.0, "epochs", "shift")
    assert reads(scale.model).image_size == 48


def test_micro_is_nano_for_five_times_as_many_samples():
    micro = SCALES["micro"]
    assert micro.steps == 1_180
    assert replace(micro, samples_seen=60_160) == SCALES["nano"]
