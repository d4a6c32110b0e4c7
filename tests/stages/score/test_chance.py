"""AboveChance: against all pairs by hand, any scale of cosines, folds apart, too few rows.

`fit_rank` of a mixture whose shares are known, its bounds, and of rows that all fit by chance; by
groups, of rare captions that fit less well than common ones.
"""

import numpy as np
import pyarrow as pa
import pytest

from clipmill.pipeline.dataset import Inputs
from clipmill.pipeline.errors import StageError
from clipmill.stages.ops.vectors.matrices import from_matrix
from clipmill.stages.score import chance as chance_of
from clipmill.stages.score.chance import AboveChance

ROWS, WIDTH = 60, 8


def pairs(rows=ROWS, common=0.0, fold=None) -> pa.Table:
    """Vectors of which the first half's captions are like their pictures."""
    rng = np.random.default_rng(0)
    image_ND, text_ND = rng.standard_normal((2, rows, WIDTH))
    text_ND[: rows // 2] = image_ND[: rows // 2] + 0.1 * text_ND[: rows // 2]
    image_ND /= np.linalg.norm(image_ND, axis=1, keepdims=True)
    text_ND /= np.linalg.norm(text_ND, axis=1, keepdims=True)
    image_ND, text_ND = (np.hstack([x, np.full((rows, 1), common)]) for x in (image_ND, text_ND))
    columns = {
        "uid": pa.array([row.to_bytes(16, "big") for row in range(rows)], pa.binary(16)),
        "image_embedding": from_matrix(image_ND.astype(np.float32)),
        "text_embedding": from_matrix(text_ND.astype(np.float32)),
    }
    return pa.table(columns if fold is None else {**columns, "unmet_fold": fold})


@pytest.fixture
def shares(memory_shards, memory_context):
    """(above_chance, reason) of all rows of these tables, one a shard."""

    def run(*tables: pa.Table, column: str = "above_chance", groups: int = 1) -> tuple[list, list]:
        ctx = memory_context()
        AboveChance(groups=groups).run(Inputs(rows=memory_shards(*tables)), ctx)
        stored = pa.concat_tables(ctx.stored).sort_by("uid")
        return stored[column].to_pylist(), stored["reason"].to_pylist()

    return run


@pytest.mark.parametrize("folds", [1, 2])
def test_it_is_the_share_of_all_shuffled_pairs_of_a_fold_below(shares, monkeypatch, folds):
    monkeypatch.setattr(chance_of, "SHIFTS", ROWS)  # every picture with every other caption
    fold_N = np.arange(ROWS) % folds
    rows = pairs(fold=pa.array(fold_N, pa.int32()))
    image_ND, text_ND = (np.array(rows[f"{of}_embedding"].to_pylist()) for of in ("image", "text"))
    lengths = (np.linalg.norm(x_ND, axis=1) for x_ND in (image_ND, text_ND))
    cosine_NN = image_ND @ text_ND.T / np.outer(*lengths)
    others = cosine_NN[(fold_N[:, None] == fold_N) & ~np.eye(ROWS, dtype=bool)]
    known = [(others < own).mean() for own in np.diag(cosine_NN)]
    np.testing.assert_allclose(shares(rows)[0], known, atol=1e-6)


def test_neither_the_scale_of_cosines_nor_the_shards_matter(shares):
    whole = shares(pairs())
    assert shares(*(pairs().slice(start, 7) for start in range(0, ROWS, 7))) == whole
    np.testing.assert_allclose(shares(pairs(common=2.0))[0], whole[0], atol=1e-6)
    assert min(whole[0][: ROWS // 2]) > 0.95


def test_of_more_rows_than_it_draws_it_takes_those_of_least_hash(shares, monkeypatch):
    whole, _ = shares(pairs())
    monkeypatch.setattr(chance_of, "DRAWN", 20)
    some = shares(pairs())
    assert some[0] != whole
    assert shares(*(pairs().slice(start, 7) for start in range(0, ROWS, 7))) == some


def test_captions_are_shuffled_within_a_fold(shares):
    fold = pa.array([row % 2 for row in range(ROWS)], pa.int32())
    apart, _ = shares(pairs(fold=fold))
    rows = pairs(fold=fold)
    turned = np.array(rows["image_embedding"].to_pylist(), np.float32)
    texts = np.array(rows["text_embedding"].to_pylist(), np.float32)
    turned[1::2, :WIDTH] *= -1  # the other heads' directions
    texts[1::2, :WIDTH] *= -1
    rows = rows.set_column(1, "image_embedding", from_matrix(turned))
    rows = rows.set_column(2, "text_embedding", from_matrix(texts))
    assert shares(rows)[0] == apart
    assert shares(rows.drop_columns("unmet_fold"))[0] != apart


def test_rows_without_a_vector_have_a_reason_and_shuffle_nothing(shares):
    rows = pairs()
    image = rows["image_embedding"].to_pylist()
    image[3], image[4] = None, [0.0] * (WIDTH + 1)
    lacking = rows.set_column(1, "image_embedding", pa.array(image, rows["image_embedding"].type))
    share, reason = shares(lacking)
    assert (share[3], share[4]) == (None, None)
    assert reason[2:6] == [None, "no_image_embedding", "zero_or_nan_embedding", None]
    without = [value for row, value in enumerate(share) if row not in (3, 4)]
    left = rows.filter(pa.array([row not in (3, 4) for row in range(ROWS)]))
    assert shares(left)[0] == without


def test_a_single_row_has_no_chance_to_compare_with(shares):
    assert shares(pairs(rows=1)) == ([None], ["too_few_rows"])


@pytest.mark.parametrize("faulty", [0, 10, 300, 900])
@pytest.mark.parametrize("scale", [1, 0.01])
def test_the_rank_is_the_share_of_fitting_rows_above_in_a_known_mixture(faulty, scale):
    chance = scale * np.linspace(-0.9, 0.3, 3_000)
    fit = scale * np.linspace(0.1, 0.7, 1_000)  # as likely to be faulty up to 0.3, never below
    drawn = np.concatenate([fit, scale * np.linspace(-0.9, 0.3, faulty)])
    count_B = np.bincount(chance_of.bin_of(drawn), minlength=chance_of.BINS)
    rank_B = chance_of.ranks(count_B, np.sort(chance))
    for share in (0, 0.2, 0.5, 0.9, 1):
        there = chance_of.bin_of(np.array([np.quantile(fit, 1 - share)]))
        assert rank_B[there] == pytest.approx(share, abs=0.01)
    assert (np.diff(rank_B) <= 0).all()
    assert (rank_B[0], rank_B[-1]) == (1, 0)


def test_rows_above_all_shuffled_ones_are_ranked_and_the_best_is_never_cut(shares):
    rank = np.array(shares(pairs(), column="fit_rank")[0])
    assert rank.min() == 0
    assert len(np.unique(rank[: ROWS // 2])) > ROWS // 4  # no tie though above_chance is 1 for many
    good_N = np.arange(ROWS) < ROWS // 2
    assert (rank[good_N] < 0.9).mean() == pytest.approx(0.9, abs=0.1)
    assert (rank[~good_N] < 0.9).mean() < 0.2


def test_no_row_fits_where_captions_are_shuffled_or_all_alike(shares):
    rows = pairs()
    text = rows["text_embedding"].combine_chunks()
    for others in (text.take(np.arange(1, ROWS + 1) % ROWS), text.take(np.zeros(ROWS, int))):
        rank, _ = shares(rows.set_column(2, "text_embedding", others), column="fit_rank")
        assert sum(value < 0.9 for value in rank) <= ROWS // 4, rank


def rare_and_common() -> tuple[pa.Table, np.ndarray, np.ndarray]:
    """Rows, which of them are common, and which fit; captions of rare concepts fit less well."""
    rng, rows, width = np.random.default_rng(0), 1_000, 32
    is_common, fits = np.arange(rows) % 2 == 0, np.arange(rows) % 10 < 7
    like_N = rng.normal(np.where(is_common, 0.7, 0.4), 0.06) * fits
    image_ND, noise_ND, feature_ND = rng.standard_normal((3, rows, width)) / np.sqrt(width)
    text_ND = like_N[:, None] * image_ND + np.sqrt(1 - like_N**2)[:, None] * noise_ND
    feature_ND[is_common] = 0.3 * feature_ND[is_common] + feature_ND[np.arange(rows // 2) % 20]
    columns = {"uid": pa.array([row.to_bytes(16, "big") for row in range(rows)], pa.binary(16))}
    for name, row_ND in (("image_embedding", image_ND), ("text_embedding", text_ND)):
        columns[name] = from_matrix(row_ND.astype(np.float32))
    columns["text_features"] = from_matrix(feature_ND.astype(np.float32))
    columns["unmet_fold"] = pa.array(rng.integers(0, 2, rows), pa.int32())
    return pa.table(columns), is_common, fits


def test_groups_keep_as_many_fitting_captions_of_rare_concepts_as_of_common_ones(shares):
    rows, is_common, fits = rare_and_common()

    def kept(groups: int) -> list[float]:
        rank = np.array(shares(rows, column="fit_rank", groups=groups)[0])
        return [(rank[fits & is_one] < 0.9).mean() for is_one in (is_common, ~is_common)]

    common, rare = kept(1)
    assert common - rare > 0.1
    np.testing.assert_allclose(kept(2), 0.9, atol=0.05)
    parts = [rows.slice(start, 300) for start in range(0, len(rows), 300)]
    whole = shares(rows, column="fit_rank", groups=2)
    assert shares(*parts, column="fit_rank", groups=2) == whole
    one_fold = rows.set_column(4, "unmet_fold", pa.array(np.zeros(len(rows), np.int32)))
    assert None not in shares(one_fold, column="fit_rank", groups=2)[0]  # none is rare


def test_too_few_rows_for_the_groups_are_named(shares):
    rows = rare_and_common()[0].slice(0, 150)
    with pytest.raises(StageError, match="150 rows with both vectors, for 2 groups"):
        shares(rows, groups=2)


@pytest.mark.parametrize("faulty", [0, 1_000, 8_000])
def test_ranks_within_a_group_are_those_of_a_known_normal_mixture(faulty):
    rng = np.random.default_rng(0)
    fit, shuffled = rng.normal(0.3, 0.1, 2_000), rng.normal(-0.2, 0.15, 16_000)
    drawn = np.concatenate([fit, rng.normal(-0.2, 0.15, faulty)])
    count_B = np.bincount(chance_of.bin_of(drawn), minlength=chance_of.BINS)
    rank_B = chance_of.normal_ranks(count_B, shuffled)
    for share in (0.1, 0.5, 0.9):
        there = chance_of.bin_of(np.array([np.quantile(fit, 1 - share)]))
        assert rank_B[there] == pytest.approx(share, abs=0.03)
    assert (np.diff(rank_B) <= 0).all()
    nothing = np.zeros_like(count_B)
    assert (chance_of.normal_ranks(nothing, shuffled) == 1).all()  # a group without rows
