"""CLIP's loss with hard negatives: texts of the batch that are false of their images."""

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus

from clipmill.stages.clip.embedded import Embedded
from clipmill.stages.losses._tiled import log_sum_exp

# Shapes: N local rows, H texts and K negatives of the whole batch, L negatives of local rows.

TEXTS = "one"
NEGATIVES = "negatives"


def loss(
    batch: Embedded,
    *,
    negatives: str = "negatives",  # column of the export, as caption.swap writes it
    w_own: float = 0.0,
    w_margin: float = 0.0,
    margin: float = 0.1,  # of cosines
) -> Tensor:
    """Returns (N,) nats: CLIP's loss, where images find their texts among all negatives too.

    A row has one of its negatives by chance; rows without one have no column, and no further part.
    `w_own` counts finding an image's text beside its own negative alone, `w_margin` what the pair's
    cosine lacks to lie `margin` above that of its negative.

    Source: NegCLIP (Yuksekgonul et al. 2023), src/training of its code, without its near images;
    for w_own HQ-CLIP (Wei et al. 2025), by a formula as recalled; for w_margin Structure-CLIP
    (Huang et al. 2024), model/train.py, without its hinge on the batch.
    """
    assert batch.negative_KD is not None
    assert batch.negative_of_K is not None
    column_HD = torch.cat([batch.text_HD, batch.negative_KD])
    own_N = (batch.image_ND * batch.text_MD).sum(1)
    by_image_N = log_sum_exp(batch.image_ND, column_HD, batch.scale, batch.tile)
    by_text_N = log_sum_exp(batch.text_MD, batch.image_GD, batch.scale, batch.tile)
    loss_N = (by_image_N + by_text_N) / 2 - batch.scale * own_N
    if w_own or w_margin:
        is_here_K = torch.isin(batch.negative_of_K, batch.row_N)
        row_L = torch.searchsorted(batch.row_N, batch.negative_of_K[is_here_K])
        false_L = (batch.image_ND[row_L] * batch.negative_KD[is_here_K]).sum(1)
        above_L = own_N[row_L] - false_L
        cost_L = w_own * softplus(-batch.scale * above_L) + w_margin * relu(margin - above_L)
        loss_N = loss_N.index_add(0, row_L, cost_L)
    return loss_N
