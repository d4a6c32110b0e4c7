"""Counts of a caption: words, tokens, characters, letters, tags, garbling."""

from dataclasses import dataclass

import pyarrow as pa

from clipmill.metadata.schema import REASON, REASON_TYPE, TEXT, Column
from clipmill.pipeline.stage import RowFunction, RowStage, Worker

CAPTION_WORDS = Column(
    "caption_words", pa.int32(), "words", "Pieces between whitespace: len(text.split())."
)
CAPTION_TOKENS = Column(
    "caption_tokens",
    pa.int32(),
    "tokens",
    "Pieces between ASCII whitespace, and one a newline: len(fasttext.tokenize(text)).",
)
CAPTION_CHARS = Column("caption_chars", pa.int32(), "characters", "Code points: len(text).")
CAPTION_LETTERS = Column(
    "caption_letters", pa.int32(), "characters", "Letters and their marks, of any script."
)
CAPTION_MARKUP = Column(
    "caption_markup", pa.int32(), "tags", "HTML tags and character references such as &amp;."
)
CAPTION_MOJIBAKE = Column(
    "caption_mojibake",
    pa.int32(),
    "characters",
    "Characters whose UTF-8 bytes were read as Latin-1 or Windows-1252.",
)
CAPTION_IS_FILENAME = Column(
    "caption_is_filename", pa.bool_(), "verdict", "Whether it ends as an image file's name does."
)

# Exactly what Python's str.split() splits at; a regular expression's \s has four fewer.
SPACE = (
    r"\t-\r\x1C-\x20\x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000}"
)
WORD = f"[^{SPACE}]+"
TOKEN = r"[^ \t-\r\x00]+|\n"  # fastText reads a newline as the end of a sentence, itself a token
LETTER = r"[\p{L}\p{M}]"
TAG = r"<(?:!--|[/!]?[A-Za-z])[^<>]*>|&(?:[A-Za-z][A-Za-z0-9]*|#[0-9]+|#[xX][0-9A-Fa-f]+);"
# A UTF-8 character: a first byte says how many of 80 to BF follow. Windows-1252 shows some of
# those as punctuation: U+2019 comes out as "â€™".
LATER = r"[\x{80}-\x{BF}€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]"  # noqa: RUF001
MOJIBAKE = rf"[Â-ß]{LATER}|[à-ï]{LATER}{{2}}|[ð-ô]{LATER}{{3}}"
FILENAME = r"(?i)\.(?:jpe?g|png|gif|webp|bmp|tiff?|svg|ico|heic|avif)\s*$"


@dataclass(frozen=True, kw_only=True)
class Caption(RowStage):
    """Words, tokens, characters, letters, tags, garbling: counts from 0; null without text.

    Source: words and characters as DataComp's basic filter counts them, in Python; tokens as its
    caption filter does, by fastText (Dictionary::readWord).
    Error: words and characters equal Python's on every code point. Letters follow the Unicode
    version of polars. Two characters can stand together by chance as garbled ones do („Spaß“
    counts 1): ask for two, or for a share of caption_chars.
    Example: {after: [ingest.datacomp]}
    """

    version = 2
    determinism = "exact"
    reads = (TEXT,)
    writes = (
        *(CAPTION_WORDS, CAPTION_TOKENS, CAPTION_CHARS, CAPTION_LETTERS),
        *(CAPTION_MARKUP, CAPTION_MOJIBAKE, CAPTION_IS_FILENAME),
    )
    reasons = ("no_text",)

    def open(self, worker: Worker) -> RowFunction:
        return caption


def caption(batch: pa.Table) -> pa.Table:
    """The counts of every caption, and a reason where there is none."""
    import polars as pl  # its regular expressions outrun Arrow's and are as exact

    text = pl.col(TEXT.name).str
    counted = pl.DataFrame(batch.select([TEXT.name])).select(
        text.count_matches(WORD).alias(CAPTION_WORDS.name),
        text.count_matches(TOKEN).alias(CAPTION_TOKENS.name),
        text.len_chars().alias(CAPTION_CHARS.name),
        text.count_matches(LETTER).alias(CAPTION_LETTERS.name),
        text.count_matches(TAG).alias(CAPTION_MARKUP.name),
        text.count_matches(MOJIBAKE).alias(CAPTION_MOJIBAKE.name),
        text.contains(FILENAME).alias(CAPTION_IS_FILENAME.name),
        pl.when(pl.col(TEXT.name).is_null()).then(pl.lit("no_text")).alias(REASON.name),
    )
    types = [*((c.name, c.dtype) for c in Caption.writes), (REASON.name, REASON_TYPE)]
    return counted.to_arrow().cast(pa.schema(types))
