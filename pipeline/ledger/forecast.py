"""Forecasts a run over more rows on other hardware, from what a smaller one took."""

import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import yaml

from clipmill.pipeline.errors import RecipeError, did_you_mean
from clipmill.pipeline.ledger.work import StageWork, work
from clipmill.pipeline.planning.planned import PlannedStage
from clipmill.pipeline.run_folder.sessions import sessions
from clipmill.pipeline.run_folder.spent import Spent
from clipmill.pipeline.run_folder.state import RunState
from clipmill.pipeline.stage import DatasetStage

HOUR_S = 3600.0
SHARD_PUTS = 3  # of a row stage: its count, data and record (tests/chaos/test_requests.py)
FILE_GETS = 2  # HEAD and GET

Some = Annotated[float, msgspec.Meta(gt=0)]
NoneOrMore = Annotated[float, msgspec.Meta(ge=0)]


class Hardware(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file of `--hardware`: equal nodes and their prices.

    `cpu_speed` is that of a core beside those of the smaller run; `rows_per_s` has the rate of one
    worker of a stage, in place of what was measured.
    """

    nodes: Annotated[int, msgspec.Meta(ge=1)]
    cpus: Some
    memory_gb: Some
    gpus: NoneOrMore = 0
    cpu_speed: Some = 1.0
    rows_per_s: dict[str, Some] = {}
    usd_per_hour: NoneOrMore = 0  # of a node
    usd_per_gb_month: NoneOrMore = 0
    usd_per_million_puts: NoneOrMore = 0
    usd_per_million_gets: NoneOrMore = 0


@dataclass(frozen=True, kw_only=True)
class StageForecast:
    """One stage; `hours` are those of all nodes, with nothing else to do.

    `by`: processor time of the smaller run (`cpu`), its time at work (`clock`: workers that wait
    for a network or a GPU, or an older run), the profile's `rate`, or `nothing`: the smaller run
    has not done it. A stage without rows of a root (a training) costs the same again.
    """

    stage: str
    uses: str
    rows: int
    core_hours: float
    gpu_hours: float
    hours: float
    bytes: int
    objects: int
    puts: int
    gets: int
    by: Literal["cpu", "clock", "rate", "nothing"]


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """A run over `rows` rows, from one over `of_rows`; `usd` pays machines and requests.

    Row stages work side by side, CPUs beside GPUs; the others one after another. Requests are those
    for shards and files: of a shuffle's own pieces there are none in it.
    Error: tests/benchmarks/forecast.py.
    """

    rows: int
    of_rows: int
    hours: float
    core_hours: float
    gpu_hours: float
    bytes: int
    objects: int
    puts: int
    gets: int
    usd: float
    usd_per_month: float
    bottleneck: str
    stages: tuple[StageForecast, ...]


def read_hardware(path: str) -> Hardware:
    """Reads a profile; RecipeError says what is wrong with it."""
    do = "write `nodes: 4`, `cpus: 16`, `memory_gb: 64` of a node, and perhaps gpus and prices"
    try:
        return msgspec.convert(yaml.safe_load(Path(path).read_text(encoding="utf-8")), Hardware)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, msgspec.ValidationError) as error:
        raise RecipeError(f"no hardware profile: {error}", f"--hardware {path}", do) from None


def forecast(state: RunState, rows: int, hardware: Hardware) -> Forecast:
    """Returns what the run's recipe would take over so many rows of all roots together."""
    for name in hardware.rows_per_s.keys() - state.plan.stages.keys():
        do = did_you_mean(name, sorted(state.plan.stages), "the recipe has")
        raise RecipeError(f"no stage '{name}'", "rows_per_s of --hardware", do)
    pools = [s for s in state.stages.values() if s.planned.is_root and not s.planned.parents]
    of_rows = sum(pool.rows for pool in pools)  # a union has the rows of its parents again
    if not of_rows:
        do = "run it over some rows first, or add --probe-shards 3"
        raise RecipeError("no rows to go by", str(state.run), do)
    spent: defaultdict[str, Spent] = defaultdict(Spent)  # by folder, in all sessions
    for ran in sessions(state.run):
        for folder, some in ran.spent.items():
            if some.rows:
                spent[folder].add(some)
    stages = [_stage(state, done, spent, rows / of_rows, hardware) for done in work(state)]
    hours = _hours(state, stages)
    total = {
        name: sum(getattr(stage, name) for stage in stages)
        for name in ("core_hours", "gpu_hours", "bytes", "objects", "puts", "gets")
    }
    requests = total["puts"] * hardware.usd_per_million_puts
    requests += total["gets"] * hardware.usd_per_million_gets
    return Forecast(
        rows=rows,
        of_rows=of_rows,
        hours=hours,
        **total,
        usd=hours * hardware.nodes * hardware.usd_per_hour + requests / 1e6,
        usd_per_month=total["bytes"] / 1e9 * hardware.usd_per_gb_month,
        bottleneck=max(stages, key=lambda stage: stage.hours).stage,
        stages=tuple(stages),
    )


def _stage(
    state: RunState,
    done: StageWork,
    spent_in: defaultdict[str, Spent],
    times: float,
    hardware: Hardware,
) -> StageForecast:
    """Forecasts a stage over `times` as many rows as it had."""
    planned = state.plan.stages[done.stage]
    root = state.stages[planned.root].rows if planned.root else 0
    needs, rate = planned.stage.resources, hardware.rows_per_s.get(planned.name)
    at_once = min(hardware.cpus / needs.cpus, hardware.memory_gb / needs.memory_gb)
    at_once = min(at_once, hardware.gpus / needs.gpus) if needs.gpus else at_once
    slots = int(at_once) * hardware.nodes
    if not slots:
        found = f"a worker takes {needs.cpus} CPU, {needs.gpus:g} GPU, {needs.memory_gb:g} GB"
        raise RecipeError(found, f"stage '{planned.name}'", "give --hardware larger nodes")
    grown, slots = (times, slots) if root else (1.0, 1)
    rows = round(done.rows * times) if planned.is_row else round(root * times)
    spent = spent_in[planned.folder]
    waits = bool(needs.gpus) or planned.stage.determinism == "recorded"
    by: Literal["cpu", "clock", "rate", "nothing"] = "clock" if waits or not spent.rows else "cpu"
    if rate is not None:
        by, busy_s = "rate", rows / rate
        core_s = busy_s * needs.cpus
    elif spent.rows:
        more = rows / spent.rows * _pairs(planned, root, times)
        core_s = spent.cpu_s * more / hardware.cpu_speed
        busy_s = spent.busy_s * more if waits else core_s / needs.cpus
    else:
        by = by if done.seconds else "nothing"
        busy_s = done.seconds * grown * _pairs(planned, root, times)
        core_s = busy_s * needs.cpus
    shards = math.ceil(done.shards * times)
    files = round(len(state.stages[planned.name].outputs) * grown)
    stages_read = len({stage for bound in planned.bindings for stage, _ in bound.values()}) or 1
    read = (state.stages[planned.root].total or 0) if planned.root else 0
    return StageForecast(
        stage=planned.name,
        uses=planned.uses,
        rows=rows,
        core_hours=core_s / HOUR_S,
        gpu_hours=busy_s * needs.gpus / HOUR_S,
        hours=busy_s / slots / HOUR_S,
        bytes=round(done.bytes * grown),
        objects=2 * shards + files,
        puts=(SHARD_PUTS if planned.is_row else 2) * shards + files,
        gets=0 if planned.is_root else FILE_GETS * stages_read * math.ceil(read * times),
        by=by,
    )


def _pairs(planned: PlannedStage, root: int, times: float) -> float:
    """Returns how much more than its rows a stage's work grows: pairs that it compares."""
    stage = planned.stage
    if not isinstance(stage, DatasetStage) or not (before := stage.candidates(root)):
        return 1.0
    return max(1.0, (stage.candidates(round(root * times)) or before) / before / times)


def _hours(state: RunState, stages: list[StageForecast]) -> float:
    """Returns hours to the end: row stages side by side by kind of processor, then the others."""
    hours = {"cpu": 0.0, "gpu": 0.0, "others": 0.0}
    for stage in stages:
        planned = state.plan.stages[stage.stage]
        kind = "gpu" if planned.stage.resources.gpus else "cpu"
        hours[kind if planned.is_row else "others"] += stage.hours
    return max(hours["cpu"], hours["gpu"]) + hours["others"]
