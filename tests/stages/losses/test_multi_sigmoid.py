"""SigLIP's loss for several texts: SigLIP where there is one, known answers, uneven numbers."""

import math

import pytest
import torch

from clipmill.stages.clip.whole_batch import whole
from clipmill.stages.losses import multi_sigmoid, siglip
from tests.stages.losses.batches import drawn


def test_with_one_text_a_row_it_is_siglip():
    batch = drawn(7)
    torch.testing.assert_close(multi_sigmoid.loss(batch), siglip.loss(batch), rtol=1e-12, atol=0)


@pytest.mark.parametrize("texts", [(1, 1, 1, 1), (3, 3, 3, 3), (1, 4, 2, 1)])
def test_logits_of_zero_cost_n_ln_2_whatever_the_number_of_texts(texts):
    image_of_M = torch.arange(4).repeat_interleave(torch.tensor(texts))
    zeros_MD = torch.zeros(len(image_of_M), 4, dtype=torch.float64)
    eye_ND = torch.eye(4, dtype=torch.float64)
    loss_N = multi_sigmoid.loss(whole(eye_ND, zeros_MD, torch.tensor(10.0), image_of_M))
    assert loss_N.tolist() == pytest.approx([2.7725887222397811] * 4, rel=1e-12)


def test_each_text_has_the_share_of_its_image():
    """Logits 1 and -2 with the two texts of image 0, 3 with the one of image 1."""
    image_ND = torch.ones(2, 1, dtype=torch.float64)
    text_MD = torch.tensor([[1.0], [-2], [3]], dtype=torch.float64)
    batch = whole(image_ND, text_MD, torch.tensor(1.0), torch.tensor([0, 0, 1]))
    cost = {x: math.log1p(math.exp(-x)) for x in (1, -1, 2, -2, 3, -3)}
    expected = [(cost[1] + cost[-2]) / 2 + cost[-3], (cost[-1] + cost[2]) / 2 + cost[3]]
    assert multi_sigmoid.loss(batch).tolist() == pytest.approx(expected, rel=1e-12)
