"""What every stage said of one sample: the ledger, read at one row."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from math import isfinite
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from metadata.outputs import Outputs
from metadata.schema import BALANCE_RANK, DUPLICATE_OF, IMAGE, KEEP, REASON, TEXT, UID
from metadata.shard import NOT_SELECTED, read_file
from pipeline.errors import RecipeError
from pipeline.ledger.causes import askable, trace
from pipeline.ledger.stored import Place, binding, rows_at
from pipeline.planned import PlannedStage
from pipeline.state import RunState
from pipeline.terminal import cut, one_line

LONG = 200  # characters of a value that are shown
SHORT = 80  # of a keeper's caption
KEEPERS = {  # columns that name another row, and what that row is
    DUPLICATE_OF.name: "equal to it, and better,",
    "earlier_uid": "most like it, of the rows before it,",
}
NEAR = "near it, and better,"  # where joined_at says how near
Found = tuple[str, int, int, bytes]  # root, shard, position, uid


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
    first: dict[str | None, Place] = {}  # by root: a union holds its parents' rows again
    for root, *place, _ in places:
        first.setdefault(root, (place[0], place[1]))
    rows = {
        planned.name: (planned, *first[planned.root])
        for planned in state.plan.stages.values()
        if planned.gives_rows
        and planned.root in first
        and first[planned.root][0] in state.stages[planned.name].shards
    }
    stages = [_said(state, *row) for row in rows.values()]
    _add_keepers(state, stages, whole, first)
    return {
        "uid": whole.hex(),
        "shard": shard,
        "position": position,
        "copies": max(Counter(root for root, *_ in places).values()),
        "stages": stages,
        "ends": [
            _end(state, stages, *rows[said["stage"]]) for said in stages if "keep" in said["values"]
        ],
        "exported": _exported(state, whole),
    }


def _find(state: RunState, prefix: str) -> Iterator[Found]:
    """Every row whose uid begins so."""
    low, high = (pa.scalar(bytes.fromhex(prefix.ljust(32, end)), pa.binary()) for end in "0f")

    def begins_so(uid: pa.ChunkedArray) -> pa.ChunkedArray:
        return pc.and_(pc.greater_equal(uid, low), pc.less_equal(uid, high))

    roots = [name for name, stage in state.stages.items() if stage.planned.is_root]
    return _scan(state, roots, begins_so)


def _scan(
    state: RunState, roots: list[str], is_meant: Callable[[pa.ChunkedArray], pa.ChunkedArray]
) -> Iterator[Found]:
    """The rows with such a uid, in the order of the roots' shards: the uids are read."""
    for name in roots:
        stage = state.stages[name]
        for shard, shard_state in sorted(stage.shards.items()):
            start = 0
            for table in read_file(stage.folder, shard_state.files[0], [UID.name], 1 << 20):
                column = table[UID.name].cast(pa.binary())
                hit = is_meant(column)
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


def _add_keepers(
    state: RunState, stages: list[dict[str, Any]], uid: bytes, own: dict[str | None, Place]
) -> None:
    """Adds the row that a stage names as keeper: who it is, where, its caption. Where a stage names
    none, `keeper_of`: how many rows name this one."""
    named: dict[str, set[bytes]] = {}  # by root
    for said in stages:
        root = state.plan.stages[said["stage"]].root
        for column in KEEPERS.keys() & said["values"].keys():
            if state.plan.schema(said["stage"], column) != UID.dtype:
                continue  # a pool's own, of this name
            if root and said["values"][column]:
                said["keeper"] = {"column": column, "uid": said["values"][column]}
                named.setdefault(root, set()).add(bytes.fromhex(said["keeper"]["uid"]))
            elif column == DUPLICATE_OF.name:
                said["keeper_of"] = _naming(state, said["stage"], column, uid)
    places = {root: _places(state, root, uids, own[root]) for root, uids in named.items()}
    for said in stages:
        if "keeper" in said:
            name, keeper = said["stage"], said["keeper"]
            place = places[state.plan.stages[name].root or ""][bytes.fromhex(keeper["uid"])]
            text = binding(state, name, TEXT.name)
            (row,) = rows_at(state, {"text": text} if text else {}, [place])
            keeper |= {"shard": place[0], "position": place[1], "text": _shown(row.get("text"))}
            keeper["dropped_by"] = [
                select
                for select in (other["stage"] for other in stages if KEEP.name in other["values"])
                if state.plan.stages[select].root == state.plan.stages[name].root
                and not state.cell(select, *place, [KEEP.name])[KEEP.name]
            ]


def _places(state: RunState, root: str, uids: set[bytes], own: Place) -> dict[bytes, Place]:
    """A row of each uid, another than the own: the uids are read once more, until all are found."""
    wanted, found = pa.array(sorted(uids), pa.binary()), dict.fromkeys(uids, own)
    for _, *place, uid in _scan(state, [root], partial(pc.is_in, value_set=wanted)):
        if found[uid] == own != tuple(place):
            found[uid] = (place[0], place[1])
            if own not in found.values():
                break
    return found


def _naming(state: RunState, name: str, column: str, uid: bytes) -> int:
    """Rows of a stage that name the uid in a column."""
    part, rows = state.parts[name], 0
    for shard in state.stages[name].shards.values():
        for table in part.read(shard, [column], 1 << 20):
            named = pc.equal(table[column].cast(pa.binary()), pa.scalar(uid, pa.binary()))
            rows += pc.sum(named).as_py() or 0
    return rows


