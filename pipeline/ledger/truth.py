"""The truth file of a pool: which rows have which fault. The one reader beside the tests."""

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from clipmill.pipeline.errors import RecipeError

HARMLESS = (  # links of our own truth that work nonetheless
    *("link_issue: redirect", "link_issue: slow", "link_issue: wrong_content_type"),
    "link_issue: 503_once",
)
ABOUT = {  # columns of our own truth that tell of no fault, or not by themselves
    *("uid", "source", "image_key", "concept", "group", "lang", "text_true", "near_op"),
    *("swapped_in_group", "dup_kind", "dup_cluster", "usable", "is_good"),
}
NAMES = {"eval_near": "copy of an evaluation image"}
MAX_VALUES = 50  # of a text column; one with more tells rows apart, not kinds


@dataclass(frozen=True)
class Truth:
    """Each row's faults by uid: every kind of fault with what is true of its rows.

    `good` is true of rows without a fault. `unjudged` counts the values of the text columns that
    have too many of them.
    """

    table: pl.DataFrame
    kinds: dict[str, pl.Expr]
    good: pl.Expr
    unjudged: dict[str, int]


def read_truth(pool: Path) -> Truth:
    """The truth in a pool's folder; a fault is a boolean column, or a value of a text column.

    RecipeError where there is none, or no uid in it.
    """
    table = _table(pool / "truth.parquet")
    kinds: dict[str, pl.Expr] = {}
    unjudged = {}
    for name, dtype in table.schema.items():
        if name in ABOUT:
            continue
        if dtype == pl.Boolean:
            kinds[NAMES.get(name, name)] = pl.col(name)
        elif dtype in (pl.String, pl.Categorical, pl.Enum):
            text = pl.col(name).cast(pl.String)
            values = table.select(text.drop_nulls().unique().sort()).to_series()
            if len(values) > MAX_VALUES:
                unjudged[name] = len(values)
            else:
                kinds |= {f"{name}: {value}": text == value for value in values}
    if "swapped_in_group" in table.columns:
        kinds["swapped, with another group's"] = ~pl.col("swapped_in_group")
        kinds["swapped, within its group"] = pl.col("swapped_in_group")
    if "is_good" in table.columns:
        return Truth(table, kinds, pl.col("is_good"), unjudged)
    is_faulty = pl.any_horizontal([kind.fill_null(False) for kind in kinds.values()])
    return Truth(table, kinds, ~is_faulty, unjudged)


def _table(file: Path) -> pl.DataFrame:
    if not file.is_file():
        raise RecipeError(f"no {file.name}", str(file.parent), "give a folder of `clipmill pool`")
    try:
        table = pl.read_parquet(file)
    except pl.exceptions.PolarsError as error:
        what = f"no Parquet: {str(error).splitlines()[0]}"
        raise RecipeError(
            what, str(file), "build the pool again, or write your truth anew"
        ) from None
    if table.schema.get("uid") != pl.String:
        raise RecipeError("no text column `uid`", str(file), "give each row's uid, 32 hex digits")
    return table
