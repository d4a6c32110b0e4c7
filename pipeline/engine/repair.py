"""Repairs damaged files of a run.

Files of a stage that computes are deleted, and the stage computes the same bytes again. Answers of
the web or of a generator are asked for again only by `clipmill verify --repair`, and only for rows
whose answers are lost.
"""

import re
import shlex
from dataclasses import replace
from itertools import count

import pyarrow as pa

from clipmill.metadata.damage import DamagedError
from clipmill.metadata.parquet_file import opened, sound_groups
from clipmill.metadata.passes import NOT_SELECTED
from clipmill.metadata.record import Record, record_name
from clipmill.metadata.schema import REASON, UID
from clipmill.metadata.shard import ShardWriter, store
from clipmill.metadata.stage_seal import SEAL
from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.declared import stored_schema
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.planning.planned import PlannedStage
from clipmill.pipeline.stage import Stage

AGAIN = "damaged"  # in place of a mask's digest: matches no mask, so missing rows are computed
DATA_NAME = re.compile(r"(\d+)(?:\.p(\d+))?-")


def is_recorded(stage: Stage) -> bool:
    """Returns whether a stage's values come from outside, so that they cannot be recomputed."""
    return stage.determinism == "recorded"


def refusal(damage: DamagedError, planned: PlannedStage | None, run: Storage) -> StageError:
    """Returns an error that says why a run does not make a damaged file again."""
    if planned is None:
        return StageError(damage.found, damage.place, "not of this run: copy it there once more")
    if is_recorded(planned.stage):
        again = f"clipmill verify --run {shlex.quote(str(run))} --repair"
        do = f"{again} asks again, for the damaged rows; no run does"
        return StageError(damage.found, damage.place, do)
    do = "it was just made again, so look at this machine's disk and memory"
    return StageError(damage.found, damage.place, do)


def take_away(folder: Storage, names: list[str]) -> None:
    """Deletes damaged files, their shards' later passes, and journals, which count them as done."""
    folder.delete(SEAL)
    for journal in folder.folders():
        if journal.startswith("calls-"):
            folder.delete_folder(journal)
    for name in names:
        if place := DATA_NAME.match(name):
            shard, first = int(place[1]), int(place[2] or 0) + 1
            end = next(n for n in count(first) if not folder.has(record_name(shard, n)))
            for later in reversed(range(first, end)):  # so that a kill leaves no gap
                folder.delete(record_name(shard, later))
        folder.delete(name)


def salvage(
    planned: PlannedStage, folder: Storage, records: list[Record], bad: set[str], uid: pa.Array
) -> int:
    """Stores a shard's answers again without damaged rows; returns the number of rows lost.

    The next run asks for lost rows. A row group that can't be read is lost as a whole; a lost row
    of a later pass falls back to the reason of its earlier failure.
    """
    folder.delete(SEAL)
    lost = 0
    is_whole = bad.isdisjoint(record.data for record in records)  # only a record was damaged
    for record in records:
        if record.data not in bad:
            text = (record if is_whole else replace(record, mask=AGAIN)).to_json()
            folder.put(record.name, text.encode(), point="record")
            continue
        assert record.data is not None
        schema = stored_schema(planned.stage, sparse=record.number > 0)
        groups = sound_groups(folder, record.data, schema)
        is_complete = sum(rows for rows, _ in groups) == record.computed
        if not is_complete or all(is_sound for _, is_sound in groups):
            # Nothing tells which groups are damaged: all are lost.
            groups = [(record.computed if record.number else len(uid), False)]
        with (
            folder.scratch(planned.name) as path,
            ShardWriter(path, schema, record.page_checksums) as writer,
        ):
            start = 0
            for group, (rows, is_sound) in enumerate(groups):
                if is_sound:
                    with opened(folder, record.data, "") as file:
                        writer.add(file.read_row_group(group, schema.names, use_threads=False))
                elif record.number == 0:
                    writer.add(_not_selected(uid.slice(start, rows), schema))
                lost += 0 if is_sound else rows
                start += rows
            same = {
                name: getattr(record, name) for name in ("shard", "number", "parents", "seconds")
            }
            stored = store(folder, writer, path, {**same, "rows": len(uid), "mask": AGAIN})
        if stored.data != record.data:
            folder.delete(record.data)
    return lost


def _not_selected(uid: pa.Array, schema: pa.Schema) -> pa.Table:
    """Returns rows as a mask leaves them out: null, with reason `not_selected`."""
    columns = {field.name: pa.nulls(len(uid), field.type) for field in schema}
    columns[UID.name] = uid
    columns[REASON.name] = pa.array([NOT_SELECTED] * len(uid), pa.string()).dictionary_encode()
    return pa.table(columns, schema=schema)
