"""Counts a caption's words, tokens, characters, letters, tags and garbled characters."""

from dataclasses import dataclass

import pyarrow as pa

from clipmill.metadata.schema import REASON, TEXT, Column
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

# Exactly the whitespace of Python's str.split(); a regular expression's \s has four fewer.
SPACE = (
    r"\t-\r\x1C-\x20\x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000}"
)
WORD = f"[^{SPACE}]+"
TOKEN = r"[^ \t-\r\x00]+|\n"  # for fastText a newline ends a sentence, and is a token
LETTER = r"[\p{L}\p{M}]"
TAG = r"<(?:!--|[/!]?[A-Za-z])[^<>]*>|&(?:[A-Za-z][A-Za-z0-9]*|#[0-9]+|#[xX][0-9A-Fa-f]+);"
# A UTF-8 character: the first byte tells how many bytes 80 to BF follow. Windows-1252 shows some of
# these as punctuation: U+2019 becomes "â€™".
LATER = r"[\x{80}-\x{BF}€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]"  # noqa: RUF001
MOJIBAKE = rf"[Â-ß]{LATER}|[à-ï]{LATER}{{2}}|[ð-ô]{LATER}{{3}}"
FILENAME = r"(?i)\.(?:jpe?g|png|gif|webp|bmp|tiff?|svg|ico|heic|avif)\s*$"


@dataclass(frozen=True, kw_only=True)
class Caption(RowStage):
    """Counts of words, tokens, characters, letters, tags and garbled characters; null without text.

    Source: words and characters as in DataComp's basic filter, in Python; tokens as in its caption
    filter, by fastText (Dictionary::readWord).
    Error: words and characters equal Python's on every code point. Letters follow the Unicode
    version of polars. Two characters may look garbled by chance („Spaß“ counts 1): filter by two or
    more, or by a share of caption_chars.
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
    """Returns the counts of every caption, or a reason."""
    import polars as pl  # its regular expressions are faster than Arrow's, and as exact

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
    types = pa.schema([(c.name, c.dtype) for c in (*Caption.writes, REASON)])
    return counted.to_arrow().cast(types)
