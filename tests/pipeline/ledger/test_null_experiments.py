"""Experiments in which nothing differs find nothing, and those with an effect find it as often as
they say: with the answers of forty trainings (tests/benchmarks/null_experiments.py), and with
simulated ones."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest

from clipmill.pipeline.ledger.proof.compare import Comparison, Scored, compare, judged
from clipmill.pipeline.ledger.proof.measured import Terms, redrawn
from clipmill.pipeline.ledger.proof.noise import DRAWS, draw_weights

STORED = json.loads((Path(__file__).parent / "null_seeds.json").read_text())
FEW = 5  # seeds of each side


def scored(models: list[dict[str, np.ndarray]]) -> Scored:
    """The headline of some models, by the hits of each on every task."""
    values, draws = [], []
    for key, task in enumerate(models[0]):
        hit_SN = np.stack([model[task] for model in models]).astype(np.float32)
        weight_DN = weights(hit_SN.shape[1], key)
        values.append(hit_SN.mean(1, dtype=np.float64))
        draws.append(hit_SN @ weight_DN.T / weight_DN.sum(1).astype(np.float64))
    return Scored(
        seeds=tuple(range(len(models))),
        value_S=np.mean(values, axis=0),
        draw_SD=np.mean(draws, axis=0),
    )


@functools.cache
def weights(items: int, key: int) -> np.ndarray:
    return draw_weights(items, key, 0, DRAWS)


def part(of: Scored, at: np.ndarray) -> Scored:
    assert of.draw_SD is not None
    return Scored(seeds=tuple(at), value_S=of.value_S[at], draw_SD=of.draw_SD[at])


def apart(a: Scored, b: Scored) -> Comparison:
    return judged([compare("a", "b", a, b)])[0]


def halves(seeds: int, experiments: int, key: int):
    """Five seeds and five others, for each experiment."""
    rng = np.random.default_rng(key)
    for _ in range(experiments):
        yield np.split(rng.permutation(seeds)[: 2 * FEW], 2)


def bits(packed: str) -> np.ndarray:
    return np.unpackbits(np.frombuffer(bytes.fromhex(packed), np.uint8))


@pytest.fixture(scope="module")
def answers() -> dict[str, list[dict[str, np.ndarray]]]:
    return {
        arm: [{task: bits(hits) for task, hits in model.items()} for model in models]
        for arm, models in STORED.items()
    }


@pytest.fixture(scope="module")
def trained(answers) -> dict[str, Scored]:
    return {arm: scored(models) for arm, models in answers.items()}


def test_shares_are_drawn_again_as_the_bench_draws_them(answers):
    models, one = answers["plain"][:2], np.zeros(1, np.int64)
    draws = [
        redrawn([Terms(np.arange(len(hit)), hit, one) for hit in hits], key)
        for key, hits in enumerate([model[task] for model in models] for task in models[0])
    ]
    np.testing.assert_allclose(scored(models).draw_SD, np.mean(draws, axis=0), atol=1e-7)


def test_seeds_of_one_subset_against_others_of_it_are_no_difference(trained):
    verdicts = [
        apart(part(of, a), part(of, b)).verdict
        for key, of in enumerate(trained.values())
        for a, b in halves(len(of.seeds), 20, key)
    ]
    assert len(verdicts) == 40
    assert verdicts.count("none") >= 35


def test_a_third_of_the_captions_swapped_is_found(trained):
    plain, swapped = trained["plain"], trained["swapped"]
    found = [
        apart(part(plain, a), part(swapped, b)).verdict
        for a, b in halves(len(plain.seeds), 20, key=2)
    ]
    assert found.count("better") >= 18


@pytest.mark.parametrize(
    ("points", "least", "most"), [(2, 8, 20), (3, 18, 30), (4, 32, 39), (5, 38, 40)]
)
def test_a_planted_effect_is_found_as_often_as_the_smallest_visible_one_says(
    answers, trained, points, least, most
):
    """So many points: a share of the items is answered by models of the swapped captions."""
    gap = 100 * (trained["plain"].value_S.mean() - trained["swapped"].value_S.mean())
    rng, found = np.random.default_rng(4), []
    for a, b in halves(len(answers["plain"]), 40, key=points):
        planted = []
        is_other = {task: rng.random(400) < points / gap for task in answers["plain"][0]}
        for plain, swapped in zip(b, rng.permutation(20), strict=False):
            both = answers["plain"][plain], answers["swapped"][swapped]
            planted.append({t: np.where(is_other[t], both[1][t], both[0][t]) for t in is_other})
        found.append(apart(part(trained["plain"], a), scored(planted)))
    assert np.mean([100 * it.visible for it in found]) == pytest.approx(3.6, abs=0.3)
    assert least <= [it.verdict for it in found].count("better") <= most


def test_the_stored_answers_are_of_forty_trainings_that_differ(trained):
    values = np.concatenate([of.value_S for of in trained.values()])
    assert len(values) >= 40
    assert len(np.unique(values)) > 30


@pytest.mark.parametrize(("effect", "verdict", "least"), [(0.0, "none", 91), (0.5, "better", 90)])
def test_simulated_seeds_say_the_same(effect, verdict, least):
    rng = np.random.default_rng(3)
    found = []
    for _ in range(100):
        ease_N = rng.standard_normal(150)
        sides = []
        for shift in (effect, 0.0):
            seed_S1 = 0.1 * rng.standard_normal((FEW, 1))
            hit_SN = ease_N + shift + seed_S1 + rng.standard_normal((FEW, 150)) > 0.5
            sides.append(scored([{"task": hit_N} for hit_N in hit_SN]))
        found.append(apart(*sides).verdict)
    assert found.count(verdict) >= least
