"""Clusters as labels: known answers, which centres are taken, what is no centre."""

import pytest
import torch
from torch.nn.functional import normalize

from clipmill.pipeline.errors import StageError
from clipmill.stages.losses import mlcd
from tests.stages.losses.batches import of_pairs, random, split

CENTRES, WAY = 12, {"clusters": "ids", "centres": 12, "share": 0.5, "scale": 3.0}


def batch_of(ids, image_ND=None, centres=CENTRES, step=0):
    image_ND = random(len(ids), 6) if image_ND is None else image_ND
    torch.manual_seed(0)
    own = mlcd.state(
        samples=0, width=image_ND.shape[1], seed=1, settings={"centres": centres, "share": 0.1}
    )
    held = {"teacher": {"ids": torch.tensor(ids, dtype=torch.float32)}, "step": step}
    return of_pairs(image_ND, image_ND, own=own.to(image_ND.dtype), **held)


@pytest.mark.parametrize(("centres", "nats"), [(1008, 6.812345), (1_000_000, 13.710150)])
def test_at_cosines_of_nought_it_is_the_log_of_the_number_of_centres(centres, nats):
    batch = batch_of([list(range(8))], torch.tensor([[1.0, 0]], dtype=torch.float64), centres)
    batch.own.weight.data = torch.tensor([[0.0, 1]], dtype=torch.float64).expand(centres, 2)
    loss_N = mlcd.loss(batch, clusters="ids", centres=centres)
    assert loss_N.tolist() == pytest.approx([nats], abs=1e-6)


def test_it_is_the_sum_over_own_centres_and_as_many_others_as_the_share_says():
    ids, batch = [[3, 7, 1], [0, 1, 2], [11, 3, 5]], batch_of([[3, 7, 1], [0, 1, 2], [11, 3, 5]])
    cosine_NK = batch.image_ND @ normalize(batch.own.weight, dim=1).T
    order = mlcd.drawn(1, 0, CENTRES, CENTRES)
    expected = []
    for own, cosine_K in zip(ids, cosine_NK, strict=True):
        others = [k for k in order.tolist() if k not in own][:4]  # a half of the nine others
        near, far = (-3 * cosine_K[own]).exp(), (3 * cosine_K[others]).exp()
        expected.append((1 + near.sum()).log() + (1 + far.sum()).log())
    torch.testing.assert_close(mlcd.loss(batch, **WAY), torch.stack(expected))


def test_another_step_takes_other_centres_and_a_part_of_the_batch_the_same():
    ids = [[3, 7, 1], [0, 1, 2], [11, 3, 5], [4, 5, 6]]
    batch, later = batch_of(ids), batch_of(ids, step=1)
    assert (mlcd.loss(batch, **WAY) != mlcd.loss(later, **WAY)).all()
    parts = [mlcd.loss(part, **WAY) for part in split(batch, [1, 3])]
    torch.testing.assert_close(torch.cat(parts), mlcd.loss(batch, **WAY))
    mlcd.loss(batch, **WAY).sum().backward()
    assert batch.own.weight.grad.any(1).sum() > 8


def test_a_centre_past_the_last_is_refused():
    with pytest.raises(StageError, match="a centre of number 12, and `centres` says 12"):
        mlcd.loss(batch_of([[3, 12, 1]]), **WAY)
