"""Mix: scaled sums against NumPy, weights that are learnt, and what cannot be mixed."""

import json

import numpy as np
import pyarrow as pa
import pytest

from clipmill.pipeline.dataset import Inputs
from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.stages.score.mix import Learn, Mix, ranking

ROWS = 600


@pytest.fixture
def mixed(memory_context, memory_shards):
    """What the stage stores of these tables, and its summary."""

    def run(stage: Mix, *tables: pa.Table) -> tuple[pa.Table, dict]:
        ctx = memory_context()
        stage.run(Inputs(rows=memory_shards(*tables)), ctx)
        whole = pa.concat_tables(table.unify_dictionaries() for table in ctx.stored)
        about = ctx.out / "mix.json"
        return whole, json.loads(about.read_text()) if about.exists() else {}

    return run


def table(**columns) -> pa.Table:
    rows = len(next(iter(columns.values())))
    uids = [(1 + row).to_bytes(16, "big") for row in range(rows)]
    return pa.table({"uid": pa.array(uids, pa.binary(16)), **columns})


@pytest.fixture(scope="module")
def drawn() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    return {
        "clip": rng.normal(0.2, 0.05, ROWS).astype(np.float32),
        "side": rng.integers(30, 60, ROWS) ** 2,  # with ties
        "seen": rng.random(ROWS) < 0.3,
    }


def scaled(value_N: np.ndarray, how: str) -> np.ndarray:
    value_N = value_N.astype(np.float64)
    if how == "z":
        return (value_N - value_N.mean()) / value_N.std()
    if how == "min_max":
        return (value_N - value_N.min()) / np.ptp(value_N)
    below = (value_N[:, None] > value_N).mean(axis=1)
    return below + (value_N[:, None] == value_N).mean(axis=1) / 2


@pytest.mark.parametrize("how", ["z", "rank", "min_max"])
def test_a_mixture_is_the_weighted_sum_and_its_parts_add_up(how, drawn, mixed):
    weights = {"clip": 0.8, "side": -0.5, "seen": 0.3}
    stage = Mix(weights=weights, scale=how, scales={"seen": "min_max"})
    given = table(**drawn)
    out, about = mixed(stage, given)
    parts = {
        name: weight * scaled(drawn[name], "min_max" if name == "seen" else how)
        for name, weight in weights.items()
    }
    mix = sum(parts.values())
    assert np.abs(out["mix_score"].to_numpy() - mix).max() < 1e-6
    for name, part in parts.items():
        assert np.abs(out[f"mix_of_{name}"].to_numpy() - (part - part.mean())).max() < 1e-6
    assert [(c["column"], c["weight"]) for c in about["columns"]] == [*weights.items()]
    turned, again = mixed(stage, given.slice(207), given.slice(0, 207))
    assert again == about
    assert turned.sort_by("uid").select(stage.parts).equals(out.sort_by("uid").select(stage.parts))


def test_an_affine_change_of_a_column_changes_no_order(drawn, mixed):
    def order(clip: np.ndarray, how: str) -> list:
        stage = Mix(weights={"clip": 1, "side": 1}, scale=how)
        return np.argsort(mixed(stage, table(**drawn | {"clip": clip}))[0]["mix_score"]).tolist()

    exact = drawn["clip"].astype(np.float64)
    for how in ("z", "rank", "min_max"):
        assert order(exact, how) == order(1000 * exact - 7, how)


def test_whole_numbers_past_2_53_are_mixed(mixed):
    near, far = (table(a=pa.array([n, n + 4096, n + 8192])) for n in (0, 2**60))
    stage = Mix(weights={"a": 1}, scale="min_max")
    assert mixed(stage, near)[0].equals(mixed(stage, far)[0])


@pytest.mark.parametrize("how", ["z", "rank", "min_max"])
def test_scales_and_weights_are_those_of_the_rows_that_over_names(how, drawn, mixed):
    home = np.arange(ROWS) % 3 > 0
    strange = drawn | {"clip": np.where(home, drawn["clip"], 9 * drawn["clip"]).astype(np.float32)}
    given = table(**strange, home=home)
    learn = Learn(columns=("clip", "side"), good="seen", penalty=0.1)
    for settings in ({"weights": {"clip": 1, "side": 2}}, {"learn": learn}):
        out, about = mixed(Mix(**settings, scale=how, over="home"), given)
        alone, expected = mixed(Mix(**settings, scale=how), given.filter(pa.array(home)))
        assert about == expected
        columns = ["mix_score", "mix_of_clip", "mix_of_side"]
        assert out.filter(pa.array(home)).select(columns).equals(alone.select(columns))
        assert out["mix_score"].null_count == 0
    with pytest.raises(StageError, match="'home' is true for no row that has all columns"):
        mixed(Mix(weights={"clip": 1}, over="home"), table(**drawn, home=~(home | True)))


def test_ranks_of_many_rows_are_counted_at_some_of_their_values(mixed):
    rng = np.random.default_rng(6)
    value = np.where(rng.random(30_000) < 0.3, 0, rng.lognormal(0, 2, 30_000)).astype(np.float32)
    out, _ = mixed(Mix(weights={"value": 1}, scale="rank"), table(value=value))
    ordered = np.sort(value)
    ends = (np.searchsorted(ordered, value, end) for end in ("left", "right"))
    error = np.abs(out["mix_score"].to_numpy() - sum(ends) / 2 / len(value))
    assert error.max() < 2e-3
    assert error.mean() < 1e-4
    assert error[value == 0].max() < 1e-7  # ties between knots or at one


