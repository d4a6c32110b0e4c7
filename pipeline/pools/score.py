"""What a run caught of the faults that a pool's builder planted, from the truth file.

The one reader of `truth.parquet` beside the tests: it runs after a run, never inside one.
"""

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from metadata.schema import KEEP, UID
from metadata.shard import read_stage
from pipeline.errors import RecipeError
from pipeline.funnel import lacking, reasons_of, trace
from pipeline.state import RunState

HARMLESS_LINKS = ("redirect", "slow", "wrong_content_type", "503_once")
SHOWN_CAUSES = 4
KINDS = ("link_issue", "image_issue", "text_issue")


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
    return {
        "run": str(state.run),
        "end": end,
        "rows": len(truth),
        "absent": absent,
        "planted": rows,
    }


def text(found: dict[str, Any]) -> str:
    """The same as a Markdown table."""
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
    return "\n".join(lines)


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
