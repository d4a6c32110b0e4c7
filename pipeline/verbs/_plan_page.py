"""Renders a plan as text and as JSON, with notes for the user."""

import dataclasses
from collections import defaultdict
from collections.abc import Mapping
from shutil import get_terminal_size
from typing import Any

from clipmill.metadata.fingerprint import plain
from clipmill.metadata.keys import redacted
from clipmill.metadata.schema import UID
from clipmill.pipeline import own_code
from clipmill.pipeline.engine import environments
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.planning.described import default_of
from clipmill.pipeline.planning.edges import FOLDERS
from clipmill.pipeline.planning.elsewhere import SCHEME
from clipmill.pipeline.planning.looks import Seen
from clipmill.pipeline.planning.plan import Plan
from clipmill.pipeline.planning.planned import PlannedStage
from clipmill.pipeline.run_folder.claim import other_code, own_files
from clipmill.pipeline.run_folder.state import RunState, summary
from clipmill.pipeline.run_folder.words import size
from clipmill.pipeline.stage import DatasetStage, settings_fields
from clipmill.pipeline.terminal import one_line, plural

NOTHING = "nothing is there"  # how the error of a root without files ends
WIDTH = 80  # columns if the output is no terminal
SIZES = (10**6, 10**8, 10**10)  # pool sizes for which quadratic work is shown


def as_json(plan: Plan, state: RunState | None, seen: Mapping[str, Seen]) -> dict[str, Any]:
    """Returns every stage: settings, bindings, resources, source, and what is done."""
    return {
        "recipe": plan.recipe.path,
        "seed": plan.seed,
        "stages": [_stage_json(plan, planned, state, seen) for planned in plan.stages.values()],
        "own_code": _own(plan),
        "notes": _folder_notes(state),
    }


def _own(plan: Plan) -> dict[str, str]:
    """Returns path to SHA-256 of each of the user's files that the plan needs."""
    used = {below for files in own_files(plan).values() for below in files}
    return {str(own_code.own()[file].path): own_code.own()[file].digest for file in sorted(used)}


def _folder_notes(state: RunState | None) -> list[str]:
    """Returns notes on the run folder's contents."""
    return other_code(state.plan, state.run) if state else []


def screen(plan: Plan, state: RunState | None, seen: Mapping[str, Seen], run: str) -> str:
    """Returns a line a stage: what it reads and what is done; `text` has all details.

    `run` is the command that runs the plan.
    """
    lines = [f"{plan.recipe.name}: {plural(len(plan.stages), 'stage')}, seed {plan.seed}"]
    names = max(map(len, plan.stages))
    uses = max(len(planned.uses) for planned in plan.stages.values())
    for planned in plan.stages.values():
        done = summary(state.stages[planned.name]) if state else ""
        left = f"  {planned.name:<{names}}  {planned.uses:<{uses}}  "
        shown = _source(seen.get(planned.name)) or _reads(planned)
        room = max(16, get_terminal_size((WIDTH, 24)).columns - len(left) - len(done) - 2)
        shown = shown if len(shown) <= room else f"{shown[: room - 1].rstrip(' ,')}…"
        lines.append(f"{left}{shown:<{room if done else 0}}  {done}".rstrip())
    lines += [f"  own code: {file} (SHA-256 {digest[:12]})" for file, digest in _own(plan).items()]
    lines += [f"  note: {note}" for note in [*notes(plan), *_folder_notes(state)]]
    if not any(source.error for source in seen.values()):
        lines.append(f"next: {run}")
    return "\n".join(lines)


def _source(seen: Seen | None) -> str:
    """Returns what a root reads, `17,950 rows in 64 shards, 3.4 MB`; empty for other stages."""
    if seen is None:
        return ""
    if isinstance(seen.error, StageError) and not str(seen.error.args[0]).endswith(NOTHING):
        return "does not fit its settings, or what reads it"
    if seen.error is not None or seen.is_late:
        return "is not there" if seen.error else "no answer in 2 s: not looked at"
    if seen.files is None or seen.bytes is None:
        return ""
    parts = [plural(seen.files, "file"), size(seen.bytes)]
    if seen.rows is not None and seen.shards is not None:
        parts = [plural(seen.rows, "row"), plural(seen.shards, "shard"), *parts]
    return ", ".join(parts)


def _reads(planned: PlannedStage) -> str:
    """Returns the stages that a stage reads: `from a, b`, `model stage:c`, `rows d`."""
    parts = [f"from {', '.join(planned.parents)}"] if planned.parents else []
    parts += [f"data {data}"] if (data := _data_of(planned)) else []
    parts += [f"rows {planned.kept_by}"] if planned.kept_by else []
    others = ((edge, getattr(planned, edge)) for edge in (*FOLDERS, "only"))
    parts += [f"{edge} {stage}" for edge, stage in others if stage]
    return ", ".join(parts)


def _data_of(planned: PlannedStage) -> str | None:
    """Returns the setting `data` without keys."""
    return planned.data if planned.elsewhere is None else SCHEME + redacted(planned.elsewhere)


