"""Traces the level of quotas as the number of rows N grows from 0 to all, in log(K) per event.

The level is piecewise linear in N. A cluster leaves its least quota, and later reaches its size,
when the level meets the line of that bound: bound - N * p. A tournament tree finds the lowest line
at N; each node knows until which N its winner stays lowest.
"""

import numpy as np
from numpy.typing import NDArray

from clipmill.stages.ops.compiled import compiled
from clipmill.stages.select._clustered import UNIT

# Shapes: K clusters, E events, L leaves of the tournament, a power of 2.

# States of a cluster by its quota: share * N, its cap, between the bounds, its size.
LEAST, CAPPED, BETWEEN, FULL = 0, 1, 2, 3
NEVER = np.inf


def events(
    p_K: NDArray[np.int64], size_K: NDArray, cap_K: NDArray, share: float
) -> tuple[NDArray, NDArray, NDArray, NDArray, NDArray, NDArray, NDArray]:
    """Returns per cluster the N at which it leaves its least quota and reaches its size, and the
    indices of these two events; per event its N, and slope and shift of the level from there."""
    first = first_level(p_K / UNIT, np.where(cap_K > 0, share, 0.0))
    return _events(p_K, size_K, cap_K, share, first, np.argsort(cap_K, kind="stable"))


def first_level(p_K: NDArray, least_K: NDArray) -> float:
    """Returns level / N for few rows: the value at which max(p + level, least) sums to 1."""
    bound_K = least_K - p_K
    order = np.argsort(bound_K, kind="stable")
    # If the first n clusters are above their least: 1 = their p + n * level + the other leasts.
    p_sum_K = np.cumsum(p_K[order])
    others_K = least_K.sum() - np.cumsum(least_K[order])
    level_K = (1 - p_sum_K - others_K) / np.arange(1, len(order) + 1)
    above_K = level_K > bound_K[order]
    return float(level_K[np.flatnonzero(above_K)[-1]]) if above_K.any() else -np.inf


@compiled()
def _events(p_K, size_K, cap_K, share, first, by_cap_K):
    K = len(p_K)
    leaves = 1
    while leaves < K:
        leaves *= 2
    state_K = np.empty(K, np.int64)
    at_zero_K, slope_K = np.empty(K), np.empty(K)  # the line of the next bound of each cluster
    enter_K, leave_K = np.zeros(K), np.zeros(K)
    first_K, last_K = np.zeros(K, np.int64), np.zeros(K, np.int64)
    between, p_between, growing, fixed = 0, 0, 0, 0.0
    for j in range(K):
        p = p_K[j] / UNIT
        if p + first > (share if cap_K[j] > 0 else 0.0):
            state_K[j], at_zero_K[j], slope_K[j] = BETWEEN, size_K[j], -p
            between += 1
            p_between += p_K[j]
        elif cap_K[j] > 0:
            state_K[j], at_zero_K[j], slope_K[j] = LEAST, 0.0, share - p
            growing += 1
        else:
            state_K[j], at_zero_K[j], slope_K[j] = CAPPED, 0.0, -p
    wins, until = np.zeros(2 * leaves, np.int64), np.full(2 * leaves, NEVER)
    for leaf in range(leaves):
        wins[leaves + leaf] = leaf if leaf < K else -1
    for node in range(leaves - 1, 0, -1):
        _play(node, 0.0, wins, until, at_zero_K, slope_K)

    at_E, slope_E, shift_E = np.empty(3 * K + 1), np.empty(3 * K + 1), np.empty(3 * K + 1)
    now, event, full, next_cap = 0.0, 0, 0, 0
    at_E[0], slope_E[0], shift_E[0] = 0.0, 0.0, -np.inf
    if between:
        slope_E[0], shift_E[0] = ((UNIT - p_between) / UNIT - share * growing) / between, 0.0
    while full < K:
        while next_cap < K and state_K[by_cap_K[next_cap]] != LEAST:
            next_cap += 1
        cap_at = max(now, cap_K[by_cap_K[next_cap]] / share) if next_cap < K else NEVER
        while until[1] <= now:  # down to a node whose winner is beaten, and up again
            node = 1
            while node < leaves:
                if until[2 * node] <= now:
                    node = 2 * node
                elif until[2 * node + 1] <= now:
                    node = 2 * node + 1
                else:
                    break
            while node:
                _play(node, now, wins, until, at_zero_K, slope_K)
                node //= 2
        j, reaches_cap = wins[1], False
        if between:
            rate = slope_E[event] - slope_K[j]
            meets = max(now, (at_zero_K[j] - shift_E[event]) / rate) if rate > 0 else NEVER
            if until[1] < min(meets, cap_at):
                now = until[1]
                continue
            reaches_cap = cap_at < meets
            now = min(meets, cap_at)
        elif share * growing >= 1 - 2.0**-40:  # all have their least quota: these take all rows
            reaches_cap, now = True, cap_at
        if reaches_cap:
            j = by_cap_K[next_cap]
            state_K[j], at_zero_K[j], slope_K[j] = CAPPED, cap_K[j], -p_K[j] / UNIT
            growing -= 1
            fixed += cap_K[j]
        elif state_K[j] == BETWEEN:
            state_K[j], at_zero_K[j] = FULL, NEVER
            between -= 1
            p_between -= p_K[j]
            fixed += size_K[j]
            leave_K[j], last_K[j] = now, event + 1
            full += 1
        else:
            if state_K[j] == CAPPED:
                fixed -= cap_K[j]
            else:
                growing -= 1
            state_K[j], at_zero_K[j], slope_K[j] = BETWEEN, size_K[j], -p_K[j] / UNIT
            between += 1
            p_between += p_K[j]
            enter_K[j], first_K[j] = now, event + 1
        node = (leaves + j) // 2
        while node:
            _play(node, now, wins, until, at_zero_K, slope_K)
            node //= 2
        event += 1
        at_E[event], slope_E[event], shift_E[event] = now, 0.0, -np.inf
        if between:
            slope_E[event] = ((UNIT - p_between) / UNIT - share * growing) / between
            shift_E[event] = -fixed / between
    ends = event + 1
    return enter_K, leave_K, first_K, last_K, at_E[:ends], slope_E[:ends], shift_E[:ends]


@compiled()
def _play(node, now, wins, until, at_zero_K, slope_K):
    """Sets the lower of the two winners below at `now`, and until when nothing below changes."""
    low, high = wins[2 * node], wins[2 * node + 1]
    until[node] = min(until[2 * node], until[2 * node + 1])
    if low < 0 or at_zero_K[low] == NEVER:
        low, high = high, low
    if high < 0 or at_zero_K[high] == NEVER:
        wins[node] = low
        return
    low_y, high_y = at_zero_K[low] + slope_K[low] * now, at_zero_K[high] + slope_K[high] * now
    if high_y < low_y or (high_y == low_y and slope_K[high] < slope_K[low]):
        low, high = high, low
    wins[node] = low
    if slope_K[high] < slope_K[low]:  # it falls faster, and will be the lower one
        beaten = (at_zero_K[high] - at_zero_K[low]) / (slope_K[low] - slope_K[high])
        until[node] = min(until[node], max(beaten, np.nextafter(now, NEVER)))
