"""Sets of well mixed 64-bit numbers, for compiled loops that make and forget very many of them.

A set is two arrays of a power of two slots: what a slot holds counts where its round is the present
one. A new round is an empty set, so nothing is ever cleared.
"""

import numpy as np

from clipmill.stages.ops.compiled import compiled


def slots_for(numbers: int) -> int:
    """Number of slots for so many numbers: a power of two, at most half full."""
    return 1 << (2 * numbers).bit_length()


@compiled()
def entered(held_T, round_T, number, present):
    """Enters a number in this round's set; whether it was new."""
    slot = slot_of(held_T, round_T, number, present)
    is_new = round_T[slot] != present
    held_T[slot], round_T[slot] = number, present
    return is_new


@compiled()
def slot_of(held_T, round_T, number, present):
    """The slot of a number; of a number that is not in the set, the free slot for it."""
    last = np.uint64(len(held_T) - 1)
    slot = number & last
    while round_T[slot] == present and held_T[slot] != number:
        slot = (slot + np.uint64(1)) & last
    return slot
