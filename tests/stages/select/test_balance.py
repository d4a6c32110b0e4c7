"""Balance: known small pools, targets, lists that changed. Probabilities: test_draws."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.metadata.concepts.load import concept_list, of_entries, save
from clipmill.pipeline.dataset import Inputs
from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.stages.select import _cut as cut
from clipmill.stages.select.balance import Balance, as_float, share_below, tail_count

LISTS = 4_000
ENGLISH = [f"e{i}" for i in range(6)]


@pytest.fixture
def listed(tmp_path):
    made = concept_list(of_entries(ENGLISH))
    save(made, str(tmp_path / "concepts.parquet"))
    return made


@pytest.fixture
def balanced(tmp_path, memory_context, memory_shards):
    """The stored rows of a run over these tables, and its context."""

    def run(*tables: pa.Table, seed: int = 0, **settings):
        ctx = memory_context(seed)
        stage = Balance(concepts=str(tmp_path / "concepts.parquet"), **settings)
        stage.run(Inputs(rows=memory_shards(*tables)), ctx)
        stored = pa.concat_tables(t.unify_dictionaries() for t in ctx.stored)
        return stored, ctx

    return run


def rows_of(lists: list, digest: str, **columns) -> pa.Table:
    uids = [np.random.default_rng(i).bytes(16) for i in range(len(lists))]
    return pa.table(
        {
            "uid": pa.array(uids, pa.binary(16)),
            "concept_ids": pa.array(lists, pa.list_(pa.int32())),
            "concept_list": pa.array([digest if ids else None for ids in lists], pa.string()),
            **columns,
        }
    )


@pytest.fixture
def pool(listed):
    """Concepts of very different counts, of which a row has none to three."""
    rng = np.random.default_rng(0)
    lists = [
        sorted(set(np.minimum(rng.geometric(0.6, rng.integers(0, 4)) - 1, 5).tolist())) or None
        for _ in range(LISTS)
    ]
    return rows_of(lists, listed.digest)


def counts_of(rows: pa.Table) -> np.ndarray:
    return np.bincount(rows["concept_ids"].combine_chunks().flatten().to_numpy(), minlength=6)


def test_a_row_stays_where_its_rank_is_below_t_and_says_what_decided(pool, balanced):
    out, _ = balanced(pool, t=100)
    counts = dict(zip(ENGLISH, counts_of(pool).tolist(), strict=True))
    for ids, row in zip(pool["concept_ids"].to_pylist(), out.to_pylist(), strict=True):
        if ids is None:
            assert row["reason"] == "undefined:concept_ids"
            assert [row[name] for name in ("balance_rank", "deciding_concept")] == [None, None]
            continue
        assert row["keep"] == (row["balance_rank"] < 100) == (row["reason"] is None)
        assert row["deciding_concept"] in [ENGLISH[i] for i in ids]
        assert row["balance_rank"] < counts[row["deciding_concept"]]
        p = [min(1, 100 / counts[ENGLISH[i]]) for i in ids]
        assert row["keep_probability"] == pytest.approx(1 - np.prod([1 - q for q in p]), rel=1e-6)
        assert row["balance_t"] == 100


def test_no_row_with_a_concept_at_or_below_t_is_lost(pool, balanced):
    counts = counts_of(pool)
    t = int(np.sort(counts)[2])
    out, _ = balanced(pool, t=t)
    rare = set(np.flatnonzero(counts <= t).tolist())
    lists = pool["concept_ids"].to_pylist()
    kept = [
        keep
        for ids, keep in zip(lists, out["keep"].to_pylist(), strict=True)
        if rare & set(ids or [])
    ]
    assert all(kept)
    assert len(kept) > 100
    assert out["reason"].to_pylist().count("balanced_out") > 500


def test_infinite_t_keeps_every_row_with_a_concept_and_no_other(pool, balanced):
    out, ctx = balanced(pool, t=float("inf"))
    assert out["keep"].to_pylist() == [ids is not None for ids in pool["concept_ids"].to_pylist()]
    assert json.loads((ctx.out / "balance.json").read_text())["t"] is None


def test_entries_that_a_list_holds_for_nothing_are_counted(pool, memory_shards, memory_context):
    ctx = memory_context()
    (ctx.out.parent / "list.json").write_text(json.dumps([*ENGLISH, "e0", " "]))
    stage = Balance(concepts=str(ctx.out.parent / "list.json"), t=100)
    stage.run(Inputs(rows=memory_shards(pool)), ctx)
    told = json.loads((ctx.out / "balance.json").read_text())
    assert told["entries_dropped"] == {"blank": 1, "repeated": 1}


def test_another_t_is_a_query_on_the_stored_rank(pool, balanced):
    small, _ = balanced(pool, t=50)
    large, _ = balanced(pool, t=500)
    assert small["balance_rank"].to_pylist() == large["balance_rank"].to_pylist()
    for out, t in ((small, 50), (large, 500)):
        rank = out["balance_rank"].to_pandas()
        assert (rank < t).tolist() == out["keep"].to_pylist()


def test_size_expected_and_found_agree_and_are_stored(pool, balanced):
    out, ctx = balanced(pool, t=120)
    stored = json.loads((ctx.out / "balance.json").read_text())
    kept = sum(out["keep"].to_pylist())
    assert stored["kept"] == kept
    assert stored["rows"] == LISTS
    assert stored["matched"] == LISTS - pool["concept_ids"].null_count
    assert stored["expected"] == pytest.approx(
        sum(filter(None, out["keep_probability"].to_pylist()))
    )
    assert abs(kept - stored["expected"]) < 5 * stored["sigma"]
    assert stored["sigma"] > 5


def test_counts_before_and_after_are_stored_for_every_entry(pool, balanced):
    out, ctx = balanced(pool, t=120)
    table = pq.read_table(ctx.out / "concepts.parquet")
    assert table["entry"].to_pylist() == ENGLISH
    assert table["count"].to_pylist() == counts_of(pool).tolist()
    assert table["kept"].to_pylist() == counts_of(pool.filter(out["keep"])).tolist()
    assert set(table["t"].to_pylist()) == {120.0}


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"rows": 1}, lambda matched: 1),
        ({"rows": 700}, lambda matched: 700),
        ({"fraction": 0.25}, lambda matched: matched // 4),
        ({"fraction": 1}, lambda matched: matched),
    ],
)
def test_a_size_is_met_exactly_by_a_quantile_of_ranks(settings, kept, pool, balanced):
    out, ctx = balanced(pool, **settings)
    matched = LISTS - pool["concept_ids"].null_count
    assert sum(out["keep"].to_pylist()) == kept(matched)
    t = json.loads((ctx.out / "balance.json").read_text())["t"]
    again, _ = balanced(pool, t=t or float("inf"))
    assert again["keep"].to_pylist() == out["keep"].to_pylist()


def test_a_target_above_the_pool_is_refused_with_both_numbers(pool, balanced):
    matched = LISTS - pool["concept_ids"].null_count
    with pytest.raises(StageError, match=f"{matched + 1:,} rows wanted, and {matched:,} have"):
        balanced(pool, rows=matched + 1)


def test_a_share_of_the_tail_takes_its_count_as_t(pool, balanced):
    counts = np.sort(counts_of(pool))
    share = counts[:3].sum() / counts.sum()
    _, ctx = balanced(pool, tail_share=float(share))
    assert json.loads((ctx.out / "balance.json").read_text())["t"] == counts[2]


def test_tail_share_and_its_count_are_the_published_ones():
    count = np.array([0, 1, 2, 3, 4, 90, 900])
    assert share_below(count, 4) == 6 / 1000
    assert share_below(count, 5) == 10 / 1000
    assert tail_count(count, 0.010) == 4
    assert tail_count(count, 0.09) == 90
    assert tail_count(count, 1) == 900
    assert tail_count(count[:1], 0.5) == np.inf


def test_each_language_gets_the_t_of_the_english_tail(tmp_path, balanced):
    parts = [of_entries(["a", "b", "c"], language=name) for name in ("en", "de")]
    both = concept_list(pa.concat_tables(parts))
    save(both, str(tmp_path / "concepts.parquet"))
    counts = {0: 10, 1: 90, 2: 900, 3: 1, 4: 9, 5: 90}  # the same shares
    lists = [[concept] for concept, count in counts.items() for _ in range(count)]
    pool = rows_of(lists, both.digest)
    out, ctx = balanced(pool, t=91, per_language=True)
    table = pq.read_table(ctx.out / "concepts.parquet")
    assert table["t"].to_pylist() == pytest.approx([91, 91, 91, 9, 9, 9])
    kept = dict(zip(range(6), table["kept"].to_pylist(), strict=True))
    assert [kept[i] for i in (0, 1, 3, 4)] == [10, 90, 1, 9]  # the tails are whole
    assert abs(kept[2] - 91) < 5 * 91**0.5
    assert abs(kept[5] - 9) < 5 * 9**0.5
    rank = out["balance_rank"].to_pandas()
    assert (rank < 91).tolist() == out["keep"].to_pylist()
    alone, _ = balanced(pool, tail_share=0.1, per_language=True)
    assert set(alone["balance_t"].to_pylist()) == {90.0}


def test_a_pool_without_english_is_cut_by_its_tail_share_and_by_no_t(tmp_path, balanced):
    parts = [of_entries(["a", "b", "c"], language=name) for name in ("en", "de")]
    both = concept_list(pa.concat_tables(parts))
    save(both, str(tmp_path / "concepts.parquet"))
    lists = [[concept] for concept, count in {3: 1, 4: 9, 5: 90}.items() for _ in range(count)]
    pool = rows_of(lists, both.digest)
    out, ctx = balanced(pool, tail_share=0.1, per_language=True)
    table = pq.read_table(ctx.out / "concepts.parquet")
    assert table["t"].to_pylist() == [None, None, None, 9, 9, 9]
    assert out["keep"].to_pylist()[:10] == [True] * 10  # the tail is whole
    assert abs(table["kept"].to_pylist()[5] - 9) < 5 * 9**0.5
    with pytest.raises(StageError, match="no row has a concept of language 'en'"):
        balanced(pool, t=20, per_language=True)
    for settings in ({"t": 20}, {"tail_share": 0.1}):
        nothing, _ = balanced(rows_of([None], both.digest), per_language=True, **settings)
        assert nothing["keep"].to_pylist() == [False]


def test_languages_without_english_are_refused(pool, balanced):
    with pytest.raises(StageError, match="no concept of language 'en'"):
        balanced(pool, t=10, per_language=True)


def test_rows_dropped_before_or_without_an_image_neither_count_nor_draw(listed, balanced):
    keep, size = [True, False, None, True, True], [1, 1, 1, None, 1]
    columns = {"keep": pa.array(keep), "image_bytes": pa.array(size, pa.int64())}
    out, ctx = balanced(rows_of([[0], [0], [0], [0], None], listed.digest, **columns), t=1)
    assert out["reason"].to_pylist() == [
        *(None, "dropped_before", "dropped_before", "undefined:image_bytes"),
        "undefined:concept_ids",
    ]
    assert out["balance_rank"].null_count == 4
    assert pq.read_table(ctx.out / "concepts.parquet")["count"].to_pylist()[0] == 1


def test_unmatched_rows_stay_only_where_a_setting_says_so(listed, balanced):
    keep = pa.array([True, True, False])
    pool = rows_of([None, [0], []], listed.digest, keep=keep)
    out, _ = balanced(pool, t=1, keep_unmatched=True)
    assert out["keep"].to_pylist() == [True, True, False]
    assert out["balance_rank"].is_valid().to_pylist() == [False, True, False]
    assert out["reason"].to_pylist() == [None, None, "dropped_before"]


def test_another_seed_keeps_other_rows(pool, balanced):
    one, _ = balanced(pool, rows=900)
    other, _ = balanced(pool, rows=900, seed=1)
    assert one["keep"].to_pylist() != other["keep"].to_pylist()


def test_a_list_changed_since_matching_is_refused_with_both_digests(
    pool, listed, balanced, tmp_path
):
    changed = concept_list(of_entries([*ENGLISH, "new"]))
    save(changed, str(tmp_path / "concepts.parquet"))
    with pytest.raises(StageError) as error:
        balanced(pool, t=10)
    assert listed.digest in str(error.value)
    assert changed.digest in str(error.value)


def test_a_pool_without_concepts_keeps_nothing(listed, balanced):
    for settings in ({"t": 1}, {"fraction": 0.5}, {"tail_share": 0.1}):
        out, ctx = balanced(rows_of([None, []], listed.digest), **settings)
        assert out["keep"].to_pylist() == [False, False]
        assert json.loads((ctx.out / "balance.json").read_text())["kept"] == 0


def test_a_rank_has_the_digits_of_its_number():
    for number in (0.0, 1e-300, 0.1, 1.0, 20_000.5, 1.2e8):
        digits = cut.value_digits(pa.chunked_array([[number]]))[0]
        assert as_float(tuple(digits.tolist())) == number


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "one of `t`"),
        ({"t": 1, "rows": 5}, "one of `t`"),
        ({"rows": 5, "per_language": True}, "per_language"),
        ({"t": float("inf"), "per_language": True}, "per_language"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, said):
    with pytest.raises(RecipeError, match=said):
        Balance(concepts="x", **settings)
