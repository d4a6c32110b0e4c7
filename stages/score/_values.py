"""All values of flat captions but the cosine to the image."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.metadata import schema
from clipmill.metadata.schema import ORIGINAL
from clipmill.stages.ops.languages import Predict, best_languages
from clipmill.stages.score import _phrases
from clipmill.stages.score._cut import is_cut
from clipmill.stages.score._names import invented, told_pieces
from clipmill.stages.score._words import Words, copy_ratio, leak, repetition, words_of

# Shapes: T texts.


@dataclass(frozen=True, kw_only=True)
class Looked:
    """What a worker looks captions up in."""

    predict: Predict  # fastText's
    languages: tuple[str, ...]  # that nobody minds
    prompts: Words
    rarity: pl.DataFrame


def values_of(texts: pl.DataFrame, evidence: pl.DataFrame, looked: Looked) -> dict[str, pa.Array]:
    """Values by column, flat; `texts` are sorted by row, each row's source first."""
    text, row = texts["text"], texts["row"]
    is_own = (texts["source"] == ORIGINAL) & (texts["label"] == ORIGINAL)
    is_own_T = is_own.fill_null(False).to_numpy()
    known = pl.concat([texts.filter(pl.Series(is_own_T)).select("row", "text"), evidence])
    all_known = known.group_by("row").agg(pl.col("text").str.join("\n"))
    beside = texts.select("row").join(all_known, on="row", how="left", maintain_order="left")[
        "text"
    ]
    words = words_of(text)
    plain = _phrases.plain(text)
    language, confidence = _languages(text, looked.predict)
    copied_T = copy_ratio(words, words_of(_of_source(texts, text, is_own_T)))
    copied_T[is_own_T] = np.nan
    # What is known of the source itself is the evidence: it would know all its own words.
    made = pl.Series(~is_own_T)
    told, told_own = told_pieces(known), told_pieces(evidence)
    own_language = _of_source(texts, language, is_own_T)
    english = (language == "en") | (own_language == "en")  # a short piece passes for another
    cut = is_cut(text, row, english, told, looked.rarity)
    cut_own = is_cut(text, row, english, told_own, looked.rarity)
    cut = pl.select(pl.when(made).then(cut).otherwise(cut_own)).to_series()
    by_name: dict[schema.Column, Any] = {
        schema.TEXT_WORDS: text.str.count_matches(r"\S+"),
        schema.TEXT_COPY_RATIO: _nullable(copied_T),
        schema.TEXT_LANGUAGE: language,
        schema.TEXT_LANGUAGE_CONFIDENCE: confidence,
        schema.TEXT_FOREIGN: _foreign(language, own_language, confidence, looked.languages),
        schema.TEXT_REPETITION: _nullable(repetition(text)),
        schema.TEXT_IS_REFUSAL: _phrases.is_refusal(plain),
        schema.TEXT_PROMPT_LEAK: _nullable(leak(words, looked.prompts, words_of(beside))),
        schema.TEXT_HAS_DISCLAIMER: _phrases.has_disclaimer(plain),
        schema.TEXT_MARKUP: _phrases.markup(text),
        schema.TEXT_GARBLED: _phrases.garbled(text),
        schema.TEXT_INVENTED: invented(text, row, language, known, told),
        schema.TEXT_IS_CUT: cut,
    }
    return {
        column.name: it if isinstance(it, pa.Array) else it.to_arrow()
        for column, it in by_name.items()
    }


def known_texts(batch: pa.Table, columns: tuple[str, ...]) -> pl.DataFrame:
    """`row` and `text` of all that these columns hold: texts, lists of texts, captions' lists."""
    row = pl.int_range(len(batch), dtype=pl.UInt32).alias("row")
    parts = [pl.DataFrame(schema={"row": pl.UInt32, "text": pl.String})]
    for name in columns:
        texts = pl.DataFrame({"text": batch[name]}).select(row, "text")
        if isinstance(texts.schema["text"], pl.List):
            texts = texts.explode("text", empty_as_null=False)
        if isinstance(texts.schema["text"], pl.Struct):
            texts = texts.select("row", pl.col("text").struct.field("text"))
        parts.append(texts.with_columns(pl.col("text").cast(pl.String)))
    return pl.concat(parts).drop_nulls()


def _nullable(value_T: NDArray[np.float32]) -> pa.Array:
    return pa.array(value_T, mask=np.isnan(value_T))


def _languages(text: pl.Series, predict: Predict) -> tuple[pl.Series, pl.Series]:
    """Language and its probability; each different text is asked for once."""
    line = text.str.replace_all("\n", " ", literal=True)
    unique = line.unique(maintain_order=True)
    asked = [one if one.strip() else None for one in unique.to_list()]
    name, probability = best_languages(asked, predict)
    answers = pl.DataFrame(
        {"line": unique, "name": name, "probability": probability},
        schema={"line": pl.String, "name": pl.String, "probability": pl.Float32},
    )
    all_answers = line.to_frame("line").join(answers, on="line", how="left", maintain_order="left")
    return all_answers["name"], all_answers["probability"]


def _of_source(texts: pl.DataFrame, value: pl.Series, is_own_T: NDArray[np.bool_]) -> pl.Series:
    """The value of each text's source; null where its row has none."""
    said = texts.select("row", value=value)
    own = said.filter(pl.Series(is_own_T)).unique("row", keep="first")
    return texts.select("row").join(own, on="row", how="left", maintain_order="left")["value"]


def _foreign(
    language: pl.Series, own: pl.Series, confidence: pl.Series, languages: tuple[str, ...]
) -> pl.Series:
    """The confidence where the language is neither one of these nor that of the row's source."""
    said = pl.DataFrame({"language": language, "own": own, "confidence": confidence})
    at_home = pl.col("language").is_in(languages) | (pl.col("language") == pl.col("own"))
    foreign = pl.when(at_home.fill_null(False)).then(pl.lit(0, pl.Float32)).otherwise("confidence")
    return said.select(foreign).to_series()
