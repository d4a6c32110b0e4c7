"""Hyperbolic: distances and cones along a ray, both specificities, and rows that have none."""

import numpy as np
import pyarrow as pa
import pytest

from clipmill.pipeline.dataset import Inputs
from clipmill.stages.ops.vectors.matrices import from_matrix
from clipmill.stages.score.hyperbolic import Hyperbolic, entailment, lifted

COLUMNS = ("hype_score", "hyperbolic_alignment", "image_specificity", "text_specificity")


@pytest.fixture
def scored(memory_context, memory_shards):
    """What the stage stores of these tables."""

    def run(stage: Hyperbolic, *tables: pa.Table) -> pa.Table:
        ctx = memory_context()
        stage.run(Inputs(rows=memory_shards(*tables)), ctx)
        return pa.concat_tables(table.unify_dictionaries() for table in ctx.stored)

    return run


def pairs(image, text) -> pa.Table:
    uids = [(1 + row).to_bytes(16, "big") for row in range(len(image))]
    vectors = {"image_embedding": from_matrix(image), "text_embedding": from_matrix(text)}
    return pa.table({"uid": pa.array(uids, pa.binary(16)), **vectors})


@pytest.mark.parametrize("c", [0.25, 1, 4])
def test_distances_from_the_origin_are_lengths_and_cones_open_away_from_it(c, scored):
    ray = np.array([[1, 0], [2, 0], [0.5, 0], [0, 1.5]], np.float32)
    out = scored(Hyperbolic(curvature=c), pairs(ray, np.array([[1, 0]] * 4, np.float32)))
    near = out["hyperbolic_alignment"].to_pylist()
    assert near[:3] == pytest.approx([0, -1, -0.5], abs=2e-7)
    # The law of cosines at a right angle: cosh d = cosh a cosh b.
    across = np.arccosh(np.cosh(np.sqrt(c)) * np.cosh(1.5 * np.sqrt(c))) / np.sqrt(c)
    assert near[3] == pytest.approx(-across, rel=1e-6)
    angle = entailment(lifted(ray[:1], c), lifted(ray[1:], c), c)[0]
    aperture = np.arcsin(min(1, 0.2 / np.sinh(np.sqrt(c))))
    assert angle[:2] == pytest.approx([-aperture, np.pi - aperture], abs=1e-6)
    # Of a right triangle: the angle inside at x, of which this is the outside.
    inside = np.arctan(np.tanh(1.5 * np.sqrt(c)) / np.sinh(np.sqrt(c)))
    assert angle[2] == pytest.approx(np.pi - inside - aperture, abs=1e-6)


def released(x_ND: np.ndarray, y_ND: np.ndarray, c: float) -> tuple[np.ndarray, np.ndarray]:
    """The released rule in our words: how near each y is to x, and how far outside its cone."""
    length = [np.sqrt(c) * np.linalg.norm(part, axis=1)[:, None] for part in (x_ND, y_ND)]
    x, y = (np.sinh(r) / r * part for r, part in zip(length, (x_ND, y_ND), strict=True))
    x_time, y_time = (np.sqrt(1 / c + (part**2).sum(axis=1)) for part in (x, y))
    product = c * (x @ y.T - np.outer(x_time, y_time))
    long = np.linalg.norm(x, axis=1)[:, None]
    angle = np.arccos((y_time + x_time[:, None] * product) / (long * np.sqrt(product**2 - 1)))
    return -np.arccosh(-product) / np.sqrt(c), angle - np.arcsin(0.2 / (np.sqrt(c) * long))


def test_scores_are_those_of_the_released_rule_over_the_drawn_rows_whatever_the_shards(scored):
    rng = np.random.default_rng(3)
    image, text = rng.normal(size=(2, 300, 6)).astype(np.float32)
    given = pairs(image, text)
    out = scored(Hyperbolic(references=4096, curvature=0.5), given)
    near, outside = released(*(part.astype(np.float64) for part in (text, image)), 0.5)
    assert np.abs(out["hyperbolic_alignment"].to_numpy() - near.diagonal()).max() < 1e-6
    assert np.abs(out["image_specificity"].to_numpy() - outside.mean(axis=0)).max() < 1e-6
    assert np.abs(out["text_specificity"].to_numpy() - outside.mean(axis=1)).max() < 1e-6
    parts = [out[name].to_numpy() for name in COLUMNS[1:]]
    assert np.abs(out["hype_score"].to_numpy() - sum(parts)).max() < 1e-6
    few, turned = (
        scored(Hyperbolic(references=9), *part).sort_by("uid").select(COLUMNS)
        for part in ((given,), (given.slice(290), given.slice(0, 290)))
    )
    assert few.equals(turned)
    assert few["text_specificity"] != out["text_specificity"]


def test_rows_without_a_point_have_a_reason(scored):
    image = np.array([[1, 0], [np.nan, 0], [1, 1], [0, 0], [900, 0]], np.float32)
    text = np.array([[1, 0], [1, 0], [np.nan, 0], [1, 0], [1, 0]], np.float32)
    out = scored(Hyperbolic(), pairs(image, text))
    reasons = ["no_image_embedding", "no_text_embedding", "zero_or_nan_embedding", "too_long"]
    assert out["reason"].to_pylist() == [None, *reasons]
    for name in COLUMNS:
        assert out[name].null_count == 4
    assert scored(Hyperbolic(), pairs(image[1:4], text[1:4]))["hype_score"].null_count == 3
