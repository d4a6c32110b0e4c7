"""What every stage said of one sample: the ledger, read at one row."""

import re
from collections import Counter
from functools import partial
from math import isfinite
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from metadata.schema import IMAGE, KEEP, REASON, UID
from metadata.shard import NOT_SELECTED, read_file
from metadata.storage import Storage
from pipeline.errors import RecipeError
from pipeline.funnel import askable, trace
from pipeline.plan import PlannedStage
from pipeline.state import RunState

LONG = 200  # characters of a value that are shown


def why(state: RunState, uid: str) -> dict[str, Any]:
    """Each stage's values and verdict for the sample, where it went, and a sentence on why."""
    wanted = uid.strip().lower().replace("-", "")
    if not re.fullmatch("[0-9a-f]{8,32}", wanted):
        raise RecipeError(
            f"'{uid}' is no uid", "the arguments", "give 32 hex digits, or the first 8 or more"
        )
    places = list(_find(state, wanted))
    if not places:
        raise RecipeError(
            f"no sample {uid}", str(state.run), "check the uid; `funnel` shows which pool this is"
        )
    _, shard, position, whole = places[0]
    if len({found for *_, found in places}) > 1:
        uids = ", ".join(found.hex() for *_, found in places[:5])
        raise RecipeError(
            f"{len(places)} samples begin with {uid}: {uids}", str(state.run), "give more digits"
        )
    first: dict[str | None, tuple[int, int]] = {}  # by root: a union holds its parents' rows again
    for root, *place, _ in places:
        first.setdefault(root, tuple(place))
    rows = {
        planned.name: (planned, *first[planned.root])
        for planned in state.plan.stages.values()
        if planned.stage.gives == "rows"
        and planned.root in first
        and first[planned.root][0] in state.stages[planned.name].shards
    }
    stages = [_said(state, *row) for row in rows.values()]
    return {
        "uid": whole.hex(),
        "shard": shard,
        "position": position,
        "copies": max(Counter(root for root, *_ in places).values()),
        "stages": stages,
        "ends": [
            _end(state, said, *rows[said["stage"]]) for said in stages if "keep" in said["values"]
        ],
        "exported": _exported(state, whole),
    }


def _find(state: RunState, prefix: str) -> Any:
    """(root, shard, position, uid) of every row whose uid begins so: a scan of the uids."""
    low = bytes.fromhex(prefix.ljust(32, "0"))
    high = bytes.fromhex(prefix.ljust(32, "f"))
    for name, stage in state.stages.items():
        if not stage.planned.is_root:
            continue
        for shard, shard_state in sorted(stage.shards.items()):
            start = 0
            for table in read_file(stage.folder, shard_state.files[0], [UID.name], 1 << 20):
                column = table[UID.name].cast(pa.binary())
                hit = pc.and_(
                    pc.greater_equal(column, pa.scalar(low, pa.binary())),
                    pc.less_equal(column, pa.scalar(high, pa.binary())),
                )
                if pc.any(hit).as_py():
                    for index in pc.indices_nonzero(hit).to_pylist():
                        yield name, shard, start + index, column[index].as_py()
                start += len(table)


def _said(state: RunState, planned: PlannedStage, shard: int, position: int) -> dict[str, Any]:
    """One stage's columns and reason at one row."""
    part = state.parts[planned.name]
    names = [
        column.name
        for column in planned.stage.writes
        if column.name not in (IMAGE.name, *(v.name for v in getattr(planned.stage, "virtual", ())))
    ]
    row = state.cell(planned.name, shard, position, [*names, REASON.name])
    reason = row.pop(REASON.name)
    return {
        "stage": planned.name,
        "uses": planned.uses,
        "values": {name: _shown(value) for name, value in row.items()},
        "reason": reason,
        "folder": str(part.folder),
    }


