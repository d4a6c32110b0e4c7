"""What every stage stored for one sample, whether each select kept it, and why."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from clipmill.metadata.outputs import Outputs
from clipmill.metadata.schema import UID
from clipmill.pipeline.ledger.at_row import StageRow, stage_row
from clipmill.pipeline.ledger.captions import Texts, texts_at
from clipmill.pipeline.ledger.find import UidRow, rows_of
from clipmill.pipeline.ledger.keepers import with_keepers
from clipmill.pipeline.ledger.named import samples
from clipmill.pipeline.ledger.picture_place import PicturePlace, picture_place
from clipmill.pipeline.ledger.stored import Place
from clipmill.pipeline.ledger.verdict import Verdict, verdict
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
    `picture` says where its picture lies.
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
    """The sample with this uid in hex, of which the first 8 digits may do.

    RecipeError where it is no uid, or the beginning of none or of several.
    """
    return _of(state, rows_of(state, uid))


def whys(state: RunState, words: Sequence[str]) -> list[Why]:
    """The samples that these uids, links, captions or parts of captions name, in their order.

    RecipeError where one names no sample, or several.
    """
    return [_of(state, copies) for copies in samples(state, words)]


def _of(state: RunState, copies: Sequence[UidRow]) -> Why:
    """All about the sample of these rows."""
    first: dict[str, Place] = {}  # by root: a union holds its parents' rows again
    for copy in copies:
        first.setdefault(copy.root, copy.place)
    sample = copies[0]
    rows = [
        stage_row(state, planned, first[planned.root])
        for planned in state.plan.stages.values()
        if planned.gives_rows
        and planned.root in first
        and first[planned.root][0] in state.stages[planned.name].shards
    ]
    by_stage = {row.stage: row for row in with_keepers(state, rows, sample.uid, first)}
    shard, position = sample.place
    return Why(
        uid=sample.uid.hex(),
        shard=shard,
        position=position,
        copies=max(Counter(copy.root for copy in copies).values()),
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
    """The files of the run's exports that hold the sample; of tars, the Parquet file beside."""
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
