"""The reference model: equal things are equal, like things near, and the batch does not matter."""

import numpy as np
import pytest

from clipmill.stages.models.reference import WIDTH, Reference, area_means

MODEL = Reference()


def picture(seed: int, size: int = 96) -> np.ndarray:
    """A smooth random picture."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3))
    at = np.linspace(0, 5, size)
    rows = np.stack([[np.interp(at, range(6), c) for c in row.T] for row in coarse])  # 6, 3, W
    full = np.stack(
        [[np.interp(at, range(6), c) for c in col.T] for col in rows.transpose(2, 0, 1)]
    )
    return full.transpose(2, 0, 1).round().astype(np.uint8)


def test_every_embedding_is_a_unit_row():
    blank = [np.full((5, 3, 3), level, np.uint8) for level in (0, 255)]
    for rows in (
        MODEL.embed_images([picture(0), *blank]),
        MODEL.embed_texts(["a cat", "", " \n", "\ud800", "x" * 1_000_000]),
    ):
        assert rows.dtype == np.float32
        assert rows.shape[1] == WIDTH
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)


def test_an_image_is_near_its_smaller_noisier_self_and_far_from_others():
    noise = np.random.default_rng(0).integers(-9, 10, (48, 48, 3))
    pictures = [picture(seed) for seed in range(20)]
    copies = [np.clip(p[::2, ::2] + noise, 0, 255).astype(np.uint8) for p in pictures]
    cosine = MODEL.embed_images(pictures) @ MODEL.embed_images(copies).T
    own = np.eye(20, dtype=bool)
    assert cosine[own].min() > 0.97
    assert cosine[~own].max() < 0.9


def test_a_text_is_nearer_one_that_shares_its_words():
    text, case, like, other = MODEL.embed_texts(
        ["a red square", "A Red  SQUARE", "red square on white", "drei blaue Kreise"]
    )
    assert text @ case == pytest.approx(1)
    assert text @ like > 0.4
    assert text @ other < 0.2


def test_an_embedding_does_not_depend_on_its_batch():
    images = [picture(seed, size) for seed, size in enumerate((7, 16, 33, 100, 64))]
    texts = ["one", "two words", "", "three more words"]
    for embed, items in ((MODEL.embed_images, images), (MODEL.embed_texts, texts)):
        alone = np.concatenate([embed([item]) for item in items])
        np.testing.assert_array_equal(embed(items), alone)
        assert embed([]).shape == (0, WIDTH)


def test_known_embeddings_stay():
    gradient = np.arange(32 * 32 * 3, dtype=np.uint32).reshape(32, 32, 3).astype(np.uint8)
    image, text = (MODEL.embed_images([gradient])[0], MODEL.embed_texts(["a red square"])[0])
    assert image[:4].tolist() == pytest.approx(
        [0.0026652, 0.0147403, -0.1959747, 0.051328], abs=1e-7
    )
    assert text[:4].tolist() == pytest.approx([0.2357023, 0.0, 0.0, 0.0], abs=1e-7)


def test_area_means_are_the_means_of_the_cells():
    image = np.random.default_rng(0).integers(0, 256, (10, 9, 3), np.uint8)
    means = area_means(image, 2)
    assert means[1, 0].tolist() == (image[5:, :4].sum(axis=(0, 1), dtype=int) * 16 // 20).tolist()
    one = area_means(image[:1, :1], 4)
    assert (one == image[0, 0].astype(int) * 16).all()