def text(plan: Plan, state: RunState | None, seen: Mapping[str, Seen]) -> str:
    """Returns a paragraph a stage."""
    lines = [f"{plan.recipe.path}, seed {plan.seed}: {len(plan.stages)} stages", ""]
    for planned in plan.stages.values():
        entry = _stage_json(plan, planned, state, seen)
        done = f"  [{entry['done']}]" if "done" in entry else ""
        lines.append(f"{planned.name}: {planned.uses} v{planned.stage.version}{done}")
        defaults = {f.name: plain(default_of(f)) for f in settings_fields(planned.stage)}
        settings = {
            key: value for key, value in entry["settings"].items() if value != defaults[key]
        }
        pairs = (f"{n:.1e} of {int(k):,} rows" for k, n in entry.get("candidates", {}).items())
        compared = ", ".join(pairs)
        needs = entry["resources"]
        gpus = f", {needs['gpus']} GPUs" if needs["gpus"] else ""
        rows = [
            ("source", _source(seen.get(planned.name))),
            ("from", ", ".join(entry["from"])),
            *((edge, entry[edge]) for edge in ("data", "rows", *FOLDERS, "only")),
            ("settings", ", ".join(f"{k}: {one_line(as_yaml(v))}" for k, v in settings.items())),
            ("reads", ", ".join(entry["reads"])),
            ("writes", ", ".join(entry["writes"])),
            ("compares", compared and f"pairs: {compared}"),
            ("note", entry.get("note")),
            *(("python", _python(other)) for other in entry.get("environments", [])),
            (
                "needs",
                f"{needs['cpus']} CPU{gpus}, {needs['memory_gb']} GB a worker;"
                f" {planned.stage.determinism}; folder {planned.folder}",
            ),
        ]
        lines += [*(f"  {label:<9} {value}" for label, value in rows if value), ""]
    lines += [f"own code: {file} (SHA-256 {digest})" for file, digest in _own(plan).items()]
    lines += [f"note: {note}" for note in _folder_notes(state)]
    return "\n".join(lines).rstrip()


def as_yaml(value: Any) -> str:
    """Returns a setting in a recipe's form: `{column: score, fraction: 0.3}`, `true`, `[a, b]`."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {as_yaml(item)}' for key, item in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(as_yaml, value))}]"
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else str(value)


def _stage_json(
    plan: Plan, planned: PlannedStage, state: RunState | None, seen: Mapping[str, Seen]
) -> dict[str, Any]:
    stage = planned.stage
    entry: dict[str, Any] = {
        "name": planned.name,
        "uses": planned.uses,
        "version": stage.version,
        "determinism": stage.determinism,
        "from": list(planned.parents),
        "data": _data_of(planned),
        "rows": planned.kept_by,
        **{edge: getattr(planned, edge) for edge in (*FOLDERS, "only")},
        "settings": {
            field.name: plain(getattr(stage, field.name)) for field in settings_fields(stage)
        },
        "reads": [
            f"{read} = {source}.{column}" if read != column else f"{source}.{column}"
            for bound in planned.bindings
            for read, (source, column) in bound.items()
        ],
        "writes": [column.name for column in stage.writes if column is not UID],
        "resources": dataclasses.asdict(stage.resources),
        "folder": planned.folder,
    }
    if isinstance(stage, DatasetStage):
        expected = {rows: stage.candidates(rows) for rows in _sizes(planned, state)}
        if None not in expected.values():
            entry["candidates"] = {str(rows): pairs for rows, pairs in expected.items()}
    if stage.environments:
        entry["environments"] = [
            {
                "packages": list(environment.packages),
                "python": str(python) if (python := environments.made(environment)) else None,
            }
            for environment in stage.environments
        ]
    if note := _note(plan, planned):
        entry["note"] = note
    if (source := seen.get(planned.name)) and source.files is not None:
        sizes = ("files", "bytes", "rows", "shards")
        entry["source"] = {name: getattr(source, name) for name in sizes}
    if state is not None:
        entry["done"] = summary(state.stages[planned.name])
    return entry


def _python(environment: Mapping[str, Any]) -> str:
    """Returns packages and place: `xllamacpp>=2026.10: made at the first run, in /cache`."""
    place = environment["python"] or f"made at the first run, in {environments.cache_folder()}"
    return f"{', '.join(environment['packages'])}: {place}"


def notes(plan: Plan) -> list[str]:
    """Returns notes for the user on a plan that can be run; stages with one note share a line."""
    names = defaultdict(list)
    for name, planned in plan.stages.items():
        if note := _note(plan, planned):
            names[note].append(f"'{name}'")
    return [f"{', '.join(of_note)}: {note}" for note, of_note in names.items()]


def _note(plan: Plan, planned: PlannedStage) -> str:
    """Returns a note on packages to fetch, on copies ranked by several orders, or the stage's."""
    missing = [each for each in planned.stage.environments if environments.made(each) is None]
    if missing:
        packages = ", ".join(package for each in missing for package in each.packages)
        return f"makes a Python of its own at the first run, with {packages}"
    if not planned.is_select:
        return planned.stage.note
    order: dict[str, Any] = {}
    for name in sorted({source for source, _ in planned.bindings[0].values()}):
        stage, bindings = plan.stages[name].stage, plan.stages[name].bindings
        if any(column.names in ("keeper", "neighbour") for column in stage.writes):
            order[name] = tuple((bindings[0][column], way) for column, way in stage.prefers)
    if len(set(order.values())) < 2:
        return ""
    return (
        f"{', '.join(order)} keep by several orders: of two copies each may go for the other."
        " Give them one `keep`"
    )


def _sizes(planned: PlannedStage, state: RunState | None) -> tuple[int, ...]:
    """Returns the pool's rows if known, else SIZES."""
    root = state.stages[planned.root] if state and planned.root else None
    if root and root.complete:
        return (root.shards.rows,)
    return SIZES
