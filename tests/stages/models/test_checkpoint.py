"""Models stored and loaded: the same embeddings whatever the batch, and what is refused."""

import hashlib
import json
import shutil

import numpy as np
import pytest
import torch

from clipmill.pipeline.errors import StageError
from clipmill.stages.clip.named import new_model
from clipmill.stages.clip.saving import card_files
from clipmill.stages.models.checkpoint import load
from clipmill.stages.towers.nano import token_bags
from tests.stages.clip.exported import TINY, TINY_OPEN_CLIP, write_model

TEXTS = ["", "a red ox", "star " * 60, *(f"number {i}" for i in range(67))]


@pytest.fixture
def stored(tmp_path):
    """A stage's folder with a model in out/."""
    return write_model(tmp_path / "stage", "tiny", seed=3)


def pictures(count: int) -> list:
    rng = np.random.default_rng(0)
    sides = rng.integers(3, 40, (count, 2))
    return [rng.integers(0, 256, (*side, 3), np.uint8) for side in sides]


def test_a_model_comes_back_as_it_was(stored):
    loaded, model = load(str(stored)), new_model("tiny", 3).eval()
    assert (loaded.width, loaded.model.architecture) == (8, TINY)
    card = json.loads((stored / "out" / "model.json").read_text())
    assert (card["kind"], card["seed"], card["sha256"]) == ("clip", 3, loaded.sha256)
    text_ND = loaded.embed_texts(["a red ox"])
    token_T, start_N = token_bags(["a red ox"], TINY.buckets, TINY.tokens)
    expected = model.embed_texts(torch.from_numpy(token_T), torch.from_numpy(start_N[:1]))
    np.testing.assert_allclose(text_ND, expected.detach().numpy(), atol=1e-6)


def test_out_may_be_named_itself(stored):
    texts = ["a red ox"]
    own, copied = (load(str(stored / below)).embed_texts(texts) for below in ("", "out"))
    np.testing.assert_array_equal(own, copied)


def test_an_embedding_is_a_unit_vector_that_its_neighbours_dont_change(stored):
    model = load(str(stored))
    images = pictures(70)
    for every, embed in ((images, model.embed_images), (TEXTS, model.embed_texts)):
        whole_ND = embed(every)
        assert (whole_ND.dtype, whole_ND.shape) == (np.float32, (70, 8))
        np.testing.assert_allclose(np.linalg.norm(whole_ND, axis=1), 1, atol=1e-6)
        pieces = [embed(every[:1]), embed(every[1:8]), embed(every[8:])]
        np.testing.assert_array_equal(np.concatenate(pieces), whole_ND)
        np.testing.assert_array_equal(embed(every[::-1])[::-1], whole_ND)
        assert embed([]).shape == (0, 8)


def test_changed_weights_are_refused(stored):
    path = stored / "out" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(StageError, match="digest"):
        load(str(stored))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"kind": "filter_network"}, "filter_network"),
        ({"version": 2}, "version 2"),
        ({"architecture": {"layers": 12}}, "architecture"),
        ({"architecture": None}, "architecture"),
    ],
    ids=["kind", "version", "other numbers", "none"],
)
def test_a_card_of_another_model_is_refused(stored, change, found):
    path = stored / "out" / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(StageError, match=found):
        load(str(stored))


@pytest.mark.parametrize(
    "change",
    [
        {"width": -1},
        {"buckets": 10**20},
        {"channels": [8, 0]},
        {"channels": [8] * 5},
        {"strides": [1, 0]},
        {"image_size": 10**7},
        {"tokens": "many"},
        {"bag_width": 60_000, "hidden": 60_000},  # 14 GB
        {"bag_width": 1 << 24, "hidden": 1 << 24},  # a petabyte
    ],
    ids=str,
)
def test_a_card_that_asks_for_no_network_or_for_all_memory_is_at_fault(stored, change):
    path = stored / "out" / "model.json"
    card = json.loads(path.read_text())
    card["architecture"] |= change
    path.write_text(json.dumps(card))
    with pytest.raises(StageError, match="of another architecture: ") as error:
        load(str(stored))
    assert "model.json" in error.value.args[1]
    assert "mend" not in error.value.args[2]


