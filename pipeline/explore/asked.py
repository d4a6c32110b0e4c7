"""What a page can ask: filters that rows meet, thresholds put elsewhere, and a page of rows."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from clipmill.pipeline.errors import RecipeError

MOST_VALUES = 10_000  # in one filter
PAGE = 200  # rows of an answer

Names = Annotated[list[str], Meta(max_length=60)]


class Question(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A part of what a page asks; as JSON its kind stands in `is`."""


class Range(Question, tag_field="is", tag="range", frozen=True):
    """Numbers from `low` to `high`, both included; null: no bound."""

    column: str
    low: float | None = None
    high: float | None = None


class OneOf(Question, tag_field="is", tag="one of", frozen=True):
    """A column's values; null stands for none, of reasons for fine."""

    column: str
    values: list[str | float | None]


class LostFor(Question, tag_field="is", tag="lost for", frozen=True):
    """First causes under a select stage, each a stage and its reason; two empty words: kept."""

    end: str
    causes: list[tuple[str, str]]


class Says(Question, tag_field="is", tag="says", frozen=True):
    """Rows whose text holds these words, whatever their case."""

    column: str
    words: Annotated[str, Meta(min_length=1, max_length=1000)]


class Uid(Question, tag_field="is", tag="uid", frozen=True):
    """Rows whose uid begins with these hex digits."""

    begins: Annotated[str, Meta(max_length=100)]


class Threshold(Question, frozen=True):
    """Another number in the place of one by which a select stage decides."""

    stage: str
    name: str
    text: str  # the rule of today, which tells two of one name apart
    value: float


Filter = Range | OneOf | LostFor | Says | Uid


class Sort(Question, frozen=True):
    column: str
    descending: bool = False


class Query(Question, frozen=True):
    """A page of rows that meet all filters, and how all that meet them are spread."""

    root: str
    filters: Annotated[list[Filter], Meta(max_length=60)] = []
    histograms: Names = []
    categories: Names = []
    end: str | None = None  # whose causes are counted; also for `beside`
    beside: bool = False  # kept and dropped rows side by side
    threshold: Threshold | None = None
    variant: int | None = None  # another recipe of the folder, whose kept rows are set against ours
    sort: Sort | None = None
    offset: Annotated[int, Meta(ge=0)] = 0
    limit: Annotated[int, Meta(ge=0, le=PAGE)] = 48


class Rows(Question, frozen=True):
    """What some rows hold."""

    root: str
    rows: Annotated[list[Annotated[int, Meta(ge=0)]], Meta(max_length=PAGE)]
    columns: Names = []
    end: str | None = None


class Relations(Question, frozen=True):
    """How the rules, these numbers and a category go together."""

    root: str
    filters: Annotated[list[Filter], Meta(max_length=60)] = []
    columns: Names = []
    category: str | None = None


class Why(Question, frozen=True):
    """What became of one sample."""

    uid: str


class Change(Question, frozen=True):
    """The recipe with a threshold elsewhere."""

    root: str
    threshold: Threshold


def read(body: bytes, kind: type[Any]) -> Any:
    """The question; RecipeError where it is none."""
    try:
        asked = msgspec.json.decode(body, type=kind)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise RecipeError(f"no question: {error}", "what the page asks", "load it again") from None
    for each in getattr(asked, "filters", ()):
        values = getattr(each, "values", None) or getattr(each, "causes", None) or ()
        if len(values) > MOST_VALUES:
            raise RecipeError(
                f"{len(values):,} values in one filter",
                "the filters",
                f"name {MOST_VALUES:,} at most; `select.uid_list` keeps the rows of a longer list",
            )
    return asked
