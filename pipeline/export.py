"""`clipmill export`: writes rows of a finished stage to a folder, by an added export stage.

The files are made in the run folder, under a fingerprint like any stage's, and copied from there:
a killed export resumes, and a finished one is found. The run's last recipe stays as it is, so other
verbs do not see the export.
"""

import dataclasses
import json
import re
import shutil
import uuid
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from clipmill.metadata.damage import DamagedError
from clipmill.metadata.datacard import SUMMARY
from clipmill.metadata.keys import redacted
from clipmill.metadata.outputs import Outputs
from clipmill.metadata.places import is_places
from clipmill.metadata.schema import CAPTION, CLUSTER_ID, IMAGE, IMAGE_EMBEDDING, KEEP, LISTED, UID
from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.dataset_job import DatasetJob
from clipmill.pipeline.engine.repair import take_away
from clipmill.pipeline.engine.running import Running
from clipmill.pipeline.errors import RecipeError, StageError, did_you_mean
from clipmill.pipeline.planning.bindings import columns_of
from clipmill.pipeline.planning.plan import Plan, make_plan
from clipmill.pipeline.planning.planned import Binding, PlannedStage
from clipmill.pipeline.planning.settings import declaring, stage_class
from clipmill.pipeline.run_folder import lock
from clipmill.pipeline.run_folder.live import LiveReporter
from clipmill.pipeline.run_folder.state import RunState, listing_over, summary
from clipmill.pipeline.target import refuse_others

if TYPE_CHECKING:
    from clipmill.pipeline.executors import Executor
    from clipmill.pipeline.run_folder.live import Watcher

TEXTS = ("parquet", "webdataset", "huggingface")  # formats with pictures and every text of a row
PICTURES = (*TEXTS, "map")
TABLES = ("csv", "jsonl")
NUMBERED = re.compile(r"(data/train-\d{5,}-of-)?\d{5,}(\.parquet|\.tar|_stats\.json)")
ALWAYS = (UID.name, CAPTION.name, IMAGE.name)  # columns of every format with pictures


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exported:
    """A finished export: `exported` of the stage's `rows`; `left` counts the others by reason.

    `is_selected` says whether a select stage chose the rows; `copied` counts files that were not
    in the folder yet.
    """

    stage: str
    dropped: str | None = None  # reason for which the stage lost the exported rows
    out: str
    rows: int
    exported: int
    left: dict[str, int]
    is_selected: bool
    files: tuple[str, ...]
    bytes: int
    copied: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """A request for an export: a stage's rows, or those lost for a reason; format and columns.

    `captions` are the lists of texts to export beside the original; empty: those the format finds.
    `decided` maps the columns that the reason names to their places in the plan.
    """

    to: str
    stage: str | None = None  # None: the last select stage
    columns: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    dropped: str | None = None
    decided: Mapping[str, Binding] = dataclasses.field(default_factory=dict)


def export(
    state: RunState,
    request: ExportRequest,
    out: str | None,
    executor: "Executor",
    watcher: "Watcher",
    replaces: bool = False,
) -> Exported:
    """Writes the rows to a folder; StageError if there are none.

    RecipeError if the folder holds another export, unless this one `replaces` it.

    Without `out` they stay in the run folder; an equal export stage of the recipe is used if there
    is one. The result's `out` is the stage's folder then.
    """
    stage = _stage(state, request.stage)
    _refuse_listed(state, stage, request.dropped)
    plan, name = planned_export(state.plan, stage, request)
    target = Storage(out) if out is not None else None
    if target:
        _refuse_other_files(target, None)
    else:
        for other, planned in state.plan.stages.items():
            if (
                planned.fingerprint == plan.stages[name].fingerprint
                and state.stages[other].complete
            ):
                plan, name = make_plan(state.plan.recipe, until=other), other
                break
    with lock.held(state.run) as owned:
        today = RunState(plan, owned)
        reporter = LiveReporter(today, owned, watcher)
        reporter.show_only(name, executor)
        running = Running(
            plan=plan,
            state=today,
            executor=executor,
            watcher=reporter,
            run_id=uuid.uuid4().hex,
            retry=(),
            crash_ok=False,
        )
        check_done(running.state, plan.stages[name])
        try:
            result = _run_and_copy(running, plan.stages[name], stage, target, replaces)
        except DamagedError as damage:
            folder = running.state.stages[name].folder
            if damage.folder != folder.uri:
                raise
            take_away(folder, [damage.name])
            running.state.rescan(name)
            result = _run_and_copy(running, plan.stages[name], stage, target, replaces)
        finally:
            owned.sweep(today.sealed)
    return dataclasses.replace(
        result, dropped=request.dropped, out=result.out if out is None else redacted(out)
    )


