"""SigLIP's loss for several texts of an image."""

from torch import Tensor

from clipmill.stages.clip.embedded import Embedded, share_of_text
from clipmill.stages.losses.siglip import costs

TEXTS = "all"
SCALE = 10.0
BIAS = -10.0


def loss(batch: Embedded) -> Tensor:
    """(N,) nats: SigLIP's sum over all texts of the batch, those of one image weighing 1 together.

    SigLIP's where each image has one text; G ln 2 where all logits are 0, whatever their number.

    Source: FLAME (Cao et al. 2024), its multi-positive sigmoid loss, 1 / (m N) over m texts an
    image. Where images differ in their number of texts, each text has the share of its own image.
    """
    return costs(batch, share_of_text(batch))
