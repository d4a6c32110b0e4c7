"""Tags pictures as safe or unsafe by the nearest of a list of prompts."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml
from numpy.typing import NDArray

from clipmill.metadata.keys import redacted
from clipmill.metadata.schema import IMAGE_EMBEDDING, REASON, REASON_TYPE, SAFETY_TAG, TEXT, Column
from clipmill.metadata.storage import open_uri
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.stage import (
    Gigabytes,
    Gpus,
    NonEmpty,
    RowFunction,
    RowStage,
    Worker,
    location,
)
from clipmill.stages.models.image_text import checked_width, load, look_for
from clipmill.stages.ops.outside import need_file
from clipmill.stages.ops.vectors.matrices import as_matrix, blocks, unit_rows

# Shapes: N rows of the batch, P prompts of two lists, D width of an embedding.

SAFETY_SCORE = Column(
    "safety_score", pa.float32(), "0 to 1", "Softmax of the unsafe prompts.", better="low"
)
SAFETY_DROP = Column("safety_drop", pa.string(), "no, minor, animal", "Why LAION would drop it.")
OWN_PROMPTS = str(Path(__file__).with_suffix(".yaml"))
PAIRS = (("safe", "unsafe"), ("minor", "adult"), ("animal", "no_animal"))
LISTS = (*(name for pair in PAIRS for name in pair), "words")
SCALE = 100  # of the cosine, CLIP's own


@dataclass(frozen=True, kw_only=True)
class Safety(RowStage):
    """The tag, its score, and whether LAION would drop the row: `no`, `minor` or `animal`.

    UNLIKELY if the two prompts nearest to the picture are safe ones, NSFW if both are unsafe, else
    UNSURE. Rows that are not UNLIKELY are asked further: `minor` if either of the two nearest
    prompts of the next lists is one, or the caption contains one of `words`; else `animal` if the
    nearest of the last lists is one. `safety_score` is the sum over the unsafe prompts of a softmax
    of 100 times the cosine. All null without an embedding, or where it is zero or NaN.

    Source: LAION-5B (Schuhmann et al. 2022), whose worker has the rule since LAION-400M. Departs:
    the prompts are your file; without it a short list of our own, which nobody has measured; a
    caption's capitals do not hide a word, as they do there.
    Error: of 12 unsafe pictures in 3,456 LAION found 4 by its list, with 73 false alarms.
    Example: {after: [ingest.image_folder, embed.clip], model: reference}
    """

    model: NonEmpty  # the model that embedded the pictures: open_clip:…, checkpoint:…, stage:…
    # YAML with lists safe, unsafe, minor, adult, animal, no_animal, words; null: our own short one
    prompts: NonEmpty | None = None
    gpus: Gpus = location(0)  # GPUs of one worker, for the model
    memory_gb: Gigabytes = location(4)  # memory of one worker, in GB

    version = 1
    determinism = "exact"
    takes = ("rows", "model")
    reads = (IMAGE_EMBEDDING, TEXT)
    writes = (SAFETY_TAG, SAFETY_SCORE, SAFETY_DROP)
    reasons = ("no_embedding", "zero_or_nan_embedding")

    def __post_init__(self) -> None:
        checked_width(self.model)

    def look(self) -> None:
        look_for(self.model)
        need_file(self.prompts or OWN_PROMPTS, "prompts", "give a YAML file of prompts")
        read_prompts(self.prompts or OWN_PROMPTS)  # its mistakes show before the run

    def open(self, worker: Worker) -> RowFunction:
        lists, digest = read_prompts(self.prompts or OWN_PROMPTS)
        worker.pin("the prompts", digest)
        name = f"checkpoint:{worker.model}" if worker.model else self.model
        model = load(name, worker.device, worker.threads)
        if worker.model is None and model.sha256:  # the engine watches a stage's model
            worker.pin(self.model, model.sha256)
        vectors = {
            name: unit_rows(model.embed_texts(texts)).astype(np.float64)
            for name, texts in lists.items()
            if name != "words"
        }
        where = f"stage '{worker.stage}', key `model`"
        return lambda batch: tagged(batch, vectors, lists["words"], where)


def read_prompts(file: str) -> tuple[dict[str, list[str]], str]:
    """Reads the lists of a file, and their digest; StageError where one is missing or is none."""
    store, path = open_uri(file)
    with store.open_input_stream(path) as stream:
        body = stream.read()
    try:
        lists = yaml.safe_load(body)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        found = f"no YAML: {str(error).splitlines()[0]}"
        raise StageError(found, f"key `prompts`: {redacted(file)}", "mend the file") from None
    given = lists if isinstance(lists, dict) else {}
    bad = [name for name in LISTS if not _is_list_of_texts(given.get(name))]
    unknown = [str(name) for name in given if name not in LISTS]
    if bad or unknown:
        raise StageError(
            found=f"lists {', '.join(map(str, given)) or 'none'}; "
            + (f"without texts: {', '.join(bad)}" if bad else f"unknown: {', '.join(unknown)}"),
            where=f"key `prompts`: {redacted(file)}",
            do=f"write the lists {', '.join(LISTS)}, of one text or more",
        )
    given["words"] = [word.lower() for word in given["words"]]  # as captions are when searched
    return given, hashlib.sha256(repr([given[name] for name in LISTS]).encode()).hexdigest()


def _is_list_of_texts(value: Any) -> bool:
    is_list = isinstance(value, list) and len(value) > 0
    return is_list and all(isinstance(text, str) and text.strip() for text in value)


def tagged(
    batch: pa.Table, vectors: dict[str, NDArray[np.float64]], words: list[str], where: str
) -> pa.Table:
    """Returns tag, score and cause of every row, or a reason; `vectors` are unit rows by list."""
    given = batch[IMAGE_EMBEDDING.name]
    unit_ND = unit_rows(as_matrix(given))
    width = vectors["safe"].shape[1]
    if unit_ND.shape[1] not in (0, width):  # 0: no row of the batch has one
        raise StageError(
            found=f"image embeddings of {unit_ND.shape[1]} numbers, texts' of {width}",
            where=where,
            do="name the model that embedded the images",
        )
    usable_N = np.isfinite(unit_ND).all(axis=1) & (unit_ND.shape[1] > 0)
    usable_ND = unit_ND[usable_N].reshape(-1, width)
    safety, minors, animals = (
        _nearest(usable_ND, vectors[first], vectors[second]) for first, second in PAIRS
    )
    unsafe_N = 2 - safety[0].sum(axis=1)  # of the two nearest
    tag_N = np.array(["UNLIKELY", "UNSURE", "NSFW"], object)[unsafe_N]
    captions = batch[TEXT.name].filter(pa.array(usable_N)).to_pylist()
    named_N = np.array([any(w in (text or "").lower() for w in words) for text in captions], bool)
    is_minor_N = minors[0].any(axis=1) | named_N
    cause_N = np.where(is_minor_N, "minor", np.where(animals[0][:, 0], "animal", "no"))
    cause_N[unsafe_N == 0] = "no"
    columns = {}
    for column, values in zip(Safety.writes, (tag_N, 1 - safety[1], cause_N), strict=True):
        all_N = np.full(len(batch), None, object)
        all_N[usable_N] = values
        columns[column.name] = pa.array(all_N, column.dtype)
    reason = np.where(given.is_null().to_numpy(), *Safety.reasons)
    columns[REASON.name] = pa.array(reason, mask=usable_N).cast(REASON_TYPE)
    return pa.table(columns)


def _nearest(
    unit_ND: NDArray[np.float32], first_PD: NDArray[np.float64], second_PD: NDArray[np.float64]
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Returns (N, 2) whether the two nearest prompts are of the first list, and its softmax (N,).

    The earlier prompt counts as nearer where two are equally near.
    """
    prompt_PD = np.concatenate([first_PD, second_PD])
    cosine_NP = np.empty((len(unit_ND), len(prompt_PD)))
    for part in blocks(len(unit_ND)):  # by vecdot, whose sums do not depend on the neighbours
        cosine_NP[part] = np.vecdot(unit_ND[part, None].astype(np.float64), prompt_PD)
    nearest_N2 = np.argsort(-cosine_NP, axis=1, kind="stable")[:, :2]
    weight_NP = np.exp(SCALE * (cosine_NP - cosine_NP.max(axis=1, keepdims=True)))
    share_N = weight_NP[:, : len(first_PD)].sum(axis=1) / weight_NP.sum(axis=1)
    return nearest_N2 < len(first_PD), share_N
