"""The filter network's loss: known answers; its steps: a function of their seeds."""

import math

import pytest
import torch
from torch.nn import functional

from stages.models.filter_network import (
    FIRST_SCALE,
    MAX_SCALE,
    FilterNetwork,
    shared_target_loss,
    shared_targets,
    steps,
)

N = 8


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def rows(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("captions", [list(range(N)), [0] * N, [0, 0, 0, 1, 1, 2, 3, 4]])
def test_identical_embeddings_cost_ln_n_whatever_the_captions(captions):
    same_ND = functional.normalize(torch.ones(N, 4), dim=1)
    target_NN = shared_targets(torch.tensor(captions))
    loss = shared_target_loss(same_ND, same_ND, torch.tensor(50.0), target_NN)
    assert loss.item() == pytest.approx(math.log(N), abs=1e-5)


def test_orthogonal_pairs_cost_what_the_formula_says():
    pair_ND, scale = torch.eye(N), torch.tensor(3.0)
    loss = shared_target_loss(pair_ND, pair_ND, scale, shared_targets(torch.arange(N)))
    wanted = math.log(math.e**3 + N - 1) - 3
    assert loss.item() == pytest.approx(wanted, abs=1e-6)


def test_without_repeated_captions_the_loss_is_cross_entropy_on_the_diagonal():
    image_ND, text_ND = functional.normalize(rows(2, N, 5), dim=2)
    logit_NN, diagonal = 20 * image_ND @ text_ND.T, torch.arange(N)
    wanted = (
        functional.cross_entropy(logit_NN, diagonal)
        + functional.cross_entropy(logit_NN.T, diagonal)
    ) / 2
    loss = shared_target_loss(image_ND, text_ND, torch.tensor(20.0), shared_targets(diagonal))
    torch.testing.assert_close(loss, wanted)


def test_identical_captions_share_the_mass():
    assert shared_targets(torch.tensor([7, 3, 7])).tolist() == [
        [0.5, 0, 0.5],
        [0, 1, 0],
        [0.5, 0, 0.5],
    ]


def test_a_caption_met_twice_costs_ln_2_when_both_images_fit():
    image_ND = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    target_NN = shared_targets(torch.tensor([0, 0, 1, 1]))
    loss = shared_target_loss(image_ND, image_ND, torch.tensor(100.0), target_NN)
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)


def test_the_scale_starts_at_clips_and_is_clamped():
    network = FilterNetwork(3, 2, 4)
    assert network.scale().item() == pytest.approx(FIRST_SCALE)
    network.log_scale.data.fill_(9)
    assert network.scale().item() == pytest.approx(MAX_SCALE)


def trained(seed: int, learning_rate: float = 1e-2, weight_decay: float = 0.1):
    torch.manual_seed(0)
    network = FilterNetwork(6, 5, 4)
    every = torch.arange(N).numpy()
    log = list(
        steps(
            network,
            rows(N, 6),
            rows(N, 5),
            torch.arange(N),
            iter([every] * 30),
            iter(range(seed, seed + 30)),
            learning_rate,
            weight_decay,
        )
    )
    return network, log


def test_the_loss_falls_and_the_scale_is_learnt():
    network, log = trained(0)
    assert log[-1][0] < log[0][0] / 2
    assert log[-1][1] != log[0][1]
    assert not network.training


def test_equal_seeds_give_equal_weights_and_others_others():
    (one, _), (two, _), (other, _) = trained(0), trained(0), trained(1)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.text[1].weight, other.text[1].weight)


def test_weight_decay_is_for_matrices_only():
    plain, decayed = trained(0, 1e-3, 0.0)[0], trained(0, 1e-3, 100.0)[0]
    assert decayed.image[1].weight.norm() < plain.image[1].weight.norm() / 2
    assert decayed.image[1].bias.norm() > plain.image[1].bias.norm() / 2
    assert decayed.scale().item() > FIRST_SCALE / 2