def _run_and_copy(
    running: Running, planned: PlannedStage, stage: str, target: Storage | None, replaces: bool
) -> Exported:
    """Runs the export unless it is done, and copies missing files."""
    for stopped in DatasetJob(running, planned).run():
        raise stopped
    outputs = Outputs(running.state.stages[planned.name].folder)
    left = dict(json.loads(outputs.read(SUMMARY))["counts"])
    rows, exported = left.pop("rows"), left.pop("exported")
    left = {reason: count for reason, count in left.items() if count}
    if not exported:
        why = ", ".join(f"{count:,} {reason}" for reason, count in left.items())
        where = f"stage '{stage}'"
        do = "clipmill funnel --run … shows where the rows went"
        raise StageError(f"no row to export: of {rows:,} rows {why or 'none is left'}", where, do)
    files = [name for name in outputs.names if not is_places(name)]
    return Exported(
        stage=stage,
        out=outputs.folder.uri,
        rows=rows,
        exported=exported,
        left=left,
        is_selected=KEEP.name in planned.bindings[0],
        files=tuple(files),
        bytes=sum(outputs.sizes[name] for name in files),
        copied=_copy(outputs, files, target, replaces) if target else 0,
    )


def _copy(outputs: Outputs, files: list[str], target: Storage, replaces: bool) -> int:
    """Copies files that the folder lacks, dataset.json last; returns how many."""
    source = outputs.folder
    if target.has(SUMMARY) and target.sha256(SUMMARY) != source.sha256(f"out/{SUMMARY}"):
        if not replaces:
            do = "give another --out, or --replace, which deletes that export"
            raise RecipeError("the folder holds another export", str(target), do)
        names = [entry.name for entry in target.entries(below=True)]
        gone = [name for name in names if name == SUMMARY or _may_be_exported(name)]
        _refuse_other_files(target, gone)
        for name in sorted(gone, key=lambda name: name != SUMMARY):  # a loader reads none of a part
            target.delete(name)
    _refuse_other_files(target, files)
    sizes = {entry.name: entry.size for entry in target.entries(below=True)}
    copied = 0
    for file in sorted(files, key=lambda name: name == SUMMARY):
        outputs.check(file)
        is_there = sizes.get(file) == outputs.sizes[file]
        if is_there and target.sha256(file) == source.sha256(f"out/{file}"):
            continue
        with target.scratch(file) as scratch:
            with source.open(f"out/{file}") as opened, scratch.open("wb") as sink:
                shutil.copyfileobj(opened, sink, 8 << 20)
            target.commit(scratch, file)
        copied += 1
    return copied


def _refuse_other_files(target: Storage, files: Collection[str] | None) -> None:
    """Raises RecipeError if the folder holds other files: a loader would read both.

    Without `files`, refuses only files that no export writes.
    """
    present = [entry.name for entry in target.entries(below=True)]
    if files is None and SUMMARY in present:
        return
    ours = files if files is not None else filter(_may_be_exported, present)
    named = [name.rpartition("/") for name in ours]
    # Looks at the top, and into the folders that files of ours lie in.
    for folder in dict.fromkeys(("", *(folder for folder, _, _ in named))):
        names = {name for parent, _, name in named if parent == folder}
        names |= {parent for parent, _, _ in named} if not folder else set()
        subfolder = target.child(folder) if folder else target
        refuse_others(subfolder, names, "give --out a folder that is empty or new")


def _may_be_exported(name: str) -> bool:
    """Returns whether a killed export may have left a file of that name."""
    return bool(NUMBERED.fullmatch(name)) or name in (
        "README.md",
        "croissant.json",
        "uids.npy",
        "rows.csv",
        "rows.jsonl",
        "map.parquet",
    )


def _stage(state: RunState, stage: str | None) -> str:
    """Returns the stage to export: the named one, else the only last select stage."""
    stages = state.plan.stages
    with_rows = [name for name, planned in stages.items() if planned.gives_rows]
    selects = [name for name in with_rows if stages[name].is_select]
    if stage is None:
        built_on = {need for name in selects for need in state.plan.needs_of(name) - {name}}
        ends = [name for name in selects if name not in built_on]
        if len(ends) == 1:
            return ends[0]
        found = f"{len(ends)} select stages end this recipe" if ends else "no select stage"
        do = f"say which rows leave: --stage {' or '.join(ends or with_rows)}"
        raise RecipeError(found, "the arguments", do)
    if stage not in stages:
        do = did_you_mean(stage, selects + with_rows, "stages with rows")
        raise RecipeError(f"no stage '{stage}'", "--stage", do)
    if stage not in with_rows:
        raise RecipeError(
            f"'{stage}' ({stages[stage].uses}) holds no rows of a pool",
            "--stage",
            f"name a select stage: {', '.join(selects)}"
            if selects
            else f"name a stage with rows: {', '.join(with_rows)}",
        )
    return stage


def _refuse_listed(state: RunState, stage: str, dropped: str | None) -> None:
    """Raises RecipeError if rows that a list names would leave."""
    do = "export what a select keeps that builds on the list"
    if dropped == LISTED:
        raise RecipeError(f"rows that '{stage}' has {LISTED} do not leave", "--dropped", do)
    for name in listing_over(state, state.plan.stages[stage].root):
        if name not in {stage, *state.plan.needs_of(stage)}:
            found = f"'{name}' has {LISTED} rows of '{stage}', which does not build on it"
            raise RecipeError(found, "--stage", do)


