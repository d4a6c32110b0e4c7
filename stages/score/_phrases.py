"""Wordings and marks that no caption has, by patterns that lie in phrases/*.txt, one a line.

A line that begins with `# ` is a comment, and `{name}` stands for a line of words.txt.
"""

from functools import cache
from pathlib import Path

import polars as pl

PHRASES = Path(__file__).parent / "phrases"


def is_refusal(plain: pl.Series) -> pl.Series:
    """Whether a plain text declines to answer, in English or one of some thirty languages."""
    first = rf"^[^\p{{L}}]*(?:(?:oh|well|hi|hello|no|yes)[^\p{{L}}]+)?(?:{pattern('excuse')})"
    return plain.str.contains(f"{first}|{pattern('refusal')}")


def has_disclaimer(plain: pl.Series) -> pl.Series:
    """Whether a plain text speaks of its writer, or to its reader."""
    return plain.str.contains(pattern("disclaimer"))


def markup(texts: pl.Series) -> pl.Series:
    """Pieces of markup, labels and openings of an answer."""
    return texts.str.count_matches(pattern("markup")).cast(pl.Int32)


def garbled(texts: pl.Series) -> pl.Series:
    """Pieces that are no text."""
    return texts.str.count_matches(pattern("garbled")).cast(pl.Int32)


def plain(texts: pl.Series) -> pl.Series:
    """In small letters, with straight quotation marks and single spaces, none at the ends."""
    straight = texts.str.to_lowercase().str.replace_all("[\u2018\u2019]", "'")
    straight = straight.str.replace_all("[\u201c\u201d]", '"')
    return straight.str.replace_all(r"\s+", " ").str.strip_chars(" ")


@cache
def pattern(name: str) -> str:
    """Any of the lines of a file."""
    words = dict(line.split("\t") for line in _lines("words"))
    lines = _lines(name)
    for word, meaning in words.items():
        lines = [line.replace(f"{{{word}}}", meaning) for line in lines]
    return "|".join(f"(?:{line})" for line in lines)  # a flag in one line stays in it


def _lines(name: str) -> list[str]:
    text = (PHRASES / f"{name}.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("# ")]
