"""The rows of one select stage, surveyed: its scores and cuts, its groups, a few rows by cause."""

import math
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from metadata.schema import IMAGE_BYTES, KEEP, UID
from metadata.uid import coin_hash
from pipeline.ledger.causes import Cause, causes
from pipeline.ledger.reasons import ShardReasons
from pipeline.ledger.stored import (
    SHOWN,
    Place,
    group_of,
    groupings,
    least,
    rows_at,
    selects_up_to,
    stored,
)
from pipeline.planned import Binding
from pipeline.stage import Selects
from pipeline.state import RunState

# Shapes: N rows of a shard, B bins.

BINS = 48
SAMPLED = 200_000  # values that a scale is chosen from
TAIL = 0.005  # of the values at either end of a scale, which its outer bins take in
BESIDE = {">=": -0.5, "<": -0.5, ">": 0.5, "<=": 0.5}  # between two whole numbers
KEPT = ("", "")  # the cause of the rows that stay


@dataclass
class Scores:
    """A column of numbers that a select stage reads: its cuts, and its values, kept or dropped."""

    name: str
    where: Binding
    cuts: list[dict[str, Any]]
    is_whole: bool
    values: list[NDArray[np.float64]] = field(default_factory=list)  # of some rows, for the scale
    edges: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    kept: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    dropped: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    undefined: int = 0

    def choose_scale(self) -> None:
        """Equal bins from the lowest to the highest value, but for the tails; whole numbers get
        bins of their own where they are few."""
        value = np.concatenate([*self.values, [cut["value"] for cut in self.cuts]])
        self.values = []
        if not len(value):
            value = np.zeros(1)
        low, high = np.quantile(value, [TAIL, 1 - TAIL])
        for cut in self.cuts:
            low, high = min(low, cut["value"]), max(high, cut["value"])
        if self.is_whole and high - low < BINS:
            self.edges = np.arange(math.floor(low), math.ceil(high) + 2) - 0.5
        else:
            room = (high - low or 1.0) / 40  # so that no cut stands on the frame
            self.edges = np.linspace(low - room, high + room, BINS + 1)
        self.kept = np.zeros(len(self.edges) - 1, np.int64)
        self.dropped = np.zeros(len(self.edges) - 1, np.int64)

    def count(self, value: pa.ChunkedArray, keep_N: NDArray[np.bool_]) -> None:
        number_N = _numbers(value)
        defined_N = ~np.isnan(number_N)
        inside_N = np.clip(number_N, self.edges[0], self.edges[-1])
        self.kept += np.histogram(inside_N[defined_N & keep_N], self.edges)[0]
        self.dropped += np.histogram(inside_N[defined_N & ~keep_N], self.edges)[0]
        self.undefined += int((~defined_N).sum())


def survey(state: RunState, end: str) -> dict[str, Any]:
    """Scores, groups and samples of the pool under one select stage."""
    planned = state.plan.stages[end]
    assert planned.root is not None
    scores = scores_of(state, end)
    groups = groupings(state, end)
    bound = {
        **{f"score {i}": score.where for i, score in enumerate(scores)},
        **{f"group {name}": where for name, where in groups.items()},
        "kept": (end, KEEP.name),
    }
    shards = stored(state, planned.root, bound)
    _choose_scales(state, planned.root, scores)
    tallies: dict[str, Counter[tuple[str | None, bool]]] = {name: Counter() for name in groups}
    chosen: dict[Cause, list[tuple[int, Place]]] = {}
    for index, shard in enumerate(sorted(state.stages[planned.root].shards)):
        table = shards.table(index)
        keep_N = table["kept"].to_numpy()
        for i, score in enumerate(scores):
            score.count(table[f"score {i}"], keep_N)
        for name, tally in tallies.items():
            _tally(group_of(name, table[f"group {name}"]), table["kept"], tally)
        bits_N = coin_hash(table[UID.name], seed=state.plan.seed, stage=end, purpose="report")
        lost = causes(ShardReasons(state, planned.root, shard), end)
        for stage, code, rows in ((*KEPT, pa.array(keep_N)), *lost):
            few = least(bits_N, rows.to_numpy(zero_copy_only=False))
            here = [(int(bits_N[i]), (shard, int(i))) for i in few]
            chosen[stage, code] = sorted(chosen.get((stage, code), []) + here)[:SHOWN]
    return {
        "stage": end,
        "scores": scores,
        "groups": {
            by: tally for by, tally in tallies.items() if len({name for name, _ in tally}) > 1
        },
        "samples": _deciding(
            state, scores, {cause: [at for _, at in few] for cause, few in chosen.items()}
        ),
    }


