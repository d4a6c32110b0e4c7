"""Scores how well a caption fits its image, from stored embeddings."""

from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill.metadata.schema import IMAGE_EMBEDDING, REASON, REASON_TYPE, TEXT_EMBEDDING, Column
from clipmill.pipeline.stage import RowFunction, RowStage, Worker
from clipmill.stages.ops.vectors.matrices import as_matrix, refuse_widths

# Shapes: N rows of the batch, D width of the embedding.

CLIP_SCORE = Column(
    name="clip_score",
    dtype=pa.float32(),
    unit="cosine, -1 to 1",
    doc="Similarity of image and caption by the model that embedded them.",
    better="high",
)


@dataclass(frozen=True, kw_only=True)
class ClipScore(RowStage):
    """Cosine similarity of image and caption embedding, in [-1, 1]; null if undefined.

    Source: CLIPScore (Hessel et al. 2021), section 3, without its 2.5 * max(., 0).
    Error: max 4e-7 against float64 over 10^6 pairs at angles 0 to pi, D = 512, float32.
    Example: {after: [ingest.image_folder, embed.clip]}
    """

    version = 1
    determinism = "exact"
    reads = (IMAGE_EMBEDDING, TEXT_EMBEDDING)
    writes = (CLIP_SCORE,)
    reasons = ("no_image_embedding", "no_text_embedding", "zero_or_nan_embedding")
    advice = MappingProxyType(
        {"zero_or_nan_embedding": "the model gives no vectors: try `clipmill doctor --model`"}
    )

    def open(self, worker: Worker) -> RowFunction:
        return clip_score


def clip_score(batch: pa.Table) -> pa.Table:
    """Returns the score of every row, or a reason."""
    image, text = batch[IMAGE_EMBEDDING.name], batch[TEXT_EMBEDDING.name]
    cosine_N = row_cosine(as_matrix(image), as_matrix(text))
    score = pa.chunked_array([pa.array(cosine_N, mask=np.isnan(cosine_N))])
    undefined = [column.is_null().combine_chunks() for column in (image, text, score)]
    reason = pc.case_when(pc.make_struct(*undefined), *ClipScore.reasons)  # the first that is true
    return pa.table({CLIP_SCORE.name: score, REASON.name: reason.cast(REASON_TYPE)})


def row_cosine(a_ND: NDArray[np.floating], b_ND: NDArray[np.floating]) -> NDArray[np.floating]:
    """Returns (N,) the cosine of each row of a and b; NaN if either is zero or NaN."""
    if 0 in (a_ND.shape[1], b_ND.shape[1]):  # none of these rows has a vector
        return np.full(len(a_ND), np.nan, a_ND.dtype)
    refuse_widths(a_ND, b_ND, "the two columns of embeddings")
    norm_N = np.sqrt(np.vecdot(a_ND, a_ND)) * np.sqrt(np.vecdot(b_ND, b_ND))
    with np.errstate(invalid="ignore"):  # 0 / 0 is our NaN, not a mistake
        cosine_N = np.vecdot(a_ND, b_ND) / norm_N
    return np.clip(cosine_N, -1, 1)  # rounding takes parallel vectors past 1
