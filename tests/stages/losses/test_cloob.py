"""CLOOB: known answers, the formula, an own pair left out of the sum."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from clipmill.stages.losses import cloob
from tests.stages.losses.batches import drawn, of_pairs


@pytest.mark.parametrize("cosine", [1.0, 0.3])
def test_equal_embeddings_cost_ln_of_the_others_times_the_temperature(cosine):
    image_ND = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(4, 2)
    text_ND = torch.tensor([[cosine, math.sqrt(1 - cosine**2)]], dtype=torch.float64).expand(4, 2)
    assert cloob.loss(of_pairs(image_ND, text_ND)).tolist() == pytest.approx(
        [0.036620] * 4, abs=1e-6
    )


def test_it_is_the_published_code():
    batch = drawn(6)
    x, y = batch.image_ND, batch.text_MD

    def hopfield(state, stored):
        return normalize((8 * state @ stored.T).softmax(1) @ stored, dim=1)

    def info_loob(a, b):
        k = 30 * a @ b.T
        others = torch.where(torch.eye(6, dtype=torch.bool), -1000.0, k)
        return (others.logsumexp(1) - k.diag()) / 30

    expected = info_loob(hopfield(x, x), hopfield(y, x)) + info_loob(hopfield(y, y), hopfield(x, y))
    torch.testing.assert_close(cloob.loss(batch), expected / 2)
