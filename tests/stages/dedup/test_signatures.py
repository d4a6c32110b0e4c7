"""Signatures against datasketch, int for int; bands as equal parts of signatures."""

import numpy as np
import pyarrow as pa
import pytest

from clipmill.stages.dedup._minhash import band_keys, permutations, signatures
from clipmill.stages.dedup._shingles import hashes, pieces

TEXTS = ["a photo of a cat", "two dogs", "x", "", "猫と犬", "a " * 300]


@pytest.mark.parametrize(("count", "seed"), [(128, 1), (240, 42), (1, 7), (33, 0)])
def test_signatures_are_datasketchs(count, seed):
    from datasketch import MinHash

    expected = []
    for one in TEXTS:
        theirs = MinHash(num_perm=count, seed=seed)
        theirs.update_batch([word.encode() for word in one.split()])
        expected.append(theirs.hashvalues.tolist())
    found = pieces(pa.array([" ".join(t.split()) for t in TEXTS], pa.large_string()), "word", 1)
    assert signatures(hashes(found), found.end, count, seed).tolist() == expected


def test_permutations_are_datasketchs():
    from datasketch import MinHash

    np.testing.assert_array_equal(permutations(128, 3), MinHash(num_perm=128, seed=3).permutations)


def test_rows_share_a_key_just_where_they_share_a_band():
    rng = np.random.default_rng(0)
    signature_NK = rng.integers(0, 2, (200, 13), dtype=np.uint32)
    key_NB = band_keys(signature_NK, bands=4, rows=3)
    band_NBR = signature_NK[:, :12].reshape(200, 4, 3)
    same_NNB = (band_NBR[:, None] == band_NBR[None]).all(axis=3)
    np.testing.assert_array_equal(key_NB[:, None] == key_NB[None], same_NNB)
    assert not set(key_NB[:, 0].tolist()) & set(key_NB[:, 1].tolist()), "bands are told apart"
