"""Computes features of images and captions by two frozen networks, as input of filter networks."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.metadata.schema import IMAGE_FEATURES, TEXT, TEXT_FEATURES
from clipmill.pipeline.stage import Resources, RowFunction, RowStage, Worker
from clipmill.stages.embed._pair import ADVICE, NO_VECTOR, pair, vectors
from clipmill.stages.models import watched
from clipmill.stages.models.watched import Watched
from clipmill.stages.ops.images.pixels import PIXELS, rows_of

Embed = Callable[[list[Any]], NDArray[np.float32]]
IMAGE_WIDTH, TEXT_WIDTH = 1280, 384


@dataclass(frozen=True, kw_only=True)
class Features(RowStage):
    """EfficientNet-Lite0's 1280 image features and MiniLM's unit vector of the caption, 384 wide.

    Each is null if its input is. Images are scaled to 128 pixels and padded to a white square;
    captions are cut at 128 tokens, and English works best.
    Source: EfficientNet-Lite (Tan et al. 2020), all-MiniLM-L6-v2 (Reimers and Gurevych 2019).
    Error: bfloat16 against float32, 300 rows of the demo pool: cosine of image features 0.9886 at
    least, 0.9989 in the median; of captions 0.9998 at least.
    Example: {after: [ingest.image_folder]}
    """

    # precision of the networks: bfloat16 is faster; a processor without it uses float32
    precision: Literal["bfloat16", "float32"] = "bfloat16"

    version = 1
    determinism = "exact"
    reads = (PIXELS, TEXT)
    writes = (
        replace(IMAGE_FEATURES, dtype=pa.list_(pa.float32(), IMAGE_WIDTH)),
        replace(TEXT_FEATURES, dtype=pa.list_(pa.float32(), TEXT_WIDTH)),
    )
    reasons = ("no_image", "no_text", NO_VECTOR)
    advice = ADVICE
    resources = Resources(cpus=1, memory_gb=3)
    batch_rows = 128

    def open(self, worker: Worker) -> RowFunction:
        from clipmill.stages.models.features import ImageFeatures
        from clipmill.stages.models.text_features import TextFeatures

        images = ImageFeatures(self.precision, worker.device, worker.threads)
        texts = TextFeatures(self.precision, worker.device, worker.threads)
        worker.pin("EfficientNet-Lite0", images.sha256)
        worker.pin("all-MiniLM-L6-v2", texts.sha256)
        watched_images = Watched(images, watched.pictures, "EfficientNet-Lite0")
        watched_texts = Watched(texts, watched.texts, "all-MiniLM-L6-v2")
        return lambda batch: features(batch, watched_images, watched_texts)


def features(batch: pa.Table, images: Embed, texts: Embed) -> pa.Table:
    """Returns both vectors of every row, and a reason if one is null."""
    columns = {
        IMAGE_FEATURES.name: vectors(rows_of(batch[PIXELS.name]), images, IMAGE_WIDTH),
        TEXT_FEATURES.name: vectors(batch[TEXT.name].to_pylist(), texts, TEXT_WIDTH),
    }
    missing = batch[PIXELS.name].is_null(), batch[TEXT.name].is_null()
    return pair(columns, missing, Features.reasons)
