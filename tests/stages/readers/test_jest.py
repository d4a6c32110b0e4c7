"""Batches by loss: the known draw, what is drawn, what decides it, rows without a reference."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from clipmill.metadata.uid import mixed
from clipmill.pipeline.errors import StageError
from clipmill.stages.clip.loop import Schedule, Trainer
from clipmill.stages.clip.losses import find_loss
from clipmill.stages.clip.named import new_model
from clipmill.stages.readers.jest import CHUNKS, Jest, chosen, heights, pair_costs
from tests.stages.clip.exported import batches_of, row

COSTS = np.array([[2, 0.5, 0.1], [0.4, 1, 0.3], [0.2, 0.6, 3]])
PLAN = Schedule(steps=9, learning_rate=1e-2, warmup_steps=0, weight_decay=0.1, precision="float32")


def test_rows_are_as_likely_as_their_costs_beside_those_taken_say():
    height = heights(COSTS, [2])[:2]
    assert height.tolist() == pytest.approx([2.3, 1.9])
    share = np.exp(height) / np.exp(height).sum()
    assert share.tolist() == pytest.approx([0.598688, 0.401312], abs=1e-6)


def test_the_first_chunk_is_even_and_the_next_by_the_softmax_of_what_is_left():
    """Of three rows two are taken, by chunks 7 and 15."""
    drawn = Counter()
    for n in range(4000):
        coin = mixed(np.arange(3 * n + 1, 3 * n + 4, dtype=np.uint64))
        drawn[tuple(chosen(COSTS, coin, 2))] += 1
    first = Counter(pair[0] for pair in drawn.elements())
    assert all(abs(first[i] - 4000 / 3) < 5 * 30 for i in range(3))
    share = drawn[2, 0] / first[2]
    assert abs(share - 0.598688) < 5 * 0.0134
    assert CHUNKS == 16


def test_a_pairs_cost_is_siglips():
    axes, scale, bias = torch.eye(2), torch.tensor(10.0), torch.tensor(-10.0)
    cost = pair_costs(axes, axes, scale, bias)
    assert cost.diagonal().tolist() == pytest.approx([np.log(2)] * 2)
    assert cost[0, 1].item() == pytest.approx(np.log1p(np.exp(-10)))


@pytest.fixture
def jest(cached):
    """Batches of 8 of 24 rows; those below 12 are easy to learn by the reference."""
    rows = [row(i, easy=0.0 if i < 12 else 50.0) for i in range(24)]
    way = {"reference": "easy", "super_batch": 3}
    parts, _ = cached(rows[:10], rows[10:], **way)
    model = new_model("tiny", 0, bias=-10.0)
    trainer = Trainer(model, PLAN, find_loss("siglip"))
    return Jest(batches_of(parts, **way), trainer)


def test_rows_that_the_reference_knows_are_drawn_and_no_weight_is_touched(jest):
    before = {name: value.clone() for name, value in jest.trainer.model.state_dict().items()}
    batch = jest.of_rank(0, 0, 1)
    assert len({*batch.rows.tolist()}) == 8
    for n in range(5):
        assert sum(number < 12 for number in jest.of_rank(n, 0, 1).rows) >= 7
    assert batch.rows.tolist() == jest.of_rank(0, 0, 1).rows.tolist()
    after = jest.trainer.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert batch.rows.tolist() != jest.of_rank(1, 0, 1).rows.tolist()


def test_a_row_without_a_reference_is_left_out_and_counted(cached):
    rows = [row(i, easy=(0.5, None, float("nan"))[i % 3]) for i in range(9)]
    _, (said,) = cached(rows, reference="easy")
    assert (said["rows"], said["left_out"]["no_reference_loss"]) == (3, 6)


def test_a_reference_of_no_numbers_and_too_few_samples_are_refused(cached):
    with pytest.raises(StageError, match="not numbers"):
        cached([row(i) for i in range(4)], reference="uid")
    parts, _ = cached([row(i, repeats=i % 2) for i in range(16)])
    with pytest.raises(StageError, match="8 samples, and a batch is chosen from 12"):
        batches_of(parts, size=6, gain="frequency", super_batch=2)


def test_two_ranks_draw_what_the_first_one_draws(jest):
    whole, trainer = jest.of_rank(0, 0, 1).rows, jest.trainer
    row_S = jest.rows.super_batch(0)
    vectors = jest.embedded(row_S, 0)
    places = torch.tensor([row_S.tolist().index(number) for number in whole])
    parts = []
    for rank in (0, 1):
        held = list(vectors)
        ranks = SimpleNamespace(
            of=2,
            gathered=lambda part, held=held: (held.pop(0), 0),
            sum=lambda here, rank=rank: places + here if rank else here,
        )
        trainer.execution = SimpleNamespace(ranks=ranks, device="cpu", accumulate=1)
        parts += jest.of_rank(0, rank, 2).rows.tolist()
    assert parts == whole.tolist()
