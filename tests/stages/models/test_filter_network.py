"""The filter network: directions that correlate, whatever the features' origin or axes."""

import re
import zlib

import numpy as np
import pytest
import torch

from clipmill.stages.models import filter_network as fn
from clipmill.stages.models.filter_network import Embedder, FilterNetwork, fitted
from clipmill.stages.models.saved import put_model

N, IMAGE, TEXT, WIDTH = 300, 12, 9, 4


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Buckets of words: the fit grows with their cube."""
    monkeypatch.setattr(fn, "WORDS", 256)


NONE = [""] * N  # captions without a word


def pairs(noise: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Image and text features that share three numbers a row."""
    rng = np.random.default_rng(0)
    shared_N3 = rng.standard_normal((N, 3))
    image_NI = shared_N3 @ rng.standard_normal((3, IMAGE))
    text_NT = shared_N3 @ rng.standard_normal((3, TEXT))
    image_NI += noise * rng.standard_normal(image_NI.shape)
    text_NT += noise * rng.standard_normal(text_NT.shape)
    return image_NI.astype(np.float32), text_NT.astype(np.float32)


def cosines(
    network: FilterNetwork, image_NI: np.ndarray, text_NT: np.ndarray, captions: list[str] = NONE
) -> np.ndarray:
    with torch.inference_mode():
        image_ND = network.embed_images(torch.from_numpy(image_NI))
        return (image_ND @ network.embed_texts(torch.from_numpy(text_NT), captions).T).numpy()


def wins(cosine_NN: np.ndarray) -> float:
    """How often an own caption is above another's."""
    return float((np.diag(cosine_NN)[:, None] > cosine_NN).sum() / (N * (N - 1)))


def test_two_features_of_images_and_one_of_texts_correlate_as_the_ridge_leaves_them():
    """Roots of (1, 0) and (0, 1), texts 0 and 2: by hand."""
    image_N2 = np.array([[9, 0], [0, 4], [1, 0], [0, 1]], np.float32)
    text_N1 = np.array([[0], [2], [0], [2]], np.float32)
    network = fitted(image_N2, text_N1, NONE[:4], 1)
    # Variances .25 and 1, covariance of the images -.25, of both -.5 and .5; a ridge of 5 and 1
    # times the mean variance, and of four pairs 1,251 times as much.
    ridge = 0.25 * 5 * 1251
    image, text = np.sqrt(0.5 / (0.5 + ridge)), 1 / np.sqrt(1 + 1251)
    correlation = image * text  # 1 without a ridge, each share taken off by its own
    weight_2 = network.image.weight.detach().numpy()[0]
    length = np.sqrt(correlation / (0.5 + ridge))
    np.testing.assert_allclose(np.abs(weight_2), length / np.sqrt(2), rtol=1e-6)
    assert weight_2[0] == pytest.approx(-weight_2[1])
    assert abs(network.text.weight.item()) == pytest.approx(text * correlation**0.5, rel=1e-6)
    assert not network.words.weight.any()
    cosine_NN = cosines(network, image_N2, text_N1, NONE[:4])
    np.testing.assert_allclose(cosine_NN, [[1, -1, 1, -1], [-1, 1, -1, 1]] * 2, atol=1e-5)


def captions_of(text_NT: np.ndarray) -> list[str]:
    """Words of what the features are, and some that repeat."""
    return [
        " ".join(f"{'low' if it < 0 else 'high'}{i}" for i, it in enumerate(row)) + " It, it"
        for row in text_NT
    ]


def test_it_is_the_canonical_correlation_of_roots_with_features_and_words(monkeypatch):
    """As NumPy has it of whole matrices, by symmetric roots and a singular value decomposition."""
    monkeypatch.setattr(fn, "SUMMED", 70)
    image_NI, text_NT = pairs()
    captions = captions_of(text_NT)
    root_NI = np.sign(image_NI) * np.sqrt(np.abs(image_NI.astype(np.float64)))
    root_NI /= np.linalg.norm(root_NI, axis=1, keepdims=True)
    word_NV = np.zeros((N, fn.WORDS))
    for row, caption in enumerate(captions):
        words = re.findall(r"\w+", caption.lower())
        for word in words:
            word_NV[row, zlib.crc32(word.encode()) % fn.WORDS] += 1 / np.sqrt(len(words))
    both_NS = np.hstack([text_NT, word_NV])
    x_NI, y_NS = root_NI - root_NI.mean(0), both_NS - both_NS.mean(0)
    more = 1 + fn.FEW / N

    def whitening(x_NF, *parts):
        covariance_FF = x_NF.T @ x_NF / N
        for part, ridge in parts:
            at = np.arange(x_NF.shape[1])[part]
            covariance_FF[at, at] += ridge * more * np.diag(covariance_FF)[at].mean()
        variance_F, way_FF = np.linalg.eigh(covariance_FF)
        return way_FF / np.sqrt(variance_F)

    image_II = whitening(x_NI, (slice(None), fn.IMAGE_RIDGE))
    text_SS = whitening(y_NS, (slice(TEXT), fn.TEXT_RIDGE), (slice(TEXT, None), fn.WORD_RIDGE))
    left, correlation_R, right = np.linalg.svd(
        image_II.T @ (x_NI.T @ y_NS / N) @ text_SS, full_matrices=False
    )
    weight_R = np.sqrt(correlation_R)[:WIDTH]
    image_ND = x_NI @ image_II @ left[:, :WIDTH] * weight_R
    text_ND = y_NS @ text_SS @ right[:WIDTH].T * weight_R
    wanted_NN = unit(image_ND) @ unit(text_ND).T
    network = fitted(image_NI, text_NT, captions, WIDTH)
    np.testing.assert_allclose(cosines(network, image_NI, text_NT, captions), wanted_NN, atol=1e-5)
    others = captions_of(text_NT[::-1])
    assert np.abs(cosines(network, image_NI, text_NT, others) - wanted_NN).max() > 0.1


