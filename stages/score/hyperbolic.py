"""Scores pairs on a hyperboloid: how near image and caption are, how specific each is (HYPE)."""

from dataclasses import dataclass
from functools import partial
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Meta
from numpy.typing import NDArray

from clipmill.metadata.schema import IMAGE_EMBEDDING, TEXT_EMBEDDING, Column
from clipmill.pipeline.dataset import Context, Inputs
from clipmill.pipeline.stage import DatasetStage
from clipmill.stages.ops.tables.rows import with_reason
from clipmill.stages.ops.vectors.matrices import as_matrix, refuse_widths, unusable
from clipmill.stages.score._sums import least
from clipmill.stages.score.chance import DRAWN, drawn

# Shapes: N rows, R reference rows, D width of a vector, B rows of a block.

BLOCK = 256  # rows beside all references: of one shape, so that no product hangs on neighbours
CONE = 0.1  # half-apertures: arcsin(2 * CONE / (sqrt(c) * length)), as MERU has it
LEAST = 1e-12  # of (c<x, y>)^2 - 1: two equal points have no angle
Points = tuple[NDArray[np.float64], NDArray[np.float64]]  # (N, D) in space, (N,) in time


@dataclass(frozen=True, kw_only=True)
class Hyperbolic(DatasetStage):
    """Sum of a pair's alignment (minus the distance of its points) and the specificity of image and
    caption: how far, in radians, each lies outside the cones of references; null without a vector.

    Vectors are lifted at the origin as they are stored, so a model whose vectors have length 1
    gives points at one distance from it. References are rows of the pool drawn by hash: captions
    for images, and images for captions.

    Source: HYPE (Kim et al. 2024), on MERU's geometry (Desai et al. 2023). Departs: HYPE takes its
    references from a set of its own; two of its five parts, cosine and clusters, are columns of
    other stages, for score.mix; its code adds 1e-8 to divisors, 1e-4 of an angle at lengths of 0.1,
    and cuts lengths at 11 / sqrt(c).
    Error: 1e-6 in space near the origin; distances below 1e-7 are rounding.
    Example: {after: [ingest.image_folder, embed.clip]}
    """

    curvature: Annotated[float, Meta(ge=1e-3, le=1e3)] = 1.0  # of the space, as a positive number
    references: Annotated[int, Meta(ge=1, le=DRAWN)] = 512  # rows drawn

    version = 1
    determinism = "exact"
    reads = (IMAGE_EMBEDDING, TEXT_EMBEDDING)
    writes = (
        Column("hype_score", pa.float32(), "any", "Sum of the three beside it.", better="high"),
        Column("hyperbolic_alignment", pa.float32(), "0 down", "Minus the pair's distance."),
        Column("image_specificity", pa.float32(), "radians", "Outside captions' cones, mean."),
        Column("text_specificity", pa.float32(), "radians", "The caption, outside images' cones."),
    )
    reasons = ("no_image_embedding", "no_text_embedding", "zero_or_nan_embedding", "too_long")

    def run(self, inputs: Inputs, ctx: Context) -> None:
        image, text = lifted(np.empty((0, 1)), 1), lifted(np.empty((0, 1)), 1)
        if len(inputs.rows):
            draw = partial(drawn, seed=ctx.worker.seed, stage=ctx.worker.stage, most=DRAWN)
            found = ctx.reduce(draw, inputs.rows, partial(least, DRAWN))
            image, text = (self.points(np.array(found[name])) for name in ("image", "text"))
        ctx.restore(ctx.map_shards(partial(self.scored, image, text), inputs.rows))

    def points(self, vector_RD: NDArray[np.float32]) -> Points:
        """Returns the references as points, without those that are too long."""
        space_RD, time_R = lifted(vector_RD[: self.references], self.curvature)
        return space_RD[np.isfinite(time_R)], time_R[np.isfinite(time_R)]

    def scored(self, images: Points, texts: Points, rows: pa.Table) -> pa.Table:
        """Returns the sum, its three parts, and the reason of every row."""
        vectors = [rows[column.name] for column in self.reads]
        image_ND, text_ND = map(as_matrix, vectors)
        bad_N = unusable(image_ND) | unusable(text_ND)
        part_3N = np.full((3, len(rows)), np.nan)
        c, good = self.curvature, np.flatnonzero(~bad_N)
        if len(good):
            refuse_widths(image_ND, text_ND, "score.hyperbolic")
        for start in range(0, len(good), BLOCK):
            block = good[start : start + BLOCK]
            filled_B = np.resize(block, BLOCK)
            image, text = lifted(image_ND[filled_B], c), lifted(text_ND[filled_B], c)
            product_B = np.vecdot(image[0], text[0]) - image[1] * text[1]
            parts = [
                -np.arccosh(np.maximum(-c * product_B, 1)) / np.sqrt(c),
                entailment(texts, image, c).sum(axis=0) / max(1, len(texts[1])),
                entailment(text, images, c).sum(axis=1) / max(1, len(images[1])),
            ]
            part_3N[:, block] = np.stack(parts)[:, : len(block)]
        long_N = ~np.isfinite(part_3N).all(axis=0)
        masks = [*(vector.is_null() for vector in vectors), pa.array(bad_N), pa.array(long_N)]
        made = {
            column.name: pa.array(value_N.astype(np.float32), mask=long_N)
            for column, value_N in zip(self.writes, [part_3N.sum(axis=0), *part_3N], strict=True)
        }
        return with_reason(rows, made, pc.case_when(pc.make_struct(*masks), *self.reasons))


def lifted(vector_ND: NDArray[np.floating], c: float) -> Points:
    """Returns the points that the exponential map at the origin gives tangent vectors."""
    wide_ND = vector_ND.astype(np.float64)
    length_N1 = np.sqrt(c * np.vecdot(wide_ND, wide_ND))[:, None]
    with np.errstate(over="ignore", invalid="ignore"):  # a vector too long gives no number
        space_ND = wide_ND * (np.sinh(length_N1) / length_N1)
        return space_ND, np.sqrt(1 / c + np.vecdot(space_ND, space_ND))


def entailment(x: Points, y: Points, c: float) -> NDArray[np.float64]:
    """Returns (X, Y) the angle at x between y and straight outward, less x's half-aperture."""
    with np.errstate(over="ignore", invalid="ignore"):
        product_XY = c * (x[0] @ y[0].T - x[1][:, None] * y[1])
        length_X1 = np.sqrt(np.vecdot(x[0], x[0]))[:, None]
        below_XY = length_X1 * np.sqrt(np.maximum(product_XY**2 - 1, LEAST))
        angle_XY = np.arccos(np.clip((y[1] + x[1][:, None] * product_XY) / below_XY, -1, 1))
        return angle_XY - np.arcsin(np.minimum(2 * CONE / (np.sqrt(c) * length_X1), 1))
