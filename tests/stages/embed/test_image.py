"""ImageEmbedding: the vectors of a model's images, its width, and models refused while planning."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.pipeline.stage import Worker
from clipmill.stages.embed.image import ImageEmbedding
from clipmill.stages.models.image_text import load
from clipmill.stages.ops.images.pixels import PIXELS

RED = {"height": 2, "width": 1, "rgb": bytes([255, 0, 0] * 2)}
BLUE = {"height": 1, "width": 1, "rgb": bytes([0, 0, 255])}
PICTURES = [np.array(p, np.uint8) for p in ([[[255, 0, 0]]] * 2, [[[0, 0, 255]]])]


@pytest.fixture
def worker(tmp_path):
    return Worker(seed=0, stage="dino", device="cpu", threads=1, scratch=tmp_path)


def batch(*pixels) -> pa.Table:
    return pa.table({"pixels": pa.array(pixels, PIXELS.dtype)})


def test_vectors_are_those_of_the_models_images_and_null_without_one(worker):
    out = ImageEmbedding(model="reference").open(worker)(batch(RED, None, BLUE))
    assert out.column_names == ["image_embedding", "reason"]
    assert out["reason"].to_pylist() == [None, "no_image", None]
    found_2D = np.array(out["image_embedding"].drop_null().to_pylist(), np.float32)
    np.testing.assert_array_equal(found_2D, load("reference").embed_images(PICTURES))


def test_a_border_is_no_part_of_what_is_embedded_where_it_is_masked(worker):
    drawn = np.random.default_rng(0).integers(0, 160, (20, 30, 3), np.uint8)
    framed = np.pad(drawn, ((9, 4), (3, 5), (0, 0)), constant_values=255)
    height, width = framed.shape[:2]
    row = {"height": height, "width": width, "rgb": framed.tobytes()}
    out = ImageEmbedding(model="reference", mask="background").open(worker)(batch(row, None))
    assert out["reason"].to_pylist() == [None, "no_image"]
    want_D = load("reference").embed_images([drawn])[0]
    np.testing.assert_array_equal(out["image_embedding"][0].as_py(), want_D)


def test_a_model_without_texts_will_do_and_its_weights_are_pinned(worker, monkeypatch):
    pinned = []
    seen = SimpleNamespace(
        sha256="a" * 64, embed_images=lambda images: np.ones((len(images), 3), np.float32)
    )
    monkeypatch.setattr("clipmill.stages.models.images.load", lambda *_: seen)
    stage = ImageEmbedding(model="open_clip:ViT-S-32-alt@f.pt")
    here = replace(worker, pin=lambda *told: pinned.append(told))
    function = stage.open(here)
    assert pinned == [("open_clip:ViT-S-32-alt@f.pt", "a" * 64)]
    with pytest.raises(StageError, match="3 wide, where 256 was planned"):
        function(batch(RED))


def test_the_width_comes_from_the_name_or_the_recipe():
    widths = [ImageEmbedding(model=name).writes[0].dtype.list_size for name in ("reference",)]
    assert widths == [64]
    assert ImageEmbedding(model="features:float32").writes[0].dtype.list_size == 1280
    assert ImageEmbedding(model="timm:x@f", width=384).writes[0].dtype.list_size == 384


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model": "timm:vit_small_patch14_dinov2@f.pth"}, "write width:"),
        ({"model": "features", "width": 64}, "1280 wide, not 64"),
        ({"model": "refrence"}, "did you mean 'reference'"),
        ({"model": "timm:vit", "width": 3}, "write timm:NAME@FILE"),
    ],
)
def test_models_that_cannot_be_are_refused_while_planning(settings, said):
    with pytest.raises(RecipeError, match=said):
        ImageEmbedding(**settings)
