"""Pieces against plain Python, their hashes against datasketch's, sets against Python's."""

from hashlib import sha1

import numpy as np
import pyarrow as pa
import pytest

from clipmill.stages.dedup._plain import plain
from clipmill.stages.dedup._shingles import (
    blocks,
    digests,
    distinct,
    hashes,
    jaccard,
    numbers,
    pieces,
)

TEXTS = [
    "a b  c",
    "Über das Öl",
    "猫と犬",
    "🙂 emoji 👩‍👩‍👧",
    "x",
    "",
    "word " * 40,
    "tail\u00a0\u2003 ends\x1c",
]


def by_hand(text: str, unit: str, size: int) -> list[bytes]:
    units = list(text) if unit == "character" else text.split(" ") if text else []
    joint = "" if unit == "character" else " "
    count = max(1, len(units) - size + 1) if units else 0
    return [joint.join(units[i : i + size]).encode() for i in range(count)]


def pieces_of(text: pa.Array, unit: str, size: int) -> list[list[bytes]]:
    found = pieces(text, unit, size)
    every = [
        found.utf8[start:stop].tobytes()
        for start, stop in zip(found.start, found.stop, strict=True)
    ]
    return [every[a:b] for a, b in zip([0, *found.end], found.end, strict=False)]


def test_plain_text_is_lower_case_with_single_spaces():
    expected = [" ".join(text.lower().split()) or None for text in TEXTS]
    assert plain(pa.array([*TEXTS, None])).to_pylist() == [*expected, None]
    assert plain(pa.chunked_array([TEXTS[:2], TEXTS[2:4]])).to_pylist() == expected[:4]


def test_white_space_is_pythons():
    every = [chr(code) for code in range(0x3001) if not 0xD800 <= code < 0xE000]
    space = [f"a{character}b" for character in every]
    assert [text == "a b" for text in plain(pa.array(space)).to_pylist()] == [
        character.isspace() for character in every
    ]


@pytest.mark.parametrize("unit", ["character", "word"])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_pieces_are_every_run_of_units_and_a_shorter_text_is_one(unit, size):
    text = [t or "" for t in plain(pa.array(TEXTS)).to_pylist()]
    expected = [by_hand(one, unit, size) for one in text]
    assert pieces_of(pa.array(text, pa.large_string()), unit, size) == expected
    sliced = pa.array(["skipped", *text, "skipped"], pa.large_string())[1:-1]
    assert pieces_of(sliced, unit, size) == expected


@pytest.mark.parametrize("texts", [[], ["", ""]], ids=str)
def test_no_text_has_no_pieces(texts):
    assert pieces_of(pa.array(texts, pa.large_string()), "character", 3) == [[] for _ in texts]


def sha1_hash64(text: str) -> int:
    """As `datasketch.hashfunc` has it; test_signatures asks it itself."""
    return int.from_bytes(sha1(text.encode()).digest()[:8], "little")


def test_hashes_are_datasketchs_for_every_length_around_a_block():
    text = ["".join(chr(97 + i * 7 % 26) for i in range(length)) for length in range(1, 140)]
    hash_P = hashes(pieces(pa.array(text, pa.large_string()), "word", 1))
    assert hash_P.tolist() == list(map(sha1_hash64, text))


def test_hashes_are_datasketchs_in_any_number():
    for count in (0, 1, 255, 256, 257, 1000):
        text = pa.array([f"{i}-{i * i}" for i in range(count)], pa.large_string())
        assert hashes(pieces(text, "word", 1)).tolist() == list(map(sha1_hash64, text.to_pylist()))


def test_jaccard_is_that_of_the_sets():
    rng = np.random.default_rng(0)
    lists = [rng.integers(0, 12, rng.integers(0, 15)).tolist() for _ in range(60)]
    number_P = np.array([item for one in lists for item in one], np.uint64)
    a_E, b_E = (ends.ravel() for ends in np.meshgrid(np.arange(60), np.arange(60)))
    expected = [
        len({*lists[a]} & {*lists[b]}) / (len({*lists[a]} | {*lists[b]}) or 1)
        for a, b in zip(a_E, b_E, strict=True)
    ]
    ends = np.cumsum([len(one) for one in lists])
    assert jaccard(number_P, ends, a_E, b_E).tolist() == expected
    assert jaccard(number_P, ends, b_E, a_E).tolist() == expected


def test_sets_hold_each_item_once_in_order():
    item, end = distinct(np.array([3, 1, 3, 2, 2], np.uint64), np.array([3, 3, 5]))
    assert item.tolist() == [1, 3, 2]
    assert end.tolist() == [2, 2, 3]


def test_numbers_are_equal_just_where_pieces_are():
    text = ["a" * length for length in range(1, 30)] + ["\0" * length for length in range(1, 30)]
    text += [f"{n:08b}{n % 7}"[n % 5 :] for n in range(256)]
    number_P = numbers(pieces(pa.array(text, pa.large_string()), "word", 1)).tolist()
    assert len(set(number_P)) == len(set(text))
    assert [number_P.index(number) for number in number_P] == [text.index(one) for one in text]


def test_blocks_cover_all_in_order_and_are_no_larger_than_they_must_be():
    size_N = np.array([4, 4, 4, 30, 1, 1, 0, 9])
    parts = blocks(size_N, 10)
    assert [n for part in parts for n in range(part.start, part.stop)] == list(range(8))
    assert all(size_N[part][1:].sum() < 10 for part in parts)
    assert blocks(size_N[:0], 10) == []


def test_digests_tell_texts_apart():
    digest_N = digests(pa.array(["a", "b", "a", ""]))
    assert digest_N[0] == digest_N[2]
    assert len(set(digest_N.tolist())) == 3
    assert digests(pa.array([], pa.string())).dtype == np.uint64
