"""Cosines of texts and their row's image, by the model that embedded the images."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.metadata.schema import IMAGE_EMBEDDING
from clipmill.metadata.storage import Storage
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.stage import Worker
from clipmill.stages.models.image_text import load
from clipmill.stages.models.watched import Watched, texts
from clipmill.stages.ops.vectors import as_matrix

if TYPE_CHECKING:
    from clipmill.stages.models.features import Precision

# Shapes: N rows of the batch, T texts of all of them, D width of the embedding.

Embed = Callable[[list[str]], NDArray[np.float32]]  # texts to unit rows (T, D)


def text_embedder(model: str, precision: "Precision", worker: Worker) -> Embed:
    """The model's text tower; of a filter network, MiniLM, words and the network's head."""
    uri = worker.model or (model.partition(":")[2] if model.startswith("checkpoint:") else None)
    if uri is not None and _is_filter_network(uri):
        return _by_filter_network(uri, model, precision, worker)
    name = f"checkpoint:{worker.model}" if worker.model else model
    network = load(name, worker.device, worker.threads)
    if worker.model is None and network.sha256:  # a stage's model is the engine's to watch
        worker.pin(model, network.sha256)
    return network.embed_texts


def _is_filter_network(uri: str) -> bool:
    from clipmill.stages.models.filter_network import KIND
    from clipmill.stages.models.saved import cards, read_card

    return bool(read_card(Storage(uri), cards(uri)[0]).get("kind") == KIND)


def _by_filter_network(uri: str, model: str, precision: "Precision", worker: Worker) -> Embed:
    from clipmill.stages.models.features import TextFeatures
    from clipmill.stages.models.filter_network import Embedder

    features = TextFeatures(precision, worker.device, worker.threads)
    network = Embedder(uri, worker.device, worker.threads)
    worker.pin("all-MiniLM-L6-v2", features.sha256)
    if worker.model is None:
        worker.pin(model, network.sha256)
    return Watched(lambda some: network.embed_texts(features(some), some), texts, model)


def clip_scores(
    batch: pa.Table, texts: list[str], row_T: NDArray[np.integer], embed: Embed, stage: str
) -> pa.Array:
    """(T,) cosine of each text and its row's image, -1 to 1; null without an embedding of it."""
    image_ND = as_matrix(batch[IMAGE_EMBEDDING.name])
    unique = list(dict.fromkeys(texts))
    place = {text: number for number, text in enumerate(unique)}
    if not unique:
        return pa.array([], pa.float32())
    text_UD = embed(unique)
    if image_ND.shape[1] not in (0, text_UD.shape[1]):  # 0: no row of the batch has one
        raise StageError(
            found=f"image embeddings of {image_ND.shape[1]} numbers, texts' of {text_UD.shape[1]}",
            where=f"stage '{stage}', key `model`",
            do="name the model that embedded the images",
        )
    if image_ND.shape[1] == 0:
        return pa.nulls(len(texts), pa.float32())
    # In float64: processors sum in their own order, and round alike after.
    text_TD = text_UD[[place[text] for text in texts]].astype(np.float64)
    image_TD = image_ND[row_T].astype(np.float64)
    norm_T = np.sqrt(np.vecdot(image_TD, image_TD)) * np.sqrt(np.vecdot(text_TD, text_TD))
    with np.errstate(invalid="ignore"):  # 0 / 0 is our NaN
        cosine_T = np.clip(np.vecdot(image_TD, text_TD) / norm_T, -1, 1)
    return pa.array(cosine_T.astype(np.float32), mask=np.isnan(cosine_T))
