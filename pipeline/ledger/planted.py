"""What a run caught of the faults that a pool's builder planted, from the truth file.

The one reader of `truth.parquet` beside the tests: it runs after a run, never inside one. What it
found is left in the run's folder, for the report.
"""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from metadata.schema import UID
from metadata.sealed import put_sealed, read_sealed
from pipeline.errors import RecipeError
from pipeline.ledger.causes import causes
from pipeline.ledger.reasons import ShardReasons
from pipeline.ledger.stored import binding, stored
from pipeline.planned import Binding
from pipeline.state import RunState
from pipeline.terminal import cut

HARMLESS = (  # links of our own truth that work nonetheless
    *("link_issue: redirect", "link_issue: slow", "link_issue: wrong_content_type"),
    "link_issue: 503_once",
)
SHOWN_CAUSES = 4
SCORE = "clip_score"  # the column whose AUC is shown
LEFT = "truth.json"  # in the run's folder
ABOUT = {  # columns of our own truth that tell of no fault, or not by themselves
    *("uid", "source", "image_key", "concept", "group", "lang", "text_true", "near_op"),
    *("swapped_in_group", "dup_kind", "dup_cluster", "usable", "is_good"),
}
NAMES = {"eval_near": "copy of an evaluation image"}
COPIES = {"dup_kind", "dup_cluster", "usable"}  # columns that tell which copies are too many
MAX_VALUES = 50  # of a text column; one with more tells rows apart, not kinds
Kinds = dict[str, pl.Expr]  # each with what is true of its rows


def score(state: RunState, pool: Path) -> dict[str, Any]:
    """For every select stage the planted rows of each kind: how many each stage before it caught,
    and how many it keeps; how well the score tells faulty captions from good ones."""
    planted = _read(pool / "truth.parquet")
    kinds, unjudged = _kinds(planted)
    selects = [
        _judged(name, planted.join(_verdicts(state, name), on="uid"), len(planted), kinds)
        for name in _selects(state)
    ]
    selects = [judged for judged in selects if judged["rows"]]  # some may be of another pool
    if not selects:
        raise RecipeError("no row of this pool is in the run", str(state.run), "check the pool")
    scores = dict.fromkeys(binding(state, judged["stage"], SCORE) for judged in selects)
    found = {
        "run": str(state.run),
        "selects": selects,
        "detection": [
            row for bound in scores if bound for row in _detection(state, planted, kinds, bound)
        ],
        "unjudged": unjudged,
    }
    put_sealed(state.run, LEFT, found | {"of": _now(state, selects)}, point="truth")
    return found


def left_by(state: RunState) -> dict[str, Any] | None:
    """What `score` left with the run; None where it did not, or the run has changed since."""
    found = read_sealed(state.run, LEFT)
    if not found or not {judged["stage"] for judged in found["selects"]} <= set(state.stages):
        return None
    return found if found["of"] == _now(state, found["selects"]) else None


def auc(good: NDArray[np.float64], bad: NDArray[np.float64]) -> dict[str, float]:
    """The chance that a good row scores above a bad one, ties half; with its 95 % interval.

    Source: Hanley and McNeil (1982), "The meaning and use of the area under a ROC curve".
    """
    ordered = np.sort(bad)
    below = (
        np.searchsorted(ordered, good, "left").sum() + np.searchsorted(ordered, good, "right").sum()
    )
    n, m = len(good), len(bad)
    area = float(below) / (2 * n * m)
    one, two = area / (2 - area), 2 * area**2 / (1 + area)
    spread = area * (1 - area) + (n - 1) * (two - area**2) + (m - 1) * (one - area**2)
    half = 1.96 * math.sqrt(spread / (n * m))
    return {"value": area, "low": max(0.0, area - half), "high": min(1.0, area + half)}


