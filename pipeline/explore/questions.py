"""Defines the questions of a page: filters, other thresholds, a page of rows."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from clipmill.pipeline.errors import RecipeError

MOST_VALUES = 10_000  # values in one filter
PAGE = 200  # rows of an answer

Names = Annotated[list[str], Meta(max_length=60)]


class Question(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A part of a page's question; in JSON its kind is the field `is`."""


class Range(Question, tag_field="is", tag="range", frozen=True):
    """Numbers from `low` to `high`, both included; null: no bound."""

    column: str
    low: float | None = None
    high: float | None = None


class OneOf(Question, tag_field="is", tag="one of", frozen=True):
    """A column's values; null matches rows without one, for reasons rows that are fine."""

    column: str
    values: list[str | float | None]


class LostFor(Question, tag_field="is", tag="lost for", frozen=True):
    """First causes under a select stage, as (stage, reason); two empty strings: kept."""

    end: str
    causes: list[tuple[str, str]]


class Says(Question, tag_field="is", tag="says", frozen=True):
    """Rows whose text contains these words, ignoring case."""

    column: str
    words: Annotated[str, Meta(min_length=1, max_length=1000)]


class Uid(Question, tag_field="is", tag="uid", frozen=True):
    """Rows whose uid begins with these hex digits."""

    begins: Annotated[str, Meta(max_length=100)]


class Threshold(Question, frozen=True):
    """Another number for a threshold of a select stage."""

    stage: str
    name: str
    text: str  # the current rule, which identifies one of several of a name
    value: float


Filter = Range | OneOf | LostFor | Says | Uid


class Sort(Question, frozen=True):
    column: str
    descending: bool = False


class Query(Question, frozen=True):
    """A page of rows that meet all filters, and counts over all rows that meet them."""

    root: str
    filters: Annotated[list[Filter], Meta(max_length=60)] = []
    histograms: Names = []
    categories: Names = []
    end: str | None = None  # select stage for causes and `beside`
    beside: bool = False  # kept and dropped rows side by side
    threshold: Threshold | None = None
    variant: int | None = None  # another recipe to compare with
    sort: Sort | None = None
    offset: Annotated[int, Meta(ge=0)] = 0
    limit: Annotated[int, Meta(ge=0, le=PAGE)] = 48


class Rows(Question, frozen=True):
    """The values of some rows."""

    root: str
    rows: Annotated[list[Annotated[int, Meta(ge=0)]], Meta(max_length=PAGE)]
    columns: Names = []
    end: str | None = None


class Relations(Question, frozen=True):
    """Relations of rules, these numbers and a category."""

    root: str
    filters: Annotated[list[Filter], Meta(max_length=60)] = []
    columns: Names = []
    category: str | None = None


class Why(Question, frozen=True):
    """The history of one sample."""

    uid: str


class Change(Question, frozen=True):
    """The recipe with another threshold."""

    root: str
    threshold: Threshold


def read(body: bytes, kind: type[Any]) -> Any:
    """Parses a question; RecipeError if it is invalid."""
    try:
        question = msgspec.json.decode(body, type=kind)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise RecipeError(f"no question: {error}", "what the page asks", "load it again") from None
    for filter in getattr(question, "filters", ()):
        values = getattr(filter, "values", None) or getattr(filter, "causes", None) or ()
        if len(values) > MOST_VALUES:
            raise RecipeError(
                f"{len(values):,} values in one filter",
                "the filters",
                f"name {MOST_VALUES:,} at most; `select.uid_list` keeps the rows of a longer list",
            )
    return question
