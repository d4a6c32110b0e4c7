"""Captions cut into their sentences, each a text of its own."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill.metadata.schema import (
    CAPTIONS,
    CAPTIONS_MISSING,
    REASON,
    REASON_TYPE,
    TEXT,
    UID,
    Column,
)
from clipmill.metadata.uid import coin_hash, mixed
from clipmill.pipeline.stage import NonEmpty, OneUp, RowFunction, RowStage, Worker
from clipmill.stages.caption._sentences import SPACE, joined, sentences
from clipmill.stages.ops.text_lists import flat_texts, text_list

# Shapes: N rows of the batch, T texts of all of them.

SENTENCE = "sentence"  # the label of a text
WORD = rf"[^{SPACE}]+"


@dataclass(frozen=True, kw_only=True)
class Split(RowStage):
    """The sentences of a caption, in order; null where there is none.

    A sentence has the model and the prompt of its caption, and the label `sentence`.
    captions_missing counts captions that have none. Sentences of several lists come in the order of
    the lists.

    `rule: sentences` ends one at a line break, at `</s>`, at a full stop of a script that has its
    own, and at `. ! ? …` before white space; not inside 3.5, Dr. Smith, U.S. Army, No. 5, nor at a
    trail of points before a small letter. Ends stay. What has no letter and no digit is no
    sentence. `rule: dreamlip` cuts at every line break, `</s>` and point, and keeps all but empty
    pieces: `3.5` is two sentences, a point is never part of one, `!` and `?` end none.

    Source: DreamLIP (Zheng et al. 2024), training/data.py; `over_words` is GBC's rule (Hsieh et al.
    2024), where a caption over the limit of its text tower is cut by sentences, not left out.
    Departs: they draw again at every step, and with replacement where there are fewer than asked:
    that is the trainer's to do, and here `most` is drawn once, without; their windows of `merge`
    never reach the last sentence, these do; GBC's limit is 77 tokens, about 55 English words.
    Error: a known short form is not told from the end of a sentence (`He works at Smith & Co. He`
    is cut, `It was Dr. He` is not); one that the rule does not know ends a sentence. A script
    without spaces is one word to `over_words`.
    Example: {after: [ingest.datacomp]}
    """

    # lists to split, as `captions` or `stage.captions`; without, the pool's own caption
    captions: tuple[NonEmpty, ...] = ()
    # where sentences end; dreamlip is the paper's, at every point
    rule: Literal["sentences", "dreamlip"] = "sentences"
    # a text is so many neighbouring sentences of a caption, joined by `. ` where no point is; every
    # window of them is one, of a shorter caption all of it
    merge: OneUp = 1
    most: OneUp | None = None  # of a row's texts so many at most, drawn by hash
    # leave captions of at most so many words whole; one of a list then keeps its label
    over_words: OneUp | None = None

    version = 1
    determinism = "exact"
    writes = (CAPTIONS, CAPTIONS_MISSING)
    reasons = ("no_text", "no_sentence")

    @property
    def reads(self) -> tuple[Column, ...]:
        if not self.captions:
            return (TEXT,)
        return tuple(replace(CAPTIONS, name=name) for name in self.captions)

    def open(self, worker: Worker) -> RowFunction:
        return partial(split, self, worker.seed, worker.stage)


def split(stage: Split, seed: int, name: str, batch: pa.Table) -> pa.Table:
    """The texts of every row, how many captions gave none, and a reason where there is no text."""
    captions = captions_of(batch, stage.captions)
    texts = cut(captions, stage)
    missing = captions.join(texts, on="caption", how="anti")
    if stage.most is not None:
        bits_N = coin_hash(batch[UID.name], seed=seed, stage=name, purpose="most")
        texts = drawn(texts, bits_N, stage.most)
    captions_N, missing_N, texts_N = (
        np.bincount(it["row"].to_numpy(), minlength=len(batch)) for it in (captions, missing, texts)
    )
    none_N = texts_N == 0
    reason = pc.case_when(
        pc.make_struct(pa.array(captions_N == 0), pa.array(none_N)), *Split.reasons
    )
    return pa.table(
        {
            CAPTIONS.name: text_list(texts.with_columns(source=pl.lit(name)), texts_N),
            CAPTIONS_MISSING.name: pa.array(missing_N.astype(np.int32), mask=none_N),
            REASON.name: reason.cast(REASON_TYPE),
        }
    )


def captions_of(batch: pa.Table, lists: tuple[str, ...]) -> pl.DataFrame:
    """Every caption, by row and in order, numbered as `caption`; the pool's own has no label."""
    captions = flat_texts(batch, lists, has_own=not lists)
    if not lists:
        captions = captions.with_columns(label=pl.lit(None, pl.String))
    return captions.with_row_index("caption")


def cut(captions: pl.DataFrame, stage: Split) -> pl.DataFrame:
    """Every text of the captions, in order."""
    text, found = pl.col("text"), sentences(pl.col("text"), stage.rule)
    stays_whole = pl.lit(False)
    if stage.over_words is not None:
        stays_whole = text.str.count_matches(WORD) <= stage.over_words
        found = (
            pl.when(stays_whole).then(pl.concat_list(text.str.strip_chars(SPACE))).otherwise(found)
        )
    label = pl.coalesce(pl.when(stays_whole).then(pl.col("label")), pl.lit(SENTENCE))
    texts = captions.with_columns(text=found, label=label).explode("text")
    texts = texts.filter(text.is_not_null(), text != "")
    if stage.merge > 1:
        place, of_caption = pl.int_range(pl.len()).over("caption"), pl.len().over("caption")
        window = [text.shift(-later).over("caption") for later in range(stage.merge)]
        is_whole = (place == 0) | (place + stage.merge <= of_caption)
        texts = texts.with_columns(text=joined(window, stage.rule)).filter(is_whole)
    return texts


def drawn(texts: pl.DataFrame, bits_N: NDArray[np.uint64], most: int) -> pl.DataFrame:
    """So many texts of each row at most, by a coin of its own for each, in their order."""
    place_T = texts.select(pl.int_range(pl.len()).over("row")).to_series().to_numpy()
    coin_T = mixed(bits_N[texts["row"].to_numpy()] + place_T.astype(np.uint64))
    rank = pl.col("coin").rank("ordinal").over("row")
    return texts.with_columns(coin=coin_T).filter(rank <= most)