@pytest.mark.parametrize(
    "data",
    [b"", b"\x80\x04.", (1 << 60).to_bytes(8, "little") + b"{}", (2).to_bytes(8, "little") + b"[]"],
    ids=["empty", "pickle", "long header", "no mapping"],
)
def test_weights_that_are_none_are_at_fault(stored, data):
    (stored / "out" / "model.safetensors").write_bytes(data)
    path = stored / "out" / "model.json"
    digest = hashlib.sha256(data).hexdigest()
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sha256": digest}))
    with pytest.raises(StageError, match="weights that cannot be read: SafetensorError") as error:
        load(str(stored))
    assert error.value.args[1].endswith("out/model.safetensors")


def test_weights_of_another_shape_are_refused(stored):
    path = stored / "out" / "model.json"
    card = json.loads(path.read_text())
    card["architecture"]["width"] = 9
    path.write_text(json.dumps(card))
    with pytest.raises(StageError, match="another architecture"):
        load(str(stored))


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(StageError, match=r"model\.json"):
        load(str(tmp_path))


@pytest.fixture(scope="module")
def open_clips(open_clip, tmp_path_factory):
    """A stage's folder with a tiny network of open_clip's."""
    return write_model(tmp_path_factory.mktemp("models") / "stage", TINY_OPEN_CLIP, seed=3)


def test_open_clips_own_loader_takes_the_weights_and_gives_the_same_vectors(open_clips, open_clip):
    from PIL import Image

    open_clip.add_model_config(TINY_OPEN_CLIP)
    ours, folder = load(str(open_clips)), open_clips / "out"
    images = pictures(3)
    for name, weights in (
        ("tiny_open_clip", str(folder / "model.safetensors")),
        (f"local-dir:{folder}", None),
    ):
        theirs, _, transform = open_clip.create_model_and_transforms(name, pretrained=weights)
        theirs.eval()
        pixels = torch.stack([transform(Image.fromarray(image)) for image in images])
        with torch.inference_mode():
            image_ND = theirs.encode_image(pixels, normalize=True).numpy()
            tokens = open_clip.get_tokenizer(name)(["a red ox"])
            text_ND = theirs.encode_text(tokens, normalize=True).numpy()
        np.testing.assert_allclose(ours.embed_images(images), image_ND, atol=1e-6)
        np.testing.assert_allclose(ours.embed_texts(["a red ox"]), text_ND, atol=1e-6)
    readme = (folder / "README.md").read_text()
    assert '("local-dir:FOLDER")\n```' in readme
    assert "for one of several seeds, a copy of its files named without `seed-N.`" in readme


def test_the_readme_of_a_network_by_open_clips_name_loads_it_by_that():
    readme = card_files({"model": "ViT-B-32", "open_clip": {}})["README.md"]
    assert '("ViT-B-32", pretrained="FOLDER/model.safetensors")' in readme


def test_weights_of_open_clips_of_another_shape_are_refused(open_clips, tmp_path):
    shutil.copytree(open_clips / "out", tmp_path / "copy")
    path = tmp_path / "copy" / "model.json"
    card = json.loads(path.read_text())
    card["open_clip"]["embed_dim"] = 24
    path.write_text(json.dumps(card))
    with pytest.raises(StageError, match=r"another architecture: size mismatch for"):
        load(str(tmp_path / "copy"))
    whole = card["open_clip"] | {"embed_dim": 16}
    deep = whole | {"text_cfg": whole["text_cfg"] | {"layers": 10**9}}
    for config in ({"embed_dim": 3}, [], deep, whole | {"embed_dim": -1}):
        card["open_clip"] = config
        path.write_text(json.dumps(card))
        with pytest.raises(StageError, match="another architecture"):
            load(str(tmp_path / "copy"))
