"""SigLIP's loss: known answers, the plain formula."""

import math

import pytest
import torch
from torch.nn.functional import softplus

from clipmill.stages.losses import siglip
from tests.stages.losses.batches import of_pairs, random


@pytest.mark.parametrize("tile", [None, 3])
@pytest.mark.parametrize("N", [1, 2, 8])
def test_orthogonal_vectors_cost_at_the_start_what_the_bias_says(N, tile):
    image_ND, text_ND = torch.eye(2 * N, dtype=torch.float64).split(N)
    batch = of_pairs(image_ND, text_ND, siglip.SCALE, bias=torch.tensor(siglip.BIAS), tile=tile)
    nats = math.log1p(math.exp(10)) + (N - 1) * math.log1p(math.exp(-10))
    assert siglip.loss(batch).tolist() == pytest.approx([nats] * N, rel=1e-12)


def test_logits_of_zero_cost_n_ln_2():
    batch = of_pairs(*torch.eye(8, dtype=torch.float64).split(4))
    assert siglip.loss(batch).tolist() == pytest.approx([4 * math.log(2)] * 4, rel=1e-12)


def test_it_is_the_formula():
    image_ND, text_ND = random(5, 4), random(5, 4, seed=1)
    bias = torch.tensor(-3.0, dtype=torch.float64)
    z_NN = 2 * torch.eye(5) - 1
    expected = softplus(-z_NN * (7 * image_ND @ text_ND.T - 3)).sum(1)
    torch.testing.assert_close(siglip.loss(of_pairs(image_ND, text_ND, 7, bias=bias)), expected)
