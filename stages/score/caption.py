"""Scores generated captions: what is wrong with each, and how well it fits its image."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
import yaml
from numpy.typing import NDArray

from clipmill.metadata import schema
from clipmill.metadata.keys import redacted
from clipmill.metadata.schema import (
    CAPTIONS,
    IMAGE_EMBEDDING,
    REASON,
    REASON_TYPE,
    TEXT,
    TEXT_CLIP_SCORE,
    TEXT_LIST,
    TEXTS,
    Column,
)
from clipmill.metadata.storage import Storage, open_uri
from clipmill.pipeline.errors import RecipeError, StageError
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
from clipmill.stages.models.watched import Watched, texts
from clipmill.stages.ops.outside import need_file
from clipmill.stages.ops.texts.languages import predictor
from clipmill.stages.ops.vectors.matrices import as_matrix
from clipmill.stages.score.clip_score import row_cosine

if TYPE_CHECKING:
    from clipmill.stages.models.text_features import Precision

# Shapes: N rows of the batch, T texts of all of them; D width of the embedding.

VALUES = (
    *(schema.TEXT_WORDS, schema.TEXT_COPY_RATIO, schema.TEXT_LANGUAGE),
    *(schema.TEXT_LANGUAGE_CONFIDENCE, schema.TEXT_FOREIGN, schema.TEXT_REPETITION),
    *(schema.TEXT_IS_REFUSAL, schema.TEXT_PROMPT_LEAK, schema.TEXT_HAS_DISCLAIMER),
    *(schema.TEXT_MARKUP, schema.TEXT_GARBLED, schema.TEXT_INVENTED, schema.TEXT_IS_CUT),
)


@dataclass(frozen=True, kw_only=True)
class CaptionScores(RowStage):
    """The row's captions, the pool's own first, and lists of values, one item per caption.

    Lists are null for a row without a caption. The source of a row's captions is the pool's own;
    the known texts of a row are its source and `evidence`. A word is a run of letters and digits,
    or, in scripts without spaces, a character.

    `text_clip_score` is the cosine to the image, -1 to 1; null without an embedding of it.
    `text_words` counts pieces between white space.

    `text_copy_ratio` is the longest common subsequence of words with the source, over the words of
    the longer of the two, 0 to 1; null for the source itself and without one.

    `text_language` and `text_language_confidence` are fastText's, as in annotate.language.
    `text_foreign` is that confidence if the language is neither in `languages` nor the source's,
    else 0.

    `text_repetition` is the share, 0 to 1, of words in runs of four that occurred before, or of
    words (two at most) that follow themselves twice; or of characters in runs of eight and more.

    `text_is_refusal` says whether it declines, `text_has_disclaimer` whether it speaks of its
    writer or to its reader: by wordings in some thirty languages. `text_prompt_leak` is the share
    of words, 0 to 1, in runs of six that the prompts have and no known text has.

    `text_markup` counts pieces of HTML, Markdown, JSON, templates, labels (`Caption:`), openings
    (`Sure!`). `text_garbled` counts control and replacement characters, mojibake, pieces of tokens.

    `text_invented` counts numbers and names that no known text has. A name begins with a capital
    behind another word and counts once at any length; titles and German have none. `text_is_cut`
    says whether it breaks off inside a word or a sentence.

    Source: none needed; docs/captions.md has recall and false rejects of each at default cuts.
    Error: wordings and marks that the patterns do not know pass; a caption that speaks of a model
    or of markup may not. A number that an image shows is invented if only the texts are known.
    A cut that leaves a frequent word (`hill` of `hillside`) passes; only English is looked up.
    Example: {after: [ingest.datacomp, caption.rewrite]}
    """

    # caption lists, in order: `captions` or `stage.captions`; []: the pool's own caption alone
    captions: tuple[NonEmpty, ...] = ("captions",)
    # the model that embedded the images: open_clip:…, checkpoint:…, stage:… (a filter network's
    # too) or reference; null: no text_clip_score
    model: NonEmpty | None = None
    # precision of MiniLM for a filter network, as embed.features had it
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    # columns of texts, or of lists of them, whose names and numbers count as known
    evidence: tuple[NonEmpty, ...] = ()
    languages: tuple[NonEmpty, ...] = ("en",)  # accepted languages, beside the source's
    # YAML files of prompts and banks that may leak; null: all that come with clipmill
    prompts: tuple[NonEmpty, ...] | None = None
    gpus: Gpus = location(0)  # GPUs of one worker, for the model
    memory_gb: Gigabytes = location(4)  # memory of one worker, in GB

    version = 1
    determinism = "exact"
    takes = ("rows", "model")
    optional_reads = (TEXT,)
    reasons = ("no_text",)

    def __post_init__(self) -> None:
        if self.model is not None:
            checked_width(self.model)

    @property
    def reads(self) -> tuple[Column | str, ...]:
        lists = [replace(CAPTIONS, name=name) for name in self.captions] or [TEXT]
        image = [] if self.model is None else [IMAGE_EMBEDDING]
        return (*lists, *image, *self.evidence)

    @property
    def writes(self) -> tuple[Column, ...]:
        return (TEXTS, *(() if self.model is None else (TEXT_CLIP_SCORE,)), *VALUES)

    def check(self, types: Mapping[str, pa.DataType]) -> None:
        for name in self.evidence:
            kind = types[name]
            inner = kind.value_type if pa.types.is_list(kind) else kind
            if not (pa.types.is_string(inner) or kind == TEXT_LIST):
                do = "name columns of texts, of lists of texts, or of captions"
                raise RecipeError(f"'{name}' is of type {kind}", "key `evidence`", do)

    def look(self) -> None:
        if self.model is not None:
            look_for(self.model)
        for file in self.prompts or ():
            need_file(file, "prompts", "give the YAML file of a prompt or a bank")
        prompt_texts(self.prompts or ())  # small files, whose mistakes show before the run

    def open(self, worker: Worker) -> RowFunction:
        import polars as pl

        from clipmill.stages.score._values import Lookups, rarity
        from clipmill.stages.score._words import words_of

        shipped = sorted(map(str, CAPTION.glob("*/*.yaml")))
        prompts, digest = prompt_texts(shipped if self.prompts is None else self.prompts)
        worker.pin("the texts of prompts", digest)
        lookups = Lookups(
            predict=predictor("lid.176.ftz", None, f"stage '{worker.stage}'"),
            languages=self.languages,
            prompts=words_of(pl.Series(prompts, dtype=pl.String)),
            rarity=rarity(),
        )
        embed = self.model and text_embedder(self.model, self.precision, worker)
        return partial(caption_scores, self, worker.stage, lookups, embed or None)


def caption_scores(stage: CaptionScores, name: str, lookups, embed, batch: pa.Table) -> pa.Table:
    """Returns the captions of every row and their values, or a reason."""
    from clipmill.stages.ops.texts.lists import flat_texts, listed, text_list
    from clipmill.stages.score._values import known_texts, values_of

    texts = flat_texts(batch, stage.captions, has_own=TEXT.name in batch.column_names)
    texts_N = np.bincount(texts["row"].to_numpy(), minlength=len(batch))
    values = values_of(texts, known_texts(batch, stage.evidence), lookups)
    if embed is not None:
        values[TEXT_CLIP_SCORE.name] = clip_scores(
            batch, texts["text"].to_list(), texts["row"].to_numpy(), embed, name
        )
    reason = pa.DictionaryArray.from_arrays(
        pa.array(np.zeros(len(batch), np.int32), mask=texts_N > 0), list(stage.reasons)
    )
    lists = {
        column.name: listed(values[column.name].cast(column.dtype.value_type), texts_N)
        for column in stage.writes
        if column != TEXTS
    }
    return pa.table(
        {TEXTS.name: text_list(texts, texts_N), **lists, REASON.name: reason.cast(REASON_TYPE)}
    )


Embed = Callable[[list[str]], NDArray[np.float32]]  # texts to unit rows (T, D)


def text_embedder(model: str, precision: "Precision", worker: Worker) -> Embed:
    """Returns the model's text tower; of a filter network MiniLM, words and the network's head."""
    uri = worker.model or (model.partition(":")[2] if model.startswith("checkpoint:") else None)
    if uri is not None and _is_filter_network(uri):
        return _by_filter_network(uri, model, precision, worker)
    name = f"checkpoint:{worker.model}" if worker.model else model
    network = load(name, worker.device, worker.threads)
    if worker.model is None and network.sha256:  # the engine watches a stage's model
        worker.pin(model, network.sha256)
    return network.embed_texts


def _is_filter_network(uri: str) -> bool:
    from clipmill.stages.models.filter_network import KIND
    from clipmill.stages.models.saved import cards, read_card

    return bool(read_card(Storage(uri), cards(uri)[0]).get("kind") == KIND)


def _by_filter_network(uri: str, model: str, precision: "Precision", worker: Worker) -> Embed:
    from clipmill.stages.models.filter_network import Embedder
    from clipmill.stages.models.text_features import TextFeatures

    features = TextFeatures(precision, worker.device, worker.threads)
    network = Embedder(uri, worker.device, worker.threads)
    worker.pin("all-MiniLM-L6-v2", features.sha256)
    if worker.model is None:
        worker.pin(model, network.sha256)
    return Watched(lambda some: network.embed_texts(features(some), some), texts, model)


def clip_scores(
    batch: pa.Table, texts: list[str], row_T: NDArray[np.integer], embed: Embed, stage: str
) -> pa.Array:
    """Returns (T,) the cosine of each text and its row's image, -1 to 1; null without embedding."""
    image_ND = as_matrix(batch[IMAGE_EMBEDDING.name])
    unique = list(dict.fromkeys(texts))
    place = {text: number for number, text in enumerate(unique)}
    if not unique or image_ND.shape[1] == 0:  # no row of the batch has an embedding
        return pa.nulls(len(texts), pa.float32())
    text_UD = embed(unique)
    if image_ND.shape[1] != text_UD.shape[1]:
        raise StageError(
            found=f"image embeddings of {image_ND.shape[1]} numbers, texts' of {text_UD.shape[1]}",
            where=f"stage '{stage}', key `model`",
            do="name the model that embedded the images",
        )
    # In float64: processors sum in their own order, and round alike after.
    text_TD = text_UD[[place[text] for text in texts]].astype(np.float64)
    cosine_T = row_cosine(image_ND[row_T].astype(np.float64), text_TD)
    return pa.array(cosine_T.astype(np.float32), mask=np.isnan(cosine_T))


CAPTION = Path(__file__).parents[1] / "caption"  # its banks/ and prompts/ come with clipmill


def prompt_texts(files: Sequence[str]) -> tuple[list[str], str]:
    """Returns all texts in these YAML files, and their digest; RecipeError if one is no YAML."""
    texts: list[str] = []
    for file in files:
        store, path = open_uri(file)
        with store.open_input_stream(path) as stream:
            body = stream.read()
        try:
            texts += _texts(yaml.safe_load(body))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            where = f"key `prompts`: {redacted(file)}"
            message = str(error).splitlines()[0]
            raise RecipeError(f"no YAML: {message}", where, "mend the file") from None
    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()
    return texts, digest


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)
    elif isinstance(value, str):
        yield value
