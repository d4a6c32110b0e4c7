"""Views of one kind told apart: the known answer, the formula, and what is no view."""

import pytest
import torch

from clipmill.stages.losses import clip, intra_modal
from tests.stages.losses.batches import drawn, of_pairs, twice

AXES = torch.eye(2, dtype=torch.float64)


@pytest.mark.parametrize("kind", ["image", "text"])
def test_two_orthonormal_rows_with_equal_views_cost_next_to_nothing(kind):
    batch = of_pairs(AXES, AXES, **{f"{kind}_views": [twice(AXES)]})
    part_N = intra_modal.loss(batch) - clip.loss(batch)
    assert part_N.tolist() == pytest.approx([9.0796e-5] * 2, abs=1e-9)
    weighed = intra_modal.loss(batch, **{f"w_{kind}": 3.0}) - clip.loss(batch)
    torch.testing.assert_close(weighed, 3 * part_N)


def test_it_is_simclrs_over_both_views_of_all_rows():
    batch = drawn(5)
    ours = intra_modal.loss(batch, w_text=0.0) - clip.loss(batch)
    both = torch.cat([batch.image_ND, batch.image_views[0][0]])
    logits = (both @ both.T / 0.1).fill_diagonal_(-torch.inf)
    own = torch.arange(10).roll(5)
    cost = torch.nn.functional.cross_entropy(logits, own, reduction="none")
    torch.testing.assert_close(ours, (cost[:5] + cost[5:]) / 2)
