"""Ids and coins: known values, and what they do not depend on."""

import hashlib

import numpy as np
import pyarrow as pa
import pytest

from clipmill.metadata.uid import coin, coin_hash, coin_hash_by, from_hex, halves, uid_of


def uids(*values: bytes) -> pa.Array:
    return pa.array(values, pa.binary(16))


SOME = uids(*(hashlib.md5(str(n).encode()).digest() for n in range(4000)))


def test_an_id_is_the_hash_of_url_zero_and_text():
    assert uid_of("u", "t") == hashlib.sha256(b"u\0t").digest()[:16]
    assert uid_of(None, None) == uid_of("", "")
    assert uid_of("ab", "c") != uid_of("a", "bc")


def test_halves_are_big_endian_and_know_slices():
    both = uids(bytes(range(16)), b"\xff" * 16)
    expected = [[0x0001020304050607, 0x08090A0B0C0D0E0F], [2**64 - 1, 2**64 - 1]]
    assert halves(both).tolist() == expected
    assert halves(both.slice(1)).tolist() == expected[1:]
    assert halves(pa.chunked_array([both, both.slice(1)])).tolist() == [*expected, expected[1]]
    assert halves(pa.chunked_array([], pa.binary(16))).shape == (0, 2)


def test_a_null_id_is_refused():
    with pytest.raises(ValueError, match="1 null uids among 2"):
        halves(pa.array([b"0" * 16, None], pa.binary(16)))


def test_hex_of_either_case_is_read_and_anything_else_is_null():
    text = ["00ff" * 8, "00FF" * 8, "00ff" * 7, "zz" * 16, None, "00ff" * 9]
    read = from_hex(pa.array(text, pa.string())).to_pylist()
    assert read == [b"\x00\xff" * 8] * 2 + [None] * 4
    assert from_hex(pa.array([], pa.string())).type == pa.binary(16)
    assert from_hex(pa.chunked_array([], pa.string())).type == pa.binary(16)


def test_hex_is_read_from_where_a_slice_begins_and_over_chunks():
    whole = pa.array([f"{n:032x}" for n in range(10)])
    for rows in (whole.slice(3), pa.chunked_array([whole.slice(3, 2), whole.slice(5)])):
        assert from_hex(rows).to_pylist() == [n.to_bytes(16, "big") for n in range(3, 10)]


def test_a_coin_is_a_pure_function_of_its_four_inputs():
    base = {"seed": 1, "stage": "a", "purpose": "p"}
    first = coin(SOME, **base)
    assert (coin(SOME, **base) == first).all()
    assert (coin(SOME.take(pa.array([5, 3])), **base) == first[[5, 3]]).all()
    for change in ({"seed": 2}, {"stage": "b"}, {"purpose": "q"}):
        other = coin(SOME, **(base | change))
        assert (other != first).all()
        assert abs(np.corrcoef(first, other)[0, 1]) < 0.06


def test_coins_for_a_purpose_each_are_those_of_the_purposes_alone():
    which_N = np.arange(len(SOME)) % 3
    base, purposes = {"seed": 1, "stage": "a"}, ["p", "q", "r"]
    together_N = coin_hash_by(SOME, which_N, **base, purposes=purposes)
    for number, purpose in enumerate(purposes):
        alone_N = coin_hash(SOME, **base, purpose=purpose)
        assert (together_N == alone_N)[which_N == number].all()


def test_coins_are_uniform():
    tossed = coin(SOME, seed=0, stage="s", purpose="p")
    assert tossed.min() >= 0
    assert tossed.max() < 1
    counts = np.histogram(tossed, bins=20, range=(0, 1))[0]
    assert ((counts - 200) ** 2 / 200).sum() < 43.8  # chi-square, 19 degrees, one in a thousand
    bits = coin_hash(SOME, seed=0, stage="s", purpose="p")
    ones = [int(((bits >> np.uint64(bit)) & np.uint64(1)).sum()) for bit in range(64)]
    assert min(ones) > 1850
    assert max(ones) < 2150