def scores_of(state: RunState, end: str) -> list[Scores]:
    """The columns of numbers that a select stage and those before it read, with their cuts.

    A column of their own is one of them where it says which way is better.
    """
    found: dict[Binding, Scores] = {}
    for planned in selects_up_to(state, end):
        stage, bound = planned.name, planned.bindings[0]
        own = {
            column.name: (stage, column.name) for column in planned.stage.writes if column.better
        }
        for name, where in {**own, **bound}.items():
            dtype = state.plan.schema(*where)
            numeric = pa.types.is_integer(dtype) or pa.types.is_floating(dtype)
            if numeric and name != IMAGE_BYTES.name:
                found.setdefault(where, Scores(name, where, [], pa.types.is_integer(dtype)))
        for at in planned.stage.thresholds() if isinstance(planned.stage, Selects) else ():
            score = found.get(bound.get(at.column, (stage, at.column)))
            value: float | None = at.value
            if score and at.is_size:
                value = _lowest_kept(state, stage, score.where)
            if score and value is not None and math.isfinite(value):
                text = f"{at.text}: from {value:.4g}" if at.is_size else at.text
                beside = value + BESIDE.get(at.sign, 0.0) * score.is_whole
                score.cuts.append({"text": text, "value": beside, "stage": stage})
    return sorted(found.values(), key=lambda score: not score.cuts)


def _lowest_kept(state: RunState, stage: str, where: Binding) -> float | None:
    """The least value that a stage's `top` let through: its cut; None where nothing is kept."""
    root = state.plan.stages[stage].root
    assert root is not None
    shards = stored(state, root, {"value": where, "kept": (stage, KEEP.name)})
    lowest = [
        pc.min(table["value"].filter(table["kept"])).as_py()
        for table in map(shards.table, range(len(shards)))
    ]
    return min((value for value in lowest if value is not None), default=None)


def _choose_scales(state: RunState, root: str, scores: list[Scores]) -> None:
    """Reads the values of some rows, chosen by hash, and sets every scale."""
    shards = stored(state, root, {str(i): score.where for i, score in enumerate(scores)})
    rows = sum(shards.rows(index) for index in range(len(shards)))
    for index in range(len(shards) if scores else 0):
        table = shards.table(index)
        if rows > SAMPLED:
            bits_N = coin_hash(table[UID.name], seed=state.plan.seed, stage=root, purpose="scale")
            table = table.filter(pa.array(bits_N < np.uint64(2**64 * (SAMPLED / rows))))
        for i, score in enumerate(scores):
            number_N = _numbers(table[str(i)])
            score.values.append(number_N[~np.isnan(number_N)])
    for score in scores:
        score.choose_scale()


def _numbers(value: pa.ChunkedArray) -> NDArray[np.float64]:
    """Float64, NaN where there is no finite value."""
    number_N = np.array(value.cast(pa.float64(), safe=False).fill_null(math.nan).to_numpy())
    number_N[np.isinf(number_N)] = math.nan
    return number_N


def _tally(
    group: pa.ChunkedArray, kept: pa.ChunkedArray, into: Counter[tuple[str | None, bool]]
) -> None:
    table = pa.table({"group": group, "kept": kept}).unify_dictionaries()
    counts = table.group_by(["group", "kept"]).aggregate([([], "count_all")])
    for count in counts.to_pylist():
        into[count["group"], count["kept"]] += count["count_all"]


def _deciding(
    state: RunState, scores: list[Scores], chosen: dict[Cause, list[Place]]
) -> dict[Cause, list[tuple[Place, dict[str, Any]]]]:
    """Each chosen row with its deciding values."""
    found = {}
    for (stage, code), few in chosen.items():
        deciding = _named_in(state, stage, code) if code else _with_cuts(scores)
        found[stage, code] = list(zip(few, rows_at(state, deciding, few), strict=True))
    return found


def _named_in(state: RunState, stage: str, code: str) -> dict[str, Binding]:
    """The columns that a reason names."""
    bindings = state.plan.stages[stage].bindings
    return {
        read: where
        for read, where in (bindings[0] if bindings else {}).items()
        if re.search(rf"(?<![\w.]){re.escape(read)}\b", code)
    }


def _with_cuts(scores: list[Scores]) -> dict[str, Binding]:
    return {score.name: score.where for score in scores if score.cuts}
