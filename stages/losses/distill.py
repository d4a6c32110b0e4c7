"""CLIP's loss, and distillation of teachers' similarities from their stored vectors."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from clipmill.pipeline.errors import RecipeError
from clipmill.stages.clip.embedded import Embedded
from clipmill.stages.losses import clip
from clipmill.stages.losses._tiled import Attended, log_sum_exp

# Shapes: N local images, M = N texts, G and H of the whole batch; width D student's, E teacher's.

TEXTS = "first"  # a row's stored text vector is of its caption
TEACHER = ("images", "texts")  # settings that name columns of a teacher's vectors
POSITIVE = ("scales", "temperature")

Teacher = tuple[Tensor, Tensor, float]  # (N, E) rows, (G, E) of the other side, scale


def loss(
    batch: Embedded,
    *,
    images: Sequence[str] = ("image_embedding",),  # columns of the export, one per teacher
    texts: Sequence[str] = ("text_embedding",),
    scales: Sequence[float] = (100.0,),  # one per teacher, or one for all
    w_clip: float = 0.0,
    w_distill: float = 1.0,
    temperature: float = 1.0,  # divides all logits of the second part; its square multiplies it
) -> Tensor:
    """Returns (N,) nats: w_clip of CLIP's loss and w_distill of the cross-entropy to the teachers.

    The target of a row is the mean over teachers of its softmax over the batch, from each teacher's
    own vectors. The least value of the second part is the targets' entropy, not 0.

    Source: MobileCLIP (Vasu et al. 2023), section 3.2: (0, 1) for DataCompDR-12M, (.25, .75) for
    its B on 1B; teacher scale 100. TinyCLIP's affinity mimicking (Wu et al. 2023) is (0, 1). ZSCL
    (Zheng et al. 2023) has temperature 2, the old model as teacher, and a reference set; here the
    batch is what is trained on.
    Error: one text a row, its first: MobileCLIP adds a second loss with a synthetic caption.
    """
    if not images or len(images) != len(texts) or len(scales) not in (1, len(images)):
        raise RecipeError(
            f"{len(images)} images, {len(texts)} texts and {len(scales)} scales",
            "key `loss_settings`",
            "name one column of each for every teacher; `scales` may be one for all",
        )
    loss_N = torch.zeros_like(batch.image_ND[:, 0])
    if w_clip:
        loss_N = w_clip * clip.loss(batch)
    if w_distill:
        each = [scale / temperature for scale in scales] * (len(images) // len(scales))
        names = list(zip(images, texts, each, strict=True))
        of_image = [_teacher(batch, image, text, scale) for image, text, scale in names]
        of_text = [_teacher(batch, text, image, scale) for image, text, scale in names]
        soft = replace(batch, scale=batch.scale / temperature)
        by_image_N = _mimicked(soft, batch.image_ND, batch.text_HD, of_image)
        by_text_N = _mimicked(soft, batch.text_MD, batch.image_GD, of_text)
        loss_N = loss_N + w_distill * temperature**2 * (by_image_N + by_text_N) / 2
    return loss_N


def _teacher(batch: Embedded, rows: str, columns: str, scale: float) -> Teacher:
    dtype = batch.image_ND.dtype
    row_NE, column_GE = batch.teacher[rows].to(dtype), batch.teacher_all[columns].to(dtype)
    return normalize(row_NE, dim=1), normalize(column_GE, dim=1), scale


def _mimicked(
    batch: Embedded, row_ND: Tensor, column_GD: Tensor, teachers: Sequence[Teacher]
) -> Tensor:
    """Returns (N,) nats: the cross-entropy of the student's softmax to the teachers' mean."""
    if batch.tile is None:
        shares = [(s * a_NE @ b_GE.T).softmax(1) for a_NE, b_GE, s in teachers]
        logit_NG = batch.scale * row_ND @ column_GD.T
        return cross_entropy(logit_NG, torch.stack(shares).mean(0), reduction="none")
    means = [Attended.apply(a_NE, b_GE, column_GD, s, batch.tile) for a_NE, b_GE, s in teachers]
    cosine_N = (row_ND * torch.stack(means).mean(0)).sum(1)  # mean over the targets
    return log_sum_exp(row_ND, column_GD, batch.scale, batch.tile) - batch.scale * cosine_N
