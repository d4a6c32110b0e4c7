"""CLIP's loss: known answers, the plain formula, gradients, processes."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from clipmill.stages.losses.clip import loss
from tests.stages.losses.batches import of_pairs, random, split


@pytest.mark.parametrize("scale", [1.0, 1 / 0.07, 100.0])
@pytest.mark.parametrize("N", [1, 2, 7, 256])
def test_equal_embeddings_cost_ln_n_whatever_the_scale(N, scale):
    same_ND = normalize(torch.ones(N, 5), dim=1)
    loss_N = loss(of_pairs(same_ND, same_ND, scale))
    torch.testing.assert_close(loss_N, torch.full((N,), math.log(N)), atol=2e-5, rtol=1e-6)


@pytest.mark.parametrize(("N", "scale", "nats"), [(2, 1.0, 0.3132617), (4, 10.0, 1.3619e-4)])
def test_orthonormal_pairs_cost_what_the_scale_leaves(N, scale, nats):
    eye_ND = torch.eye(N, dtype=torch.float64)
    assert loss(of_pairs(eye_ND, eye_ND, scale)).tolist() == pytest.approx([nats] * N, rel=1e-4)


def test_smoothing_costs_its_share_of_the_other_pair():
    eye_ND = torch.eye(2, dtype=torch.float64)
    loss_N = loss(of_pairs(eye_ND, eye_ND), smoothing=0.1)
    assert loss_N.tolist() == pytest.approx([0.363262] * 2, abs=1e-6)


def test_both_directions_count():
    """Two images equal, texts orthogonal: the texts can't tell their image, the images can't either
    but for the cosine with their text."""
    image_ND, text_ND = torch.tensor([[1.0, 0], [1, 0]]), torch.eye(2)
    by_image = [math.log1p(math.exp(-1)), math.log1p(math.exp(1))]
    expected = torch.tensor([(loss + math.log(2)) / 2 for loss in by_image])
    torch.testing.assert_close(loss(of_pairs(image_ND, text_ND)), expected)


def test_value_and_gradient_are_those_of_the_formula_in_float64():
    raw = random(2, 9, 6)
    image_ND, text_ND = normalize(raw, dim=2)
    p_NN = (14 * image_ND @ text_ND.T).exp()
    plain = -((p_NN / p_NN.sum(1, True)).diag().log() + (p_NN / p_NN.sum(0)).diag().log()) / 2
    ours = loss(of_pairs(image_ND, text_ND, 14))
    torch.testing.assert_close(ours, plain)
    gradients = [torch.autograd.grad(x.mean(), raw, retain_graph=True)[0] for x in (ours, plain)]
    torch.testing.assert_close(*gradients)


def test_processes_add_up_to_one():
    image_GD, text_GD = random(9, 6), random(9, 6, seed=1)
    whole = of_pairs(image_GD, text_GD, 14)
    whole.scale.requires_grad_()
    inputs = (image_GD, text_GD, whole.scale)
    of_one = loss(whole)
    of_ranks = torch.cat([loss(part) for part in split(whole, [4, 2, 3])])
    torch.testing.assert_close(of_ranks, of_one, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(x.sum(), inputs) for x in (of_ranks, of_one)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)
