"""CLIP's loss where an image's near images are soft positives: for a locked image tower."""

from torch import Tensor

from clipmill.stages.clip.embedded import Embedded
from clipmill.stages.losses._tiled import log_sum_exp

# Shapes: N local rows, G rows of the whole batch, D width of the embedding.

TEXTS = "one"


def loss(batch: Embedded) -> Tensor:
    """Returns (N,) nats: the mean of finding an image's texts, weighted by likeness, and its image.

    A text weighs (1 + cosine) / 2 of its image with this one, all together 1. Orthogonal images
    weigh a half: the loss is never near 0.

    Source: CWCL (Srinivasa et al. 2023), by its formula as recalled, not read; the other direction
    is CLIP's.
    """
    image_ND, image_GD = batch.image_ND, batch.image_GD
    # Sums over j of 1 + p_i p_j, without the (N, G) weights.
    near_ND = batch.text_HD.sum(0) + image_ND @ (image_GD.T @ batch.text_HD)
    target_ND = near_ND / (len(image_GD) + image_ND @ image_GD.sum(0))[:, None]
    by_image_N = log_sum_exp(image_ND, batch.text_HD, batch.scale, batch.tile)
    by_image_N = by_image_N - batch.scale * (image_ND * target_ND).sum(1)
    own_N = batch.scale * (batch.text_MD * image_ND).sum(1)
    by_text_N = log_sum_exp(batch.text_MD, image_GD, batch.scale, batch.tile)
    return (by_image_N + by_text_N - own_N) / 2
