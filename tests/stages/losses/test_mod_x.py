"""Mod-X: the known answer, rows that the old model gets wrong, an old model that is the new one."""

import pytest
import torch

from clipmill.stages.losses import clip, mod_x
from tests.stages.losses.batches import drawn, of_pairs

OLD, NEW = [[0.9, 0.1], [0.8, 0.2]], [[0.6, 0.2], [0.3, 0.5]]


def images(cosines: list[list[float]]) -> torch.Tensor:
    """(2, 3) unit vectors with these cosines to the first two axes."""
    of_axes = torch.tensor(cosines, dtype=torch.float64)
    return torch.cat([of_axes, (1 - of_axes.square().sum(1, keepdim=True)).sqrt()], 1)


def test_two_pairs_cost_what_their_softmaxes_say_and_a_row_the_old_model_gets_wrong_nothing():
    axes = torch.eye(3, dtype=torch.float64)[:2]
    teacher = {"image_embedding": 5 * images(OLD), "text_embedding": axes}
    batch = of_pairs(images(NEW), axes, 1.0, teacher=teacher)
    parts = (mod_x.loss(batch, alpha=1.0) - clip.loss(batch)).mean()
    assert parts.item() == pytest.approx(0.013915, abs=1e-6)
    _, second = (mod_x.loss(batch, alpha=1.0) - clip.loss(batch)).tolist()
    assert second == pytest.approx(0.0049627, abs=1e-6)  # of its text alone


def test_an_old_model_that_is_the_new_one_leaves_clip():
    batch = drawn(5)
    teacher = {"image_embedding": batch.image_ND, "text_embedding": batch.text_MD}
    same = of_pairs(batch.image_ND, batch.text_MD, 14.0, teacher=teacher)
    torch.testing.assert_close(mod_x.loss(same), clip.loss(same))
