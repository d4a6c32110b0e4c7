"""Scores captions, by their words alone, as spam and as boilerplate that fits any picture."""

import json
from dataclasses import dataclass
from functools import cache, partial
from importlib.resources import files
from typing import TYPE_CHECKING

import pyarrow as pa

from clipmill.metadata.schema import REASON, TEXT, Column
from clipmill.pipeline.stage import RowFunction, RowStage, Worker

if TYPE_CHECKING:
    import polars as pl

CAPTION_SPAM = Column(
    "caption_spam",
    pa.float32(),
    "0 to 1",
    "How much its words are those of advertisements: 0 where none is.",
    better="low",
)
CAPTION_BOILERPLATE = Column(
    "caption_boilerplate",
    pa.float32(),
    "0 to 1",
    "How much of it would fit any picture: 1 where nothing else is there.",
    better="low",
)

WORDS = "spam_words.json"  # python -m tests.benchmarks.junk_captions fit
WORD = r"\p{L}{3,}"
# Weights in tenths of log-odds, each the most that a word has.
SIGNS = {
    r"(?i)\bhttps?://|\bwww\.|\b[a-z0-9-]+\.(?:com|net|org|biz|info)\b": 20,
    r"[£$€]\s?\d|\d\s?(?:%|[£€])": 20,
    r"\+?\d[\d ()-]{8,}\d": 20,
    r"!{2,}": 20,
}
EVEN = 40  # tenths at which the score of a short caption is 0.5
FEW = 8  # words; longer captions are discounted

# Texts that pages, cameras and servers write instead of a caption. A file name is one word.
FURNITURE = r"(?i)" + "|".join(
    (
        r"[^\s/\\]*[/\\]\S*|\S+\.(?:jpe?g|png|gif|webp|bmp|tiff?|svg|ico|heic|avif)\b",
        r"\b(?:img|dsc[nf]?|dcim|pict|gopr|mvi|p?xl|screen ?shots?|scans?|untitled|unnamed)\b",
        r"^\s*\[[^\[\]]*\]\s*$",  # [note], in any language
        r"\b(?:images?|photos?|photographs?|pictures?|pics?|thumbnails?|thumbs?|figures?|graphics?)\b",
        r"\b(?:logos?|icons?|banners?|avatars?|buttons?|spacers?|placeholders?|pixels?|attachments?)\b",
        r"\b(?:click(?:ed|ing)?|tap|view|show|see|enlarged?|zoom|expand|open|close|download|loading|load)\b",
        r"\b(?:full|large[rn]?|bigger|original|actual|hi-?res|size[ds]?|versions?|slideshow|gallery)\b",
        r"\b(?:descriptions?|captions?|titles?|alt|text|available|missing|none|null|undefined|default)\b",
        r"\b(?:blank|empty|home|next|prev|previous|back|top|up|down|menu|search|share|print|read|more)\b",
        r"\b(?:note|tip|warning|caution|important|here|not|no|of|to|for|in|the|an?|this|is|by|and|or)\b",
    )
)
LEFT = 4  # other letters at which furniture counts half: `cat icon` has some meaning
LETTER = r"[\p{L}\p{M}]"


@dataclass(frozen=True, kw_only=True)
class Junk(RowStage):
    """Scores of spam and of boilerplate from 0 to 1, from the caption alone; null without text.

    Source: ours. Spam words are far more frequent in 642 text messages of advertisers, 546 web
    pages, many of them of shops, and the manuals of ten clients of stock sites (PyPI packages) than
    in English and in true captions. Boilerplate is a list of expressions.
    Error: both are for English: in other languages only file names, links, prices and labels in
    brackets count. Scores are no probabilities. AUC of spam in 34 wordings of another hand is .96;
    names of file formats alone (`png, eps, psd`) score 0, and one word that sells up to .33.
    Example: {after: [ingest.datacomp]}
    """

    version = 2
    determinism = "exact"
    reads = (TEXT,)
    writes = (CAPTION_SPAM, CAPTION_BOILERPLATE)
    bounds = {CAPTION_SPAM.name: (0.0, 1.0), CAPTION_BOILERPLATE.name: (0.0, 1.0)}  # noqa: RUF012
    reasons = ("no_text",)

    def open(self, worker: Worker) -> RowFunction:
        return partial(junk, weights=spam_words())


@cache
def spam_words() -> dict[str, int]:
    """Reads the weight of each spam word, in tenths of its log-odds."""
    weights: dict[str, int] = json.loads(
        (files("clipmill.stages.annotate") / WORDS).read_text("utf-8")
    )
    return weights


def junk(batch: pa.Table, weights: dict[str, int]) -> pa.Table:
    """Returns both scores of every caption, or a reason."""
    import polars as pl

    text = pl.col(TEXT.name)
    scored = pl.DataFrame(batch.select([TEXT.name])).select(
        spam(text, weights).cast(pl.Float32).alias(CAPTION_SPAM.name),
        boilerplate(text).cast(pl.Float32).alias(CAPTION_BOILERPLATE.name),
        pl.when(text.is_null()).then(pl.lit("no_text")).alias(REASON.name),
    )
    types = pa.schema([(c.name, c.dtype) for c in (*Junk.writes, REASON)])
    return scored.to_arrow().cast(types)


def spam(text: "pl.Expr", weights: dict[str, int]) -> "pl.Expr":
    """Returns x / (x + EVEN); x sums weights of distinct words and signs, less in long texts."""
    import polars as pl

    words = text.str.to_lowercase().str.extract_all(WORD)
    known = pl.element().replace_strict(weights, default=0, return_dtype=pl.Int64)
    total = words.list.unique().list.eval(known).list.sum()
    for sign, weight in SIGNS.items():
        total += text.str.contains(sign) * weight
    longer = pl.max_horizontal(words.list.len().cast(pl.Float64) / FEW, 1.0)
    x = total.cast(pl.Float64) / longer.sqrt()
    return x / (x + EVEN)


def boilerplate(text: "pl.Expr") -> "pl.Expr":
    """Returns the share of letters in FURNITURE, times LEFT / (LEFT + the other letters)."""
    import polars as pl

    letters = text.str.count_matches(LETTER).cast(pl.Float64)
    others = text.str.replace_all(FURNITURE, " ").str.count_matches(LETTER).cast(pl.Float64)
    share = pl.when(letters > 0).then((letters - others) / letters).otherwise(1.0)
    return pl.when(text.is_not_null()).then(share * LEFT / (LEFT + others))
