"""CLOOB's loss: pairs are told apart by what each half retrieves from the batch."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from clipmill.stages.clip.embedded import Embedded

# Shapes: N local rows, G rows of the whole batch, D width of the embedding.

TEXTS = "one"


def loss(batch: Embedded, *, beta: float = 8.0, scale: float = 30.0) -> Tensor:
    """Returns (N,) the mean of InfoLOOB over images and over texts, times its temperature.

    Each half retrieves a mean of the batch's images, and one of its texts, with weights by a
    softmax at `beta`; a row's own two have to be nearer than others'. The pair itself is no term of
    the sum of others. `scale`, the inverse of the temperature, is fixed. ln(G - 1) / scale if all
    embeddings are equal.

    Source: CLOOB (Fürst et al. 2022), methods.py of its code; settings of its examples. Departs:
    the mean of the two parts, where theirs is their sum.
    Error: not by tiles; each process retrieves for the whole batch.
    """
    image_GD, text_GD = batch.image_GD, batch.text_HD
    of_image_ND = _retrieved(batch.image_ND, image_GD, beta)
    of_text_ND = _retrieved(batch.text_MD, text_GD, beta)
    by_image_N = _loob(of_image_ND, _retrieved(text_GD, image_GD, beta), batch.row_N, scale)
    by_text_N = _loob(of_text_ND, _retrieved(image_GD, text_GD, beta), batch.row_N, scale)
    return (by_image_N + by_text_N) / (2 * scale)


def _retrieved(state_ND: Tensor, stored_GD: Tensor, beta: float) -> Tensor:
    return normalize((beta * state_ND @ stored_GD.T).softmax(1) @ stored_GD, dim=1)


def _loob(row_ND: Tensor, column_GD: Tensor, row_N: Tensor, scale: float) -> Tensor:
    logit_NG = scale * row_ND @ column_GD.T
    is_own_NG = row_N[:, None] == torch.arange(len(column_GD), device=row_N.device)
    others_N = logit_NG.masked_fill(is_own_NG, -torch.inf).logsumexp(1)
    return others_N - logit_NG[is_own_NG]
