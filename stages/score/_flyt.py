"""Learns weights of scores by the gradient of a downstream loss, as FLYT does."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# Shapes: N rows of a pool, M trusted rows, B of a batch, D width of a vector, K scores. log_B has
# the logarithms of a batch's weights, which sum to 1.

STEPS, BATCH = 200, 512
TAU = 0.07  # temperature, where FLYT's begins
RATE, REFERENCE_RATE = 0.05, 1.0  # of the weights, by Adam; of the reference map, by its gradient
Matrix = NDArray[np.float64]


class Pairs(NamedTuple):
    """Vectors of images and captions, at length 1."""

    image: Matrix  # (N, D)
    text: Matrix  # (N, D)

    def batch(self, number: int) -> NDArray[np.int64]:
        """Returns (B,) the rows of a batch; batches go round and round."""
        size = min(BATCH, len(self.image))
        return np.arange(number * size, (number + 1) * size) % len(self.image)

    def logits(self, rows: NDArray[np.int64], map_DD: Matrix) -> Matrix:
        """Returns (B, B) products of mapped images and captions, over the temperature."""
        product: Matrix = self.image[rows] @ map_DD @ self.text[rows].T / TAU
        return product


def learnt(score_NK: Matrix, pool: Pairs, trusted: Pairs) -> NDArray[np.float64]:
    """Returns (K,) the weights of scores, learnt in steps of two moves each.

    First the reference map, a linear map of images, goes down the loss of a batch of the pool, in
    which a row counts by the softmax of its mixture (its scores times the weights). Then the
    weights go down the loss that the moved map has on a batch of trusted rows.
    """
    map_DD = np.eye(pool.image.shape[1])
    weight_K, mean_K, square_K = np.zeros((3, score_NK.shape[1]))
    for step in range(STEPS):
        upstream, downstream = pool.batch(step), trusted.batch(step)
        score_BK = score_NK[upstream]
        log_B = score_BK @ weight_K
        log_B -= log_sum(log_B[None])[0]
        logit_BB = pool.logits(upstream, map_DD)
        map_DD -= REFERENCE_RATE * pulled(pool, upstream, weighted_slope(logit_BB, log_B))
        trusted_DD = pulled(trusted, downstream, loss_slope(trusted.logits(downstream, map_DD)))
        # The weights act on the trusted loss through that move alone, by its part along trusted_DD.
        slope_B = slope_along(logit_BB, pool.logits(upstream, trusted_DD), log_B)
        slope_K = -REFERENCE_RATE * (score_BK.T @ slope_B)  # and a step of Adam
        mean_K += 0.1 * (slope_K - mean_K)
        square_K += 0.001 * (slope_K**2 - square_K)
        mean, square = mean_K / (1 - 0.9 ** (step + 1)), square_K / (1 - 0.999 ** (step + 1))
        weight_K -= RATE * mean / (np.sqrt(square) + 1e-12)
    return weight_K


def log_sum(value_NM: Matrix) -> NDArray[np.float64]:
    """Returns (N,) the logarithm of each row's sum of exponentials."""
    high_N1 = value_NM.max(axis=1, keepdims=True)
    total: NDArray[np.float64] = np.log(np.exp(value_NM - high_N1).sum(axis=1)) + high_N1[:, 0]
    return total


def pulled(pairs: Pairs, rows: NDArray[np.int64], slope_BB: Matrix) -> Matrix:
    """Returns (D, D) a loss's slope by the map, given that by the logits."""
    slope_DD: Matrix = pairs.image[rows].T @ slope_BB @ pairs.text[rows] / TAU
    return slope_DD


def shares(logit_BB: Matrix, log_B: NDArray[np.float64]) -> tuple[Matrix, Matrix]:
    """Returns (B, B) each row's weighted softmax over captions, and over images."""
    both = logit_BB + log_B, logit_BB.T + log_B
    by_image, by_text = (np.exp(value - log_sum(value)[:, None]) for value in both)
    return by_image, by_text


def weighted_slope(logit_BB: Matrix, log_B: NDArray[np.float64]) -> Matrix:
    """Returns (B, B) the slope, by the logits, of FLYT's loss: weights count in negatives too."""
    by_image, by_text = shares(logit_BB, log_B)
    weight_B = np.exp(log_B)
    return (weight_B[:, None] * by_image + (weight_B[:, None] * by_text).T) / 2 - np.diag(weight_B)


def loss_slope(logit_BB: Matrix) -> Matrix:
    """Returns (B, B) the slope of the plain loss: that of equal weights."""
    return weighted_slope(logit_BB, np.full(len(logit_BB), -np.log(len(logit_BB))))


def slope_along(
    logit_BB: Matrix, change_BB: Matrix, log_B: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Returns (B,) the slope, by each row's mixture, of the sum of `weighted_slope` * change_BB."""
    weight_B, change = np.exp(log_B), (change_BB, change_BB.T)
    slope_B = 2 * weight_B * np.diag(change_BB)
    for share_BB, along_BB in zip(shares(logit_BB, log_B), change, strict=True):
        mean_B = (share_BB * along_BB).sum(axis=1)
        slope_B -= weight_B * mean_B + weight_B @ (share_BB * (along_BB - mean_B[:, None]))
    slope_B /= -2
    return slope_B - weight_B * slope_B.sum()
