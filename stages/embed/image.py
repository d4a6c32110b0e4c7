"""Embeds images alone, by a network that need not read captions."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.metadata.schema import IMAGE_EMBEDDING, TEXT_BOXES, Column
from clipmill.pipeline.stage import NonEmpty, OneUp, RowFunction, Worker, later
from clipmill.stages.embed._pair import NO_VECTOR, Embedding, pair, vectors
from clipmill.stages.models import images
from clipmill.stages.ops.images.mask import pictures
from clipmill.stages.ops.images.pixels import PIXELS, RGB

# Shapes: N images, D width of the embedding, H x W pixels.


@dataclass(frozen=True, kw_only=True)
class ImageEmbedding(Embedding):
    """Vector of the image, of the model's width; null without an image, or if it is zero or NaN.

    Use it for a network of images alone (DINO, a classifier), to cluster by looks while scores use
    captions. A model of both gives the vectors of `embed.clip`. A stage after both reads one by
    `read: {image_embedding: NAME.image_embedding}`.

    Source: DBP clusters by DINOv2's vectors (Abbas et al. 2024), SSP by those of a self-supervised
    network (Sorscher et al. 2022).
    Error: the model's; none for `reference`. Vectors of `features` do not have length 1.
    Example: {after: [ingest.image_folder], model: features}
    """

    # features or features:float32 (EfficientNet-Lite0), timm:NAME@FILE (DINO among them), or any
    # that embed.clip takes
    model: NonEmpty
    # width of an embedding; required if only the weights tell it: timm:, stage:, checkpoint:
    width: OneUp | None = None
    # text_boxes: the picture is seen with its text filled, as annotate.text_boxes found it;
    # background: without a border of one colour, and on white
    mask: Literal["text_boxes", "background"] | None = later(None)

    version = 3
    reasons = ("no_image", NO_VECTOR)

    @property
    def reads(self) -> tuple[Column, ...]:
        return (PIXELS, TEXT_BOXES) if self.mask == "text_boxes" else (PIXELS,)

    def known_width(self) -> int | None:
        return images.width(self.model)

    @property
    def writes(self) -> tuple[Column, ...]:  # as wide as the model
        return (replace(IMAGE_EMBEDDING, dtype=pa.list_(pa.float32(), self.planned_width())),)

    def open(self, worker: Worker) -> RowFunction:
        from clipmill.stages.ops.images.mask import cut_out

        embed = images.embedder_of(self.model, worker.model, worker)
        assert embed is not None  # `model` is set
        cuts, width = self.mask == "background", self.planned_width()

        def checked(image_HW3: list[RGB]) -> NDArray[np.float32]:
            row_ND = embed([*map(cut_out, image_HW3)] if cuts else image_HW3)
            self.check_width(row_ND.shape[1], worker.stage)
            return row_ND

        return lambda batch: embeddings(batch, checked, width)


def embeddings(batch: pa.Table, embed: images.Embed, width: int) -> pa.Table:
    """Returns the vector of every row, or a reason."""
    columns = {IMAGE_EMBEDDING.name: vectors(pictures(batch), embed, width)}
    return pair(columns, [batch[PIXELS.name].is_null()], ImageEmbedding.reasons)
