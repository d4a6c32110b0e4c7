"""Reports what every stage stored for one sample, whether each select kept it, and why; also the
canonical rows that stages name, and how many rows name it.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from clipmill.metadata.outputs import Outputs
from clipmill.metadata.schema import KEEP, LISTED, TEXT, UID, Column
from clipmill.pipeline.ledger.rows.captions import Texts, texts_at
from clipmill.pipeline.ledger.rows.near import naming
from clipmill.pipeline.ledger.rows.pictures import PicturePlace, picture_place
from clipmill.pipeline.ledger.rows.samples import samples
from clipmill.pipeline.ledger.rows.stage_row import Keeper, StageRow, shown, stage_row
from clipmill.pipeline.ledger.rows.stored import Place, binding, rows_at
from clipmill.pipeline.ledger.rows.uids import UidRow, places_of, rows_of
from clipmill.pipeline.ledger.selection.verdict import Verdict, verdict
from clipmill.pipeline.run_folder.state import RunState


@dataclass(frozen=True, kw_only=True)
class ExportFile:
    """A file of an export that holds the sample."""

    stage: str
    file: str


@dataclass(frozen=True, kw_only=True)
class Why:
    """One sample: its stages in the recipe's order, the verdict of each select stage, its files.

    `shard` and `position` are of its first row; `copies` counts the rows with its uid in one root.
    `picture` is the place of its stored picture.
    """

    uid: str
    shard: int
    position: int
    copies: int
    stages: tuple[StageRow, ...]
    ends: tuple[Verdict, ...]
    exported: tuple[ExportFile, ...]
    picture: PicturePlace
    captions: tuple[Texts, ...] = ()


def why(state: RunState, uid: str) -> Why:
    """Explains the sample with this uid in hex; the first 8 digits may do.

    RecipeError if it is no uid, or matches no sample or several.
    """
    return _of(state, rows_of(state, uid))


def whys(state: RunState, words: Sequence[str]) -> list[Why]:
    """Explains the samples that these uids, links, captions or parts of captions name, in order.

    RecipeError if one names no sample, or several.
    """
    return [_of(state, copies) for copies in samples(state, words)]


def _of(state: RunState, copies: Sequence[UidRow]) -> Why:
    """Collects everything on the sample of these rows; of a listed one that it is, and no more."""
    first: dict[str, Place] = {}  # by root: a union holds its parents' rows again
    for copy in copies:
        first.setdefault(copy.root, copy.place)
    sample = copies[0]
    shard, position = sample.place
    found = partial(
        Why,
        uid=sample.uid.hex(),
        shard=shard,
        position=position,
        copies=max(Counter(copy.root for copy in copies).values()),
    )
    rows = [
        stage_row(state, planned, first[planned.root])
        for planned in state.plan.stages.values()
        if planned.gives_rows
        and planned.root in first
        and first[planned.root][0] in state.stages[planned.name].shards
    ]
    if listed := [replace(row, values={}) for row in rows if row.reason == LISTED]:
        return found(
            stages=tuple(listed),
            ends=tuple(
                Verdict(
                    stage=row.stage,
                    kept=False,
                    cause=row.stage,
                    reason=LISTED,
                    sentence=f"dropped by '{row.stage}': {LISTED}",
                )
                for row in listed
            ),
            exported=(),
            picture=PicturePlace(),
        )
    by_stage = {row.stage: row for row in _with_keepers(state, rows, sample.uid, first)}
    return found(
        stages=tuple(by_stage.values()),
        ends=tuple(
            verdict(state, name, by_stage, first[state.plan.stages[name].root], sample.uid)
            for name in by_stage
            if state.plan.stages[name].is_select
        ),
        exported=tuple(_exported(state, sample.uid)),
        captions=tuple(texts_at(state, first, {*by_stage})),
        picture=picture_place(state, by_stage.values(), first),
    )


def _exported(state: RunState, uid: bytes) -> Iterator[ExportFile]:
    """Yields the files of exports that hold the sample; for tars, the Parquet file beside each."""
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
            uids = pa.array([uid, uid.hex().encode()], pa.binary())  # as bytes, or as digits
            if pc.any(pc.is_in(column, uids)).as_py():
                yield ExportFile(stage=name, file=f"{stage.folder}/out/{file}")


def _with_keepers(
    state: RunState, rows: Sequence[StageRow], uid: bytes, own: Mapping[str, Place]
) -> list[StageRow]:
    """Returns the rows of a sample, each with its `keeper`, or with its `keeper_of`."""
    named: dict[str, Column] = {}
    uids: dict[str, set[bytes]] = {}  # by root
    for row in rows:
        planned = state.plan.stages[row.stage]
        if column := naming(planned.stage, "keeper", "neighbour"):
            named[row.stage] = column
            if uid_hex := row.values[column.name]:
                uids.setdefault(planned.root, set()).add(bytes.fromhex(uid_hex))
    places = {root: places_of(state, root, each, own[root]) for root, each in uids.items()}
    selects = [row.stage for row in rows if state.plan.stages[row.stage].is_select]
    with_keepers = []
    for row in rows:
        column = named.get(row.stage)
        if column and (keeper := row.values[column.name]):
            place = places[state.plan.stages[row.stage].root].get(bytes.fromhex(keeper))
            row = replace(
                row, keeper=_keeper(state, row.stage, column.name, keeper, place, selects)
            )
        elif column and column.names == "keeper":
            row = replace(row, keeper_of=_naming(state, row.stage, column.name, uid))
        with_keepers.append(row)
    return with_keepers


def _keeper(
    state: RunState, stage: str, column: str, uid: str, place: Place | None, selects: Sequence[str]
) -> Keeper:
    if place is None:
        return Keeper(column=column, uid=uid, shard=None, position=None, text=None, dropped_by=())
    root, text = state.plan.stages[stage].root, binding(state, stage, TEXT.name)
    (row,) = rows_at(state, {"text": text} if text else {}, [place])
    dropped_by = [
        select
        for select in selects
        if state.plan.stages[select].root == root
        and not state.cell(select, *place, [KEEP.name])[KEEP.name]
    ]
    return Keeper(
        column=column,
        uid=uid,
        shard=place[0],
        position=place[1],
        text=shown(row.get("text")),
        dropped_by=tuple(dropped_by),
    )


def _naming(state: RunState, stage: str, column: str, uid: bytes) -> int:
    """Counts the rows of a stage that name the uid in a column."""
    part, rows = state.stored[stage], 0
    for shard in state.stages[stage].shards.values():
        for table in part.read(shard, [column], 1 << 20):
            named = pc.equal(table[column].cast(pa.binary()), pa.scalar(uid, pa.binary()))
            rows += pc.sum(named).as_py() or 0
    return rows