def _end(
    state: RunState, stages: list[dict[str, Any]], planned: PlannedStage, shard: int, position: int
) -> dict[str, Any]:
    """What a select stage decided, and the first cause of it in a sentence."""
    name = planned.name
    by_name = {said["stage"]: said for said in stages}
    if by_name[name]["values"][KEEP.name]:
        of = [
            f"keeper of {_rows(said['keeper_of'])} in '{said['stage']}'"
            for said in stages
            if said.get("keeper_of")
        ]
        return {"stage": name, "kept": True, "sentence": "; ".join([f"kept by '{name}'", *of])}
    reasons = {
        other: pa.array([said["reason"]], pa.string())
        for other, said in by_name.items()
        if state.plan.stages[other].root == planned.root
    }
    lacks = partial(_lacks, state, shard, position)
    for stage, code, hit in trace(state.plan, name, reasons, pa.array([True]), lacks):
        if hit[0].as_py():
            return {
                "stage": name,
                "kept": False,
                "cause": stage,
                "reason": code,
                "sentence": _sentence(state, name, stage, code, by_name),
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


def _sentence(
    state: RunState, end: str, stage: str, code: str, stages: dict[str, dict[str, Any]]
) -> str:
    planned = state.plan.stages[stage]
    if code == NOT_SELECTED:
        return f"dropped by '{end}': '{planned.only}' did not select it for '{stage}'"
    if stage != end and not planned.is_select:
        return f"dropped by '{end}', since '{stage}' gave no value: {code}"
    values: list[str] = []
    others: dict[str, None] = {}
    for read, (source, column) in planned.bindings[0].items():
        if re.search(rf"(?<![\w.]){re.escape(read)}\b", code):
            said = stages[source]
            other = _other(said)
            others |= {other: None} if other else {}
            if column not in KEEPERS or not other:
                value = {**said["values"], REASON.name: said["reason"]}[column]
                values.append(f"{read} is {cut(repr(value))}")
    own = stages[stage]["values"]
    if "balance_t" in own and own[BALANCE_RANK.name] is not None:  # what a balance says of itself
        rank, t = own[BALANCE_RANK.name], own["balance_t"]
        values.append(
            f"its least draw, of {own['deciding_concept']!r}, is {rank:.4g}, and t is {t:g}"
        )
    by = f"dropped by '{stage}'" if stage == end else f"dropped by '{stage}', before '{end}'"
    return "; ".join([f"{by}: {one_line(code)}", *([", ".join(values)] if values else []), *others])


def _other(said: dict[str, Any]) -> str:
    """The keeper or evaluation sample that a stage names, in words; empty where it names none."""
    values = said["values"]
    if "keeper" in said:
        keeper = said["keeper"]
        how = NEAR if "joined_at" in values else KEEPERS[keeper["column"]]
        gone = f", itself dropped by '{keeper['dropped_by'][0]}'" if keeper["dropped_by"] else ""
        return f"{how} is {keeper['uid'][:8]}… ({_place(keeper)}{gone}){_caption(keeper)}"
    if values.get("eval_task") and values.get("eval_key"):
        return f"nearest to it is sample {values['eval_key']!r} of task {values['eval_task']!r}"
    return ""


def _place(found: dict[str, Any]) -> str:
    return f"shard {found['shard']}, position {found['position']}"


def _rows(count: int) -> str:
    return f"{count:,} {'row' if count == 1 else 'rows'}"


def _caption(keeper: dict[str, Any]) -> str:
    text = keeper["text"] or ""
    short = text if len(text) <= SHORT else f"{text[:SHORT]}…"
    return f": {short!r}" if short else ""


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
        if not stage.planned.gives_data or not stage.complete:
            continue
        outputs = Outputs(stage.folder)
        for file in outputs.names:
            if not file.endswith(".parquet"):
                continue
            with outputs.parquet(file) as parquet:
                if UID.name not in parquet.schema_arrow.names:
                    continue
                column = parquet.read([UID.name], use_threads=False)[UID.name].cast(pa.binary())
            if pc.any(pc.equal(column, pa.scalar(uid, pa.binary()))).as_py():
                found.append({"stage": name, "file": f"{stage.folder}/out/{file}"})
    return found


def text(found: dict[str, Any]) -> str:
    """The same as a page: a paragraph a stage, the sentence last."""
    lines = [f"{found['uid']}  ({_place(found)})"]
    if found["copies"] > 1:
        lines.append(f"this uid stands in {found['copies']} rows; the first is shown")
    for said in found["stages"]:
        verdict = "fine" if said["reason"] is None else one_line(said["reason"])
        lines += ["", f"{said['stage']}  {said['uses']}: {verdict}"]
        lines += [f"    {name:<22} {one_line(value)}" for name, value in said["values"].items()]
        if "keeper" in said:
            keeper = said["keeper"]
            lines.append(f"    {'which is':<22} {_place(keeper)}{_caption(keeper)}")
        if said.get("keeper_of"):
            lines.append(f"    {'keeper of':<22} {_rows(said['keeper_of'])}")
    lines.append("")
    lines += [end["sentence"] for end in found["ends"]]
    lines += [f"exported by '{place['stage']}' to {place['file']}" for place in found["exported"]]
    return "\n".join(lines)
