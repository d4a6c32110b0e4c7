"""SigLIP's loss: for every image and text of the batch, whether they are a pair."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from clipmill.stages.clip.embedded import Embedded
from clipmill.stages.losses._tiled import SigmoidCosts

# Shapes: N local rows, H texts of the whole batch.

TEXTS = "one"
SCALE = 10.0
BIAS = -10.0


def loss(batch: Embedded) -> Tensor:
    """Returns (N,) nats: the sum over texts of -log sigmoid(z logit), z = 1 for its own, else -1.

    softplus(10) + (H - 1) softplus(-10) at the first step, if all vectors are orthogonal.

    Source: SigLIP (Zhai et al. 2023), algorithm 1; scale from 10 and bias from -10.
    Error: by tiles within 2e-5 of the plain form in float32, 1e-12 in float64.
    """
    return costs(batch)


def costs(batch: Embedded, weight_H: Tensor | None = None) -> Tensor:
    """Returns (N,) nats of each image with all texts, each text times its weight, by default 1."""
    bias = torch.zeros_like(batch.scale) if batch.bias is None else batch.bias
    image_ND, text_HD, row_N = batch.image_ND, batch.text_HD, batch.row_N
    if batch.tile is not None:
        sides = image_ND, text_HD, weight_H, batch.scale, bias
        return SigmoidCosts.apply(*sides, row_N, batch.image_of_H, batch.tile)
    logit_NH = batch.scale * image_ND @ text_HD.T + bias
    is_own_NH = row_N[:, None] == batch.image_of_H
    cost_NH = -logsigmoid(torch.where(is_own_NH, logit_NH, -logit_NH))
    return cost_NH.sum(1) if weight_H is None else cost_NH @ weight_H