def unit(x_ND: np.ndarray) -> np.ndarray:
    return x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)


def test_words_tell_pairs_apart_that_features_do_not():
    image_NI, text_NT = pairs()
    coarse_NT = np.sign(text_NT[:, :1]) + np.zeros_like(text_NT)
    captions = captions_of(text_NT)
    by_features = cosines(fitted(image_NI, coarse_NT, NONE, WIDTH), image_NI, coarse_NT)
    network = fitted(image_NI, coarse_NT, captions, WIDTH)
    assert wins(cosines(network, image_NI, coarse_NT, captions)) > wins(by_features) + 0.1


def test_neither_origin_nor_axes_of_text_features_nor_the_length_of_images_change_a_cosine():
    image_NI, text_NT = pairs()
    plain = cosines(fitted(image_NI, text_NT, NONE, WIDTH), image_NI, text_NT)
    turn_TT = np.linalg.qr(np.random.default_rng(1).standard_normal((TEXT, TEXT)))[0]
    longer = np.linspace(1, 9, N, dtype=np.float32)[:, None]
    turned = image_NI * longer, ((text_NT @ turn_TT - 2) * 5).astype(np.float32)
    again = cosines(fitted(*turned, NONE, WIDTH), *turned)
    np.testing.assert_allclose(again, plain, atol=1e-4)


def test_captions_of_others_in_a_fifth_of_the_rows_cost_little():
    image_NI, text_NT = pairs()
    swapped_NT = text_NT.copy()
    swapped_NT[: N // 5] = np.roll(text_NT[: N // 5], 7, axis=0)
    clean, noisy = (fitted(image_NI, it, NONE, WIDTH) for it in (text_NT, swapped_NT))
    best = wins(cosines(clean, image_NI, text_NT))
    assert best > 0.9
    assert wins(cosines(noisy, image_NI, text_NT)) > best - 0.02


def test_one_caption_beside_all_pictures_fits_none():
    image_NI, text_NT = pairs()
    same_NT = text_NT.copy()
    same_NT[::3] = text_NT.mean(0)
    cosine_NN = cosines(fitted(image_NI, same_NT, NONE, WIDTH), image_NI, same_NT)
    assert np.diag(cosine_NN)[::3].mean() < np.diag(cosine_NN)[1::3].mean() - 0.5


def test_directions_beyond_the_narrower_features_are_zero():
    network = fitted(*pairs(), NONE, 20)
    assert network.image.weight.shape == (20, IMAGE)
    assert network.image.weight[TEXT - 1].any()
    assert not network.image.weight[TEXT:].any()


def test_features_without_variance_are_refused():
    image_NI, text_NT = pairs()
    with pytest.raises(ValueError, match="alike"):
        fitted(image_NI, np.ones_like(text_NT), NONE, WIDTH)


@pytest.mark.parametrize("version", [1, 2])
def test_a_model_of_an_older_version_is_read(version, tmp_path):
    """It took features as they are, and no words."""
    sizes = {"image_width": IMAGE, "text_width": TEXT, "width": WIDTH}
    torch.manual_seed(0)
    network = FilterNetwork(**sizes)
    weights = network.state_dict()
    if version == 1:  # which learnt by steps
        weights = {name.replace(".", ".1."): it for name, it in weights.items()}
        weights["log_scale"] = torch.tensor(2.0)

    def put(name, path):
        path.rename(tmp_path / name)

    (tmp_path / "scratch").mkdir()
    put_model(put, tmp_path / "scratch", fn.KIND, sizes, weights)
    image_NI, text_NT = pairs()
    with torch.inference_mode():
        image_ND = unit(network.image(torch.from_numpy(image_NI)).numpy())
        text_ND = unit(network.text(torch.from_numpy(text_NT)).numpy())
    read = Embedder(str(tmp_path))
    np.testing.assert_allclose(read.embed_images(image_NI), image_ND, atol=1e-6)
    captions = captions_of(text_NT)
    np.testing.assert_allclose(read.embed_texts(text_NT, captions), text_ND, atol=1e-6)
