"""Sets in compiled loops against Python's, round after round in the same slots."""

import numpy as np

from clipmill.stages.dedup._shingles import entered, slot_of, slots_for


def test_a_set_knows_its_numbers_and_none_of_the_rounds_before():
    rng = np.random.default_rng(0)
    slots = slots_for(20)
    held, rounds = np.empty(slots, np.uint64), np.zeros(slots, np.int64)
    for present in range(1, 50):
        seen: set[int] = set()
        for number in rng.integers(0, 30, 20, dtype=np.uint64) * np.uint64(slots):  # all collide
            assert entered(held, rounds, number, present) == (int(number) not in seen)
            seen.add(int(number))
        for number in np.arange(30, dtype=np.uint64) * np.uint64(slots):
            is_there = rounds[slot_of(held, rounds, number, present)] == present
            assert is_there == (int(number) in seen)


def test_half_of_the_slots_are_free():
    assert [slots_for(numbers) for numbers in (0, 1, 2, 3, 4)] == [1, 4, 8, 8, 16]
