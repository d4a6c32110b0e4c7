"""What is wrong with captions that were made, and how well each fits its image: a value a text."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import pyarrow as pa

from clipmill.metadata.schema import (
    CAPTIONS,
    IMAGE_EMBEDDING,
    REASON,
    REASON_TYPE,
    TEXT,
    TEXT_CLIP_SCORE,
    TEXT_COPY_RATIO,
    TEXT_FOREIGN,
    TEXT_GARBLED,
    TEXT_HAS_DISCLAIMER,
    TEXT_INVENTED,
    TEXT_IS_CUT,
    TEXT_IS_REFUSAL,
    TEXT_LANGUAGE,
    TEXT_LANGUAGE_CONFIDENCE,
    TEXT_LIST,
    TEXT_MARKUP,
    TEXT_PROMPT_LEAK,
    TEXT_REPETITION,
    TEXT_WORDS,
    TEXTS,
    Column,
)
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.stage import (
    Gigabytes,
    Gpus,
    NonEmpty,
    Resources,
    RowFunction,
    RowStage,
    Worker,
    location,
)
from clipmill.stages.models.image_text import checked_width, look_for
from clipmill.stages.ops.languages import predictor
from clipmill.stages.ops.outside import need_file
from clipmill.stages.ops.prompt_texts import prompt_texts, shipped

# Shapes: N rows of the batch, T texts of all of them.

VALUES = (
    *(TEXT_WORDS, TEXT_COPY_RATIO, TEXT_LANGUAGE, TEXT_LANGUAGE_CONFIDENCE, TEXT_FOREIGN),
    *(TEXT_REPETITION, TEXT_IS_REFUSAL, TEXT_PROMPT_LEAK, TEXT_HAS_DISCLAIMER, TEXT_MARKUP),
    *(TEXT_GARBLED, TEXT_INVENTED, TEXT_IS_CUT),
)


@dataclass(frozen=True, kw_only=True)
class CaptionScores(RowStage):
    """The row's captions, the pool's own first, and lists of values, an item a caption.

    Lists are null for a row without a caption. The source of a caption is the pool's own; what is
    known of a row are its source and `evidence`. A word is a run of letters and digits, of scripts
    without spaces a character.

    `text_clip_score` is the cosine to the image, -1 to 1; null without an embedding of it.
    `text_words` counts pieces between white space.

    `text_copy_ratio` is the longest common subsequence of words with the source, over the words of
    the longer of the two, 0 to 1; null for the source itself and without one.

    `text_language` and `text_language_confidence` are fastText's, as annotate.language has them.
    `text_foreign` is that confidence where the language is none of `languages` nor the source's,
    else 0.

    `text_repetition` is the share, 0 to 1, of words in runs of four that stand before, or of words
    (two at most) that follow themselves twice; or of characters in runs of eight and more.

    `text_is_refusal` says whether it declines, `text_has_disclaimer` whether it speaks of its
    writer or to its reader: by wordings in some thirty languages. `text_prompt_leak` is the share
    of words, 0 to 1, in runs of six that the prompts have and that nothing known has.

    `text_markup` counts pieces of HTML, Markdown, JSON, templates, labels (`Caption:`), openings
    (`Sure!`). `text_garbled` counts control and replacement characters, mojibake, pieces of tokens.

    `text_invented` counts numbers and names that nothing known has. A name begins with a capital
    behind another word, counts once whatever its length, and is none in titles and in German.
    `text_is_cut` says whether it breaks off inside a word or a sentence.

    Source: none needed; docs/captions.md has recall and false rejects of each at default cuts.
    Error: wordings and marks that the patterns do not know pass; a caption that speaks of a model
    or of markup may not. A number that an image shows is invented where only the texts are known.
    A cut that leaves a frequent word (`hill` of `hillside`) passes; only English is looked up.
    Example: {after: [ingest.datacomp, caption.rewrite]}
    """

    # lists, in order: `captions` or `stage.captions`; none: the pool's own caption alone
    captions: tuple[NonEmpty, ...] = ("captions",)
    # the model that embedded the images: open_clip:…, checkpoint:…, stage:… (a filter network's
    # too) or reference; null: no text_clip_score
    model: NonEmpty | None = None
    # of MiniLM before a filter network: as embed.features had it
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    # columns of texts, or of lists of them, whose names and numbers are known
    evidence: tuple[NonEmpty, ...] = ()
    languages: tuple[NonEmpty, ...] = ("en",)  # that a caption may be in, beside its source's
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

    @property
    def resources(self) -> Resources:
        return Resources(gpus=self.gpus, memory_gb=self.memory_gb)

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

        from clipmill.stages.score._cut import rarity
        from clipmill.stages.score._embedded import text_embedder
        from clipmill.stages.score._values import Looked
        from clipmill.stages.score._words import words_of

        prompts, digest = prompt_texts(shipped() if self.prompts is None else self.prompts)
        worker.pin("the texts of prompts", digest)
        looked = Looked(
            predict=predictor("lid.176.ftz", None, f"stage '{worker.stage}'"),
            languages=self.languages,
            prompts=words_of(pl.Series(prompts, dtype=pl.String)),
            rarity=rarity(),
        )
        embed = self.model and text_embedder(self.model, self.precision, worker)
        return partial(caption_scores, self, worker.stage, looked, embed or None)


def caption_scores(stage: CaptionScores, name: str, looked, embed, batch: pa.Table) -> pa.Table:
    """The captions of every row and their values, and a reason where there is none."""
    from clipmill.stages.ops.text_lists import flat_texts, listed, text_list
    from clipmill.stages.score._embedded import clip_scores
    from clipmill.stages.score._values import known_texts, values_of

    texts = flat_texts(batch, stage.captions, has_own=TEXT.name in batch.column_names)
    texts_N = np.bincount(texts["row"].to_numpy(), minlength=len(batch))
    values = values_of(texts, known_texts(batch, stage.evidence), looked)
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
