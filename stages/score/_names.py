"""Numbers and names of a caption that nothing else knows of."""

import polars as pl

from clipmill.stages.score._words import INSIDE

NUMBER = r"\p{Nd}+(?:[.,:]\p{Nd}+)*"
# A word with a capital behind another word, no full stop and no quotation mark between.
NAME = rf"[\pL\pM\p{{Nd}},]['’]?s?\s+\p{{Lu}}[\pL\pM\p{{Nd}}]*{INSIDE}"  # noqa: RUF001
LONG, CAPITAL = r"\s[\pL\pM]{4,}", r"\s\p{Lu}[\pL\pM]{3,}"
MANY_CAPITALS = 0.6  # of the long words but the first: a title, whose capitals name nothing
NOUNS_HAVE_CAPITALS = ("de", "lb", "nds", "als", "bar")
DIGITS = {  # without one and two, which are said of what is no count
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


def told_pieces(known: pl.DataFrame) -> pl.DataFrame:
    """`row` and `piece`: the words of known texts, in small letters, each once."""
    pieces = known.select(
        "row", piece=_lower(pl.col("text")).str.extract_all(rf"[\pL\pM]+{INSIDE}")
    )
    pieces = pieces.explode("piece", empty_as_null=False)
    return pieces.with_columns(pl.col("piece").str.replace("'s$", "")).unique()


def invented(
    texts: pl.Series, row: pl.Series, language: pl.Series, known: pl.DataFrame, told: pl.DataFrame
) -> pl.Series:
    """Numbers and names of each text that nothing known of its row has; a long name is one.

    `row` is each text's row; `known` are the columns `row` and `text` of what is known, and `told`
    its pieces. Of a name the first word is asked for among all words known, whatever the case.
    """
    told = pl.concat([told, _numbers(known, "row")]).unique()
    said = pl.DataFrame({"row": row, "text": texts, "language": language}).with_row_index("at")
    pieces = pl.concat([_numbers(said, "at", "row"), _names(said)])
    new = pieces.join(told, on=["row", "piece"], how="anti").unique().group_by("at").len("count")
    counts = said.select("at").join(new, on="at", how="left", maintain_order="left")["count"]
    return counts.fill_null(0).cast(pl.Int32)


def _lower(text: pl.Expr) -> pl.Expr:
    return text.str.to_lowercase().str.replace_all("’", "'")  # noqa: RUF001


def _numbers(texts: pl.DataFrame, *keys: str) -> pl.DataFrame:
    """Rows of a number each, in digits without commas, beside the keys of its text."""
    found = [
        texts.select(*keys, piece=_lower(pl.col("text")).str.extract_all(pattern))
        .explode("piece", empty_as_null=False)
        .with_columns(pl.col("piece").str.replace_all(",", "").replace(DIGITS))
        for pattern in (NUMBER, NUMBER_WORD)
    ]
    return pl.concat(found)


def _names(texts: pl.DataFrame) -> pl.DataFrame:
    """Rows of a name each, its first word in small letters; none of titles and German."""
    text = pl.col("text")
    capitals, long = text.str.count_matches(CAPITAL), text.str.count_matches(LONG)
    is_title = (capitals >= 3) & (capitals >= MANY_CAPITALS * long)
    tells = ~is_title & ~pl.col("language").is_in(NOUNS_HAVE_CAPITALS).fill_null(False)
    found = texts.filter(tells).select("at", "row", piece=text.str.extract_all(NAME))
    found = found.explode("piece", empty_as_null=False)
    last = _lower(pl.col("piece")).str.extract(rf"\s([\pL\pM\p{{Nd}}]+{INSIDE})$")
    found = found.with_columns(piece=last.str.replace("'s$", ""))
    return found.filter(~pl.col("piece").is_in(NO_NAMES))
