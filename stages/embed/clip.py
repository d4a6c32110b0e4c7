"""Embeds images and captions by one model, in one space."""

from dataclasses import dataclass, replace
from typing import Literal

import pyarrow as pa

from clipmill.metadata.schema import IMAGE_EMBEDDING, TEXT, TEXT_BOXES, TEXT_EMBEDDING, Column
from clipmill.pipeline.stage import NonEmpty, OneUp, RowFunction, Worker, later
from clipmill.stages.embed._pair import NO_VECTOR, Embedding, pair, vectors
from clipmill.stages.models.image_text import ImageTextModel, load, proof, width_of
from clipmill.stages.ops.images.mask import pictures
from clipmill.stages.ops.images.pixels import PIXELS


@dataclass(frozen=True, kw_only=True)
class ClipEmbedding(Embedding):
    """Unit vectors of image and caption, of the model's width; each null if its input is.

    A vector that is zero or not finite becomes null, too; a model is refused if more than a tenth
    of its vectors are.

    Source: the two towers of CLIP (Radford et al. 2021); the recipe names the model.
    Error: none for `reference`, which sums integers; else float32's on one processor.
    Example: {after: [ingest.image_folder], model: reference}
    """

    # open_clip:NAME/TAG, open_clip:NAME@FILE, checkpoint:URI, stage:NAME, or reference, which needs
    # no weights and is for trials
    model: NonEmpty
    # width of an embedding; required for stage: and checkpoint:, as a plan reads no weights
    width: OneUp | None = None
    # text_boxes: the picture is seen with its text filled, as annotate.text_boxes found it
    mask: Literal["text_boxes"] | None = later(None)

    version = 2
    proofs = (("model", proof),)
    reasons = ("no_image", "no_text", NO_VECTOR)

    @property
    def reads(self) -> tuple[Column, ...]:
        return (PIXELS, TEXT, TEXT_BOXES) if self.mask else (PIXELS, TEXT)

    def known_width(self) -> int | None:
        return width_of(self.model)

    @property
    def writes(self) -> tuple[Column, ...]:  # as wide as the model
        vector = pa.list_(pa.float32(), self.planned_width())
        return replace(IMAGE_EMBEDDING, dtype=vector), replace(TEXT_EMBEDDING, dtype=vector)

    def open(self, worker: Worker) -> RowFunction:
        name = f"checkpoint:{worker.model}" if worker.model else self.model
        model = load(name, worker.device, worker.threads)
        self.check_width(model.width, worker.stage)
        if worker.model is None and model.sha256:  # the engine checks models of stages
            worker.pin(self.model, model.sha256)
        return lambda batch: embeddings(batch, model)


def embeddings(batch: pa.Table, model: ImageTextModel) -> pa.Table:
    """Returns both vectors of every row, and a reason if one is null."""
    images, texts = pictures(batch), batch[TEXT.name].to_pylist()
    columns = {
        IMAGE_EMBEDDING.name: vectors(images, model.embed_images, model.width),
        TEXT_EMBEDDING.name: vectors(texts, model.embed_texts, model.width),
    }
    missing = batch[PIXELS.name].is_null(), batch[TEXT.name].is_null()
    return pair(columns, missing, ClipEmbedding.reasons)
