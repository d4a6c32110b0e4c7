"""CWCL: known answers of its formula, which is recalled, and the formula itself."""

import math

import pytest
import torch
from torch.nn.functional import log_softmax

from clipmill.stages.losses import clip, cwcl
from tests.stages.losses.batches import drawn, of_pairs


@pytest.mark.parametrize(("scale", "nats"), [(1.0, 0.646595), (10.0, 3.333379)])
def test_orthonormal_pairs_keep_half_a_weight_for_each_other(scale, nats):
    eye_ND = torch.eye(2, dtype=torch.float64)
    by_text = math.log1p(math.exp(-scale))
    loss_N = cwcl.loss(of_pairs(eye_ND, eye_ND, scale))
    assert (2 * loss_N - by_text).tolist() == pytest.approx([nats] * 2, abs=1e-6)


def test_equal_embeddings_cost_ln_n():
    same_ND = torch.ones(5, 1, dtype=torch.float64)
    loss_N = cwcl.loss(of_pairs(same_ND, same_ND, 7.0))
    assert loss_N.tolist() == pytest.approx([math.log(5)] * 5)


def test_it_is_the_formula():
    batch = drawn(6)
    weight_NN = (1 + batch.image_ND @ batch.image_ND.T) / 2
    log_NN = log_softmax(14 * batch.image_ND @ batch.text_MD.T, 1)
    by_image_N = -(weight_NN * log_NN).sum(1) / weight_NN.sum(1)
    by_text_N = -log_softmax(14 * batch.text_MD @ batch.image_ND.T, 1).diag()
    torch.testing.assert_close(cwcl.loss(batch), (by_image_N + by_text_N) / 2)
    assert not torch.allclose(cwcl.loss(batch), clip.loss(batch))
