"""DamagedError files of a run, and how they are made again.

What a stage computes is taken away, and computed anew to the same bytes. What was asked of the web
or of a generator is asked again by `clipmill verify --repair` alone, for the rows that no file
holds any more.
"""

import re
import shlex
from dataclasses import replace

import pyarrow as pa

from clipmill.metadata.damage import DamagedError
from clipmill.metadata.outputs import OUT
from clipmill.metadata.parquet_file import opened, sound_groups
from clipmill.metadata.passes import NOT_SELECTED
from clipmill.metadata.record import Record, record_name
from clipmill.metadata.schema import REASON, UID
from clipmill.metadata.shard import ShardWriter, store
from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.declared import stored_schema
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.planning.planned import PlannedStage
from clipmill.pipeline.stage import Stage

AGAIN = "damaged"  # stands for a mask that no run has: the rows it left out are computed
DATA_NAME = re.compile(r"(\d+)(?:\.p(\d+))?-")


def shard_of(name: str) -> int:
    """The number of the shard that a data file is of."""
    return int(re.split(r"\D", name, maxsplit=1)[0])


def is_asked(stage: Stage) -> bool:
    """Whether a stage's values come from outside, so that nobody can compute them again."""
    return stage.determinism == "recorded"


def refusal(found: DamagedError, planned: PlannedStage | None, run: Storage) -> StageError:
    """Why a damaged file is not made again by a run."""
    if planned is None:
        return StageError(found.found, found.place, "not of this run: copy it there once more")
    if is_asked(planned.stage):
        again = f"clipmill verify --run {shlex.quote(str(run))} --repair"
        do = f"{again} asks again, for the damaged rows; no run does"
        return StageError(found.found, found.place, do)
    do = "it was just made again, so look at this machine's disk and memory"
    return StageError(found.found, found.place, do)


def take_away(folder: Storage, name: str) -> None:
    """Removes a damaged file, so that it is made again; with the passes that it was read with,
    and with the journal of a stage that is not done, which takes the file for there."""
    place = DATA_NAME.match(name)
    if place and not name.startswith(f"{OUT}/"):
        shard, number = int(place[1]), int(place[2] or 0)
        held = {entry.name for entry in folder.entries()}
        later = number + 1
        while record_name(shard, later) in held:
            later += 1
        for last in range(later - 1, number, -1):
            folder.delete(record_name(shard, last))
    for journal in folder.folders():
        if journal.startswith("calls-"):
            folder.delete_folder(journal)
    folder.delete(name)


def salvage(
    planned: PlannedStage, folder: Storage, records: list[Record], bad: set[str], uid: pa.Array
) -> int:
    """Stores the passes of a shard of answers without their damaged rows; how many those are.

    They are asked for by the next run. A row group that can't be read is lost as a whole; a row
    that a later pass had tried again falls back to what it failed with.
    """
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
        if sum(rows for rows, _ in groups) != record.computed or all(sound for _, sound in groups):
            rows = record.computed if record.number else len(uid)
            groups = [(rows, False)]  # the damage is where no checksum tells
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
                    writer.add(_unasked(uid.slice(start, rows), schema))
                lost += 0 if is_sound else rows
                start += rows
            kept = {
                name: getattr(record, name) for name in ("shard", "number", "parents", "seconds")
            }
            made = store(folder, writer, path, {**kept, "rows": len(uid), "mask": AGAIN})
        if made.data != record.data:
            folder.delete(record.data)
    return lost


def _unasked(uid: pa.Array, schema: pa.Schema) -> pa.Table:
    """Rows as they stand where a mask leaves them out."""
    columns = {field.name: pa.nulls(len(uid), field.type) for field in schema}
    columns[UID.name] = uid
    columns[REASON.name] = pa.array([NOT_SELECTED] * len(uid), pa.string()).dictionary_encode()
    return pa.table(columns, schema=schema)
