"""Files of answers: what is found, what two answers to one request give, what damage leaves."""

import hashlib
import io
import struct

import pytest

from clipmill.metadata.answers import (
    END,
    AnswersFile,
    from_bytes,
    merged,
    open_local,
    write_answers,
    write_scratch,
)


def key(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def pairs(numbers) -> list[tuple[bytes, bytes]]:
    return sorted((key(n), f"the answer to {n} ".encode() * (n % 30)) for n in numbers)


def packed(some: list[tuple[bytes, bytes]]) -> bytes:
    file = io.BytesIO()
    write_answers(some, file)
    return file.getvalue()


def opened(data: bytes) -> tuple[AnswersFile, list[str]]:
    told: list[str] = []
    return from_bytes(data, told.append), told


@pytest.mark.parametrize("count", [0, 1, 2, 1000])
def test_each_answer_is_found_and_no_other(count):
    some = pairs(range(count))
    file, told = opened(packed(some))
    assert [file.find(key) for key, _ in some] == [answer for _, answer in some]
    assert not any(file.find(key(n)) for n in range(count, 2 * count + 9))
    assert list(file) == some
    assert not told


def test_an_answer_may_be_empty_or_long():
    some = sorted([(key(1), b""), (key(2), bytes(range(256)) * 4096), (key(3), b"x")])
    file, _ = opened(packed(some))
    assert [file.find(key(n)) for n in (1, 2, 3)] == [b"", bytes(range(256)) * 4096, b"x"]


def test_keys_that_begin_alike_are_told_apart():
    some = [(b"8 bytes " + struct.pack(">QQQ", n, 0, n), bytes(2000)) for n in range(99)]
    some += [(bytes([255]) * 32, b"last")]
    file, _ = opened(packed(some))
    assert all(file.find(key) == answer for key, answer in some)
    assert file.find(b"8 bytes " + struct.pack(">QQQ", 9, 0, 8)) is None


def test_a_key_across_two_keys_is_none():
    some = sorted([(bytes(16) + b"a" * 16, b"one"), (bytes(8) + b"b" * 24, b"two")])
    file, _ = opened(packed(some))
    assert file.find((some[0][0] + some[1][0])[8:40]) is None


def test_of_two_answers_the_lesser_stays_in_whatever_order():
    one, other = [(key(1), b"b"), (key(2), b"x")], [(key(1), b"a")]
    assert list(merged([sorted(one), other])) == sorted([(key(1), b"a"), (key(2), b"x")])
    assert list(merged([other, sorted(one)])) == list(merged([sorted(one), other]))


def test_a_copy_in_scratch_has_all_of_it():
    some = pairs(range(300))
    assert list(write_scratch(some)) == some


def test_a_byte_that_changed_costs_its_own_block_and_is_told():
    some = pairs(range(1000))
    data = packed(some)
    known = dict(some)
    _, index, _, _ = END.unpack(data[-END.size :])
    for at in range(0, len(data), 2_503):
        changed = bytearray(data)
        changed[at] ^= 0x10
        file, told = opened(bytes(changed))
        found = {key: answer for key, answer in some if file.find(key) == answer}
        lost = len(some) - len(found)
        assert told
        assert lost < 100
        assert bool(lost) == (at < index)
        assert dict(file).items() <= known.items()


@pytest.mark.parametrize("cut", [1, END.size, 600, 9_000])
def test_a_file_that_is_cut_keeps_the_blocks_that_are_whole(cut):
    some = pairs(range(1000))
    file, told = opened(packed(some)[:-cut])
    assert told
    assert dict(file).items() <= dict(some).items()
    assert len(list(file)) > 500


def test_a_block_that_states_a_huge_size_costs_no_memory(tmp_path):
    data = bytearray(packed(pairs(range(1000))))
    data[7] = 0xFF  # the first block's number of answers: its keys would take 137 GB
    (tmp_path / "answers").write_bytes(data[: -END.size])  # and the index is gone
    file = open_local(str(tmp_path / "answers"), print)
    assert dict(file).items() <= dict(pairs(range(1000))).items()
    assert len(list(file)) > 900


def test_what_is_no_file_of_answers_has_none():
    for data in (b"", b"CLA1", b"{}" * 400, bytes(5000)):
        file, told = opened(data)
        assert told
        assert list(file) == []
        assert file.find(key(1)) is None
