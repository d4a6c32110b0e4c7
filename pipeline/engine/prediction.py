"""Predicts sums and hours for the rows left from a random sample, with 90 % intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Shapes: N rows drawn, M of these with a value above 0, R requests by their start, G groups.

Z = 1.6448536269514722  # normal quantile of a two-sided 90 % interval
GROUPS = 10  # batch means over consecutive requests, whose durations are correlated
LEAST = 2 * GROUPS  # fewest requests of a pace
HOUR_S = 3600.0


@dataclass(frozen=True)
class Predicted:
    """A number and its 90 % interval, which is None if there is only one observation."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Durations of requests, from the steady part of a probe if it has one."""

    mean_s: float  # of a request, while all slots are busy
    deviation_s: float  # standard deviation of the groups' means
    per_group: float  # requests in a group
    end_s: float  # mean idle time of a slot at the end of a shard, until the last answer
    at_once: int
    is_steady: bool  # all slots were busy for a while


def rest(values_N: NDArray[np.float64], left: int) -> Predicted:
    """Predicts the sum over `left` rows that were not drawn, from `values_N` of those that were.

    Rows with value 0, such as those without a caption, are rare: a sample of 200 may have none. So
    their share has an interval of its own, wider than a point even then.

    Source: Cochran (1977), section 2.8: Student's t, with the finite population's correction; Hall
        (1992), "On the removal of skewness by transformation", for few answers that are long;
        Wilson (1927) for the share of rows that take something.
    """
    some_M = values_N[values_N > 0]
    drawn, share = len(values_N), len(some_M) / len(values_N)
    value = float(values_N.mean()) * left
    if left == 0 or not len(some_M):
        return Predicted(0, 0, 0)
    if drawn < 2:
        return Predicted(value)
    mean = float(some_M.mean())
    below, above = _bounds(some_M)
    least, most = _wilson(share, drawn)
    least, most = least - 0.5 / left, min(1.0, most + 0.5 / left)  # continuity correction
    scale = (left * (left + drawn)) ** 0.5  # the sample's error, and that of the rows left
    fewer, more = scale * (share - least), min(scale * (most - share), left * (1 - share))
    low = value - float(np.hypot(mean * fewer, scale * share * below))
    high = value + float(np.hypot(mean * more, scale * share * above))
    return Predicted(value, max(0.0, low), high)


def pace(slots_s: Sequence[tuple[float, float]], at_once: int) -> Pace | None:
    """Returns the durations of requests from their slots (start, end); None if too few.

    The first and last requests, which have the server to themselves, count only if there is no
    steady part. Its start decides a request's part: ends would favour short requests.
    """
    if len(slots_s) < LEAST:
        return None
    began_R, ended_R = np.array(sorted(slots_s)).T
    took_R = ended_R - began_R
    at_once = min(at_once, len(slots_s))
    last_s = began_R[-1]
    steady_R = (began_R >= ended_R.min()) & (began_R <= last_s - took_R.mean())
    is_steady = int(steady_R.sum()) >= LEAST
    chosen = took_R[steady_R] if is_steady else took_R
    mean_G = np.array([group.mean() for group in np.array_split(chosen, GROUPS)])
    tail_s = np.maximum(ended_R - last_s, 0).sum() / at_once  # of a slot, after the last start
    return Pace(
        mean_s=float(chosen.mean()),
        deviation_s=float(mean_G.std(ddof=1)),
        per_group=len(chosen) / GROUPS,
        end_s=float(ended_R.max() - last_s - tail_s),
        at_once=at_once,
        is_steady=is_steady,
    )


def hours(pace: Pace, requests: Predicted, at_once: int, shards: int, workers: int) -> Predicted:
    """Predicts wall-clock hours for workers with `at_once` requests each, shard by shard.

    Idle slots at the end of each shard count once; not at all in the lower bound, and twice in the
    upper one.
    """
    if requests.value == 0:
        return Predicted(0, 0, 0)
    shards_each = -(-shards // workers)  # of the busiest worker
    busy = requests.value * pace.mean_s / at_once * shards_each / shards / HOUR_S
    idle = shards_each * pace.end_s / HOUR_S
    if requests.high is None:
        return Predicted(busy + idle)
    error = (1 / GROUPS + pace.per_group / requests.value) ** 0.5  # of this mean and the next
    of_pace = _student(GROUPS - 1) * pace.deviation_s * error / pace.mean_s if pace.mean_s else 0.0
    of_rows = (requests.high - requests.value) / requests.value
    half = busy * float(np.hypot(of_pace, of_rows))
    return Predicted(busy + idle, max(0.0, busy - half), busy + 2 * idle + half)


def _bounds(values_M: NDArray[np.float64]) -> tuple[float, float]:
    """Returns how far the true mean may lie below and above the mean of the values."""
    drawn, deviation = len(values_M), float(values_M.std())
    if drawn < 2 or deviation <= 1e-9 * abs(float(values_M.mean())):
        return 0.0, 0.0
    error, t = deviation / (drawn - 1) ** 0.5, _student(drawn - 1)
    skew = float((((values_M - values_M.mean()) / deviation) ** 3).mean()) / drawn**0.5
    if abs(skew) < 1e-6:
        return t * error, t * error
    below, above = (3 / skew * (np.cbrt(1 + skew * (x - skew / 6)) - 1) for x in (t, -t))
    return float(below) * error, -float(above) * error


def _wilson(share: float, trials: int) -> tuple[float, float]:
    """Returns Wilson's 90 % interval of a share."""
    half = Z * math.sqrt(share * (1 - share) / trials + (Z / (2 * trials)) ** 2)
    centre, scale = share + Z**2 / (2 * trials), 1 + Z**2 / trials
    return (centre - half) / scale, (centre + half) / scale


def _student(freedom: int) -> float:
    """Returns Student's t of a two-sided 90 % interval.

    Source: Abramowitz and Stegun (1964), 26.7.5.
    Error: 5 % too small for one degree of freedom, 0.3 % for two, less than 0.02 % from five up.
    """
    terms = (
        (Z**3 + Z) / 4,
        (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96,
        (3 * Z**7 + 19 * Z**5 + 17 * Z**3 - 15 * Z) / 384,
        (79 * Z**9 + 776 * Z**7 + 1482 * Z**5 - 1920 * Z**3 - 945 * Z) / 92160,
    )
    return Z + sum(term / float(freedom) ** power for power, term in enumerate(terms, 1))
