"""Splits captions into sentences, each a text of its own."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.metadata.schema import CAPTIONS, CAPTIONS_MISSING, TEXT, UID, Column
from clipmill.metadata.uid import coin_hash, mixed
from clipmill.pipeline.stage import NonEmpty, OneUp, RowFunction, RowStage, Worker
from clipmill.stages.caption._table import caption_table
from clipmill.stages.ops.texts.lists import flat_texts

# Shapes: N rows of the batch, T texts of all rows.

SENTENCE = "sentence"  # the label of a text

# The characters that str.strip() removes: Unicode's white space, and four separators of ASCII.
SPACE = "\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    chr(point) for point in range(0x2000, 0x200B)
)
WORD = rf"[^{SPACE}]+"


@dataclass(frozen=True, kw_only=True)
class Split(RowStage):
    """The sentences of a caption, in order; null if there is none.

    A sentence has the model and the prompt of its caption, and the label `sentence`.
    captions_missing counts captions without a sentence. Sentences of several lists are in the order
    of the lists.

    `rule: sentences` splits at a line break, at `</s>`, at the full stop of another script, and at
    `. ! ? …` before white space; not inside 3.5, Dr. Smith, U.S. Army, No. 5, nor at `...` before a
    lower-case letter. Punctuation stays. A piece without a letter or digit is no sentence. `rule:
    dreamlip` splits at every line break, `</s>` and full stop, and keeps all pieces but empty ones:
    `3.5` is two sentences, full stops are removed, and `!` and `?` do not split.

    Source: DreamLIP (Zheng et al. 2024), training/data.py; `over_words` is GBC's rule (Hsieh et al.
    2024), by which a caption over the limit of the text tower is split, not left out. Departs: they
    draw at every step, with replacement if there are too few; here `most` is drawn once, without
    replacement, and draws at every step are left to the trainer. Their windows of `merge` never
    reach the last sentence, ours do. GBC's limit is 77 tokens, about 55 English words.
    Error: a known abbreviation may be taken for the end of a sentence, or hide one (`He works at
    Smith & Co. He` is split, `It was Dr. He` is not); an unknown abbreviation ends a sentence. A
    script without spaces is one word to `over_words`.
    Example: {after: [ingest.datacomp]}
    """

    # lists to split, as `captions` or `stage.captions`; empty: the pool's own caption
    captions: tuple[NonEmpty, ...] = ()
    # where sentences end; dreamlip is the paper's rule, at every full stop
    rule: Literal["sentences", "dreamlip"] = "sentences"
    # join this many consecutive sentences into one text (sliding window), by `. ` if no full stop
    # is there; a caption with fewer sentences gives one text
    merge: OneUp = 1
    most: OneUp | None = None  # cap on texts of a row, drawn by hash
    # split only captions of more words than this; whole captions of a list keep their label
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
    """Returns the texts of every row, the number of captions without any, and reasons."""
    captions = flat_texts(batch, stage.captions, has_own=not stage.captions)
    if not stage.captions:  # the pool's own have no label
        captions = captions.with_columns(label=pl.lit(None, pl.String))
    captions = captions.with_row_index("caption")
    texts = cut(captions, stage)
    missing = captions.join(texts, on="caption", how="anti")
    if stage.most is not None:
        bits_N = coin_hash(batch[UID.name], seed=seed, stage=name, purpose="most")
        texts = drawn(texts, bits_N, stage.most)
    return caption_table(
        len(batch),
        (captions, missing, texts),
        column=CAPTIONS.name,
        stage=name,
        reasons=Split.reasons,
    )


def cut(captions: pl.DataFrame, stage: Split) -> pl.DataFrame:
    """Splits captions into texts, in order."""
    text, pieces = pl.col("text"), sentences(pl.col("text"), stage.rule)
    stays_whole = pl.lit(False)
    if stage.over_words is not None:
        stays_whole = text.str.count_matches(WORD) <= stage.over_words
        whole = pl.concat_list(text.str.strip_chars(SPACE))
        pieces = pl.when(stays_whole).then(whole).otherwise(pieces)
    label = pl.coalesce(pl.when(stays_whole).then(pl.col("label")), pl.lit(SENTENCE))
    texts = captions.with_columns(text=pieces, label=label).explode("text")
    texts = texts.filter(text.is_not_null(), text != "")
    if stage.merge > 1:
        place, of_caption = pl.int_range(pl.len()).over("caption"), pl.len().over("caption")
        window = [text.shift(-later).over("caption") for later in range(stage.merge)]
        is_whole = (place == 0) | (place + stage.merge <= of_caption)
        texts = texts.with_columns(text=joined(window, stage.rule)).filter(is_whole)
    return texts


def drawn(texts: pl.DataFrame, bits_N: NDArray[np.uint64], most: int) -> pl.DataFrame:
    """Returns up to `most` texts of each row, with the least hashes, in their order."""
    place_T = texts.select(pl.int_range(pl.len()).over("row")).to_series().to_numpy()
    coin_T = mixed(bits_N[texts["row"].to_numpy()] + place_T.astype(np.uint64))
    rank = pl.col("coin").rank("ordinal").over("row")
    return texts.with_columns(coin=coin_T).filter(rank <= most)


Rule = Literal["sentences", "dreamlip"]
DREAMLIP = r"\n|</s>|\."

END = "\x1e"  # marks the end of a sentence: a record separator, a line break to str.splitlines()
JOIN = "\x1f"  # marks a full stop that ends no sentence
BREAKS = r"[\n\v\f\r\x1c-\x1e\x{85}\x{2028}\x{2029}]|</s>"
# Closing quotes and brackets belong to the sentence before them.
CLOSERS = "[\"'\u2019\u201d\u00bb)\\]]*"
STOPS = rf"((?:[.!?\x{{2026}}]+){CLOSERS})\s+"
# Full stops that end a sentence without a space after them: CJK's, the danda, Arabic's.
FULL_STOPS = (
    "([\u3002\uff61\uff01\uff1f\u0964\u0965\u061f\u06d4]+[\u300d\u300f\u201d\u2019\uff09]*)"
)
# Abbreviations whose full stop ends no sentence: always (WITHIN), unless a capital follows (MAYBE,
# `etc. The`), or before a number (NUMBERED, `No. 5`).
TITLES = "Mr|Mrs|Ms|Dr|Prof|St|Mt|Ft|Jr|Sr|Gen|Col|Capt|Lt|Sgt|Rev|Hon|Gov|Sen|Rep|Messrs|Mme|Mlle"
WITHIN = rf"(?i)\b({TITLES}|vs|cf|viz|ca|approx|e\.g|i\.e|a\.k\.a|feat|dept|est|incl)\."
MAYBE = r"\b(etc|al|Inc|Ltd|Co|Corp|Bros|Ave|Blvd|a\.m|p\.m|oz|lb|lbs)\.(\s+[\p{Ll}\d])"
NUMBERED = r"(?i)\b(no|nos|nr|vol|fig|figs|p|pp)\.(\s*\d)"
INITIAL = r"\b\p{Lu}\."  # J. K. Rowling, U.S. Army
LISTED = rf"(^|{END})(\s*\d{{1,3}}\.)"  # 1. at the beginning of a line
TRAILS = r"(\.{2,}|\x{2026})(\s+\p{Ll})"  # wait... what

MEANING = r"[\p{L}\p{N}]"  # a sentence has a letter or a digit, unlike `...`


def sentences(text: pl.Expr, rule: Rule) -> pl.Expr:
    """Splits each text into a list of sentences, in order, stripped; may be empty."""
    if rule == "dreamlip":
        pieces, has_any = text.str.replace_all(DREAMLIP, "\n").str.split("\n"), pl.element() != ""
    else:
        pieces, has_any = _split_at_ends(text), pl.element().str.contains(MEANING)
    stripped = pieces.list.eval(pl.element().str.strip_chars(SPACE))
    return stripped.list.eval(pl.element().filter(has_any))


def joined(pieces: list[pl.Expr], rule: Rule) -> pl.Expr:
    """Joins pieces by `. `, or by a space if there is a full stop already; skips null pieces."""
    if rule == "dreamlip":
        return pl.concat_str(pieces, separator=". ", ignore_nulls=True)
    whole = pl.concat_str(pieces, separator=END, ignore_nulls=True)
    ended = whole.str.replace_all(rf"([.!?\x{{2026}}]{CLOSERS}){END}", "${1} ")
    return ended.str.replace_all(FULL_STOPS + END, "${1}").str.replace_all(END, ". ")


def _split_at_ends(text: pl.Expr) -> pl.Expr:
    text = text.str.replace_all(JOIN, " ", literal=True).str.replace_all(BREAKS, END)
    for pattern in (WITHIN, INITIAL, LISTED):
        text = text.str.replace_all(pattern, f"${{0}}{JOIN}")
    for pattern in (MAYBE, NUMBERED):
        text = text.str.replace_all(pattern, f"${{1}}.{JOIN}${{2}}")
    text = text.str.replace_all(TRAILS, f"${{1}}{JOIN}${{2}}")
    text = text.str.replace_all(STOPS, f"${{1}}{END}").str.replace_all(FULL_STOPS, f"${{1}}{END}")
    return text.str.replace_all(JOIN, "", literal=True).str.split(END)