def _end(
    state: RunState, said: dict[str, Any], planned: PlannedStage, shard: int, position: int
) -> dict[str, Any]:
    """What a select stage decided, and the first cause of it in a sentence."""
    name = planned.name
    if said["values"][KEEP.name]:
        return {"stage": name, "kept": True, "sentence": f"kept by '{name}'"}
    reasons = {}
    for other in state.plan.stages.values():
        there = other.stage.gives == "rows" and shard in state.stages[other.name].shards
        if there and other.root == planned.root:
            row = state.cell(other.name, shard, position, [REASON.name])
            reasons[other.name] = pa.array([row[REASON.name]], pa.string())
    lacks = partial(_lacks, state, shard, position)
    for stage, code, hit in trace(state.plan, name, reasons, pa.array([True]), lacks):
        if hit[0].as_py():
            return {
                "stage": name,
                "kept": False,
                "cause": stage,
                "reason": code,
                "sentence": _sentence(state, name, stage, code, shard, position),
            }
    return {"stage": name, "kept": False, "sentence": f"not kept by '{name}'"}


def _lacks(
    state: RunState, shard: int, position: int, stage: str, columns: set[str]
) -> pa.Array | None:
    """The same as `lacking`, of one row."""
    asked = askable(state.plan, stage, columns)
    if asked is None:
        return None
    return pa.array([None in state.cell(stage, shard, position, asked).values()])


def _sentence(state: RunState, end: str, stage: str, code: str, shard: int, position: int) -> str:
    planned = state.plan.stages[stage]
    if code == NOT_SELECTED:
        return f"dropped by '{end}': '{planned.only}' did not select it for '{stage}'"
    if stage != end and KEEP.name not in {column.name for column in planned.stage.writes}:
        return f"dropped by '{end}', since '{stage}' gave no value: {code}"
    values = []
    for read, (source, column) in planned.bindings[0].items():
        if re.search(rf"(?<![\w.]){re.escape(read)}\b", code):
            value = state.cell(source, shard, position, [column])[column]
            values.append(f"{read} is {_shown(value)!r}")
    by = f"dropped by '{stage}'" if stage == end else f"dropped by '{stage}', before '{end}'"
    return f"{by}: {code}" + (f"; {', '.join(values)}" if values else "")


def _shown(value: Any) -> Any:
    """A value for JSON: bytes as hex, long texts and lists cut."""
    if isinstance(value, bytes):
        return value.hex() if len(value) <= 32 else f"{len(value)} bytes"
    if isinstance(value, list) and len(value) > 8:
        return f"[{_shown(value[0])}, {_shown(value[1])}, … {len(value)} values]"
    if isinstance(value, list):
        return [_shown(item) for item in value]
    if isinstance(value, float) and not isfinite(value):
        return str(value)  # JSON has none of these
    if value is None or isinstance(value, bool | int | float):
        return value
    text = str(value)
    return text if len(text) <= LONG else f"{text[:LONG]}… ({len(text)} characters)"


def _exported(state: RunState, uid: bytes) -> list[dict[str, Any]]:
    """The files of the run's Parquet exports that hold the sample."""
    found = []
    for name, stage in state.stages.items():
        if stage.planned.stage.gives != "data" or not stage.complete:
            continue
        out = Storage(stage.folder.uri).child("out")
        for file, _ in (stage.manifest or {}).get("outputs", []):
            if not file.endswith(".parquet"):
                continue
            with out.open(file) as source, pq.ParquetFile(source) as parquet:
                if UID.name not in parquet.schema_arrow.names:
                    continue
                column = parquet.read([UID.name], use_threads=False)[UID.name].cast(pa.binary())
            if pc.any(pc.equal(column, pa.scalar(uid, pa.binary()))).as_py():
                found.append({"stage": name, "file": f"{out}/{file}"})
    return found


def text(found: dict[str, Any]) -> str:
    """The same as a page: a paragraph a stage, the sentence last."""
    lines = [f"{found['uid']}  (shard {found['shard']}, position {found['position']})"]
    if found["copies"] > 1:
        lines.append(f"this uid stands in {found['copies']} rows; the first is shown")
    for said in found["stages"]:
        verdict = "fine" if said["reason"] is None else said["reason"]
        lines += ["", f"{said['stage']}  {said['uses']}: {verdict}"]
        lines += [f"    {name:<22} {value}" for name, value in said["values"].items()]
    lines.append("")
    lines += [end["sentence"] for end in found["ends"]]
    lines += [f"exported by '{place['stage']}' to {place['file']}" for place in found["exported"]]
    return "\n".join(lines)
