"""phash and dhash against imagehash, and the thumbnails against Pillow, in many sizes."""

import imagehash
import numpy as np
import pytest
from PIL import Image
from scipy.fft import dct

from clipmill.stages.ops.images.perceptual import TIE, WAVE_LR, dhash, phash, taps, thumbnails

LANCZOS = Image.Resampling.LANCZOS


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Soft blobs in colour with noise on them."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    soft_HW3 = np.asarray(small.resize((width, height)), np.int16)
    return np.clip(soft_HW3 + rng.integers(-9, 10, soft_HW3.shape), 0, 255).astype(np.uint8)


def is_tall(height: int, width: int) -> bool:
    """Whether Pillow 13 resizes downwards first."""
    return height > 32 and 2 * (width - 32) < height - 32


def code(hashed: imagehash.ImageHash) -> int:
    return int(str(hashed), 16)


SIDES = (1, 2, 7, 8, 9, 31, 32, 33, 64, 100, 257)


@pytest.mark.parametrize("height", SIDES)
def test_hashes_are_imagehashs_in_every_size(height):
    pictures = [picture(height, width, seed=width) for width in SIDES]
    hashed = [Image.fromarray(rgb) for rgb in pictures]
    assert phash(pictures).tolist() == [code(imagehash.phash(image)) for image in hashed]
    assert dhash(pictures).tolist() == [code(imagehash.dhash(image)) for image in hashed]


def test_hashes_of_random_sizes_are_imagehashs():
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 700, (40, 2)).tolist()
    pictures = [picture(*size, seed=number) for number, size in enumerate(sizes)]
    expected = [code(imagehash.phash(Image.fromarray(rgb))) for rgb in pictures]
    assert phash(pictures).tolist() == expected


def test_flat_and_mirrored_pictures_whose_frequencies_tie_are_imagehashs_too():
    flat = [np.full((40, 50, 3), grey, np.uint8) for grey in (0, 1, 128, 255)]
    half = [picture(60, 40, seed) for seed in range(20)]
    mirrored = [np.concatenate([rgb, rgb[:, ::-1]], axis=1) for rgb in half]
    pictures = [*flat, *mirrored, *(np.ascontiguousarray(rgb[::-1]) for rgb in mirrored)]
    expected = [code(imagehash.phash(Image.fromarray(rgb))) for rgb in pictures]
    assert phash(pictures).tolist() == expected


@pytest.mark.parametrize(("height", "width"), [(257, 20), (33, 5), (160, 95), (160, 96), (90, 300)])
def test_tall_pictures_are_resized_downwards_first_and_others_sideways(height, width):
    rgb = picture(height, width)
    between = (width, 32) if is_tall(height, width) else (32, height)
    grey = Image.fromarray(rgb).convert("L").resize(between, LANCZOS).resize((32, 32), LANCZOS)
    np.testing.assert_array_equal(thumbnails([rgb], 32, 32)[0], grey)


def test_extremes_are_cut_and_not_wrapped_round():
    rgb = np.zeros((64, 64, 3), np.uint8)
    rgb[:, 32:] = 255  # the filter overshoots on both sides of the edge
    grey = Image.fromarray(rgb).convert("L").resize((32, 32), LANCZOS)
    np.testing.assert_array_equal(thumbnails([rgb], 32, 32)[0], grey)
    assert {0, 255} <= set(np.unique(grey))


def test_weights_of_every_length_sum_to_one():
    for before in range(1, 400):
        _, weight_RT = taps(before, 32)
        assert np.abs(weight_RT.sum(axis=1) - (1 << 22)).max() <= weight_RT.shape[1]


def test_read_only_pixels_are_hashed_as_they_are():
    rgb = picture(50, 60)
    rgb.flags.writeable = False  # as a chain shares them
    assert phash([rgb]).tolist() == [code(imagehash.phash(Image.fromarray(rgb)))]


def test_no_pictures_have_no_hashes():
    assert (phash([]).shape, phash([]).dtype, dhash([]).shape) == ((0,), np.uint64, (0,))


def test_products_of_matrices_are_off_by_less_than_what_is_called_a_tie():
    rng = np.random.default_rng(0)
    thumbnail_NRC = rng.choice([0.0, 255.0], (200, 32, 32))
    low_NRC = dct(dct(thumbnail_NRC, axis=1), axis=2)[:, :8, :8]
    assert np.abs(WAVE_LR @ thumbnail_NRC @ WAVE_LR.T - low_NRC).max() < TIE / 100
