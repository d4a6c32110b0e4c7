"""Estimates the cost of a bench before it starts, from rates of its trainings or a few steps."""

import re
import tarfile
from collections.abc import Container
from contextlib import suppress
from dataclasses import dataclass
from math import ceil
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clipmill.metadata.outputs import OUT
from clipmill.metadata.record import MANIFEST, Manifest
from clipmill.metadata.sealed import read_sealed_as
from clipmill.metadata.storage import Storage
from clipmill.pipeline.bench.board import rate_of
from clipmill.pipeline.bench.prepare import Prepared
from clipmill.pipeline.bench.spec import LEARNT, RAW
from clipmill.pipeline.engine.dataset_job import outside_of
from clipmill.pipeline.engine.journal import journal_of
from clipmill.pipeline.run_folder.state import RunState
from clipmill.pipeline.run_folder.words import duration
from clipmill.pipeline.terminal import plural

WHOLE = re.compile(r"(seed-\d+\.)?model\.json")  # of a whole training, not of a snapshot or average
DECODE_S = 0.001  # per evaluated picture; at 512 pixels a side 0.002 to 0.004


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Trainings left, and the seconds of one, of its evaluation, and of all of them.

    `workers` is null on a cluster, whose size is unknown: then `seconds` are of one worker.
    """

    trainings: int
    training_s: float
    evaluation_s: float
    workers: int | None
    is_measured: bool  # from earlier trainings of this bench
    is_most: bool = False  # with those of a mixture that is still to be learnt, and by chance

    @property
    def seconds(self) -> float:
        rounds = ceil(self.trainings / max(1, self.workers or 1))
        return rounds * (self.training_s + self.evaluation_s)

    def words(self, usd_per_hour: float | None) -> str:
        """Returns the estimate in a sentence or two."""
        if not self.trainings:
            return "nothing is left to train"
        how = "the rate of trainings here before" if self.is_measured else "a few steps on noise"
        where = "a worker of this machine's speed"
        if self.workers is not None:
            where = f"{max(1, self.workers)} at a time"
        each = f"{duration(self.training_s)} and {duration(self.evaluation_s)} to evaluate"
        cost = f", {usd_per_hour * self.seconds / 3600:.2f} USD" if usd_per_hour else ""
        return (
            f"{plural(self.trainings, 'training')}{' at most' if self.is_most else ''},"
            f" about {each} each, by {how};"
            f" on {where}: about {duration(self.seconds)}{cost}, and decoding"
        )


def estimated(prepared: Prepared, out: Storage, workers: int | None) -> Estimate:
    """Estimates the cost of the trainings that are left, each by its arm's own settings.

    Error: takes all arms of one network to train as fast as the slowest so far.
    """
    state = RunState(prepared.plan, out)
    trained, bench = _trained(state, prepared.arms), prepared.bench
    left = {name: max(0, bench.seeds - trained.get(name, 0)) for name in prepared.arms}
    is_most = bool(any(left.values()) and bench.by and LEARNT not in prepared.arms)
    left[RAW] += 2 * bench.seeds if is_most else 0
    stages: dict[str, Any] = {name: prepared.plan.stages[name].stage for name in left}
    rates: dict[str, list[float]] = {}  # by network
    for name, stage in stages.items():
        if rate := rate_of(state, name):
            rates.setdefault(stage.fixed.model, []).append(rate)
    shown = pictures(bench.tasks)
    costs: dict[str, tuple[float, float]] = {}  # seconds of a sample, and of a model's evaluation
    training_s = evaluation_s = 0.0
    for name, seeds in left.items():
        stage = stages[name]
        network = stage.fixed.model
        if seeds and network not in costs:
            sample_s, picture_s = stage.probe()
            known = rates.get(network)
            costs[network] = 1 / min(known) if known else sample_s, shown * (picture_s + DECODE_S)
        if seeds:
            training_s += seeds * stage.steps * stage.batch_size * costs[network][0]
            evaluation_s += seeds * stage.snapshots * costs[network][1]
    cells = sum(left.values())
    return Estimate(
        trainings=cells,
        training_s=training_s / max(1, cells),
        evaluation_s=evaluation_s / max(1, cells),
        workers=workers,
        is_measured=costs.keys() <= rates.keys(),
        is_most=is_most,
    )


def _trained(state: RunState, arms: Container[str]) -> dict[str, int]:
    """Counts by arm the seeds already trained on its current rows, including those of older stages
    and of one that was stopped."""
    seeds: dict[str, int] = {}
    for folder in state.run.folders("stages"):
        planned = state.plan.stages.get(folder.rpartition("-")[0])
        if planned is None or planned.name not in arms:
            continue
        if (inputs := state.inputs_digest(planned)) is None:
            continue
        stored = state.run.child("stages").child(folder)
        manifest = read_sealed_as(stored, MANIFEST, Manifest)
        outside = outside_of(planned, manifest)
        made_of = Manifest(shards=0, rows=0, inputs=inputs, outside=outside).made_of
        names: list[str] = []
        if manifest is None and journal_of(made_of) in stored.folders():
            names = [entry.name for entry in stored.entries(OUT)]
        elif manifest is not None and manifest.made_of == made_of:
            names = [name for name, _ in manifest.outputs]
        models = sum(bool(WHOLE.fullmatch(name)) for name in names)
        seeds[planned.name] = max(models, seeds.get(planned.name, 0))
    return seeds


def pictures(tasks: str) -> int:
    """Returns the pictures of all tasks: those of a task's first shard times its shards.

    Error: takes a row of a Parquet file for one picture; an association's has a dozen. A shard that
    cannot be read counts none: the evaluation names it.
    """
    folder, total = Storage(tasks), 0
    for task in folder.folders():
        names = [entry.name for entry in folder.entries(f"{task}/test")]
        shards = [name for name in names if name.endswith((".tar", ".parquet"))]
        if shards:
            with suppress(tarfile.TarError, pa.ArrowException):
                total += _pictures_in(folder, f"{task}/test/{min(shards)}") * len(shards)
    return total


def _pictures_in(folder: Storage, path: str) -> int:
    with folder.open(path) as file:
        if path.endswith(".parquet"):
            return int(pq.ParquetFile(file).metadata.num_rows)
        with tarfile.open(fileobj=file) as tar:
            names = [member.name.rpartition("/")[2] for member in tar]
    return len({name.partition(".")[0] for name in names} - {""})
