"""SigLIP's loss for several texts of an image."""

from torch import Tensor

from clipmill.stages.clip.embedded import Embedded
from clipmill.stages.clip.whole_batch import texts_of_row
from clipmill.stages.losses.siglip import costs

# Shapes: N local rows, G rows and H texts of the whole batch.

TEXTS = "all"
SCALE = 10.0
BIAS = -10.0


def loss(batch: Embedded) -> Tensor:
    """Returns (N,) nats: SigLIP's sum over all texts of the batch, each image's texts weighing 1.

    SigLIP's if each image has one text; G ln 2 if all logits are 0, for any number of texts.

    Source: FLAME (Cao et al. 2024), its multi-positive sigmoid loss, 1 / (m N) over m texts an
    image. Where images differ in their number of texts, each text has the share of its own image.
    """
    texts_H = texts_of_row(batch)[batch.image_of_H]  # of the row of each
    return costs(batch, 1 / texts_H.to(batch.text_HD.dtype))
