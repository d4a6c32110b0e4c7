"""Builds the leaderboard: each arm's score, against raw and against as many random rows."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipmill.metadata.outputs import Outputs
from clipmill.metadata.record import MANIFEST, Manifest
from clipmill.metadata.schema import UID
from clipmill.metadata.sealed import read_sealed_as
from clipmill.metadata.stats import Estimate
from clipmill.pipeline.bench.arms import subset_name
from clipmill.pipeline.bench.prepare import Prepared
from clipmill.pipeline.bench.recipe import leaks_of
from clipmill.pipeline.bench.spec import ORACLE, RAW
from clipmill.pipeline.ledger.proof.compare import Comparison
from clipmill.pipeline.ledger.proof.curves import Curve, curves
from clipmill.pipeline.ledger.proof.results import MOST_EPOCHS, Cell, Results, compared
from clipmill.pipeline.ledger.proof.trials import Arm
from clipmill.pipeline.ledger.proof.trials import arms as arms_of
from clipmill.pipeline.run_folder.state import RunState

LEAKS, LOGS = "leaks.parquet", "log"  # of evaluate.leaks in out/; of train.clip in its folder
WEIGHTS = "model.safetensors"  # file of train.clip in out/


@dataclass(frozen=True, kw_only=True)
class Line:
    """One arm. `raw` compares it with all rows, `random` with the arm `chance`, which has as many
    rows by chance; each is null for the arm that it would compare with itself.

    `seconds` estimates one training on one worker from its logged samples per second, or those of
    an arm that trained the same models; null without a log. `leaks` counts the evaluation samples
    in its rows, by task.
    """

    arm: str
    what: str
    settings: dict[str, Any]
    rows: int
    chance: str
    epochs: float | None
    seeds: int
    result: Estimate | None  # of the board's first metric
    share: Estimate | None  # of the way from raw to the oracle, by that metric
    raw: Comparison | None
    random: Comparison | None
    near_chance: bool
    seconds: float | None
    samples_per_s: float | None
    leaks: dict[str, int]
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Board:
    """Arms, the best first; `results` has them by task, in the recipe's order."""

    scale: str
    samples_seen: int
    lines: tuple[Line, ...]
    results: Results
    curves: tuple[Curve, ...] = ()  # of arms whose trainings left snapshots
    by: tuple[str, ...] = ()  # arms that split another by a column's values (`bench --by`)
    learnt: str = ""  # a sentence about the weights learnt for those values

    @property
    def title(self) -> str:
        """Returns the metric by which arms are ranked."""
        top = self.results.shown[0]
        return "mean of fine tasks" if self.results.headline else f"{top.task} {top.metric}"


def board(prepared: Prepared, state: RunState) -> Board:
    """Returns the leaderboard of a finished bench."""
    named_arms = trained_arms(prepared, state)
    results = results_of(prepared, named_arms)
    training: Any = prepared.plan.stages[RAW].stage
    top = results.shown[0]
    cells = {cell.arm: cell for cell in top.cells}
    rates = _rates(prepared, state)
    lines = [_line(prepared, state, results, cells[name], rates[name]) for name in prepared.arms]
    ranked = sorted(lines, key=lambda line: -(line.result.value if line.result else -1.0))
    return Board(
        scale=prepared.bench.scale,
        samples_seen=training.steps * training.batch_size,
        lines=tuple(ranked),
        results=results,
        curves=tuple(curves(named_arms, results.fine or [top.task])),
    )


def trained_arms(prepared: Prepared, state: RunState) -> list[Arm]:
    """Returns the arms that have evaluated models."""
    by_training = {stage: arm for arm in arms_of(state) for stage in arm.stages}
    return [replace(by_training[name], name=name) for name in prepared.arms if name in by_training]


def results_of(prepared: Prepared, named_arms: Sequence[Arm]) -> Results:
    """Returns the arms by task, against raw and as many random rows."""
    against = {name: (RAW, prepared.chance_of(name)) for name in prepared.arms}
    baselines = [RAW, *(name for name in prepared.arms if name.startswith("random_of_"))]
    return compared(named_arms, baselines, against, ORACLE)


