"""ClipEmbedding: each modality on its own, fixed widths, models refused while planning."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from clipmill.metadata.fingerprint import settings_of
from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.pipeline.stage import Worker
from clipmill.stages.clip.saving import save
from clipmill.stages.embed.clip import ClipEmbedding, embeddings
from clipmill.stages.models.image_text import load
from clipmill.stages.models.watched import WatchedModel
from clipmill.stages.ops.images.pixels import PIXELS
from clipmill.stages.towers.nano import Nano
from tests.stages.broken_models import DAMAGES, damaged
from tests.stages.clip.exported import TINY, TINY_OPEN_CLIP, known_to_open_clip, write_model
from tests.stages.networks import pictures

MODEL = load("reference")
RED = {"height": 2, "width": 1, "rgb": bytes([255, 0, 0] * 2)}
BLUE = {"height": 1, "width": 1, "rgb": bytes([0, 0, 255])}


def batch(pixels: list, texts: list) -> pa.Table:
    return pa.table(
        {"pixels": pa.array(pixels, PIXELS.dtype), "text": pa.array(texts, pa.string())}
    )


def test_a_missing_image_or_text_is_null_and_the_other_still_has_its_vector():
    out = embeddings(batch([RED, None, BLUE, None], ["a", "b", None, None]), MODEL)
    assert out["image_embedding"].is_null().to_pylist() == [False, True, False, True]
    assert out["text_embedding"].is_null().to_pylist() == [False, False, True, True]
    assert out["reason"].to_pylist() == [None, "no_image", "no_text", "no_image"]


def test_a_masked_picture_is_seen_without_its_text_and_one_without_text_as_it_is():
    rgb = np.full((40, 40, 3), (200, 10, 10), np.uint8)
    rgb[10:20, 5:35] = 0
    red = np.full_like(rgb, (200, 10, 10))
    word = [0.1, 0.2, 0.9, 0.2, 0.9, 0.5, 0.1, 0.5]
    given = pictures([rgb, rgb, rgb, None]).append_column("text", pa.array(["a"] * 4))
    boxes = pa.array([[], [word], None, None], pa.list_(pa.list_(pa.float32(), 8)))
    out = embeddings(given.append_column("text_boxes", boxes), MODEL)
    plain = embeddings(given, MODEL)
    for row in (0, 2, 3):
        assert out.slice(row, 1).equals(plain.slice(row, 1))
    (alone_D,) = MODEL.embed_images([red])
    assert out["image_embedding"][1].as_py() == alone_D.tolist()
    assert ClipEmbedding(model="reference", mask="text_boxes").reads[2].name == "text_boxes"
    assert settings_of(ClipEmbedding(model="reference")).keys() == {"model", "width"}


class Odd:
    """A model that has no vector of dark pictures, and none of texts with a z."""

    width, sha256 = 4, None

    def embed_images(self, image_HW3):
        return np.array([[image.max()] * 4 for image in image_HW3], np.float32)

    def embed_texts(self, texts):
        return np.array([[np.inf if "z" in text else 1] * 4 for text in texts], np.float32)


def test_a_vector_that_is_zero_or_not_finite_is_null_with_a_reason():
    dark = {"height": 1, "width": 1, "rgb": bytes(3)}
    out = embeddings(
        batch([RED, dark, RED, None], ["a", "b", "z", "z"]), WatchedModel(Odd(), "odd")
    )
    assert out["image_embedding"].is_null().to_pylist() == [False, True, False, True]
    assert out["text_embedding"].is_null().to_pylist() == [False, False, True, True]
    assert out["reason"].to_pylist() == [None, *["zero_or_nan_embedding"] * 2, "no_image"]
    assert {*out["reason"].unique().drop_null().to_pylist()} < {*ClipEmbedding.reasons}


@pytest.mark.parametrize("damage", DAMAGES, ids=[*DAMAGES])
def test_a_broken_model_is_refused_at_its_first_row(tmp_path, damage):
    folder = damaged(write_model(tmp_path / "model", "tiny", seed=0), damage)
    worker = Worker(seed=0, stage="emb", device="cpu", threads=1, scratch=tmp_path)
    embed = ClipEmbedding(model=f"checkpoint:{folder}", width=TINY.width).open(worker)
    with pytest.raises(StageError, match="of 65 vectors are zero or not finite: NaN") as error:
        embed(batch([RED], ["a"]))
    assert str(folder) in error.value.args[1]


def test_vectors_are_the_models():
    out = embeddings(batch([RED, None, BLUE], ["a", "b", "c"]), MODEL)
    pixels = [np.array(image, np.uint8) for image in ([[[255, 0, 0]]] * 2, [[[0, 0, 255]]])]
    np.testing.assert_array_equal(
        np.array(out["image_embedding"].drop_null().to_pylist(), np.float32),
        MODEL.embed_images(pixels),
    )
    np.testing.assert_array_equal(
        np.array(out["text_embedding"].to_pylist(), np.float32),
        MODEL.embed_texts(["a", "b", "c"]),
    )


@pytest.mark.parametrize("rows", [0, 2])
def test_types_are_those_declared_even_without_a_single_value(rows):
    out = embeddings(batch([None] * rows, [None] * rows), MODEL)
    declared = {column.name: column.dtype for column in ClipEmbedding(model="reference").writes}
    assert declared["image_embedding"] == pa.list_(pa.float32(), MODEL.width)
    assert out.schema.types == [
        *declared.values(),
        pa.dictionary(pa.int32(), pa.string()),
    ]
    assert out.num_rows == rows


def test_an_unknown_model_is_refused_with_the_settings():
    with pytest.raises(RecipeError, match=r"there are: .*reference"):
        ClipEmbedding(model="resnet50")


def test_the_width_of_our_own_models_is_a_setting():
    with pytest.raises(RecipeError, match=r"how wide 'stage:clip' is(.|\n)*write width: <"):
        ClipEmbedding(model="stage:clip")
    stage = ClipEmbedding(model="stage:clip", width=128)
    assert [column.dtype.list_size for column in stage.writes] == [128, 128]


def test_a_width_that_is_not_the_models_is_refused():
    with pytest.raises(RecipeError, match="'reference' is 64 wide, not 5"):
        ClipEmbedding(model="reference", width=5)
    assert ClipEmbedding(model="reference", width=64).writes


@pytest.fixture
def stored(tmp_path) -> Worker:
    """A worker that is told of a stage's folder with a tiny model of random weights."""
    (tmp_path / "out").mkdir()
    worker = Worker(
        seed=0, stage="emb", device="cpu", threads=1, scratch=tmp_path, model=str(tmp_path)
    )

    def put(name, path):
        path.rename(tmp_path / "out" / name)

    save(Nano(TINY), {}, put, tmp_path)
    return worker


