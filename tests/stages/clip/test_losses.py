"""info_nce: known answers, the plain formula, gradients."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from stages.clip.losses import info_nce


@pytest.mark.parametrize("scale", [1.0, 1 / 0.07, 100.0])
@pytest.mark.parametrize("N", [1, 2, 7, 256])
def test_equal_embeddings_cost_ln_n_whatever_the_scale(N, scale):
    same_ND = normalize(torch.ones(N, 5), dim=1)
    loss_N = info_nce(same_ND, same_ND, torch.tensor(scale))
    torch.testing.assert_close(loss_N, torch.full((N,), math.log(N)), atol=2e-5, rtol=1e-6)


def test_orthonormal_pairs_cost_what_the_scale_leaves():
    eye_ND = torch.eye(4)
    loss_N = info_nce(eye_ND, eye_ND, torch.tensor(10.0))
    torch.testing.assert_close(loss_N, torch.full((4,), math.log1p(3 * math.exp(-10))))


def test_both_directions_count():
    """Two images equal, texts orthogonal: the texts can't tell their image, the images can't either
    but for the cosine with their text."""
    image_ND, text_ND = torch.tensor([[1.0, 0], [1, 0]]), torch.eye(2)
    by_image = [math.log1p(math.exp(-1)), math.log1p(math.exp(1))]
    expected = torch.tensor([(loss + math.log(2)) / 2 for loss in by_image])
    torch.testing.assert_close(info_nce(image_ND, text_ND, torch.tensor(1.0)), expected)


def test_value_and_gradient_are_those_of_the_formula_in_float64():
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(2, 9, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    image_ND, text_ND = normalize(raw, dim=2)
    p_NN = (14 * image_ND @ text_ND.T).exp()
    plain = -((p_NN / p_NN.sum(1, True)).diag().log() + (p_NN / p_NN.sum(0)).diag().log()) / 2
    ours = info_nce(image_ND, text_ND, torch.tensor(14.0, dtype=torch.float64))
    torch.testing.assert_close(ours, plain)
    gradients = [torch.autograd.grad(x.mean(), raw, retain_graph=True)[0] for x in (ours, plain)]
    torch.testing.assert_close(*gradients)