def planned_export(plan: Plan, stage: str, request: ExportRequest) -> tuple[Plan, str]:
    """Returns the plan with the export added, and the export's name."""
    _check_columns(plan, stage, request)
    settings: dict[str, Any] = {**_format_keys(request.to), "from": stage}
    if request.dropped is not None:
        lost = {"stage": stage, "reason": request.dropped, "decided": list(request.decided)}
        read = {name: ".".join(where) for name, where in request.decided.items()}
        settings |= {"dropped": lost, "read": read}
    columns = [name for name in request.columns if name not in {UID.name, *request.decided}]
    if request.to in PICTURES:
        columns = [name for name in columns if name not in ALWAYS]
    if columns:
        settings["columns"] = list(dict.fromkeys(columns))
    if request.captions:
        settings["captions"] = list(dict.fromkeys(request.captions))
    name = f"{'export' if request.dropped is None else 'dropped'}_{stage}_{request.to}"
    recipe = dataclasses.replace(plan.recipe, stages={**plan.recipe.stages, name: settings})
    return make_plan(recipe, until=name), name


def _format_keys(to: str) -> dict[str, Any]:
    """Returns the recipe's keys for `--to`."""
    for uses in declaring("formats"):
        if to in (formats := stage_class(uses, "--to").formats):
            return {"uses": uses, **({"format": to} if len(formats) > 1 else {})}
    raise RecipeError(f"no format '{to}'", "--to", "`clipmill export --help` names all")


def _check_columns(plan: Plan, stage: str, request: ExportRequest) -> None:
    """Raises RecipeError for columns that the format or the stage does not have."""
    visible = list(_visible(plan, stage))
    if request.to in PICTURES and IMAGE.name not in visible:
        found = f"--to {request.to} needs pictures, and '{stage}' stands before there are any"
        do = "--to csv, jsonl and uid_list need none; else name a later stage"
        raise RecipeError(found, "the arguments", do)
    if request.to == "map":
        _check_map(stage, visible, request)
    if request.columns and request.to == "uid_list":
        raise RecipeError(
            "a list of uids has no columns", "--columns", "--to csv or jsonl writes a table"
        )
    if request.captions and request.to not in TEXTS:
        table = (
            f"; in a table, --columns {','.join(request.captions)}" if request.to in TABLES else ""
        )
        do = f"those to {', '.join(TEXTS)} have{table}"
        raise RecipeError(f"an export to {request.to} has no texts of a row", "--captions", do)
    for column in request.captions:
        if column not in visible:
            lists = [name for name in visible if name.endswith((".captions", ".texts"))]
            do = did_you_mean(column, lists, f"lists of captions before '{stage}'")
            raise RecipeError(f"no column '{column}' at stage '{stage}'", "--captions", do)
    for column in request.columns:
        if column == IMAGE.name and request.to not in PICTURES:
            do = f"--to {' or '.join(PICTURES)} holds pictures; leave 'image' out for a table"
            raise RecipeError(f"a table in {request.to} holds no pictures", "--columns image", do)
        if column not in (*visible, *ALWAYS):
            known = [name for name in visible if ("." in name) == ("." in column)]
            do = did_you_mean(column, known, f"'{stage}' sees")
            raise RecipeError(f"no column '{column}' at stage '{stage}'", "--columns", do)


def _check_map(stage: str, visible: list[str], request: ExportRequest) -> None:
    """Raises RecipeError if the stage has no embedding or cluster, or lost rows are wanted."""
    for column in (IMAGE_EMBEDDING, CLUSTER_ID):
        if column.name not in visible:
            raise RecipeError(
                f"--to map needs '{column.name}', and none is before '{stage}'",
                "the arguments",
                "--stage names one after a stage that writes it, as `clipmill stages export.map`"
                " shows",
            )
    if request.dropped is not None:
        found = "a map holds the rows that are dropped too: its column `kept` is false there"
        raise RecipeError(found, "--dropped", "leave it out")


def _visible(plan: Plan, stage: str) -> Iterator[str]:
    """Yields names of the columns of a stage and those before it, then each as `stage.column`."""
    needed = plan.needs_of(stage)
    line = [name for name in plan.stages if name in needed]
    for is_whole in (False, True):
        for name in line:
            for column in columns_of(plan.stages[name].stage):
                yield f"{name}.{column.name}" if is_whole else column.name


def check_done(state: RunState, planned: PlannedStage) -> None:
    """Raises RecipeError if a stage that the export reads is not complete: none is run for it."""
    for need in planned.needs:
        stage = state.stages[need]
        if not stage.complete:
            do = "run the recipe to its end first"
            raise RecipeError(f"stage '{need}' is not done: {summary(stage)}", str(state.run), do)
