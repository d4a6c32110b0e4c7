"""Measures what a run caught of injected faults, by the labels in a pool's truth file.

Labels are read after a run, never inside one. The answer is stored in the run's folder.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import pyarrow as pa

from clipmill.metadata.schema import UID
from clipmill.metadata.sealed import put_sealed, read_sealed
from clipmill.metadata.stats import Estimate, auc
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.ledger.answer import as_json
from clipmill.pipeline.ledger.rows.ahead import ahead
from clipmill.pipeline.ledger.rows.stored import binding, tables
from clipmill.pipeline.ledger.selection.causes import causes
from clipmill.pipeline.ledger.selection.reasons import ShardReasons
from clipmill.pipeline.planning.planned import Binding
from clipmill.pipeline.run_folder.state import RunState

HARMLESS = (  # link faults of our own labels that do no harm
    *("link_issue: redirect", "link_issue: slow", "link_issue: wrong_content_type"),
    "link_issue: 503_once",
)
ABOUT = {  # columns of our own labels that are no fault by themselves
    *("uid", "source", "image_key", "concept", "group", "lang", "text_true", "near_op"),
    *("swapped_in_group", "dup_kind", "dup_cluster", "usable", "is_good"),
}
NAMES = {"eval_near": "copy of an evaluation image"}
MAX_VALUES = 50  # most values of a text column of kinds; more are rows' own
CAUSE, VALUE = "#cause", "#value"  # columns from the run; no label has these names


@dataclass(frozen=True)
class Truth:
    """Each row's labels by uid: every kind of fault, with an expression that is true of its rows.

    `good` is true of rows without a fault. `unjudged` counts the values of text columns that have
    too many to be kinds.
    """

    table: pl.DataFrame
    kinds: dict[str, pl.Expr]
    good: pl.Expr
    unjudged: dict[str, int]


def read_truth(pool: Path) -> Truth:
    """Reads a pool's labels; a fault is a boolean column, or a value of a text column.

    RecipeError if there is no such file, or no uid in it.
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
    if table.schema.get("swapped_in_group") == pl.Boolean:
        kinds["swapped, with another group's"] = ~pl.col("swapped_in_group")
        kinds["swapped, within its group"] = pl.col("swapped_in_group")
    if "is_good" in table.columns:
        return Truth(table, kinds, pl.col("is_good"), unjudged)
    faults = [kind.fill_null(False) for kind in kinds.values()]
    is_faulty = pl.any_horizontal(pl.lit(False), *faults)
    return Truth(table, kinds, ~is_faulty, unjudged)


def _table(file: Path) -> pl.DataFrame:
    if not file.is_file():
        raise RecipeError(f"no {file.name}", str(file.parent), "give a folder of `clipmill pool`")
    try:
        table = pl.read_parquet(file)
    except pl.exceptions.PolarsError as error:
        problem = f"no Parquet: {str(error).splitlines()[0]}"
        raise RecipeError(
            problem, str(file), "build the pool again, or write your truth anew"
        ) from None
    if table.schema.get("uid") != pl.String:
        raise RecipeError("no text column `uid`", str(file), "give each row's uid, 32 hex digits")
    if (good := table.schema.get("is_good", pl.Boolean)) != pl.Boolean:
        raise RecipeError(f"`is_good` holds {good}", str(file), "write true or false in each row")
    return table


SCORE = "clip_score"  # the column whose AUC is shown
ANSWER = "truth.json"  # file in the run's folder
COPIES = {"dup_kind", "dup_cluster", "usable"}  # columns that tell which copies are redundant


@dataclass(frozen=True, kw_only=True)
class KindRows:
    """The rows of one kind: `rows` = `kept` + caught rows by first cause, as `stage: reason`.

    Rows of a `harmless` kind may be kept.
    """

    kind: str
    rows: int
    harmless: bool
    kept: int
    caught: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One select stage: labelled rows that are in the run, and absent from it, by kind."""

    stage: str
    rows: int
    absent: int
    kept: int
    planted: tuple[KindRows, ...]


@dataclass(frozen=True, kw_only=True)
class Detection:
    """How well a score separates one kind of fault from good rows."""

    stage: str
    column: str
    kind: str
    rows: int
    good: int
    auc: Estimate


@dataclass(frozen=True, kw_only=True)
class Planted:
    """Every complete select stage against the labels, and the scores that they read.

    `unjudged` counts the values of text columns that have too many to be kinds.
    """

    run: str
    selects: tuple[Judged, ...]
    detection: tuple[Detection, ...]
    unjudged: dict[str, int]


def planted(state: RunState, pool: Path) -> Planted:
    """Returns what each select stage kept of each kind of row, and which stage caught the rest.

    RecipeError if the folder has no labels, or the run none of its rows.
    """
    truth = read_truth(pool)
    ends = [
        name for name, stage in state.stages.items() if stage.planned.is_select and stage.complete
    ]
    if not ends:
        raise RecipeError("no select stage is complete", str(state.run), "run the recipe first")
    selects = [judged for name in ends if (judged := _judged(state, name, truth)).rows]
    if not selects:  # a select may be of another pool
        raise RecipeError("no row of this pool is in the run", str(state.run), "check the pool")
    scores = dict.fromkeys(binding(state, judged.stage, SCORE) for judged in selects)
    answer = Planted(
        run=str(state.run),
        selects=tuple(selects),
        detection=tuple(
            row for bound in scores if bound for row in _detection(state, truth, bound)
        ),
        unjudged=truth.unjudged,
    )
    put_sealed(state.run, ANSWER, as_json(answer) | {"of": _inputs(state, answer)}, point="truth")
    return answer


def last_planted(state: RunState) -> Planted | None:
    """Returns the stored answer; None without one, or if the run has changed since."""
    stored = read_sealed(state.run, ANSWER)
    if not stored:
        return None
    answer = msgspec.convert(stored, Planted)
    is_of_these = {judged.stage for judged in answer.selects} <= set(state.stages)
    return answer if is_of_these and stored["of"] == _inputs(state, answer) else None


def _inputs(state: RunState, answer: Planted) -> dict[str, str | None]:
    """Returns the digest of each select stage's current inputs."""
    stages = [judged.stage for judged in answer.selects]
    return {name: state.inputs_digest(state.plan.stages[name]) for name in stages}


