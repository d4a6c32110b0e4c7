"""Hard negatives: known answers, rows without one, and that texts have no more images."""

import pytest
import torch

from clipmill.stages.losses import clip, negatives
from tests.stages.losses.batches import drawn, of_pairs

AXES = torch.eye(3, dtype=torch.float64)


def beside(cosines: list[float]) -> torch.Tensor:
    """(2, 3) unit vectors, each with its cosine to its own axis and none to the other."""
    own = torch.tensor(cosines, dtype=torch.float64)
    return own[:, None] * AXES[:2] + (1 - own**2).sqrt()[:, None] * AXES[2]


def batch_of(true: list[float], false: list[float], rows: list[int], scale: float = 1.0):
    held = {"negative_KD": beside(false)[rows], "negative_of_K": torch.tensor(rows)}
    return of_pairs(AXES[:2], beside(true), scale, **held)


def test_two_pairs_whose_negatives_are_near_cost_images_more_and_texts_as_before():
    batch = batch_of([1.0, 1.0], [0.5, 0.5], [0, 1])
    assert negatives.loss(batch).tolist() == pytest.approx([0.582195] * 2, abs=1e-6)
    by_image_N = 2 * negatives.loss(batch) - 0.313262  # the texts' part
    assert by_image_N.tolist() == pytest.approx([0.851129] * 2, abs=1e-6)


def test_without_negatives_it_is_clips_loss():
    batch = batch_of([1.0, 1.0], [0.5, 0.5], [])
    loss_N = negatives.loss(batch, w_own=1.0, w_margin=1.0)
    assert loss_N.tolist() == pytest.approx([0.313262] * 2, abs=1e-6)
    torch.testing.assert_close(loss_N, clip.loss(batch))


@pytest.mark.parametrize(
    ("true", "false", "scale", "weights", "nats"),
    [
        ([0.30, 0.25], [0.28, 0.10], 1.0, {"w_margin": 1.0}, 0.04),
        ([0.3, 0.3], [0.1, 0.1], 10.0, {"w_own": 1.0}, 0.126928),
    ],
)
def test_a_pair_beside_its_own_negative(true, false, scale, weights, nats):
    batch = batch_of(true, false, [0, 1], scale)
    part_N = negatives.loss(batch, **weights) - negatives.loss(batch)
    assert part_N.mean().item() == pytest.approx(nats, abs=1e-6)


def test_a_row_without_one_has_those_of_others_as_columns_and_no_part_of_its_own():
    batch = drawn(5)  # rows 0, 2 and 4 have one
    plain_N, more_N = negatives.loss(batch), negatives.loss(batch, w_own=1.0)
    assert ((more_N - plain_N) > 0).tolist() == [True, False, True, False, True]
    logit_NH = 14 * batch.image_ND @ torch.cat([batch.text_HD, batch.negative_KD]).T
    by_image_N = logit_NH.logsumexp(1) - logit_NH.diag()
    by_text_N = 2 * clip.loss(batch) - (logit_NH[:, :5].logsumexp(1) - logit_NH.diag())
    torch.testing.assert_close(plain_N, (by_image_N + by_text_N) / 2)