def test_rows_without_a_value_have_a_reason_and_count_nowhere(mixed):
    clip = pa.array([0.0, 1.0, None, 9.0, 5.0], pa.float32())
    given = table(clip=clip, side=[3.0, 5.0, 4.0, np.nan, np.inf])
    out, _ = mixed(Mix(weights={"clip": 1, "side": 2}), given)
    assert out["mix_score"].to_pylist() == [-3, 3, None, None, None]
    assert out["mix_of_side"].to_pylist()[:3] == [-2, 2, None]
    assert out["reason"].to_pylist() == [None] * 2 + ["undefined"] * 3
    none, about = mixed(Mix(weights={"clip": 1}), table(clip=pa.nulls(3, pa.float32())))
    assert (none["mix_score"].null_count, none["mix_of_clip"].null_count, about) == (3, 3, {})


def test_learnt_weights_are_those_of_the_regression_and_ignore_noise(mixed):
    rng = np.random.default_rng(8)
    rows = 4_000
    good = rng.random(rows) < 0.2
    fit, size, noise = rng.normal(size=(3, rows))
    fit += 2.0 * good
    size -= 0.5 * good
    bad = ~good & (rng.random(rows) < 0.5)
    given = table(fit=fit, size=size, noise=noise, good=good, bad=pa.array(bad))
    learn = Learn(columns=("fit", "size", "noise"), good="good", bad="bad", penalty=0.01)
    out, about = mixed(Mix(learn=learn), given)
    weight = np.array([column["weight"] for column in about["columns"]])
    x_LK = np.stack([scaled(v, "z") for v in (fit, size, noise)], axis=1)[good | bad]
    is_good = good[good | bad]
    share = np.where(is_good, 0.5 / is_good.sum(), 0.5 / (~is_good).sum())

    def slope(bias: float) -> np.ndarray:
        p = 1 / (1 + np.exp(-(x_LK @ weight + bias)))
        return np.append(x_LK.T @ (share * (p - is_good)) + 0.01 * weight, share @ (p - is_good))

    low, high = -9.0, 9.0
    for _ in range(60):  # the bias, which the mixture does not need
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle)[-1] < 0 else (low, middle)
    assert np.abs(slope(low)).max() < 1e-6  # the loss has one least point; weights have 6 digits
    assert weight[0] > 1 > -0.2 > weight[1]
    assert abs(weight[2]) < 0.1
    _, again = mixed(Mix(learn=learn), given.slice(1_500), given.slice(0, 1_500))
    turned = [column["weight"] for column in again["columns"]]
    assert turned == weight.tolist()
    separable = Learn(columns=("good",), good="good")
    assert mixed(Mix(learn=separable), given)[1]["columns"][0]["weight"] > 1
    assert out["mix_score"].null_count == 0


def test_what_cannot_be_mixed_is_refused(drawn, mixed):
    with pytest.raises(StageError, match="'side' is 4 in all 600 rows, and tells none apart"):
        mixed(Mix(weights={"side": 1}), table(side=np.full(ROWS, 4)))
    for ends in ([-1e308, 1e308], [0, 1e-310]):
        with pytest.raises(StageError, match="float64 cannot scale that"):
            mixed(Mix(weights={"side": 1}), table(side=ends))
        out, _ = mixed(Mix(weights={"side": 1}, scale="rank"), table(side=ends))
        assert out["mix_score"].to_pylist() == [0.25, 0.75]
    learn = Learn(columns=("clip",), good="few")
    few = np.arange(ROWS) < 19
    with pytest.raises(StageError, match="19 good rows with all columns, and 20 are needed"):
        mixed(Mix(learn=learn), table(**drawn, few=few))
    with pytest.raises(StageError, match="column 'clip' holds string"):
        Mix(weights={"clip": 1}).check({"clip": pa.string()})
    with pytest.raises(StageError, match="column 'few' holds double"):
        Mix(learn=learn).check({"clip": pa.float32(), "few": pa.float64()})
    for settings, said in (
        ({}, "neither `weights` nor `learn`"),
        ({"weights": {"a": 1}, "learn": learn}, "both"),
        ({"weights": {"a": 0.0}}, "'a' has weight 0.0"),
        ({"weights": {"a": float("nan")}}, "'a' has weight nan"),
        ({"weights": {"a.b": 1, "a_b": 1}}, "a column stands twice"),
        ({"weights": {"a": 1}, "scales": {"b": "rank"}}, "'b' is not mixed"),
    ):
        with pytest.raises(RecipeError, match=said):
            Mix(**settings)


def test_ranks_of_neighbouring_numbers_are_apart():
    values = np.array([0.1, 0.3, 0.1 + 0.2, 0.5])
    ranks = ranking(values, np.array([0, 0.1, 0, 0.2, 0, 0.4, 0, 0.3]))
    found = ranks.of(np.array([*values, 0.4]))
    assert found == pytest.approx([0.05, 0.2, 0.5, 0.85, 0.7])


def test_the_parts_that_decided_are_named():
    stage = Mix(weights={"clip": 1, "side": 1, "seen": 1})
    values = {"mix_of_clip": 1.4, "mix_of_side": -0.31, "mix_of_seen": 0.2}
    for_it, against = "clip (+1.40) and seen (+0.20)", "side (-0.31)"
    assert stage.tells(values, kept=True) == f"for its {for_it}, in spite of its {against}"
    assert stage.tells(values, kept=False) == f"for its {against}, in spite of its {for_it}"
    alone = Mix(weights={"clip": 1})
    assert alone.tells({"mix_of_clip": -2.0}, kept=True) == "in spite of its clip (-2.00)"
