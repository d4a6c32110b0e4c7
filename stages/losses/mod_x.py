"""CLIP's loss, and the old model's likenesses within a batch: for a model that learns on."""

from torch import Tensor
from torch.nn.functional import kl_div, normalize

from clipmill.stages.clip.embedded import Embedded
from clipmill.stages.losses import clip

# Shapes: N local rows, G rows of the whole batch, D and E widths of the new and the old model.

TEXTS = "first"  # a row's stored text vector is of its caption
TEACHER = ("images", "texts")


def loss(
    batch: Embedded,
    *,
    images: str = "image_embedding",  # columns of the export: the old model's vectors
    texts: str = "text_embedding",
    alpha: float = 20.0,
) -> Tensor:
    """Returns (N,) nats: CLIP's loss, and alpha times the divergence from the old model's softmax.

    Softmaxes are of plain cosines. A row of which the old model finds another half nearest counts
    nothing. As theirs is a sum over the batch, a row's part here is times G: `alpha` depends on the
    batch.

    Source: Mod-X (Ni et al. 2023), continue_train_model.py of its code; alpha 20 with batches of 70
    a GPU.
    Error: not by tiles.
    """
    old, all_old = batch.teacher, batch.teacher_all
    by_image_N = _divergence(
        batch.image_ND, batch.text_HD, old[images], all_old[texts], batch.row_N
    )
    by_text_N = _divergence(batch.text_MD, batch.image_GD, old[texts], all_old[images], batch.row_N)
    return clip.loss(batch) + alpha * len(batch.image_GD) * (by_image_N + by_text_N) / 2


def _divergence(
    row_ND: Tensor, column_GD: Tensor, old_NE: Tensor, old_GE: Tensor, row_N: Tensor
) -> Tensor:
    old_NG = (normalize(old_NE, dim=1) @ normalize(old_GE, dim=1).T).to(row_ND.dtype)
    new_NG = row_ND @ column_GD.T
    target_NG, found_NG = old_NG.log_softmax(1), new_NG.log_softmax(1)
    nats_N = kl_div(found_NG, target_NG, reduction="none", log_target=True).sum(1)
    return nats_N * (old_NG.argmax(1) == row_N)
