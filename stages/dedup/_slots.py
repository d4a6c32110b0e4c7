"""Sets of well mixed 64-bit numbers, for compiled loops that make and forget very many of them.

A set is two arrays of a power of two slots: what a slot holds counts where its round is the present
one. A new round is an empty set, so nothing is ever cleared.
"""

import numpy as np

from stages.ops.compiled import compiled


def slots_for(numbers: int) -> int:
    """Slots for so many: at most half of them are taken."""
    return 1 << (2 * numbers).bit_length()


@compiled()
def entered(held_T, round_T, number, present):
    """Whether the number is new in this round; it is there now."""
    slot = slot_of(held_T, round_T, number, present)
    is_new = round_T[slot] != present
    held_T[slot], round_T[slot] = number, present
    return is_new


@compiled()
def slot_of(held_T, round_T, number, present):
    """Where the number is; where it would be, if that slot's round is another."""
    last = np.uint64(len(held_T) - 1)
    slot = number & last
    while round_T[slot] == present and held_T[slot] != number:
        slot = (slot + np.uint64(1)) & last
    return slot
