"""SoftCap and HardCap: the laws of drawing one by one, and rows that scale and shards leave."""

from collections import Counter
from dataclasses import replace
from decimal import Decimal
from functools import partial

import numpy as np
import pyarrow as pa
import pytest

from clipmill.pipeline.dataset import Inputs
from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.stages.select._repeats import clock
from clipmill.stages.select.hard_cap import HardCap
from clipmill.stages.select.soft_cap import SoftCap

ROWS, RUNS = 600, 800
SCORE = np.array([0.0, 0.3, 0.7, 1.1, 1.6, 2.2])
SOFT = SoftCap(weights={"a": 1}, rows=6, batch=2, alpha=0.8)
HARD = HardCap(weights={"a": 1}, rows=6, at_most=2)


def uids(rows: int) -> pa.Array:
    data = np.random.default_rng(rows).bytes(16 * rows)
    return pa.Array.from_buffers(pa.binary(16), rows, [None, pa.py_buffer(data)])


def pool(**columns) -> pa.Table:
    drawn = np.random.default_rng(1).normal(size=(2, ROWS))
    return pa.table({"uid": uids(ROWS), "a": drawn[0], "b": drawn[1] ** 2, **columns})


@pytest.fixture
def ran(memory_context, memory_shards):
    """What a stage stores of these tables, in the order of uids."""

    def run(stage, *tables: pa.Table) -> pa.Table:
        ctx = memory_context()
        stage.run(Inputs(rows=memory_shards(*tables)), ctx)
        whole = pa.concat_tables(table.unify_dictionaries() for table in ctx.stored)
        return whole.drop_columns(["shard", "position"]).sort_by("uid")

    return run


def one_by_one(rng: np.random.Generator, stage: SoftCap | HardCap) -> list[int]:
    """The released samplers in our words: soft draws whole batches, hard one row at a time."""
    score, times, drawn = SCORE.copy(), np.zeros(len(SCORE), int), []
    size = stage.batch if isinstance(stage, SoftCap) else 1
    while len(drawn) < stage.rows:
        chance = np.exp(score) / np.exp(score).sum()
        new = rng.choice(len(score), size, replace=False, p=chance)
        drawn += new.tolist()
        times[new] += 1
        if isinstance(stage, SoftCap):
            score[new] -= stage.alpha
        else:
            score[times == stage.at_most] = -np.inf
    return drawn


@pytest.mark.parametrize("stage", [SOFT, HARD], ids=["soft", "hard"])
def test_repeats_have_the_law_of_drawing_one_by_one(stage):
    rng, uid = np.random.default_rng(0), pa.chunked_array([uids(len(SCORE))])
    count_RN = np.zeros((2, RUNS, len(SCORE)))
    for run in range(RUNS):
        drawn = stage.drawn(SCORE.copy(), partial(clock, uid, run, "it"), "it")
        for count_N, rows in zip(count_RN[:, run], (drawn, one_by_one(rng, stage)), strict=True):
            np.add.at(count_N, rows, 1)
    spread_N = np.hypot(*count_RN.std(axis=1)) / RUNS**0.5
    assert (np.abs(np.subtract(*count_RN.mean(axis=1))) < 5 * spread_N).all()


def test_soft_cap_takes_the_largest_of_score_and_noise_in_each_round(ran):
    out = ran(SoftCap(weights={"a": 2, "b": -1}, rows=250, batch=100, alpha=0.5), pool())
    rows = pool().sort_by("uid")
    score = np.zeros(ROWS)
    for name, weight in (("a", 2), ("b", -1)):
        value = rows[name].to_numpy()
        score += weight * (value - value.mean()) / value.std()
    drawn = []
    for number, size in enumerate((100, 100, 50)):
        key = score - np.log(clock(rows["uid"], 0, "it", number))
        drawn += (new := sorted(range(ROWS), key=lambda row: -key[row])[:size])
        score[new] -= 0.5
    times = Counter(drawn)
    assert max(times.values()) > 1
    assert out["repeats"].to_pylist() == [times.get(row) for row in range(ROWS)]
    first = {row: at for at, row in reversed([*enumerate(drawn)])}
    assert out["first_draw"].to_pylist() == [first.get(row) for row in range(ROWS)]
    assert out["keep"].to_pylist() == [row in times for row in range(ROWS)]


