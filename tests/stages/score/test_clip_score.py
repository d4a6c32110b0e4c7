"""ClipScore: known angles, undefined rows, rounding. Row order, batch boundaries: test_contract."""

import numpy as np
import pyarrow as pa
import pytest

from clipmill.stages.score.clip_score import clip_score, row_cosine

IMAGE = [3.0, 4.0]


def batch(images: list, texts: list) -> pa.Table:
    vector = pa.list_(pa.float32(), 2)
    return pa.table(
        {"image_embedding": pa.array(images, vector), "text_embedding": pa.array(texts, vector)}
    )


@pytest.mark.parametrize(
    ("text", "cosine"),
    [([3, 4], 1.0), ([30, 40], 1.0), ([-3, -4], -1.0), ([-4, 3], 0.0), ([0, 1], 0.8)],
    ids=["equal", "longer", "opposite", "orthogonal", "oblique"],
)
def test_cosine_of_known_angles(text, cosine):
    assert clip_score(batch([IMAGE], [text]))["clip_score"].to_pylist() == [pytest.approx(cosine)]


def test_undefined_row_is_null_with_a_reason_and_spares_its_neighbours():
    out = clip_score(batch([None, IMAGE, [0, 0], IMAGE], [IMAGE, None, IMAGE, IMAGE]))
    assert out.to_pydict() == {
        "clip_score": [None, None, None, 1.0],
        "reason": ["no_image_embedding", "no_text_embedding", "zero_or_nan_embedding", None],
    }


@pytest.mark.parametrize(
    ("image", "text", "reason"),
    [
        (None, None, "no_image_embedding"),
        (IMAGE, None, "no_text_embedding"),
        ([np.nan, 1], IMAGE, "zero_or_nan_embedding"),
    ],
)
def test_a_whole_column_without_a_vector_is_a_whole_column_without_a_score(image, text, reason):
    out = clip_score(batch([image] * 1000, [text] * 1000))
    assert out["clip_score"].null_count == 1000
    assert out["reason"].to_pylist() == [reason] * 1000


def test_error_against_float64_is_what_the_docstring_says():
    rng = np.random.default_rng(0)
    a_ND, other_ND = rng.standard_normal((2, 10_000, 512), dtype=np.float32)
    # Independent pairs all sit near 0, where the error is least: turn b through every angle.
    angle_N1 = np.linspace(0, np.pi, len(a_ND), dtype=np.float32)[:, None]
    b_ND = np.cos(angle_N1) * a_ND + np.sin(angle_N1) * other_ND
    exact_N = row_cosine(a_ND.astype(np.float64), b_ND.astype(np.float64))
    assert np.abs(row_cosine(a_ND, b_ND) - exact_N).max() < 4e-7


def test_a_vector_beside_itself_is_never_past_one():
    a_ND = np.random.default_rng(0).standard_normal((10_000, 512), dtype=np.float32)
    assert row_cosine(a_ND, a_ND).max() <= 1
