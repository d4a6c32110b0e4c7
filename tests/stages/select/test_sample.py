"""Sample: uniform chance, exact sizes, shares of values, caps; against sorting in Python."""

from collections import Counter
from decimal import Decimal
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from clipmill.metadata.uid import coin, coin_hash
from clipmill.pipeline.dataset import Inputs
from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.pipeline.stage import Selects
from clipmill.stages.select.sample import Sample

ROWS = 3_000


@pytest.fixture
def sampled(memory_context, memory_shards):
    """The stored rows of a run over these tables."""

    def run(*tables: pa.Table, seed: int = 0, **settings) -> pa.Table:
        ctx = memory_context(seed)
        Sample(**settings).run(Inputs(rows=memory_shards(*tables)), ctx)
        stored = ctx.stored or [pa.table({"keep": []})]
        return pa.concat_tables(table.unify_dictionaries() for table in stored)

    return run


def rows_of(values: list, dtype: pa.DataType | None = None, **columns) -> pa.Table:
    """Rows with these values as `value`, and random uids."""
    data = np.random.default_rng(len(values)).bytes(16 * len(values))
    uids = pa.Array.from_buffers(pa.binary(16), len(values), [None, pa.py_buffer(data)])
    return pa.table({"uid": uids, "group": pa.array(values, dtype), **columns})


@pytest.fixture(scope="module")
def pool():
    """Values of very different frequency, and some rows without one."""
    drawn = np.random.default_rng(0).geometric(0.3, ROWS).tolist()
    return rows_of([None if value == 5 else f"v{value}" for value in drawn])


def kept(out: pa.Table) -> list[bool]:
    return out["keep"].to_pylist()


def uids(out: pa.Table) -> set[bytes]:
    return set(out["uid"].filter(out["keep"]).to_pylist())


def by_value(pool: pa.Table) -> dict[str, list[bytes]]:
    """The uids of each value, the least coin first: by sorting."""
    bits = coin_hash(pool["uid"], seed=0, stage="it", purpose="place").tolist()
    rows = zip(bits, pool["uid"].to_pylist(), pool["group"].to_pylist(), strict=True)
    found: dict[str, list[bytes]] = {}
    for _, uid, value in sorted(rows, key=lambda row: row[:2]):
        if value is not None:
            found.setdefault(value, []).append(uid)
    return found


def test_a_row_stays_where_its_coin_is_below_the_fraction(pool, sampled):
    out = sampled(pool, fraction=0.3)
    coin_N = coin(pool["uid"], seed=0, stage="it", purpose="sample")
    assert out["sample_rank"].to_pylist() == coin_N.tolist()
    assert kept(out) == (coin_N < 0.3).tolist()
    assert out["reason"].to_pylist() == [None if c < 0.3 else "sampled_out" for c in coin_N]


def test_coins_are_uniform_and_of_each_seed_their_own(sampled):
    pool = rows_of([0] * 40_000)
    ranks = [sampled(pool, fraction=0.5, seed=seed)["sample_rank"].to_numpy() for seed in (0, 1)]
    for rank_N in ranks:
        found = np.bincount((rank_N * 64).astype(int), minlength=64)
        expected = len(pool) / 64
        chi2 = ((found - expected) ** 2 / expected).sum()
        assert abs(chi2 - 63) < 5 * (2 * 63) ** 0.5
    assert abs(np.corrcoef(*ranks)[0, 1]) < 5 / len(pool) ** 0.5


@pytest.mark.parametrize("rows", [1, 2, 999, ROWS - 1, ROWS, ROWS + 1])
def test_exactly_so_many_rows_stay_those_of_the_least_coins(rows, pool, sampled):
    out = sampled(pool, rows=rows)
    order = np.argsort(out["sample_rank"].to_numpy())
    assert np.flatnonzero(kept(out)).tolist() == sorted(order[:rows].tolist())


def test_a_cap_keeps_so_many_of_each_value_the_least_coins(pool, sampled):
    out = sampled(pool, per="group", at_most=35)
    expected = by_value(pool)
    assert uids(out) == {uid for rows in expected.values() for uid in rows[:35]}
    place = {uid: rank for rows in expected.values() for rank, uid in enumerate(rows)}
    assert out["sample_rank"].to_pylist() == [place.get(uid) for uid in pool["uid"].to_pylist()]


