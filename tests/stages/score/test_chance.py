"""AboveChance: against all pairs by hand, any scale of cosines, folds apart, too few rows."""

import numpy as np
import pyarrow as pa
import pytest

from clipmill.pipeline.dataset import Inputs
from clipmill.stages.ops.vectors.matrices import from_matrix
from clipmill.stages.score import chance
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

    def run(*tables: pa.Table) -> tuple[list, list]:
        ctx = memory_context()
        AboveChance().run(Inputs(rows=memory_shards(*tables)), ctx)
        stored = pa.concat_tables(ctx.stored).sort_by("uid")
        return stored["above_chance"].to_pylist(), stored["reason"].to_pylist()

    return run


@pytest.mark.parametrize("folds", [1, 2])
def test_it_is_the_share_of_all_shuffled_pairs_of_a_fold_below(shares, monkeypatch, folds):
    monkeypatch.setattr(chance, "SHIFTS", ROWS)  # every picture with every other caption
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
    monkeypatch.setattr(chance, "DRAWN", 20)
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