def test_without_a_fall_single_draws_have_the_chances_of_the_softmax():
    uid = pa.chunked_array([uids(len(SCORE))])
    stage = SoftCap(weights={"a": 1}, rows=4_000, batch=1, alpha=0)
    found = np.bincount(stage.drawn(SCORE.copy(), partial(clock, uid, 0, "it"), "it"))
    expected = stage.rows * np.exp(SCORE) / np.exp(SCORE).sum()
    assert ((found - expected) ** 2 / expected).sum() < 25  # chi square, 5 degrees of freedom


def test_a_great_fall_draws_every_row_once(ran):
    out = ran(SoftCap(weights={"a": 1}, rows=ROWS, batch=100, alpha=1e6), pool())
    assert set(out["repeats"].to_pylist()) == {1}


def test_a_hard_cap_is_reached_and_not_passed(ran):
    out = ran(HardCap(weights={"a": 3}, rows=900, at_most=3), pool())["repeats"].to_pylist()
    assert max(filter(None, out)) == 3
    assert sum(filter(None, out)) == 900
    whole = ran(HardCap(weights={"a": 3}, rows=3 * ROWS, at_most=3), pool())
    assert set(whole["repeats"].to_pylist()) == {3}


@pytest.mark.parametrize(
    "stage",
    [
        SoftCap(weights={"a": 1, "b": 0.5}, rows=300, batch=90),
        HardCap(weights={"a": 1, "b": 0.5}, rows=300, at_most=2),
    ],
    ids=["soft", "hard"],
)
def test_scale_shards_and_order_change_nothing_and_fewer_draws_are_the_first(stage, ran):
    out = ran(stage, pool())
    scaled = pool(a=1e3 * pool()["a"].to_numpy() - 7, b=pool()["b"].to_numpy() / 9 + 80)
    assert ran(stage, scaled).equals(out)
    turned = pool().take(np.arange(ROWS)[::-1])
    assert ran(stage, turned.slice(0, 7), turned.slice(7)).equals(out)
    (threshold,) = stage.thresholds()
    (fewer,) = stage.verdicts(threshold, [Decimal(120)], out.select(["uid"]), out)
    assert ran(replace(stage, rows=120), pool())["keep"].to_pylist() == fewer.keep.tolist()
    with pytest.raises(ValueError, match="rows is 301; it is a whole number up to 300 draws"):
        next(stage.verdicts(threshold, [Decimal(301)], out.select(["uid"]), out))


def test_rows_without_a_score_and_dropped_ones_are_not_drawn(ran):
    a = pool()["a"].to_pylist()
    a[:4] = None, float("nan"), float("inf"), 1e9
    kept = [row != 3 for row in range(ROWS)]
    given = pool(a=pa.array(a), keep=kept)
    out = ran(HardCap(weights={"a": 1}, rows=ROWS - 4, at_most=1), given)
    reasons = dict(zip(out["uid"].to_pylist(), out["reason"].to_pylist(), strict=True))
    found = [reasons.pop(uid) for uid in given["uid"].to_pylist()[:4]]
    assert found == [*["undefined:a"] * 3, "dropped_before"]
    assert set(reasons.values()) == {None}


@pytest.mark.parametrize(
    ("stage", "columns", "found"),
    [
        (SOFT, {"a": [0.25] * ROWS}, "'a' is 0.25 in all 600 rows, and tells none apart"),
        (SOFT, {"a": [1e300, 0.0] * (ROWS // 2)}, "the deviation of 'a' in 600 rows is inf"),
        (SOFT, {"a": [1e-200, 0.0] * (ROWS // 2)}, "the deviation of 'a' in 600 rows is 0"),
        (SoftCap(weights={"a": 1}, rows=9000), {}, "a round of 9,000 rows, and 600 have a score"),
        (
            HardCap(weights={"a": 1}, rows=6000, at_most=9),
            {},
            "6,000 draws of 600 rows, each at most 9 times",
        ),
    ],
)
def test_what_cannot_be_drawn_is_said(stage, columns, found, ran):
    with pytest.raises(StageError) as raised:
        ran(stage, pool(**columns))
    assert found in str(raised.value)


def test_whole_numbers_past_2_53_are_drawn_by(ran):
    near, far = (pool(a=pa.array(range(n, n + 1000 * ROWS, 1000))) for n in (0, 2**60))
    assert ran(SOFT, near).equals(ran(SOFT, far))


@pytest.mark.parametrize("weight", [0, float("nan"), float("inf")])
def test_a_weight_is_a_finite_number(weight):
    with pytest.raises(RecipeError, match=f"'a' has weight {weight}"):
        HardCap(weights={"a": weight}, rows=6, at_most=1)