def test_every_value_is_left_its_share_rounded_up_or_down(pool, sampled):
    for fraction in (0.01, 0.37, 0.5, 1):
        out = sampled(pool, by="group", fraction=fraction)
        left = Counter(pool["group"].filter(out["keep"]).to_pylist())
        for value, rows in by_value(pool).items():
            assert abs(left[value] - fraction * len(rows)) < 1, (value, fraction)
            assert set(rows[: left[value]]) <= uids(out)


def test_a_number_of_rows_is_one_share_of_every_value_rounded_up_or_down(pool, sampled):
    many = rows_of([*(f"v{number}" for number in range(900)), *["often"] * 1_100])
    for some in (pool, many):
        drawn_from = len(some) - some["group"].null_count
        for rows in (1, 10, 1_000, drawn_from, ROWS):
            out = sampled(some, by="group", rows=rows)
            left = Counter(some["group"].filter(out["keep"]).to_pylist())
            assert sum(left.values()) == min(rows, drawn_from)
            of_each = [(left[value], len(found)) for value, found in by_value(some).items()]
            # t * n - 1 < rows left < t * n + 1 for every value, by one t
            assert max((n - 1) / of for n, of in of_each) < min((n + 1) / of for n, of in of_each)


def test_rows_of_rare_values_are_as_likely_as_others(sampled):
    pool = rows_of([*range(4_000), *[-1] * 4_000])
    out = sampled(pool, by="group", fraction=0.3)
    rare = np.array(kept(out))[:4_000]
    assert abs(rare.sum() - 1_200) < 5 * (4_000 * 0.3 * 0.7) ** 0.5
    assert abs(np.array(kept(out))[4_000:].sum() - 1_200) <= 1


def test_larger_samples_hold_the_smaller_ones_at_every_size(sampled):
    pool = rows_of([f"v{i % 7 * (i % 3)}" for i in range(36)])
    sizes: dict[str, list[dict[str, Any]]] = {
        "rows": [{"rows": n} for n in range(1, 37)],
        "rows by": [{"rows": n, "by": "group"} for n in range(1, 37)],
        "fraction": [{"fraction": n / 36} for n in range(1, 37)],
        "fraction by": [{"fraction": n / 36, "by": "group"} for n in range(1, 37)],
        "at_most": [{"at_most": n, "per": "group"} for n in range(1, 18)],
    }
    for name, settings in sizes.items():
        outs = [sampled(pool, **some) for some in settings]
        assert all(uids(a) <= uids(b) for a, b in pairwise(outs)), name
        ranks = {tuple(out["sample_rank"].to_pylist()) for out in outs}
        assert len(ranks) == 1, f"{name}: another size is a query"