def text(found: dict[str, Any]) -> str:
    """The same as Markdown tables, one a select stage."""
    lines = []
    for judged in found["selects"]:
        lines += [
            f"'{judged['stage']}' keeps {judged['kept']:,} of {judged['rows']:,} rows:",
            "",
            "| planted | rows | caught by | kept |",
            "|---|---:|---|---:|",
            *map(_line, judged["planted"]),
            "",
        ]
    if found["detection"]:
        lines += ["| captions told from good ones | rows | AUC | |", "|---|---:|---:|---|"]
    for row in found["detection"]:
        of, by = row["auc"], f"{row['column']} of {row['stage']}"
        area = f"{of['value']:.3f} ({of['low']:.3f} to {of['high']:.3f})"
        lines.append(f"| {row['kind']} | {row['rows']:,} | {area} | {by} |")
    for column, values in found["unjudged"].items():
        lines.append(f"not judged: {column}, of {values:,} values (at most {MAX_VALUES})")
    return "\n".join(lines).rstrip()


def _line(row: dict[str, Any]) -> str:
    causes = list(row["caught"].items())
    shown = [f"{cut(cause)} {count:,}" for cause, count in causes[:SHOWN_CAUSES]]
    if len(causes) > SHOWN_CAUSES:
        shown.append(f"other {sum(count for _, count in causes[SHOWN_CAUSES:]):,}")
    caught = ", ".join(shown) or "none"
    mark = "" if row["harmless"] else " missed" if row["kept"] else ""
    return f"| {row['kind']} | {row['rows']:,} | {caught} | {row['kept']:,}{mark} |"


def _read(truth: Path) -> pl.DataFrame:
    if not truth.is_file():
        raise RecipeError(f"no {truth.name}", str(truth.parent), "give a folder of `clipmill pool`")
    try:
        planted = pl.read_parquet(truth)
    except pl.exceptions.PolarsError as error:
        what = f"no Parquet: {str(error).splitlines()[0]}"
        raise RecipeError(
            what, str(truth), "build the pool again, or write your truth anew"
        ) from None
    if planted.schema.get("uid") != pl.String:
        raise RecipeError("no text column `uid`", str(truth), "give each row's uid, 32 hex digits")
    return planted


def _kinds(planted: pl.DataFrame) -> tuple[Kinds, dict[str, int]]:
    """What may be wrong with a row: each boolean column, and each value of a text column; and the
    text columns that have too many values."""
    kinds: Kinds = {}
    unjudged = {}
    for name, dtype in planted.schema.items():
        if name in ABOUT:
            continue
        if dtype == pl.Boolean:
            kinds[NAMES.get(name, name)] = pl.col(name)
        elif dtype in (pl.String, pl.Categorical, pl.Enum):
            text = pl.col(name).cast(pl.String)
            values = planted.select(text.drop_nulls().unique().sort()).to_series()
            if len(values) > MAX_VALUES:
                unjudged[name] = len(values)
            else:
                kinds |= {f"{name}: {value}": text == value for value in values}
    if "swapped_in_group" in planted.columns:
        kinds["swapped, with another group's"] = ~pl.col("swapped_in_group")
        kinds["swapped, within its group"] = pl.col("swapped_in_group")
    return kinds, unjudged


def _good(planted: pl.DataFrame, kinds: Kinds) -> pl.Expr:
    """Rows that nothing is wrong with."""
    if "is_good" in planted.columns:
        return pl.col("is_good")
    return ~pl.any_horizontal([kind.fill_null(False) for kind in kinds.values()])


def _judged(stage: str, truth: pl.DataFrame, total: int, kinds: Kinds) -> dict[str, Any]:
    """What became of each kind of row up to one select stage."""
    rows = [_row(kind, truth.filter(here), kind in HARMLESS) for kind, here in kinds.items()]
    if set(truth.columns) >= COPIES:
        extra = _extra_copies(truth)
        for value in sorted(extra["dup_kind"].drop_nulls().unique()):
            rows.append(_row(f"duplicate: {value}", extra.filter(pl.col("dup_kind") == value)))
    good = truth.filter(_good(truth, kinds))
    if "lang" in truth.columns:
        rows.append(_row("good, English", good.filter(pl.col("lang") == "en"), True))
        rows.append(_row("good, other languages", good.filter(pl.col("lang") != "en"), True))
    else:
        rows.append(_row("good", good, True))
    return {
        "stage": stage,
        "rows": len(truth),
        "absent": total - len(truth),
        "kept": len(truth.filter(pl.col("cause") == "")),
        "planted": [row for row in rows if row["rows"]],
    }


