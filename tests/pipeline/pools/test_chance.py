import pytest

from clipmill.pipeline.pools.chance import Chance, fraction, hex_id, keep


def test_a_draw_is_the_same_on_every_machine_and_day():
    assert fraction("a", "b") == 0.9699142814205318
    assert hex_id("a") != hex_id("a", "")


def test_draws_fill_the_unit_interval_evenly():
    draws = [Chance(0, "source", str(key)).u("purpose") for key in range(4_000)]
    assert all(0 <= draw < 1 for draw in draws)
    assert sum(draws) / len(draws) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(("seed", "purpose"), [(0, "two"), (1, "one")])
def test_purposes_and_seeds_are_independent(seed, purpose):
    def is_low(seed: int, key: int, purpose: str) -> bool:
        return Chance(seed, "source", str(key)).u(purpose) < 0.5

    both = sum(is_low(0, key, "one") and is_low(seed, key, purpose) for key in range(4_000))
    assert both / 4_000 == pytest.approx(0.25, abs=0.02)


def test_the_fixed_coin_knows_no_seed():
    assert keep("package", "key") == fraction("keep", "package", "key")


def test_shares_are_met_and_the_rest_is_null():
    shares = {"often": 0.3, "rarely": 0.1}
    drawn = [Chance(1, "source", str(key)).weighted("fault", shares) for key in range(4_000)]
    for name, share in [("often", 0.3), ("rarely", 0.1), (None, 0.6)]:
        assert drawn.count(name) / len(drawn) == pytest.approx(share, abs=0.025)


def test_both_ends_of_a_range_occur():
    drawn = {Chance(0, "source", str(key)).between("side", 2, 4) for key in range(100)}
    assert drawn == {2, 3, 4}
