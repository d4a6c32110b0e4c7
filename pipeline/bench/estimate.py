"""Estimates the cost of a bench before it starts, from rates of its trainings or a few steps."""

import json
import re
import tarfile
from collections.abc import Container, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from math import ceil
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clipmill.metadata.damage import DamagedError
from clipmill.metadata.fingerprint import digest
from clipmill.metadata.outputs import NOTES, OUT, Outputs
from clipmill.metadata.record import MANIFEST, Manifest
from clipmill.metadata.sealed import read_sealed, read_sealed_as
from clipmill.metadata.storage import Storage
from clipmill.pipeline.bench.board import WEIGHTS, rate_of
from clipmill.pipeline.bench.prepare import Prepared
from clipmill.pipeline.bench.spec import LEARNT, RAW, SCORES
from clipmill.pipeline.engine.dataset_job import outside_of
from clipmill.pipeline.engine.journal import journal_of
from clipmill.pipeline.run_folder.state import RunState
from clipmill.pipeline.run_folder.words import duration
from clipmill.pipeline.terminal import plural

WHOLE = re.compile(r"(seed-\d+\.)?model\.json")  # of a whole training, not of a snapshot or average
RESULTS = "results.json"  # of evaluate.zero_shot
DECODE_S = 0.001  # per evaluated picture; at 512 pixels a side 0.002 to 0.004


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Trainings left, and the seconds of one, of its evaluation, and of all of them.

    `rescored` counts evaluations of trained models, each on one task that is new or has changed,
    and `rescoring_s` has the seconds of all of them. `workers` is null on a cluster, whose size is
    unknown: then `seconds` are of one worker.
    """

    trainings: int
    training_s: float
    evaluation_s: float
    workers: int | None
    is_measured: bool  # from earlier trainings of this bench
    is_most: bool = False  # with those of a mixture that is still to be learnt, and by chance
    rescored: int = 0
    rescoring_s: float = 0.0
    usd_per_hour: float | None = None  # of all workers

    @property
    def seconds(self) -> float:
        places = max(1, self.workers or 1)
        rounds = ceil(self.trainings / places)
        return rounds * (self.training_s + self.evaluation_s) + self.rescoring_s / places

    @property
    def usd(self) -> float | None:
        return self.usd_per_hour and self.usd_per_hour * self.seconds / 3600

    def figures(self) -> dict[str, int | float | None]:
        """Returns all of it by name, as JSON has it."""
        return {**asdict(self), "seconds": self.seconds, "usd": self.usd}

    def words(self) -> str:
        """Returns the estimate in a sentence or two."""
        left = "nothing is left to train"
        if self.trainings:
            how = "the rate of trainings here before"
            how = how if self.is_measured else "a few steps on noise"
            each = f"{duration(self.training_s)} and {duration(self.evaluation_s)} to evaluate"
            most = " at most" if self.is_most else ""
            left = f"{plural(self.trainings, 'training')}{most}, about {each} each, by {how}"
        if self.rescored:
            left += f"; {plural(self.rescored, 'evaluation')} of models trained before"
        if not self.seconds:
            return left
        where = "a worker of this machine's speed"
        if self.workers is not None:
            where = f"{max(1, self.workers)} at a time"
        cost = "" if self.usd is None else f", {self.usd:.2f} USD"
        return f"{left}; on {where}: about {duration(self.seconds)}{cost}, and decoding"


def estimated(
    prepared: Prepared, out: Storage, workers: int | None, usd_per_hour: float | None = None
) -> Estimate:
    """Estimates the cost of the trainings that are left, each by its arm's own settings, and of
    the evaluations that trained models lack.

    Error: takes all arms of one network to train as fast as the slowest so far; leaves out probes;
    takes nothing of a stopped evaluation as done; counts equal arms apart until one is trained.
    """
    state = RunState(prepared.plan, out)
    trained, bench = _trained(state, prepared.arms), prepared.bench
    equal = {  # arms of one digest have the same models
        name: digest([prepared.rows_of(name).sha256 or arm.rows, arm.settings])
        for name, arm in prepared.arms.items()
    }
    seeds: dict[str, int] = {}
    for name, files in trained.items():
        seeds[equal[name]] = max(_seeds(files), seeds.get(equal[name], 0))
    left = {name: max(0, bench.seeds - seeds.get(equal[name], 0)) for name in prepared.arms}
    is_most = bool(any(left.values()) and bench.by and LEARNT not in prepared.arms)
    left[RAW] += 2 * bench.seeds if is_most else 0
    stages: dict[str, Any] = {name: prepared.plan.stages[name].stage for name in left}
    rates: dict[str, list[float]] = {}  # by network
    for name, stage in stages.items():
        if rate := rate_of(state, name):
            rates.setdefault(stage.fixed.model, []).append(rate)
    evaluation: Any = prepared.plan.stages[f"{RAW}{SCORES}"].stage  # all arms have its tasks
    scored = _scored(state, evaluation)
    there = pictures(bench.tasks)
    shown = {task: there.get(task, 0) for task in evaluation.names("--tasks")}
    lacking = {  # a model and a task, of whichever arm: some share models; averages are not scored
        (model, task): name
        for name, files in trained.items()
        for file, model in files.items()
        if model and file.endswith(WEIGHTS) and "/" not in file
        for task in shown
        if (model, task) not in scored
    }
    costs: dict[str, tuple[float, float]] = {}  # seconds of a sample, and of an evaluated picture
    training_s = evaluation_s = 0.0
    for name in [*filter(left.get, left), *lacking.values()]:
        network = stages[name].fixed.model
        if network not in costs:
            sample_s, picture_s = stages[name].probe()
            known = rates.get(network)
            costs[network] = 1 / min(known) if known else sample_s, picture_s + DECODE_S
    for name in filter(left.get, left):
        stage, (sample_s, picture_s) = stages[name], costs[stages[name].fixed.model]
        training_s += left[name] * stage.steps * stage.batch_size * sample_s
        evaluation_s += left[name] * stage.snapshots * sum(shown.values()) * picture_s
    cells = sum(left.values())
    return Estimate(
        trainings=cells,
        training_s=training_s / max(1, cells),
        evaluation_s=evaluation_s / max(1, cells),
        workers=workers,
        is_measured=costs.keys() <= rates.keys(),
        is_most=is_most,
        rescored=len(lacking),
        rescoring_s=sum(
            shown[task] * costs[stages[name].fixed.model][1] for (_, task), name in lacking.items()
        ),
        usd_per_hour=usd_per_hour,
    )


def _seeds(files: Iterable[str]) -> int:
    return sum(bool(WHOLE.fullmatch(file)) for file in files)


def _trained(state: RunState, arms: Container[str]) -> dict[str, dict[str, str]]:
    """Returns by arm the files of the most seeds already trained on its current rows, including
    those of older stages and of one that was stopped, and the digest of each."""
    found: dict[str, dict[str, str]] = {}
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
        files: dict[str, str] = {}
        if manifest is None and journal_of(made_of) in stored.folders():
            names = [entry.name for entry in stored.entries(OUT)]
            notes = {name: read_sealed(stored, f"{NOTES}/{name}.json") for name in names}
            files = {name: note["sha256"] if note else "" for name, note in notes.items()}
        elif manifest is not None and manifest.made_of == made_of:
            files = {name: manifest.output_sha256.get(name, "") for name, _ in manifest.outputs}
        if _seeds(files) >= _seeds(found.get(planned.name, ())):
            found[planned.name] = files
    return found


def _scored(state: RunState, stage: Any) -> set[tuple[str, str]]:
    """Returns the digests of evaluated models, each with a task that is there as it was then."""
    found = set()
    outside, digests = stage.outside(), cache(stage.task_digests)
    for folder in state.run.folders("stages"):
        stored = state.run.child("stages").child(folder)
        if not folder.rpartition("-")[0].endswith(SCORES):
            continue
        manifest = read_sealed(stored, MANIFEST)
        if manifest is None or manifest["version"] != stage.version:
            continue
        if manifest["settings"].get("embeddings", False) != stage.embeddings:
            continue
        with suppress(DamagedError):
            models = json.loads(Outputs(stored).read(RESULTS))["models"]
            found |= {
                (model["model"], task)
                for model in models
                for task, result in model["tasks"].items()
                if manifest["outside"] == outside or digests().get(task) == result["sha256"]
            }
    return found


def pictures(tasks: str) -> dict[str, int]:
    """Returns the pictures of each task: those of its first shard times its shards.

    Error: takes a row of a Parquet file for one picture; an association's has a dozen. A shard that
    cannot be read counts none: the evaluation names it.
    """
    folder, found = Storage(tasks), {}
    for task in folder.folders():
        names = [entry.name for entry in folder.entries(f"{task}/test")]
        shards = [name for name in names if name.endswith((".tar", ".parquet"))]
        if shards:
            with suppress(tarfile.TarError, pa.ArrowException):
                found[task] = _pictures_in(folder, f"{task}/test/{min(shards)}") * len(shards)
    return found


def _pictures_in(folder: Storage, path: str) -> int:
    with folder.open(path) as file:
        if path.endswith(".parquet"):
            return int(pq.ParquetFile(file).metadata.num_rows)
        with tarfile.open(fileobj=file) as tar:
            names = [member.name.rpartition("/")[2] for member in tar]
    return len({name.partition(".")[0] for name in names} - {""})
