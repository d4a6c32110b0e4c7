"""The filter network: directions that correlate, whatever the features' origin or axes."""

import numpy as np
import pytest
import torch

from stages.models import filter_network as fn
from stages.models.filter_network import Embedder, FilterNetwork, fitted
from stages.models.saved import put_model

N, IMAGE, TEXT, WIDTH = 300, 12, 9, 4


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def pairs(noise: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Image and text features that share three numbers a row."""
    rng = np.random.default_rng(0)
    shared_N3 = rng.standard_normal((N, 3))
    image_NI = shared_N3 @ rng.standard_normal((3, IMAGE))
    text_NT = shared_N3 @ rng.standard_normal((3, TEXT))
    image_NI += noise * rng.standard_normal(image_NI.shape)
    text_NT += noise * rng.standard_normal(text_NT.shape)
    return image_NI.astype(np.float32), text_NT.astype(np.float32)


def cosines(network: FilterNetwork, image_NI: np.ndarray, text_NT: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        image_ND = network.embed_images(torch.from_numpy(image_NI))
        return (image_ND @ network.embed_texts(torch.from_numpy(text_NT)).T).numpy()


def wins(cosine_NN: np.ndarray) -> float:
    """How often an own caption is above another's."""
    return float((np.diag(cosine_NN)[:, None] > cosine_NN).sum() / (N * (N - 1)))


def test_one_feature_each_correlates_as_the_ridge_leaves_it():
    image_N1 = np.array([[0], [1], [2], [3]], np.float32)
    text_N1 = np.array([[0], [2], [4], [6]], np.float32)
    network = fitted(image_N1, text_N1, 1)
    # Variances 1.25 and 5, covariance 2.5; a ridge of 3 and 1 times the mean variance, and of four
    # pairs 1,251 times as much.
    image, text = 1 / np.sqrt(1.25 * (1 + 3 * 1251)), 1 / np.sqrt(5 * (1 + 1251))
    correlation = image * 2.5 * text
    assert abs(network.image.weight.item()) == pytest.approx(image * correlation**0.5, rel=1e-6)
    assert abs(network.text.weight.item()) == pytest.approx(text * correlation**0.5, rel=1e-6)
    assert cosines(network, image_N1, text_N1)[3] == pytest.approx([-1, -1, 1, 1])


def test_neither_origin_nor_axes_of_the_features_change_a_cosine():
    image_NI, text_NT = pairs()
    plain = cosines(fitted(image_NI, text_NT, WIDTH), image_NI, text_NT)
    turn_II = np.linalg.qr(np.random.default_rng(1).standard_normal((IMAGE, IMAGE)))[0]
    turned = (image_NI @ turn_II + 7).astype(np.float32), (text_NT - 2) * 5
    again = cosines(fitted(*turned, WIDTH), *turned)
    np.testing.assert_allclose(again, plain, atol=1e-4)


def test_captions_of_others_in_a_fifth_of_the_rows_cost_little():
    image_NI, text_NT = pairs()
    swapped_NT = text_NT.copy()
    swapped_NT[: N // 5] = np.roll(text_NT[: N // 5], 7, axis=0)
    clean, noisy = (fitted(image_NI, it, WIDTH) for it in (text_NT, swapped_NT))
    best = wins(cosines(clean, image_NI, text_NT))
    assert best > 0.9
    assert wins(cosines(noisy, image_NI, text_NT)) > best - 0.02


def test_one_caption_beside_all_pictures_fits_none():
    image_NI, text_NT = pairs()
    same_NT = text_NT.copy()
    same_NT[::3] = text_NT.mean(0)
    cosine_NN = cosines(fitted(image_NI, same_NT, WIDTH), image_NI, same_NT)
    assert np.diag(cosine_NN)[::3].mean() < np.diag(cosine_NN)[1::3].mean() - 0.5


def test_directions_beyond_the_narrower_features_are_zero():
    network = fitted(*pairs(), 20)
    assert network.image.weight.shape == (20, IMAGE)
    assert not network.image.weight[TEXT:].any()


def test_features_without_variance_are_refused():
    image_NI, text_NT = pairs()
    with pytest.raises(ValueError, match="alike"):
        fitted(image_NI, np.ones_like(text_NT), WIDTH)


def test_a_model_of_version_1_is_read(tmp_path):
    network = fitted(*pairs(), WIDTH)
    weights = {
        name.replace(".", ".1."): it.contiguous() for name, it in network.state_dict().items()
    } | {"log_scale": torch.tensor(2.0)}
    sizes = {"image_width": IMAGE, "text_width": TEXT, "width": WIDTH}

    def put(name, path):
        path.rename(tmp_path / name)

    (tmp_path / "scratch").mkdir()
    put_model(put, tmp_path / "scratch", fn.KIND, sizes, weights)
    image_NI, _ = pairs()
    with torch.inference_mode():
        wanted = network.embed_images(torch.from_numpy(image_NI)).numpy()
    np.testing.assert_allclose(Embedder(str(tmp_path)).embed_images(image_NI), wanted, atol=1e-6)
