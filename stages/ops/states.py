"""Two states made one, whatever the order: sums of arrays, or the arrays one after the other."""

import numpy as np

from clipmill.pipeline.dataset import State


def added(one: State, other: State) -> State:
    """The sum, array by array."""
    return {name: np.add(one[name], other[name]) for name in one}


def joined(one: State, other: State) -> State:
    """The rows of both, array by array, in the order in which they came."""
    return {name: np.concatenate([one[name], other[name]]) for name in one}
