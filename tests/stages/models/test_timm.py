"""timm by name: weights from a file, timm's own vectors, errors that say what is missing."""

import numpy as np
import pytest
import torch

import clipmill.stages.models.timm
from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.stages.models.image_text import load, look_for, width_of

NETWORK, WIDTH = "test_vit", 64


@pytest.fixture(scope="module")
def timm():
    """The package. Its import takes seconds: those of no test."""
    import timm

    return timm


@pytest.fixture(scope="module")
def file(timm, tmp_path_factory):
    """Random weights of a small network, classifier included, as timm's trainer leaves them."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "small.pth"
    torch.save(timm.create_model(NETWORK).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def model(file):
    return load(f"timm:{NETWORK}@{file}")


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, shape, np.uint8) for shape in ((50, 90, 3), (300, 200, 3))]


def test_vectors_are_timms_own_at_length_1(timm, model, file, pictures):
    from PIL import Image

    network = timm.create_model(NETWORK, num_classes=0)
    network.load_state_dict(torch.load(file, weights_only=True), strict=False)
    network.eval()
    config = timm.data.resolve_model_data_config(network)
    seen = timm.data.create_transform(**config, is_training=False)
    with torch.inference_mode():
        row_ND = network(torch.stack([seen(Image.fromarray(rgb)) for rgb in pictures])).numpy()
    row_ND /= np.linalg.norm(row_ND, axis=1, keepdims=True)
    found_ND = model.embed_images(pictures)
    assert found_ND.shape == (2, WIDTH)
    np.testing.assert_allclose(found_ND, row_ND, atol=1e-5)
    assert model.width == WIDTH


def test_a_vector_does_not_depend_on_what_else_is_in_the_call(model, pictures, monkeypatch):
    monkeypatch.setattr(clipmill.stages.models.timm, "IMAGES", 4)
    many = pictures * 3
    whole_ND = model.embed_images(many)
    np.testing.assert_array_equal(model.embed_images(many[5:])[0], whole_ND[5])
    np.testing.assert_array_equal(model.embed_images(many[::-1]), whole_ND[::-1])
    assert model.embed_images([]).shape == (0, WIDTH)


def test_the_digest_is_that_of_the_weights_without_the_classifier(model, file, tmp_path):
    weights = torch.load(file, weights_only=True)
    weights["head.bias"] += 1
    torch.save(weights, tmp_path / "head.pth")
    assert load(f"timm:{NETWORK}@{tmp_path}/head.pth").sha256 == model.sha256
    weights["norm.bias"] += 1
    torch.save(weights, tmp_path / "other.pth")
    assert load(f"timm:{NETWORK}@{tmp_path}/other.pth").sha256 != model.sha256


def test_it_reads_no_captions_and_says_which_stage_needs_none(model):
    with pytest.raises(StageError, match=r"reads no captions[\s\S]*embed.image"):
        model.embed_texts(["a"])


def test_what_is_wrong_with_a_name_or_a_file_is_said(file, tmp_path):
    assert width_of(f"timm:{NETWORK}@anywhere.pth") is None
    for name in ("test_vit", "@file", "test_vit@"):
        with pytest.raises(RecipeError, match="it names no weights"):
            width_of(f"timm:{name}")
    for ask in (load, look_for):
        with pytest.raises(StageError, match=r"none\.pth"):
            ask(f"timm:{NETWORK}@{tmp_path}/none.pth")
    with pytest.raises(StageError, match="timm has no network 'test_vat'"):
        load(f"timm:test_vat@{file}")
    with pytest.raises(StageError, match="weights that are not of test_resnet"):
        load(f"timm:test_resnet@{file}")
    (tmp_path / "page.pth").write_text("<html>")
    with pytest.raises(StageError, match="weights that are not of test_vit"):
        load(f"timm:{NETWORK}@{tmp_path}/page.pth")