def _line(
    prepared: Prepared, state: RunState, results: Results, cell: Cell, rate: float | None
) -> Line:
    name, rows = cell.arm, prepared.rows_of(cell.arm)
    found = _leaks(prepared, state, name)
    leaks: Counter[str] = Counter()
    for (task, _), samples in found.items():
        leaks[task] += samples
    comparisons = dict(zip(results.baselines, cell.against, strict=True))
    training: Any = prepared.plan.stages[name].stage
    samples = training.steps * training.batch_size
    line = Line(
        arm=name,
        what=prepared.what(name),
        settings=prepared.arms[name].settings,
        rows=rows.rows,
        chance=prepared.chance_of(name),
        epochs=results.epochs[name] or samples / rows.samples,
        seeds=cell.seeds,
        result=cell.result,
        share=cell.share,
        raw=comparisons.get(RAW),
        random=comparisons.get(prepared.chance_of(name)),
        near_chance=cell.near_chance,
        seconds=samples / rate if rate else None,
        samples_per_s=rate,
        leaks=leaks,
        warnings=(),
    )
    pictures = sum(samples for (_, kind), samples in found.items() if kind == "picture")
    return replace(line, warnings=_warnings(line, pictures))


def _warnings(line: Line, pictures: int) -> tuple[str, ...]:
    sentences = []
    if pictures:
        sentences.append(f"its rows show {pictures:,} pictures of the tasks")
    if line.near_chance:
        sentences.append("not told from guessing")
    if line.epochs and line.epochs > MOST_EPOCHS:
        sentences.append(f"more than {MOST_EPOCHS} epochs, so few rows are learnt by heart")
    if line.seeds == 1:
        sentences.append("one seed, so nothing tells luck from worth")
    return tuple(sentences)


def _rates(prepared: Prepared, state: RunState) -> dict[str, float | None]:
    """Returns samples per second by arm; arms with the same models share a rate."""
    logged = {name: rate_of(state, name) for name in prepared.arms}
    models = {name: _models(state, name) for name in prepared.arms}
    by_model = {model: rate for name, rate in logged.items() if rate for model in models[name]}
    return {
        name: rate or next((by_model[model] for model in models[name] if model in by_model), None)
        for name, rate in logged.items()
    }


def _models(state: RunState, name: str) -> list[str]:
    """Returns the digests of its models' weights."""
    manifest = read_sealed_as(state.stages[name].folder, MANIFEST, Manifest)
    digests = manifest.output_sha256.items() if manifest else ()
    return [sha256 for file, sha256 in digests if file.endswith(WEIGHTS)]


def rate_of(state: RunState, name: str) -> float | None:
    """Returns the median samples per second of an arm's training steps; None without a log.

    Older stages with fewer seeds count too.
    """
    run = state.run
    logs = [
        f"stages/{folder}/{LOGS}/{entry.name}"
        for folder in run.folders("stages")
        if folder.rpartition("-")[0] == name
        for entry in run.entries(f"stages/{folder}/{LOGS}")
        if entry.name.endswith("log.jsonl")
    ]
    rates = [
        json.loads(line).get("samples_per_s") for log in logs for line in run.read(log).splitlines()
    ]
    known = [rate for rate in rates if rate]
    return float(np.median(known)) if known else None


def _leaks(prepared: Prepared, state: RunState, name: str) -> dict[tuple[str, str], int]:
    """Counts by task and kind the evaluation samples in the arm's rows."""
    keys = prepared.plan.recipe.stages[name]
    stage = state.stages[leaks_of(prepared.plan.recipe.stages, keys["data"])]
    with Outputs(stage.folder).parquet(LEAKS) as file:
        leaks = file.read(columns=["uid", "task", "kind", "sample"])
    if "subset" in keys:
        uids = _uids(state, prepared.arms[name].rows, leaks)
        leaks = leaks.filter(pc.is_in(leaks[UID.name], uids))
    samples = leaks.group_by(["task", "kind", "sample"]).aggregate([])
    return Counter(zip(samples["task"].to_pylist(), samples["kind"].to_pylist(), strict=True))


def _uids(state: RunState, rows: str, leaks: pa.Table) -> pa.Array:
    """Returns the uids of the leaks that are among an arm's rows."""
    parts = [pa.array([], UID.dtype)]
    leaked = pc.unique(leaks[UID.name])
    with state.run.open(subset_name(rows)) as source:
        for batch in pq.ParquetFile(source).iter_batches(columns=[UID.name]):
            uid = batch.column(0)
            parts.append(uid.filter(pc.is_in(uid, leaked)))
    return pa.concat_arrays(parts)
