"""Features: each modality on its own, in the declared types."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from clipmill.pipeline.stage import Worker
from clipmill.stages.embed.features import Features, features
from clipmill.stages.ops.images.pixels import PIXELS

RED = {"height": 1, "width": 2, "rgb": bytes([255, 0, 0] * 2)}
DECLARED = [column.dtype for column in Features.writes]


def see(images) -> np.ndarray:
    return np.array([np.full(1280, image.mean()) for image in images], np.float32)


def read(texts) -> np.ndarray:
    return np.array([np.full(384, len(text)) for text in texts], np.float32)


def batch(pixels: list, texts: list) -> pa.Table:
    return pa.table(
        {"pixels": pa.array(pixels, PIXELS.dtype), "text": pa.array(texts, pa.string())}
    )


def test_a_missing_image_or_text_is_null_and_the_other_still_has_its_vector():
    out = features(batch([RED, None, RED, None], ["a", "bc", None, None]), see, read)
    first = [
        [vector and vector[0] for vector in out[name].to_pylist()] for name in out.column_names[:2]
    ]
    assert first == [[85, None, 85, None], [1, 2, None, None]]
    assert out["reason"].to_pylist() == [None, "no_image", "no_text", "no_image"]


@pytest.mark.parametrize("rows", [0, 2])
def test_types_are_those_declared_even_without_a_single_value(rows):
    out = features(batch([None] * rows, [None] * rows), see, read)
    assert out.schema.types == [*DECLARED, pa.dictionary(pa.int32(), pa.string())]
    assert out.num_rows == rows


def test_the_networks_are_as_wide_as_declared():
    from clipmill.stages.models.features import ImageFeatures
    from clipmill.stages.models.text_features import TextFeatures

    assert [dtype.list_size for dtype in DECLARED] == [ImageFeatures.width, TextFeatures.width]


@pytest.mark.slow("loads both networks")
def test_both_packages_weights_are_pinned(tmp_path):
    pinned = {}
    worker = Worker(
        seed=0, stage="it", device="cpu", threads=1, scratch=tmp_path, pin=pinned.__setitem__
    )
    Features().open(worker)
    again = []
    Features(precision="float32").open(replace(worker, pin=lambda *said: again.append(said)))
    assert sorted(pinned) == ["EfficientNet-Lite0", "all-MiniLM-L6-v2"]
    assert dict(again) == pinned  # of the weights as they came, whatever they are computed in
