"""CLIP's loss for several texts of an image, averaged over them."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from clipmill.stages.clip.embedded import Embedded
from clipmill.stages.clip.whole_batch import texts_of_row
from clipmill.stages.losses._tiled import log_sum_exp

# Shapes: N local rows and M texts, G rows and H texts of the whole batch; of a place k among the
# texts of their image, K rows here and L texts of the whole batch that have one there.

TEXTS = "all"


def loss(batch: Embedded) -> Tensor:
    """Returns (N,) nats: the mean over an image's texts of CLIP's loss with each.

    The k-th text of an image is found among the k-th texts of all images that have one, and its
    image among all images. Equal to CLIP's loss if each image has one text; ln G if all embeddings
    are equal and all images have the same number of texts.

    Source: DreamLIP (Zheng et al. 2024), use_declip_loss of its code; all have K texts there.
    Error: without DreamLIP's grouping loss, which needs the patches of an image.
    """
    texts_G = texts_of_row(batch)
    first_G = texts_G.cumsum(0) - texts_G
    place_H = torch.arange(len(batch.text_HD), device=texts_G.device) - first_G[batch.image_of_H]
    texts_N, sum_N = texts_G[batch.row_N], torch.zeros_like(batch.image_ND[:, 0])
    for k in range(int(texts_G.max())):  # few places; all rows at once
        (here_K,) = torch.nonzero(texts_N > k, as_tuple=True)
        own_K = ((texts_G > k).cumsum(0) - 1)[batch.row_N[here_K]]
        cost_K = _cross_entropies(batch, batch.image_ND[here_K], batch.text_HD[place_H == k], own_K)
        sum_N = sum_N.index_add(0, here_K, cost_K)
    by_text_M = _cross_entropies(batch, batch.text_MD, batch.image_GD, batch.image_of_M)
    row_of_M = torch.searchsorted(batch.row_N, batch.image_of_M)
    return sum_N.index_add(0, row_of_M, by_text_M) / (2 * texts_N)


def _cross_entropies(batch: Embedded, row_KD: Tensor, column_LD: Tensor, own_K: Tensor) -> Tensor:
    """Returns (K,) nats: the cross-entropy of finding each row's own column among all."""
    if batch.tile is None:
        logit_KL = batch.scale * row_KD @ column_LD.T
        return cross_entropy(logit_KL, own_K, reduction="none")
    own_cosine_K = (row_KD * column_LD[own_K]).sum(1)
    return log_sum_exp(row_KD, column_LD, batch.scale, batch.tile) - batch.scale * own_cosine_K
