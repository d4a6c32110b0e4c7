"""Embeds images and captions by a trained filter network, from stored features."""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.metadata.schema import (
    DUPLICATE_OF,
    IMAGE_EMBEDDING,
    IMAGE_FEATURES,
    TEXT,
    TEXT_EMBEDDING,
    TEXT_FEATURES,
    Column,
)
from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.pipeline.stage import NonEmpty, OneUp, RowFunction, RowStage, Worker, later
from clipmill.stages.embed._pair import ADVICE, NO_VECTOR, pair
from clipmill.stages.models.image_text import look_for
from clipmill.stages.models.watched import Watched
from clipmill.stages.ops.vectors.matrices import as_matrix, from_matrix, unusable

UNMET_FOLD = Column(
    "unmet_fold", pa.int32(), "0 up", "Part of the drawings that the row's heads have not met."
)


@dataclass(frozen=True, kw_only=True)
class FilterNetworkEmbedding(RowStage):
    """Unit vectors of image and caption in the network's space; each null if its features are.

    The network reads a caption's features and its words. With `folds` a row has the heads that met
    neither it nor its copies, so vectors of two rows are not to be compared. Their last 2 numbers
    bring the cosines of all folds to one scale.

    Source: Data Filtering Networks (Fang et al. 2023); train.filter_network says where it departs.
    Error: none beyond float32's; features of another model than in training give noise.
    Example: {after: [ingest.image_folder, embed.features], model: "checkpoint:filter"}
    """

    model: NonEmpty  # stage:NAME or checkpoint:URI, of train.filter_network
    width: OneUp = 256  # width of an embedding, as in training
    folds: OneUp = later(1)  # parts of the drawings, as in training

    version = 3
    determinism = "exact"
    takes = ("rows", "model")
    reasons = ("no_image_features", "no_text_features", NO_VECTOR)
    advice = ADVICE

    def __post_init__(self) -> None:
        if self.model.partition(":")[0] not in ("stage", "checkpoint"):
            do = "write stage:<name of a train.filter_network> or checkpoint:<URI>"
            raise RecipeError(f"model is {self.model!r}", "key `model`", do)

    @property
    def reads(self) -> tuple[Column, ...]:
        copies = (DUPLICATE_OF,) if self.folds > 1 else ()
        return (IMAGE_FEATURES, TEXT_FEATURES, TEXT, *copies)

    @property
    def writes(self) -> tuple[Column, ...]:  # as wide as the network
        vector = pa.list_(pa.float32(), self.width)
        columns = replace(IMAGE_EMBEDDING, dtype=vector), replace(TEXT_EMBEDDING, dtype=vector)
        return columns if self.folds == 1 else (*columns, UNMET_FOLD)

    def look(self) -> None:
        look_for(self.model)

    def open(self, worker: Worker) -> RowFunction:
        from clipmill.stages.models.filter_network import Embedder

        uri = worker.model or self.model.removeprefix("checkpoint:")
        network = Embedder(uri, worker.device, worker.threads, self.folds)
        if network.width != self.width:
            raise StageError(
                found=f"a network that is {network.width} wide, where {self.width} was planned",
                where=f"stage '{worker.stage}', key `width`",
                do=f"write width: {network.width}",
            )
        if worker.model is None:  # a stage's model is checked by the engine
            worker.pin(self.model, network.sha256)
        images = Watched(network.embed_images, network.probes, self.model)
        texts = Watched(network.embed_texts, network.probed_texts, self.model)
        if self.folds == 1:
            return lambda batch: embeddings(batch, images, texts)
        return lambda b: embeddings(b, images, texts, network.fold_of(b))


def embeddings(
    batch: pa.Table, images: Watched, texts: Watched, fold_N: NDArray[np.int64] | None = None
) -> pa.Table:
    """Returns both vectors of every row; null, with a reason, if features have no direction."""
    image_NI, text_NT = (as_matrix(batch[c.name]) for c in (IMAGE_FEATURES, TEXT_FEATURES))
    missing = [unusable(image_NI), unusable(text_NT)]
    no_image_N, no_text_N = missing
    captions = batch[TEXT.name].filter(pa.array(~no_text_N))
    of_images, of_texts = ([] if fold_N is None else [fold_N[~none_N]] for none_N in missing)
    vectors = {
        IMAGE_EMBEDDING.name: (no_image_N, images(image_NI[~no_image_N], *of_images)),
        TEXT_EMBEDDING.name: (no_text_N, texts(text_NT[~no_text_N], captions, *of_texts)),
    }
    columns = {}
    for name, (missing_N, some_ND) in vectors.items():
        row_ND = np.full((len(batch), some_ND.shape[1]), np.nan, np.float32)
        row_ND[~missing_N] = some_ND
        columns[name] = from_matrix(row_ND)
    if fold_N is not None:
        fold = pa.array(fold_N.astype(np.int32), mask=no_image_N | no_text_N)
        columns[UNMET_FOLD.name] = fold
    return pair(columns, missing, FilterNetworkEmbedding.reasons)