SETTINGS: list[dict[str, Any]] = [
    {"fraction": 0.3},
    {"rows": 700},
    {"fraction": 0.3, "by": "group"},
    {"rows": 700, "by": "group"},
    {"per": "group", "at_most": 35},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_every_threshold_is_answered_as_another_run_would(settings, pool, sampled):
    stage = Sample(**settings)
    assert isinstance(stage, Selects)
    out = sampled(pool, **settings)
    (threshold,) = stage.thresholds()
    sizes = ("0.1", "0.3", "1") if "fraction" in settings else (1, 35, 5_000)
    values = [Decimal(size) for size in sizes]
    parts = [out.slice(start, 700) for start in range(0, len(out), 700)]
    ask = partial(stage.verdicts, threshold, values)
    if not threshold.by_row:
        ask = stage.surveyed(threshold, values, lambda: ((part, part) for part in parts))
    by_part = [[it.keep for it in ask(part, part)] for part in parts]
    for at, verdicts in enumerate(stage.verdicts(threshold, values, out, out)):
        assert np.concatenate([part[at] for part in by_part]).tolist() == verdicts.keep.tolist()
        value = float(verdicts.value) if threshold.name == "fraction" else int(verdicts.value)
        other = sampled(pool, **settings | {threshold.name: value})
        assert verdicts.keep.tolist() == kept(other), verdicts.rule
    with pytest.raises(ValueError, match=f"{threshold.name} is 0"):
        next(stage.verdicts(threshold, [Decimal(0)], out, out))


def test_rows_dropped_before_or_without_an_image_or_a_value_are_not_drawn_from(sampled):
    columns = {
        "keep": pa.array([True, False, None, True, True]),
        "image_bytes": pa.array([1, 1, 1, None, 1], pa.int64()),
    }
    pool = rows_of(["a", "a", "a", "a", None], **columns)
    reasons = [None, "dropped_before", "dropped_before", "undefined:image_bytes"]
    out = sampled(pool, by="group", fraction=1)
    assert out["reason"].to_pylist() == [*reasons, "undefined:group"]
    assert out["sample_rank"].is_valid().to_pylist() == [True, *[False] * 4]
    assert kept(sampled(pool, rows=1_000)) == [True, False, False, False, True]
    assert sampled(pool, per="group", at_most=1)["sample_rank"].to_pylist() == [0, *[None] * 4]


def test_rows_of_one_uid_share_their_coin_and_a_number_is_still_exact(sampled):
    pool = rows_of(["a"] * 10)
    same = pa.concat_tables([pool] * 3)
    assert kept(sampled(same, fraction=0.5)) == kept(sampled(pool, fraction=0.5)) * 3
    for rows in (1, 2, 3, 10, 17, 29, 30):
        assert sum(kept(sampled(same, rows=rows))) == rows
        assert sum(kept(sampled(same, rows=rows, by="group"))) == rows
    assert sorted(sampled(same, per="group", at_most=1)["sample_rank"].to_pylist()) == [*range(30)]


@pytest.mark.parametrize(
    ("values", "dtype", "groups_of"),
    [
        ([1, 1, 2, None], pa.int8(), 2),
        ([True, True, False, None], None, 2),
        ([0.0, -0.0, 1.5, float("nan")], pa.float32(), 2),
        ([0.5, 0.5, 1.5, float("nan")], pa.float16(), 2),
        (["a", "a", "b", None], pa.dictionary(pa.int32(), pa.string()), 2),
        ([b"a" * 16, b"a" * 16, b"b" * 16, None], pa.binary(16), 2),
        ([1, 1, 2, None], pa.date32(), 2),
    ],
    ids=lambda case: str(case)[:30],
)
def test_values_of_every_kind_group_rows(values, dtype, groups_of, sampled):
    if dtype == pa.float16():
        values = [np.float16(value) for value in values]
    out = sampled(rows_of(values, dtype), per="group", at_most=1)
    assert sum(kept(out)) == groups_of
    assert out["reason"].to_pylist()[3] == "undefined:group"


def test_domain_is_the_host_of_the_link(sampled):
    urls = ["http://A.de/1", "https://a.de:443/2", "https://b.de", "no link", None]
    out = sampled(rows_of([0] * 5, url=pa.array(urls)), per="domain", at_most=1)
    assert sum(kept(out)[:2]) == 1
    assert kept(out)[2:] == [True, False, False]
    assert out["reason"].to_pylist()[3:] == ["undefined:domain"] * 2
    assert Sample(per="domain", at_most=1).reads == ("url",)


def test_a_pool_without_rows_and_one_without_values_keep_nothing(sampled):
    for settings in SETTINGS:
        assert len(sampled(rows_of([], pa.string()), **settings)) == 0
    for settings in SETTINGS[2:]:
        assert kept(sampled(rows_of([None, None], pa.string()), **settings)) == [False, False]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "nothing says how much stays"),
        ({"fraction": 0.5, "rows": 3}, "fraction and rows"),
        ({"by": "a"}, "nothing says how much stays"),
        ({"at_most": 3}, "`at_most` stands alone"),
        ({"per": "a", "fraction": 0.5}, "`per` stands alone"),
        ({"per": "a", "at_most": 3, "rows": 3}, "rows and at_most"),
        ({"per": "a", "at_most": 3, "by": "b"}, "`per` and `by` are both given"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, said):
    with pytest.raises(RecipeError, match=said):
        Sample(**settings)


@pytest.mark.parametrize(
    "dtype", [pa.list_(pa.float32()), pa.binary(), pa.struct([("a", pa.int8())])], ids=str
)
def test_a_column_that_makes_no_groups_is_refused(dtype):
    with pytest.raises(StageError, match="column 'a' holds"):
        Sample(by="a", fraction=0.5).check({"a": dtype})