def test_a_stages_model_embeds_as_it_does_by_itself(stored):
    out = ClipEmbedding(model="stage:clip", width=TINY.width).open(stored)(batch([RED], ["a"]))
    model = load(f"checkpoint:{stored.model}")
    wanted = model.embed_images([np.array([[[255, 0, 0]]] * 2, np.uint8)])
    np.testing.assert_array_equal(out["image_embedding"].to_pylist(), wanted)


def test_a_network_of_open_clips_embeds_as_its_own_loader_trained_here_or_by_name(
    open_clip, tmp_path
):
    folder = write_model(tmp_path / "model", TINY_OPEN_CLIP, seed=0)
    theirs, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder / 'out'}")
    theirs.eval()
    torch.save(theirs.state_dict(), tmp_path / "tiny.pt")
    with torch.inference_mode():
        pixels = transform(Image.fromarray(np.array([[[255, 0, 0]]] * 2, np.uint8)))[None]
        tokens = open_clip.SimpleTokenizer()(["a red ox"])
        wanted = [
            of_one(it, normalize=True).numpy()
            for of_one, it in ((theirs.encode_image, pixels), (theirs.encode_text, tokens))
        ]
    worker = Worker(seed=0, stage="emb", device="cpu", threads=1, scratch=tmp_path)
    with known_to_open_clip() as name:
        named = ClipEmbedding(model=f"open_clip:{name}@{tmp_path / 'tiny.pt'}").open(worker)
        trained = ClipEmbedding(model="stage:clip", width=16)
        opened = [named, trained.open(replace(worker, model=str(folder)))]
        for out in (embed(batch([RED], ["a red ox"])) for embed in opened):
            for column, value in zip(("image_embedding", "text_embedding"), wanted, strict=True):
                np.testing.assert_allclose(out[column].to_pylist(), value, atol=1e-6)


def test_a_stages_model_of_another_width_or_kind_is_refused(stored):
    with pytest.raises(StageError, match=rf"{TINY.width} wide, where 5 was(.|\n)*`width`"):
        ClipEmbedding(model="stage:clip", width=5).open(stored)
    card = stored.scratch / "out" / "model.json"
    card.write_text(card.read_text().replace('"clip"', '"filter_network"'))
    with pytest.raises(StageError, match="kind 'filter_network'"):
        ClipEmbedding(model="stage:clip", width=TINY.width).open(stored)


def test_weights_from_elsewhere_are_pinned_and_those_of_a_stage_are_not(stored):
    pinned = []
    worker = replace(stored, pin=lambda *said: pinned.append(said))
    ClipEmbedding(model="stage:clip", width=TINY.width).open(worker)
    outside = replace(worker, model=None)
    ClipEmbedding(model="reference").open(outside)  # has no weights
    assert pinned == []
    name = f"checkpoint:{stored.model}"
    ClipEmbedding(model=name, width=TINY.width).open(outside)
    assert pinned == [(name, load(name).sha256)]
