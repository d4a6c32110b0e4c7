"""Estimates the cost of a bench before it starts, from rates of its trainings or a few steps."""

import re
import tarfile
from contextlib import suppress
from dataclasses import dataclass
from math import ceil
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clipmill.metadata.record import MANIFEST, Manifest
from clipmill.metadata.sealed import read_sealed_as
from clipmill.metadata.storage import Storage
from clipmill.pipeline.bench.board import rate_of
from clipmill.pipeline.bench.prepare import Prepared
from clipmill.pipeline.bench.spec import LEARNT, RAW
from clipmill.pipeline.run_folder.state import RunState
from clipmill.pipeline.run_folder.words import duration

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
            f"{self.trainings} trainings{' at most' if self.is_most else ''}, about {each} each,"
            f" by {how};"
            f" on {where}: about {duration(self.seconds)}{cost}, and decoding"
        )


def estimated(prepared: Prepared, out: Storage, workers: int | None) -> Estimate:
    """Estimates the cost of the trainings that are left."""
    state = RunState(prepared.plan, out)
    trained = _trained(state)
    bench = prepared.bench
    cells = sum(max(0, bench.seeds - trained.get(name, 0)) for name in prepared.arms)
    is_most = bool(cells and bench.by and LEARNT not in prepared.arms)
    cells += 2 * bench.seeds if is_most else 0
    training: Any = prepared.plan.stages[RAW].stage
    samples = training.steps * training.batch_size
    known = [rate for name in prepared.arms if (rate := rate_of(state, name))]
    sample_s, picture_s = (0.0, 0.0) if not cells else training.probe()
    if known:
        sample_s = 1 / min(known)
    return Estimate(
        trainings=cells,
        training_s=samples * sample_s,
        evaluation_s=pictures(bench.tasks) * (picture_s + DECODE_S),
        workers=workers,
        is_measured=bool(known),
        is_most=is_most,
    )


def _trained(state: RunState) -> dict[str, int]:
    """Counts by arm the seeds already trained on its current rows, including older stages."""
    seeds: dict[str, int] = {}
    for folder in state.run.folders("stages"):
        planned = state.plan.stages.get(arm := folder.rpartition("-")[0])
        manifest = read_sealed_as(state.run, f"stages/{folder}/{MANIFEST}", Manifest)
        if planned is None or manifest is None or manifest.inputs != state.inputs_digest(planned):
            continue
        stage: Any = planned.stage
        if manifest.outside == stage.outside():
            models = sum(bool(WHOLE.fullmatch(name)) for name, _ in manifest.outputs)
            seeds[arm] = max(models, seeds.get(arm, 0))
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
