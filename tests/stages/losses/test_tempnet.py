"""Temperatures by row: the formula, its slopes, the running mean, and who remembers whom."""

from dataclasses import replace

import pytest
import torch

from clipmill.stages.losses import tempnet
from tests.stages.losses.batches import of_pairs, random


def batch_of(image_ND, text_ND, index, own=None):
    if own is None:
        torch.manual_seed(0)
        own = tempnet.state(samples=20, width=image_ND.shape[1], seed=0, settings={}).double()
    return of_pairs(image_ND, text_ND, own=own, index_N=torch.tensor(index))


def formula(t_N, cosine_NN, rho=8.0):
    """t (ln of the mean over the others of exp((s_ij - s_ii) / t) + rho)."""
    above = (cosine_NN - cosine_NN.diag()[:, None]) / t_N[:, None]
    others = above.masked_fill(torch.eye(len(above), dtype=torch.bool), -torch.inf)
    return t_N * (others.logsumexp(1) - torch.tensor(len(above) - 1.0).log() + rho)


def test_two_orthonormal_pairs_cost_their_temperatures_times_rho_less_one():
    axes = torch.eye(2, dtype=torch.float64)
    batch = batch_of(axes, axes, [3, 4])
    t_N = (batch.own.image(axes) + batch.own.text(axes)) / 2
    torch.testing.assert_close(tempnet.loss(batch), 8 * t_N - 1)
    assert ((t_N > 0.005) & (t_N < 0.05)).all()


def test_at_first_sight_values_and_slopes_are_those_of_the_formula():
    image, text = random(6, 4), random(6, 4, seed=1)
    batch = batch_of(image, text, range(6))
    own = batch.own
    plain = formula(own.image(image.detach()), image @ text.T)
    plain = (plain + formula(own.text(text.detach()), text @ image.T)) / 2
    ours = tempnet.loss(batch)
    torch.testing.assert_close(ours, plain)
    weights = (image, text, *own.parameters())
    slopes = [torch.autograd.grad(cost.sum(), weights) for cost in (ours, plain)]
    torch.testing.assert_close(*slopes)


def test_a_row_seen_again_has_a_running_mean_and_others_keep_theirs():
    batch = batch_of(random(4, 3), random(4, 3, seed=1), [5, 9, 2, 7])
    tempnet.loss(batch)
    first = batch.own.log_image.clone()
    assert first.isfinite().nonzero()[:, 0].tolist() == [2, 5, 7, 9]
    other = batch_of(random(4, 3, seed=2), random(4, 3, seed=3), [2, 5, 0, 1], batch.own)
    fresh = batch_of(random(4, 3, seed=2), random(4, 3, seed=3), [2, 5, 0, 1])
    tempnet.loss(other)
    tempnet.loss(fresh)
    both = 0.2 * first[[2, 5]].exp() + 0.8 * fresh.own.log_image[[2, 5]].exp()
    torch.testing.assert_close(other.own.log_image[[2, 5]].exp(), both)
    assert torch.equal(other.own.log_image[[7, 9]], first[[7, 9]])
    assert torch.equal(other.own.log_image[[0, 1]], fresh.own.log_image[[0, 1]])


@pytest.mark.parametrize("rank", [0, 1])
def test_each_process_remembers_all_rows(rank):
    whole = batch_of(random(4, 3), random(4, 3, seed=1), [5, 9, 2, 7])
    expected, held = tempnet.loss(whole), whole.own.log_text.clone()
    answers = [torch.tensor([5, 9, 2, 7]), whole.own.log_image[[5, 9, 2, 7]], held[[5, 9, 2, 7]]]
    here, fresh = (
        slice(2 * rank, 2 * rank + 2),
        batch_of(whole.image_ND, whole.text_MD, [5, 9, 2, 7]),
    )
    local = {"image_ND": whole.image_ND[here], "text_MD": whole.text_MD[here]}
    part = replace(fresh, **local, row_N=torch.arange(4)[here], index_N=fresh.index_N[here])
    part = replace(part, gather=lambda values: answers.pop(0))
    torch.testing.assert_close(tempnet.loss(part), expected[here])
    assert torch.equal(part.own.log_text, held)
