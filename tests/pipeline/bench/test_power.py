"""What a bench would see with more seeds: against simulated benches, and forty stored trainings."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from clipmill.pipeline.bench import power
from clipmill.pipeline.bench.power import power_of, text
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.ledger.proof.compare import Scored, compare, judged
from clipmill.pipeline.ledger.proof.noise import welch
from clipmill.pipeline.ledger.proof.results import Cell, MetricRow, Results
from clipmill.pipeline.planning.recipe import Recipe
from tests.pipeline.ledger.test_null_experiments import answers, part, trained  # noqa: F401

RECIPE = Recipe(name="bench", path="bench.yaml", seed=0, stages={"a": {"seeds": [0, 1, 2]}})
SIGMA, ITEMS, DRAWS, BENCHES = 0.02, 0.005, 60, 1_000


def results(**arms: Scored) -> Results:
    """A page of these arms' one metric, each against the first."""
    (base, first), *others = arms.items()
    found = judged([compare(name, base, scored, first) for name, scored in others])
    cells = [
        Cell(
            arm=name,
            seeds=len(scored.seeds),
            by_seed=tuple(zip(scored.seeds, scored.value_S.tolist(), strict=True)),
            result=None,
            against=(comparison,),
            share=None,
            near_chance=False,
        )
        for (name, scored), comparison in zip(arms.items(), [None, *found], strict=True)
    ]
    row = MetricRow(task="flags", metric="acc5", chance=None, cells=tuple(cells))
    return Results(
        arms=tuple(arms),
        baselines=(base,),
        epochs={},
        fine={},
        headline=None,
        tasks=(row,),
        rows=(),
    )


def models(rng: np.random.Generator, seeds: int, mean: float = 0.5) -> Scored:
    """Models whose seeds and items vary by known amounts."""
    value_S = rng.normal(mean, SIGMA, seeds)
    draw_SD = value_S[:, None] + rng.normal(0, ITEMS / 2**0.5, DRAWS)
    return Scored(seeds=tuple(range(seeds)), value_S=value_S, draw_SD=draw_SD)


def test_the_predicted_difference_is_found_in_four_benches_of_five():
    rng = np.random.default_rng(0)
    stored = results(raw=models(rng, 300), best=models(rng, 300))
    for seeds in (3, 10):
        # the difference by a bench's items is another than by all items
        apart_X = power_of(stored, []).least[seeds].value + rng.normal(0, ITEMS, BENCHES)
        value = rng.normal(0.5, SIGMA, (2, BENCHES, seeds))
        draw = value[..., None] + rng.normal(0, ITEMS / 2**0.5, (2, BENCHES, 1, DRAWS))
        found = welch(value[0] + apart_X[:, None], value[1], *draw)
        assert 0.73 <= (found.p < 0.05).mean() <= 0.84


def test_few_stored_trainings_say_so():
    rng = np.random.default_rng(1)
    found = power_of(results(raw=models(rng, 3), best=models(rng, 2)), [])
    assert (found.trainings, found.df) == (5, 3)
    assert found.least[5].high > 2 * found.least[5].value
    assert text(found).splitlines()[-1] == (
        "too few stored trainings for a narrow prediction: 3 degrees of freedom, 10 would do"
    )


def test_arms_of_the_same_models_count_once():
    rng = np.random.default_rng(1)
    raw, best = models(rng, 3), models(rng, 2)
    once, twice = (
        power_of(results(**arms), [])
        for arms in (dict(raw=raw, best=best), dict(raw=raw, best=best, all=raw))
    )
    assert (twice.trainings, twice.arms, twice.df) == (5, 2, 3)
    assert twice.seed_variance == once.seed_variance
    assert (once.comparisons, twice.comparisons) == (1, 2)


def test_the_seeds_that_a_difference_needs_are_the_fewest_that_would_see_it():
    rng = np.random.default_rng(2)
    stored = results(raw=models(rng, 20), best=models(rng, 20))
    least = power_of(stored, []).least
    found = power_of(stored, [least[5].value, 0.001])
    five, never = found.needed
    assert five.low < five.seeds == 5 < five.high
    assert (never.seeds, never.low, never.high) == (None,) * 3  # endless seeds do not see it
    assert 0.001 < found.least_ever < least[40].value
    assert "\n0.1 needs more than 1,000 seeds an arm\n" in f"{text(found)}\n"


def test_three_stored_trainings_of_each_arm_foretell_what_all_forty_say(trained):  # noqa: F811
    rng, pages = np.random.default_rng(3), []
    for seeds in (20, *[3] * 20):
        some = (part(arm, rng.permutation(20)[:seeds]) for arm in trained.values())
        pages.append(power_of(results(**dict(zip(trained, some, strict=True))), []).least[10])
    every, *few = pages
    assert sum(found.low <= every.value <= found.high for found in few) >= 17
    assert np.median([found.value for found in few]) == pytest.approx(every.value, rel=0.15)


def test_one_seed_an_arm_or_none_or_equal_ones_predict_nothing_and_say_why():
    rng = np.random.default_rng(3)
    page = results(raw=models(rng, 1), best=models(rng, 1))
    same = Scored(seeds=(0, 1), value_S=np.array([0.5, 0.5]), draw_SD=None)
    for stored, found, do in (
        (page, "one training of each of 2 arms", "--seeds N"),
        (replace(page, tasks=()), "nothing is trained and evaluated there", "--seeds N"),
        (results(raw=same, best=same), "all seeds of each of 2 arms score the same", "--tasks DIR"),
    ):
        with pytest.raises(StageError, match=found) as error:
            power_of(stored, [])
        assert do in error.value.args[2]


def test_one_seed_of_each_arm_is_found_only_where_none_has_two(monkeypatch):
    bench = SimpleNamespace(seeds=3)
    prepared = SimpleNamespace(bench=bench, arms="ab", plan=SimpleNamespace(recipe=RECIPE))
    monkeypatch.setattr(power, "make_plan", lambda recipe: recipe.stages["a"]["seeds"])
    monkeypatch.setattr(power, "RunState", lambda seeds, out: len(seeds))
    monkeypatch.setattr(power, "results_of", lambda prepared, arms: arms)
    for stored, found in (({1: "ab"}, "ab"), ({1: "ab", 2: "a"}, "a"), ({2: "a", 3: ""}, "a")):
        monkeypatch.setattr(power, "trained_arms", lambda _, n, stored=stored: [*stored.get(n, "")])
        assert power.stored_results(prepared, None) == [*found]


@pytest.mark.parametrize(("ranks", "items"), [(True, 0.0), (False, None)])
def test_items_without_noise_are_not_taken_for_ranks_that_nobody_stored(ranks, items):
    arms = {}
    for name, value_S in (("raw", np.array([0.4, 0.5])), ("best", np.array([0.5, 0.7]))):
        draw_SD = np.repeat(value_S[:, None], DRAWS, axis=1) if ranks else None
        arms[name] = Scored(seeds=(0, 1), value_S=value_S, draw_SD=draw_SD)
    found = power_of(results(**arms), [])
    assert found.items_variance == items
    assert ("no stored ranks" in text(found)) == (not ranks)
