"""NegClip: known answers, a plain transcription of the released rule, and no trace of shards."""

import numpy as np
import pyarrow as pa
import pytest

from clipmill.pipeline.dataset import Inputs
from clipmill.pipeline.errors import StageError
from clipmill.stages.score.negclip import NegClip, placed

ROWS, WIDTH = 256, 24


def pairs(image_ND: np.ndarray, text_ND: np.ndarray, **columns) -> pa.Table:
    data = np.random.default_rng(len(image_ND)).bytes(16 * len(image_ND))
    vector = pa.list_(pa.float32())
    return pa.table(
        {
            "uid": pa.Array.from_buffers(pa.binary(16), len(image_ND), [None, pa.py_buffer(data)]),
            "image_embedding": pa.array([*map(list, image_ND)], vector),
            "text_embedding": pa.array([*map(list, text_ND)], vector),
            **columns,
        }
    )


@pytest.fixture
def scored(memory_context, memory_shards):
    """What the stage stores of these tables, in the order of uids."""

    def run(stage: NegClip, *tables: pa.Table) -> pa.Table:
        ctx = memory_context()
        stage.run(Inputs(rows=memory_shards(*tables)), ctx)
        whole = pa.concat_tables(table.unify_dictionaries() for table in ctx.stored)
        return whole.select(["uid", "negclip_score", "reason"]).sort_by("uid")

    return run


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, np.ndarray]:
    """Pairs of every fit, of any length: some captions are those of others."""
    rng = np.random.default_rng(3)
    image = rng.normal(size=(ROWS, WIDTH))
    text = image + rng.normal(size=(ROWS, WIDTH)) * rng.uniform(0.1, 3, (ROWS, 1))
    text[:20] = text[20:40]
    return image * rng.uniform(0.5, 9, (ROWS, 1)), text


def released(image_ND: np.ndarray, text_ND: np.ndarray, tau: float) -> np.ndarray:
    """The released rule in our words, in float64: a batch is the partition."""
    image = image_ND / np.linalg.norm(image_ND, axis=1)[:, None]
    text = text_ND / np.linalg.norm(text_ND, axis=1)[:, None]
    similar = image @ text.T
    by_image = np.log(np.exp(similar / tau).sum(axis=1))
    by_text = np.log(np.exp(similar / tau).sum(axis=0))
    return np.diag(similar) - tau / 2 * (by_image + by_text)


@pytest.mark.parametrize("cosine", [0.0, 0.3, 1.0])
def test_identical_pairs_have_minus_tau_ln_n_whatever_their_cosine(cosine, scored):
    image = np.tile([1.0, 0.0], (16, 1))
    text = np.tile([cosine, (1 - cosine**2) ** 0.5], (16, 1))
    out = scored(NegClip(batch=16, partitions=3, tau=0.07), pairs(image, text))
    assert out["negclip_score"].to_pylist() == [pytest.approx(-0.07 * np.log(16), abs=3e-7)] * 16


def test_orthonormal_pairs_have_zero(scored):
    out = scored(NegClip(batch=8, partitions=2), pairs(np.eye(8), np.eye(8)))
    assert out["negclip_score"].to_pylist() == [pytest.approx(0, abs=1e-7)] * 8


@pytest.mark.parametrize("tau", [0.01, 0.07])
def test_scores_and_the_rows_kept_are_those_of_the_released_rule(tau, drawn, scored):
    given = pairs(*drawn)
    out = scored(NegClip(batch=ROWS, partitions=2, tau=tau), given)
    order = np.argsort(given["uid"].to_pylist())
    expected = released(*drawn, tau)[order]
    found = out["negclip_score"].to_numpy()
    assert np.abs(found - expected).max() < 4e-7
    best = ROWS * 3 // 10
    kept = np.argsort(-found)[:best]
    assert expected[kept].min() > np.sort(expected)[-best] - 8e-7  # other rows only where they tie


def test_a_score_is_the_mean_over_partitions_by_hash(drawn, scored):
    given = pairs(*drawn)
    mean = np.zeros(ROWS)
    for number in range(3):
        group = placed(0, "it", 4, number, given)["group"].to_numpy()
        for place in range(4):
            rows = group == place
            mean[rows] += released(*(part[rows] for part in drawn), 0.01) / 3
    out = scored(NegClip(batch=64, partitions=3), given)
    expected = mean[np.argsort(given["uid"].to_pylist())]
    assert np.abs(out["negclip_score"].to_numpy() - expected).max() < 4e-7


def test_shards_and_order_change_nothing(drawn, scored):
    stage, given = NegClip(batch=64, partitions=2), pairs(*drawn)
    turned = given.take(np.arange(ROWS)[::-1])
    assert scored(stage, turned.slice(0, 9), turned.slice(9)).equals(scored(stage, given))


def test_rows_without_a_vector_and_dropped_ones_are_no_partners(drawn, scored):
    image, text = (side[:16].tolist() for side in drawn)
    spoilt = pairs(
        image + [image[0]] * 3,
        [*text, [float("nan")] * WIDTH, [0.0] * WIDTH, text[1]],
        keep=[True] * 18 + [False],
    )
    out = scored(NegClip(batch=16, partitions=2), spoilt)
    by_uid = dict(zip(out["uid"].to_pylist(), out.to_pylist(), strict=True))
    rows = [by_uid[uid] for uid in spoilt["uid"].to_pylist()]
    assert [row["reason"] for row in rows[16:]] == [
        *["zero_or_nan_embedding"] * 2,
        "dropped_before",
    ]
    assert [row["negclip_score"] for row in rows[16:]] == [None] * 3
    found = [row["negclip_score"] for row in rows[:16]]
    assert found == pytest.approx(released(*(s[:16] for s in drawn), 0.01), abs=4e-7)


def test_fewer_rows_than_a_partition_and_other_widths_are_said(drawn, scored):
    with pytest.raises(StageError, match="groups of 300 rows, and 256 have both embeddings"):
        scored(NegClip(batch=300), pairs(*drawn))
    with pytest.raises(StageError, match="image embeddings 24 wide, and texts 20 wide"):
        scored(NegClip(batch=256), pairs(drawn[0], drawn[1][:, :20]))
