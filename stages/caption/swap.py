"""Swaps the roles in captions, which makes them false."""

from dataclasses import dataclass, replace
from functools import partial

import polars as pl
import pyarrow as pa

from clipmill.metadata.schema import CAPTIONS, CAPTIONS_MISSING, TEXT, TEXT_LIST, Column
from clipmill.pipeline.stage import NonEmpty, RowFunction, RowStage, Worker
from clipmill.stages.caption._table import caption_table
from clipmill.stages.ops.texts.lists import flat_texts

SWAPPED = "swapped"  # the label of a text
NEGATIVES = Column(
    "negatives", TEXT_LIST, "captions", "Texts that are false of the image: never its captions."
)


@dataclass(frozen=True, kw_only=True)
class Swap(RowStage):
    """Captions with two nouns exchanged round a verb or preposition; null if there are none.

    `dog bites man` becomes `man bites dog`: the first relation with up to five words on both sides
    has them exchanged, adjectives and articles among them. Relations are English verbs and
    prepositions that mean something else the other way round (`on`, not `near`). Texts are in
    lower case, as the tokenizer reads them, with the label `swapped`; model and prompt are the
    caption's. No stage or export takes `negatives` for captions unless a recipe names them.
    captions_missing counts captions without such a relation.

    Source: Structure-CLIP (Huang et al. 2024), model/utils. Departs: it parses a scene graph; here
    lists of words find the relation and where a phrase ends. NegCLIP (Yuksekgonul et al. 2023)
    exchanges any two nouns.
    Error: words of other languages pass for English ones (German `in`): choose rows by language
    before. A verb that no list has ends no phrase: `a man waiting in a park` moves `waiting`, too.
    What follows a noun without punctuation (`bites man today`) moves with it, and of `black and
    white dog` only `white dog` moves. A few swaps are still true.
    Example: {after: [ingest.datacomp]}
    """

    # lists of captions, as `captions` or `stage.captions`; empty: the pool's own caption
    captions: tuple[NonEmpty, ...] = ()

    version = 1
    determinism = "exact"
    writes = (NEGATIVES, CAPTIONS_MISSING)
    reasons = ("no_text", "no_roles")

    @property
    def reads(self) -> tuple[Column, ...]:
        return tuple(replace(CAPTIONS, name=name) for name in self.captions) or (TEXT,)

    def open(self, worker: Worker) -> RowFunction:
        return partial(swap, self.captions, worker.stage)


def swap(lists: tuple[str, ...], name: str, batch: pa.Table) -> pa.Table:
    """Returns the swapped captions of every row, the number of captions without, and reasons."""
    captions = flat_texts(batch, lists, has_own=not lists)
    texts = captions.with_columns(text=swapped(pl.col("text")), label=pl.lit(SWAPPED))
    has_text = pl.col("text").is_not_null()
    return caption_table(
        len(batch),
        (captions, texts.remove(has_text), texts.filter(has_text)),
        column=NEGATIVES.name,
        stage=name,
        reasons=Swap.reasons,
    )


def swapped(text: pl.Expr) -> pl.Expr:
    """Returns each text in lower case with its roles exchanged; null if nothing changes."""
    plain = text.str.to_lowercase().str.replace_all(rf"[\s{OPEN}{CLOSE}{END}]+", " ")
    plain = plain.str.strip_chars(" ")
    # Two spaces between words: a match takes one on each side, the next word has its own.
    marked = pl.format(" {} ", plain.str.replace_all(" ", "  ", literal=True))
    marked = marked.str.replace_all(RELATION, f"{OPEN} ${{1}} {CLOSE}")
    for pattern in (ENDS, STOPS, BRACKETS):
        marked = marked.str.replace_all(pattern, f"{END}${{0}}{END}")
    other = marked.str.replace(ROLES, "${1}${4}${3}${2}${5}")
    other = other.str.replace_all(rf"[{OPEN}{CLOSE}{END}]", "").str.replace_all(" +", " ")
    other = other.str.strip_chars(" ")
    return pl.when(other != plain).then(other)


OPEN, CLOSE, END = "\x1c\x1d\x1e"  # mark a relation's ends, and the end of a phrase


def either(words: str) -> str:
    """Returns a pattern of words that spaces separate; `_` is a space within one."""
    return "(?:" + "|".join(words.split()).replace("_", " +") + ")"


# Relations that differ the other way round, longer ones before those that they begin with.
BETWEEN = either(
    "in_front_of inside_of inside into in_the_middle_of in on_top_of on_the_back_of onto on "
    "to_the_left_of to_the_right_of left_of right_of underneath under below beneath above atop "
    "over behind upon through around"
)
POSES = (
    "sits sitting stands standing lies lying lays laying sleeps sleeping leans leaning hangs "
    "hanging rests resting walks walking runs running jumps jumping flies flying swims swimming "
    "climbs climbing parked placed seated perched mounted floating looking "
    "isolated made shown seen found printed"
)
VERBS = either(
    "attacks attacking bites biting carries carrying catches catching chases chasing cleans "
    "cleaning covering crosses crossing cutting drags dragging drinks drinking drives driving "
    "eats eating feeds feeding follows following grabs grabbing helps helping hits hitting holds "
    "holding kicks kicking leads leading licks licking lifts lifting paints painting petting "
    "photographs photographing playing pulls pulling pushes pushing reads reading rides riding "
    "sniffs sniffing swings swinging teaches teaching throws throwing touches touching uses using "
    "washes washing watching wears wearing"
)
IS = either("is are was were being")
RELATION = f" ((?:{IS} +)*(?:(?:{either(POSES)} +)?{BETWEEN}|{VERBS})) "
# Words that are no part of a noun's phrase, and poses without a relation.
ENDS = " {} ".format(
    either(
        f"{POSES} and or but while as with without of for from to at by near beside next against "
        "between among along across during before after if that which who whom whose where when "
        "there this these those it its he she they we you i him her them us me has have had is are "
        "was were be been being not also then"
    )
)
STOPS = r"[.,;:!?]+ "
BRACKETS = '["()\\[\\]{}|/<>&\u2026\u2013\u2014\u201c\u201d]+| - '
PHRASE = f"[^ {OPEN}{CLOSE}{END}]+(?: +[^ {OPEN}{CLOSE}{END}]+){{0,4}}"
ROLES = (
    f"((?:^|[{CLOSE}{END}]) *)({PHRASE})( *{OPEN}[^{CLOSE}]+{CLOSE} *)({PHRASE})"
    f"( *(?:$|[{OPEN}{END}]))"
)
