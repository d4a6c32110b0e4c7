"""Where sentences end, by two rules, on whole columns of texts."""

from typing import Literal

import polars as pl

Rule = Literal["sentences", "dreamlip"]

# What str.strip() takes away: all of Unicode's white space, and four separators of ASCII.
SPACE = "\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    chr(point) for point in range(0x2000, 0x200B)
)
DREAMLIP = r"\n|</s>|\."

END = "\x1e"  # between sentences: ASCII's record separator, at which str.splitlines() breaks too
JOIN = "\x1f"  # after a point that ends none
BREAKS = r"[\n\v\f\r\x1c-\x1e\x{85}\x{2028}\x{2029}]|</s>"
# Quotes and brackets that close belong to the sentence before them.
CLOSERS = "[\"'\u2019\u201d\u00bb)\\]]*"
STOPS = rf"((?:[.!?\x{{2026}}]+){CLOSERS})\s+"
# Full stops of scripts that put no space after them, or that stand for nothing else: CJK's, the
# danda, Arabic's.
FULL_STOPS = (
    "([\u3002\uff61\uff01\uff1f\u0964\u0965\u061f\u06d4]+[\u300d\u300f\u201d\u2019\uff09]*)"
)
# A point after these ends no sentence. Some do where a capital follows (`etc. The`), some only
# stand before a number (`No. 5`).
TITLES = "Mr|Mrs|Ms|Dr|Prof|St|Mt|Ft|Jr|Sr|Gen|Col|Capt|Lt|Sgt|Rev|Hon|Gov|Sen|Rep|Messrs|Mme|Mlle"
WITHIN = rf"(?i)\b({TITLES}|vs|cf|viz|ca|approx|e\.g|i\.e|a\.k\.a|feat|dept|est|incl)\."
MAYBE = r"\b(etc|al|Inc|Ltd|Co|Corp|Bros|Ave|Blvd|a\.m|p\.m|oz|lb|lbs)\.(\s+[\p{Ll}\d])"
NUMBERED = r"(?i)\b(no|nos|nr|vol|fig|figs|p|pp)\.(\s*\d)"
INITIAL = r"\b\p{Lu}\."  # J. K. Rowling, U.S. Army
LISTED = rf"(^|{END})(\s*\d{{1,3}}\.)"  # 1. at the begin of a line
TRAILS = r"(\.{2,}|\x{2026})(\s+\p{Ll})"  # wait... what

MEANING = r"[\p{L}\p{N}]"  # a sentence has a letter or a digit: `...` is none


def sentences(text: pl.Expr, rule: Rule) -> pl.Expr:
    """Lists of the sentences of each text, in order, stripped; empty where there is none."""
    pieces = _split_at_all(text) if rule == "dreamlip" else _split_at_ends(text)
    has_any = (pl.element() != "") if rule == "dreamlip" else pl.element().str.contains(MEANING)
    stripped = pieces.list.eval(pl.element().str.strip_chars(SPACE))
    return stripped.list.eval(pl.element().filter(has_any))


def joined(pieces: list[pl.Expr], rule: Rule) -> pl.Expr:
    """Neighbours as one text, `. ` between them; a point or its like that is there is not doubled.

    Null pieces are passed over.
    """
    if rule == "dreamlip":
        return pl.concat_str(pieces, separator=". ", ignore_nulls=True)
    whole = pl.concat_str(pieces, separator=END, ignore_nulls=True)
    ended = whole.str.replace_all(rf"([.!?\x{{2026}}]{CLOSERS}){END}", "${1} ")
    return ended.str.replace_all(FULL_STOPS + END, "${1}").str.replace_all(END, ". ")


def _split_at_all(text: pl.Expr) -> pl.Expr:
    return text.str.replace_all(DREAMLIP, "\n").str.split("\n")


def _split_at_ends(text: pl.Expr) -> pl.Expr:
    text = text.str.replace_all(JOIN, " ", literal=True).str.replace_all(BREAKS, END)
    for pattern in (WITHIN, INITIAL, LISTED):
        text = text.str.replace_all(pattern, f"${{0}}{JOIN}")
    for pattern in (MAYBE, NUMBERED):
        text = text.str.replace_all(pattern, f"${{1}}.{JOIN}${{2}}")
    text = text.str.replace_all(TRAILS, f"${{1}}{JOIN}${{2}}")
    text = text.str.replace_all(STOPS, f"${{1}}{END}").str.replace_all(FULL_STOPS, f"${{1}}{END}")
    return text.str.replace_all(JOIN, "", literal=True).str.split(END)
