"""Embeddings of images and captions by one model, in one space."""

from dataclasses import dataclass, replace

import pyarrow as pa

from clipmill.metadata.schema import IMAGE_EMBEDDING, TEXT, TEXT_EMBEDDING, Column
from clipmill.pipeline.stage import (
    Gigabytes,
    Gpus,
    NonEmpty,
    OneUp,
    Resources,
    RowFunction,
    RowStage,
    Worker,
    location,
)
from clipmill.stages.embed._pair import ADVICE, NO_VECTOR, pair, vectors
from clipmill.stages.embed._width import check_width, planned_width
from clipmill.stages.models.image_text import ImageTextModel, load, look_for, proof, width_of
from clipmill.stages.ops.pixels import PIXELS, rows_of


@dataclass(frozen=True, kw_only=True)
class ClipEmbedding(RowStage):
    """Unit vectors of image and caption, of the model's width; each null where its input is.

    A vector that is zero or not finite is null, too; a model of which more than a tenth are so is
    refused.

    Source: the two towers of CLIP (Radford et al. 2021); the recipe names the model.
    Error: none for `reference`, whose sums are of whole numbers; else float32's on one processor.
    Example: {after: [ingest.image_folder], model: reference}
    """

    # open_clip:NAME/TAG, open_clip:NAME@FILE, checkpoint:URI, stage:NAME, or reference, which needs
    # no weights and is for trials
    model: NonEmpty
    # numbers of an embedding; needed for stage: and checkpoint:, whose weights a plan does not read
    width: OneUp | None = None
    gpus: Gpus = location(0)  # GPUs of one worker; 0.5 shares one between two
    memory_gb: Gigabytes = location(4)  # memory of one worker, in GB

    version = 2
    determinism = "exact"
    proofs = (("model", proof),)
    takes = ("rows", "model")
    reads = (PIXELS, TEXT)
    reasons = ("no_image", "no_text", NO_VECTOR)
    advice = ADVICE
    batch_rows = 64

    def __post_init__(self) -> None:
        self._width()  # an unknown scheme stops the plan, not the run

    def _width(self) -> int:
        return planned_width(self.model, width_of(self.model), self.width)

    @property
    def writes(self) -> tuple[Column, ...]:  # as wide as the model
        vector = pa.list_(pa.float32(), self._width())
        return replace(IMAGE_EMBEDDING, dtype=vector), replace(TEXT_EMBEDDING, dtype=vector)

    @property
    def resources(self) -> Resources:  # `reference` needs little
        return Resources(gpus=self.gpus, memory_gb=self.memory_gb)

    def look(self) -> None:
        look_for(self.model)

    def open(self, worker: Worker) -> RowFunction:
        name = f"checkpoint:{worker.model}" if worker.model else self.model
        model = load(name, worker.device, worker.threads)
        check_width(model.width, self._width(), worker.stage)
        if worker.model is None and model.sha256:  # a stage's model is the engine's to watch
            worker.pin(self.model, model.sha256)
        return lambda batch: embeddings(batch, model)


def embeddings(batch: pa.Table, model: ImageTextModel) -> pa.Table:
    """Both vectors of every row, and a reason where one is null."""
    images, texts = rows_of(batch[PIXELS.name]), batch[TEXT.name].to_pylist()
    columns = {
        IMAGE_EMBEDDING.name: vectors(images, model.embed_images, model.width),
        TEXT_EMBEDDING.name: vectors(texts, model.embed_texts, model.width),
    }
    missing = batch[PIXELS.name].is_null(), batch[TEXT.name].is_null()
    return pair(columns, missing, ClipEmbedding.reasons)
