"""PDQ: hashes that pdqhash made, its steps by loops in float64, turned and flat pictures."""

import numpy as np
import pytest

from clipmill.stages.ops.images.pdq import pdq, thumbnail


def drawn(height: int, width: int) -> np.ndarray:
    """Blocks of colour, with a slope over them."""
    rng = np.random.default_rng(height * width)
    block_HW3 = rng.integers(0, 200, (6, 6, 3))[np.arange(height)[:, None] * 6 // height]
    block_HW3 = block_HW3[:, 0][:, np.arange(width) * 6 // width]
    slope_HW = np.add.outer(np.arange(height) * 27 // height, np.arange(width) * 27 // width)
    return (block_HW3 + slope_HW[:, :, None]).astype(np.uint8)


HASHES = {  # and their quality, by pdqhash 0.2.8 (C++) of `drawn`
    (5, 5): ("c1f014a53e0fcb726c5b9b2668da64d993a4749dc1f014a53e0fcb726c5b9b26", 76),
    (64, 64): ("f21db39103906ed62de29339b13bec6e0de21ce77ce6a318f21d33910e946cc6", 100),
    (90, 40): ("ec1edc6c6ce66a95ec1e15e38319239113e1c61c831939e3ec1edc6e6ce66a15", 90),
    (7, 300): ("f84f13e107b0ec1e3592ce3cf84f52e546e48f18b91bad1a46b431c3da6d13e1", 100),
    (300, 420): ("31c30fc08f48c24d39c33db270b7f03fce3c39b3fcbfc64c31c30fc08f48c24d", 100),
    (700, 513): ("f82f07e09b19a56af81fde1c64c65a9507d046e4e44eb81bf82f25e29b39a16a", 100),
}


def bits(code: str) -> np.ndarray:
    return np.unpackbits(np.frombuffer(bytes.fromhex(code), np.uint8))[::-1].reshape(16, 16)


def test_hashes_are_the_reference_s():
    codes, quality_N = pdq([drawn(*size) for size in HASHES])
    expected = [bits(code) for code, _ in HASHES.values()]
    apart_N = np.array([*map(bits, codes)]) != expected
    assert apart_N.sum(axis=(1, 2)).max() <= 2  # Meta asks for 10
    assert [bits(code).sum() for code in codes] == [128] * len(HASHES)
    assert quality_N.tolist() == [quality for _, quality in HASHES.values()]
    assert pdq([])[0] == []


@pytest.mark.parametrize("size", [(300, 140), (64, 700), (128, 129)])
def test_a_thumbnail_has_means_of_means_of_windows(size):
    weight = []
    for length in size:
        window, place = -(-length // 128), np.arange(length)
        first = place[:, None] - (window - 1) // 2
        mean_LL = ((first <= place) & (place < first + window)).astype(np.float64)
        mean_LL /= mean_LL.sum(axis=1, keepdims=True)
        weight.append((mean_LL @ mean_LL)[(np.arange(64) * 2 + 1) * length // 128])
    rgb = drawn(*size)
    expected = weight[0] @ (rgb @ [0.299, 0.587, 0.114]) @ weight[1].T
    np.testing.assert_allclose(thumbnail(rgb), expected, atol=1e-4)


def test_rows_and_columns_change_places_in_a_hash_as_in_its_picture():
    rgb = drawn(200, 90)
    (code, other), quality_N = pdq([rgb, np.ascontiguousarray(rgb.transpose(1, 0, 2))])
    assert (bits(code) != bits(other).T).sum() <= 2
    assert quality_N[0] == quality_N[1]


def test_a_picture_with_nothing_to_hash_has_no_quality():
    rgb = [np.full((90, 80, 3), 200, np.uint8), drawn(4, 90), drawn(90, 1)]
    codes, quality_N = pdq(rgb)
    assert quality_N.tolist() == [0, 0, 0]
    assert codes[1:] == ["0" * 64] * 2
