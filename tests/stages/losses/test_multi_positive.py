"""CLIP's loss over several texts: CLIP's where there is one, its mean over places, uneven rows."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from clipmill.stages.clip.whole_batch import whole
from clipmill.stages.losses import clip, multi_positive
from tests.stages.losses.batches import drawn, of_pairs, random


def test_with_one_text_a_row_it_is_clip():
    batch = drawn(7)
    torch.testing.assert_close(multi_positive.loss(batch), clip.loss(batch), rtol=1e-12, atol=0)


def test_with_k_texts_a_row_it_is_the_mean_over_places():
    image_ND, text_NKD = random(4, 6), random(4, 3, 6, seed=1)
    rows = torch.arange(4).repeat_interleave(3)
    batch = whole(image_ND, text_NKD.reshape(12, 6), torch.tensor(9.0), rows)
    places = [clip.loss(of_pairs(image_ND, text_NKD[:, k], 9)) for k in range(3)]
    expected = torch.stack(places).mean(0)
    torch.testing.assert_close(multi_positive.loss(batch), expected, rtol=1e-12, atol=0)


def test_equal_embeddings_cost_ln_n_whatever_the_number_of_texts():
    same = normalize(torch.ones(12, 5, dtype=torch.float64), dim=1)
    batch = whole(same[:4], same, torch.tensor(9.0), torch.arange(4).repeat_interleave(3))
    assert multi_positive.loss(batch).tolist() == pytest.approx([math.log(4)] * 4, rel=1e-12)


def test_a_text_in_a_place_that_no_other_row_has_is_found_at_once():
    """Two images and three texts, all equal: ln 2 of 2 in the first place, ln 1 of 1 in the second,
    ln 2 for each text."""
    same = normalize(torch.ones(3, 5, dtype=torch.float64), dim=1)
    batch = whole(same[:2], same, torch.tensor(9.0), torch.tensor([0, 1, 1]))
    ln_2 = math.log(2)
    expected = [ln_2, ((ln_2 + 0) / 2 + ln_2) / 2]
    assert multi_positive.loss(batch).tolist() == pytest.approx(expected, rel=1e-12)