def _judged(state: RunState, stage: str, truth: Truth) -> Judged:
    """Counts the outcome of each kind of row at one select stage."""
    rows = truth.table.join(_first_causes(state, stage), on="uid")
    kinds = [
        _kind_rows(kind, rows.filter(is_kind), kind in HARMLESS)
        for kind, is_kind in truth.kinds.items()
    ]
    if set(rows.columns) >= COPIES:  # usable ones but one of each cluster, which may stay
        order = [pl.col(CAUSE) != "", pl.col("dup_kind").is_not_null(), pl.col("uid")]
        usable = rows.filter(pl.col("usable")).sort(order)  # first those that the run kept
        extra = usable.filter(pl.int_range(pl.len()).over("dup_cluster") > 0)
        for value in sorted(extra["dup_kind"].drop_nulls().unique()):
            of_kind = extra.filter(pl.col("dup_kind") == value)
            kinds.append(_kind_rows(f"duplicate: {value}", of_kind))
    good = rows.filter(truth.good)
    if "lang" in rows.columns:
        is_english = pl.col("lang").eq_missing("en")
        kinds.append(_kind_rows("good, English", good.filter(is_english), True))
        kinds.append(_kind_rows("good, other languages", good.filter(~is_english), True))
    else:
        kinds.append(_kind_rows("good", good, True))
    return Judged(
        stage=stage,
        rows=len(rows),
        absent=len(truth.table) - len(rows),
        kept=len(rows.filter(pl.col(CAUSE) == "")),
        planted=tuple(kind for kind in kinds if kind.rows),
    )


def _kind_rows(kind: str, rows: pl.DataFrame, harmless: bool = False) -> KindRows:
    caught = Counter(rows[CAUSE].to_list())
    kept = caught.pop("", 0)
    return KindRows(
        kind=kind,
        rows=len(rows),
        harmless=harmless,
        kept=kept,
        caught=dict(sorted(caught.items(), key=lambda item: (-item[1], str(item[0])))),
    )


def _first_causes(state: RunState, end: str) -> pl.DataFrame:
    """Returns uids in hex with first causes as `stage: reason`; empty for kept rows."""
    root = state.plan.stages[end].root

    def read(shard: int) -> pl.DataFrame:
        shard_state = state.stages[root].shards[shard]
        cause = np.full(shard_state.rows, "", dtype=object)
        for stage, code, rows in causes(ShardReasons(state, root, shard), end):
            cause[rows.to_numpy(zero_copy_only=False)] = f"{stage}: {code}"
        uids = pa.concat_tables(state.stored[root].read(shard_state, [UID.name], 65_536))
        return pl.DataFrame({"uid": _hex(uids), CAUSE: cause.tolist()})

    frames = ahead(state.run, read, sorted(state.stages[root].shards))
    return pl.concat(frames).unique("uid", keep="first", maintain_order=True)


def _detection(state: RunState, truth: Truth, bound: Binding) -> Iterator[Detection]:
    """Yields a score's AUC for each kind of fault.

    Rows in another language than English do not count. Boilerplate, which has none, does.
    """
    every = tables(state, state.plan.stages[bound[0]].root, {SCORE: bound})
    columns = pa.concat_tables(table.select([UID.name, SCORE]) for table in every)
    scores = pl.DataFrame({"uid": _hex(columns), VALUE: columns[SCORE]})
    rows = truth.table.join(scores.unique("uid", keep="first"), on="uid")
    rows = rows.filter(pl.col(VALUE).is_not_null())
    if "lang" in rows.columns:
        rows = rows.filter(pl.col("lang").fill_null("en") == "en")
    good = rows.filter(truth.good)[VALUE].to_numpy().astype(np.float64)
    for kind, is_kind in truth.kinds.items():
        bad = rows.filter(is_kind)[VALUE].to_numpy().astype(np.float64)
        if len(good) and len(bad) and kind not in HARMLESS:
            yield Detection(
                stage=bound[0],
                column=SCORE,
                kind=kind,
                rows=len(bad),
                good=len(good),
                auc=auc(good, bad),
            )


def _hex(table: pa.Table) -> pl.Series:
    return pl.Series(table[UID.name]).bin.encode("hex")
