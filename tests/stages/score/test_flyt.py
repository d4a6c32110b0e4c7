"""FLYT's gradient: both slopes against autograd, and weights that find what teaches."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.nn.functional import cross_entropy

from clipmill.pipeline.dataset import Inputs
from clipmill.pipeline.errors import StageError
from clipmill.stages.ops.vectors.matrices import from_matrix
from clipmill.stages.score import _flyt as flyt
from clipmill.stages.score.mix import Learn, Mix

LEARN = Learn(columns=("fit", "noise"), good="good", by="flyt")


def test_a_step_has_the_slope_that_autograd_finds_through_the_moved_map():
    rng = np.random.default_rng(0)
    pool, trusted = (flyt.Pairs(*rng.normal(size=(2, rows, 5))) for rows in (7, 4))
    score_BK = rng.normal(size=(7, 3))
    weight = torch.tensor(rng.normal(size=3), requires_grad=True)
    log_B = torch.log_softmax(torch.tensor(score_BK) @ weight, 0)
    start = torch.eye(5, dtype=torch.float64, requires_grad=True)

    def logits(pairs, map_DD):
        return torch.tensor(pairs.image) @ map_DD @ torch.tensor(pairs.text).T / flyt.TAU

    both = (logits(pool, start), logits(pool, start).T)
    own = sum(log_B + s.diag() - torch.logsumexp(s + log_B, 1) for s in both)
    (slope,) = torch.autograd.grad(-(log_B.exp() @ own) / 2, start, create_graph=True)
    moved = logits(trusted, start - 0.001 * slope)
    loss = sum(cross_entropy(s, torch.arange(4)) for s in (moved, moved.T)) / 2
    loss.backward()

    rows, few, known = np.arange(7), np.arange(4), log_B.detach().numpy()
    logit_BB = pool.logits(rows, np.eye(5))
    slope_DD = flyt.pulled(pool, rows, flyt.weighted_slope(logit_BB, known))
    np.testing.assert_allclose(slope_DD, slope.detach(), atol=1e-12)
    moved_BB = trusted.logits(few, np.eye(5) - 0.001 * slope_DD)
    trusted_DD = flyt.pulled(trusted, few, flyt.loss_slope(moved_BB))
    slope_B = flyt.slope_along(logit_BB, pool.logits(rows, trusted_DD), known)
    np.testing.assert_allclose(-0.001 * score_BK.T @ slope_B, weight.grad, rtol=1e-9)


def pairs(width: int = 6) -> pa.Table:
    """Trusted pairs that a map makes equal, and a pool of which half are, with a score that tells
    these from the others a little."""
    rng = np.random.default_rng(1)
    image = rng.normal(size=(300, 6))
    text = image @ np.linalg.qr(rng.normal(size=(6, 6)))[0]
    fits = rng.random(300) < 0.5
    good = np.arange(300) < 100
    text[~fits & ~good] = rng.normal(size=(int((~fits & ~good).sum()), 6))
    uids = [(1 + row).to_bytes(16, "big") for row in range(300)]
    columns = {"fit": fits + rng.normal(size=300), "noise": rng.normal(size=300), "good": good}
    vectors = {
        "image_embedding": from_matrix(image),
        "text_embedding": from_matrix(text[:, :width]),
    }
    return pa.table({"uid": pa.array(uids, pa.binary(16)), **columns, **vectors})


def learnt(memory_context, memory_shards, *tables: pa.Table) -> np.ndarray:
    ctx = memory_context()
    Mix(learn=LEARN).run(Inputs(rows=memory_shards(*tables)), ctx)
    out = pa.concat_tables(table.unify_dictionaries() for table in ctx.stored).sort_by("uid")
    return np.stack([out[name].to_numpy() for name in ("mix_of_fit", "mix_of_noise")])


def test_weights_go_to_the_score_that_tells_what_teaches(
    memory_context, memory_shards, monkeypatch
):
    monkeypatch.setattr(flyt, "STEPS", 40)
    given = pairs()
    part_2N = learnt(memory_context, memory_shards, given)
    deviation_2 = part_2N.std(axis=1)
    assert deviation_2[0] > 2 * deviation_2[1]
    assert np.corrcoef(part_2N[0], given["fit"])[0, 1] == pytest.approx(1)
    turned = learnt(memory_context, memory_shards, given.slice(250), given.slice(0, 250))
    np.testing.assert_array_equal(turned, part_2N)
    with pytest.raises(StageError, match="image embeddings 6 wide, and texts 5 wide"):
        learnt(memory_context, memory_shards, pairs(5))