def _detection(
    state: RunState, planted: pl.DataFrame, kinds: Kinds, bound: Binding
) -> list[dict[str, Any]]:
    """How well a score tells faulty captions from those of good rows: English ones, and those of no
    language, as boilerplate is."""
    root = state.plan.stages[bound[0]].root
    assert root is not None
    shards = stored(state, root, {SCORE: bound})
    columns = pa.concat_tables(
        shards.table(n).select([UID.name, SCORE]) for n in range(len(shards))
    )
    scores = pl.DataFrame(
        {"uid": [uid.hex() for uid in columns[UID.name].to_pylist()], SCORE: columns[SCORE]}
    )
    rows = planted.join(scores.unique("uid", keep="first"), on="uid")
    rows = rows.filter(pl.col(SCORE).is_not_null())
    if "lang" in rows.columns:
        rows = rows.filter(pl.col("lang").fill_null("en") == "en")
    good = rows.filter(_good(rows, kinds))[SCORE].to_numpy().astype(np.float64)
    found = []
    for kind, here in kinds.items():
        bad = rows.filter(here)[SCORE].to_numpy().astype(np.float64)
        if len(good) and len(bad) and kind not in HARMLESS:
            row = {"kind": kind, "rows": len(bad), "good": len(good), "auc": auc(good, bad)}
            found.append({"stage": bound[0], "column": SCORE, **row})
    return found


def _extra_copies(truth: pl.DataFrame) -> pl.DataFrame:
    """Usable copies, but those that stand in for their cluster: one of each may stay.

    Which one stays is the run's choice: the first that it kept, base rows before copies.
    """
    order = [pl.col("cause") != "", pl.col("dup_kind").is_not_null(), pl.col("uid")]
    usable = truth.filter(pl.col("usable")).sort(order)
    return usable.filter(pl.int_range(pl.len()).over("dup_cluster") > 0)


def _row(kind: str, rows: pl.DataFrame, harmless: bool = False) -> dict[str, Any]:
    causes = Counter(rows["cause"].to_list())
    kept = causes.pop("", 0)
    return {
        "kind": kind,
        "rows": len(rows),
        "harmless": harmless,
        "kept": kept,
        "caught": dict(sorted(causes.items(), key=lambda item: (-item[1], str(item[0])))),
    }


def _verdicts(state: RunState, end: str) -> pl.DataFrame:
    """uid in hex, and the first cause as `stage: reason`; empty where the row is kept."""
    root = state.plan.stages[end].root
    assert root is not None
    frames = []
    for shard, shard_state in sorted(state.stages[root].shards.items()):
        cause = np.full(shard_state.rows, "", dtype=object)
        for stage, code, hit in causes(ShardReasons(state, root, shard), end):
            cause[hit.to_numpy(zero_copy_only=False)] = f"{stage}: {code}"
        part = state.parts[root]
        uids = pa.concat_tables(part.read(shard_state, [UID.name], 65_536))[UID.name]
        hexed = [uid.hex() for uid in uids.to_pylist()]
        frames.append(pl.DataFrame({"uid": hexed, "cause": cause.tolist()}))
    return pl.concat(frames).unique("uid", keep="first", maintain_order=True)


def _selects(state: RunState) -> list[str]:
    selects = [
        name for name, stage in state.stages.items() if stage.planned.is_select and stage.complete
    ]
    if not selects:
        raise RecipeError("no select stage is complete", str(state.run), "run the recipe first")
    return selects


def _now(state: RunState, selects: list[dict[str, Any]]) -> dict[str, str | None]:
    """What each select stage reads today."""
    names = [judged["stage"] for judged in selects]
    return {name: state.inputs_digest(state.plan.stages[name]) for name in names}
