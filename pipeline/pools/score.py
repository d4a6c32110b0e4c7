"""What a run caught of the faults that a pool's builder planted, from the truth file.

The one reader of `truth.parquet` beside the tests: it runs after a run, never inside one. What it
found is left in the run's folder, for the report.
"""

import json
import math
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from metadata.schema import KEEP, UID
from metadata.shard import read_stage
from pipeline.errors import RecipeError
from pipeline.funnel import lacking, reasons_of, trace
from pipeline.report.stored import binding, stored
from pipeline.state import RunState

HARMLESS_LINKS = ("redirect", "slow", "wrong_content_type", "503_once")
SHOWN_CAUSES = 4
SCORE = "clip_score"  # the column whose AUC is shown
KINDS = ("link_issue", "image_issue", "text_issue")
LEFT = "truth.json"  # in the run's folder


def score(state: RunState, pool: Path, end: str | None = None) -> dict[str, Any]:
    """Planted rows of each kind: how many each stage caught, and how many were kept."""
    truth_path = pool / "truth.parquet"
    if not truth_path.is_file():
        raise RecipeError(
            f"no {truth_path.name}", str(pool), "give the folder `clipmill pool` made"
        )
    end = end or _last_select(state)
    truth = pl.read_parquet(truth_path).join(_verdicts(state, end), on="uid", how="left")
    known = truth.filter(pl.col("cause").is_not_null())
    if known.is_empty():
        raise RecipeError("no row of this pool is in the run", str(state.run), "check the pool")
    absent, truth = len(truth) - len(known), known
    rows = []
    for kind in KINDS:
        for value in sorted(truth[kind].drop_nulls().unique()):
            harmless = kind == "link_issue" and value in HARMLESS_LINKS
            rows.append(_row(f"{kind}: {value}", truth.filter(pl.col(kind) == value), harmless))
    extra = _extra_copies(truth)
    for value in sorted(extra["dup_kind"].drop_nulls().unique()):
        rows.append(_row(f"duplicate: {value}", extra.filter(pl.col("dup_kind") == value)))
    rows.append(_row("copy of an evaluation image", truth.filter(pl.col("eval_near"))))
    good = pl.col("is_good")
    rows.append(_row("good, English", truth.filter(good & (pl.col("lang") == "en")), True))
    rows.append(_row("good, other languages", truth.filter(good & (pl.col("lang") != "en")), True))
    found = {
        "run": str(state.run),
        "end": end,
        "rows": len(truth),
        "absent": absent,
        "planted": rows,
        "detection": _detection(state, truth, end),
    }
    state.run.put(
        LEFT,
        json.dumps(found | {"of": state.inputs_digest(state.plan.stages[end])}).encode(),
        point="truth",
    )
    return found


def left_by(state: RunState) -> dict[str, Any] | None:
    """What `score` left with the run; None where it did not, or the run has changed since."""
    found = state.run.read_json(LEFT)
    if found is None or found["end"] not in state.plan.stages:
        return None
    now = state.inputs_digest(state.plan.stages[found["end"]])
    return found if found["of"] == now else None


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
    return {"value": area, "low": area - half, "high": area + half}


def text(found: dict[str, Any]) -> str:
    """The same as Markdown tables."""
    lines = [
        "| planted | rows | caught by | kept |",
        "|---|---:|---|---:|",
    ]
    for row in found["planted"]:
        causes = list(row["caught"].items())
        shown = [f"{cause} {count:,}" for cause, count in causes[:SHOWN_CAUSES]]
        if len(causes) > SHOWN_CAUSES:
            shown.append(f"other {sum(count for _, count in causes[SHOWN_CAUSES:]):,}")
        caught = ", ".join(shown) or "none"
        mark = "" if row["harmless"] else " missed" if row["kept"] else ""
        lines.append(f"| {row['kind']} | {row['rows']:,} | {caught} | {row['kept']:,}{mark} |")
    if found["detection"]:
        lines += [
            "",
            "| English captions told from good ones | rows | AUC | |",
            "|---|---:|---:|---|",
        ]
    for row in found["detection"]:
        of, by = row["auc"], f"{row['column']} of {row['stage']}"
        area = f"{of['value']:.3f} ({of['low']:.3f} to {of['high']:.3f})"
        lines.append(f"| {row['kind']} | {row['rows']:,} | {area} | {by} |")
    return "\n".join(lines)


def _detection(state: RunState, truth: pl.DataFrame, end: str) -> list[dict[str, Any]]:
    """How well the score tells faulty English captions from those of good rows."""
    bound = binding(state, end, SCORE)
    if bound is None:
        return []
    root = state.plan.stages[end].root
    assert root is not None
    shards = stored(state, root, {SCORE: bound})
    columns = pa.concat_tables(
        shards.table(n).select([UID.name, SCORE]) for n in range(len(shards))
    )
    scores = pl.DataFrame(
        {"uid": [uid.hex() for uid in columns[UID.name].to_pylist()], SCORE: columns[SCORE]}
    )
    rows = truth.join(scores.unique("uid", keep="first"), on="uid").filter(
        (pl.col("lang") == "en") & pl.col(SCORE).is_not_null()
    )
    good = rows.filter(pl.col("is_good"))[SCORE].to_numpy().astype(np.float64)
    swapped, issue = pl.col("swapped_in_group"), pl.col("text_issue")
    kinds = {
        "swapped": issue == "swapped",
        "swapped, with another group's": ~swapped,
        "swapped, within its group": swapped,
        **{kind: issue == kind for kind in ("boilerplate", "garbled", "spam")},
    }
    found = []
    for kind, is_kind in kinds.items():
        bad = rows.filter(is_kind)[SCORE].to_numpy().astype(np.float64)
        if len(good) and len(bad):
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
    names = [
        name
        for name, stage in state.stages.items()
        if stage.planned.root == root and stage.planned.stage.gives == "rows" and stage.complete
    ]
    frames = []
    for shard, shard_state in sorted(state.stages[root].shards.items()):
        reasons, lacks = reasons_of(state, names, shard), partial(lacking, state, shard)
        cause = np.full(shard_state.rows, "", dtype=object)
        for stage, code, hit in trace(state.plan, end, reasons, reasons[end].is_valid(), lacks):
            cause[hit.to_numpy(zero_copy_only=False)] = f"{stage}: {code}"
        part = state.parts[root]
        uids = pa.concat_tables(read_stage(part.folder, shard_state, [UID.name], 65_536))[UID.name]
        hexed = [uid.hex() for uid in uids.to_pylist()]
        frames.append(pl.DataFrame({"uid": hexed, "cause": cause.tolist()}))
    return pl.concat(frames).unique("uid", keep="first", maintain_order=True)


def _last_select(state: RunState) -> str:
    selects = [
        name
        for name, stage in state.stages.items()
        if KEEP.name in {column.name for column in stage.planned.stage.writes} and stage.complete
    ]
    if not selects:
        raise RecipeError("no select stage is complete", str(state.run), "run the recipe first")
    return selects[-1]
