"""Losses of a batch of pairs, one value a row, so that the caller can weight and name rows."""

import math

import torch
from torch import Tensor, nn

# Shapes: N pairs of the batch, D width of the embedding.

FIRST_SCALE = 1 / 0.07
MAX_SCALE = 100.0
MAX_LOG_SCALE = math.log(MAX_SCALE)


def info_nce(image_ND: Tensor, text_ND: Tensor, scale: Tensor) -> Tensor:
    """(N,) nats: mean of the two cross-entropies of finding a pair's other half in the batch.

    ln N where all embeddings are equal, 0 where each pair is infinitely nearer than the rest.

    Source: CLIP (Radford et al. 2021), figure 3; rows are unit vectors, scale is at most 100.
    """
    logit_NN = scale * image_ND @ text_ND.T
    own_N = torch.arange(len(logit_NN), device=logit_NN.device)
    by_image_N = nn.functional.cross_entropy(logit_NN, own_N, reduction="none")
    by_text_N = nn.functional.cross_entropy(logit_NN.T, own_N, reduction="none")
    return (by_image_N + by_text_N) / 2
