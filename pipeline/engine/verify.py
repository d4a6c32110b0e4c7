"""Checks every stored file of a run against its record, and repairs damage: `clipmill verify`."""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq

from clipmill.metadata.damage import DamagedError
from clipmill.metadata.outputs import OUT
from clipmill.metadata.record import MANIFEST, Record, parsed, record_name
from clipmill.metadata.scan import Scan, scan
from clipmill.metadata.schema import UID
from clipmill.metadata.sealed import read_sealed
from clipmill.metadata.stage_seal import SEAL
from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.answers import FOLDER as ANSWERS
from clipmill.pipeline.engine.answers import all_files, digest_of, merge_files
from clipmill.pipeline.engine.once import FOLDER as ONCE
from clipmill.pipeline.engine.once import MADE, place_of
from clipmill.pipeline.engine.repair import is_recorded, refusal, salvage, take_away
from clipmill.pipeline.planning.plan import Plan
from clipmill.pipeline.planning.planned import PlannedStage
from clipmill.pipeline.run_folder import lock
from clipmill.pipeline.run_folder.pins import PINS, mend_pins, wrong_pins
from clipmill.pipeline.run_folder.rows import WHOLE
from clipmill.pipeline.run_folder.state import RunState

RunUntil = Callable[[str], object]

TORN = "not as it was stored"
READERS = 8  # files at once: they wait on disk or network, and hashing releases the GIL


@dataclass
class Checked:
    """The files of one stage's folder, and the damage found."""

    folder: str
    files: int
    size_bytes: int
    damaged: list[DamagedError] = field(default_factory=list)


@dataclass(frozen=True)
class _File:
    folder: Storage
    name: str
    size_bytes: int
    sha256: str  # of its bytes, or a prefix of it
    record: Record | None = None  # of a shard's data
    may_go: bool = False  # a running run may merge it into another


def verify(run: Storage, on_bytes: Callable[[int, int], None]) -> list[Checked]:
    """Checks every stage's folder, of all recipes; calls `on_bytes(done, total)` on the way."""
    stages = [_files(run, f"stages/{name}") for name in run.folders("stages")]
    stages += _answers(run) + _once(run)
    total = sum(checked.size_bytes for checked, _ in stages)
    done = 0
    with ThreadPoolExecutor(READERS) as pool:
        for checked, files in stages:
            for file, damage in zip(files, pool.map(_damage, files), strict=True):
                checked.damaged += [damage] if damage else []
                done += file.size_bytes
                on_bytes(done, total)
    return [checked for checked, _ in stages]


def repair(plan: Plan, run: Storage, stages: list[Checked], run_until: RunUntil) -> int:
    """Deletes the plan's damaged files, for a run to make again; salvages answers.

    Shards and files of answers keep their readable parts. `run_until(stage)` runs the plan up to a
    stage. Returns an upper bound of the rows that the next run will ask for again.
    """
    recorded = []
    by_folder = {planned.folder: planned for planned in plan.stages.values()}
    with lock.held(run) as owned:
        for checked in stages:
            if checked.folder == ANSWERS and checked.damaged:
                names = {file.name for file in checked.damaged}
                folder = owned.child(ANSWERS)
                merge_files(folder, [entry for entry in all_files(folder) if entry.name in names])
            if checked.folder == ONCE:  # made again when a stage next needs the key
                for key in {file.name.partition("/")[0] for file in checked.damaged}:
                    owned.child(ONCE).delete_folder(key)
        for checked in stages:
            planned = by_folder.get(checked.folder)
            if planned is None or not checked.damaged:
                continue
            if pinned := [file for file in checked.damaged if file.name.startswith(PINS)]:
                mend_pins(owned.child(planned.folder))
                checked.damaged = [file for file in checked.damaged if file not in pinned]
            if planned.is_row and is_recorded(planned.stage):
                recorded.append((planned, {file.name for file in checked.damaged}))
                continue
            take_away(owned.child(planned.folder), [file.name for file in checked.damaged])
    for root in dict.fromkeys(planned.root for planned, _ in recorded if planned.root):
        run_until(root)  # its uids are needed to salvage rows
    with lock.held(run) as owned:
        state = RunState(plan, owned)
        return sum(_salvage(state, planned, names) for planned, names in recorded)


def heal(plan: Plan, run: Storage, damage: DamagedError, healed: set[str]) -> str:
    """Deletes all damaged files of a file's stage, for a run to make again; returns its name.

    Adds their places to `healed`. Raises StageError if the place is in there already, or if a run
    does not make the file again.
    """
    stages = plan.stages.values()
    planned = next((p for p in stages if run.child(p.folder).uri == damage.folder), None)
    if planned is None or is_recorded(planned.stage) or damage.place in healed:
        raise refusal(damage, planned, run)
    with lock.held(run) as owned:
        checked, files = _files(run, planned.folder)
        damaged = [damage, *checked.damaged, *filter(None, map(_damage, files))]
        healed.update(file.place for file in damaged)
        take_away(owned.child(planned.folder), [file.name for file in damaged])
    return planned.name


def others(plan: Plan, stages: list[Checked]) -> list[str]:
    """Returns damaged folders of other recipes, whose next runs make the files again."""
    ours = {ANSWERS, ONCE, *(planned.folder for planned in plan.stages.values())}
    return [stage.folder for stage in stages if stage.damaged and stage.folder not in ours]


def _salvage(state: RunState, planned: PlannedStage, damaged: set[str]) -> int:
    root, folder = state.stored[planned.root], state.stored[planned.name].folder
    stored = scan(folder)
    rows = 0
    by_shard: dict[int, set[str]] = {}
    for name in damaged - {MANIFEST}:
        by_shard.setdefault(int(re.split(r"\D", name, maxsplit=1)[0]), set()).add(name)
    lost: dict[int, list[Record]] = {}
    for record in stored.lost:
        lost.setdefault(record.shard, []).append(record)
    for shard, names in sorted(by_shard.items()):
        passes = [*stored.records.get(shard, []), *lost.get(shard, [])]
        records = sorted(passes, key=lambda record: record.number)
        tables = root.read(state.stages[planned.root].shards[shard], [UID.name], WHOLE)
        uid = pa.concat_tables(tables)[UID.name].combine_chunks()
        again = salvage(planned, folder, records, names, uid)
        known = {name for record in records for name in (record.name, record.data)}
        rows += again if names <= known else len(uid)  # no other copy tells a record's rows
    return rows


def _files(run: Storage, name: str) -> tuple[Checked, list[_File]]:
    folder = run.child(name)
    stored = scan(folder)
    records = [record for passes in stored.records.values() for record in passes]
    files = [
        _File(folder, record.data, record.size_bytes, record.sha256, record)
        for record in (*records, *stored.lost)
        if record.data is not None
    ]
    outputs = stored.manifest.outputs if stored.manifest else ()
    digests = stored.manifest.output_sha256 if stored.manifest else {}
    files += [_File(folder, f"{OUT}/{name}", size, digests.get(name, "")) for name, size in outputs]
    checked = Checked(name, len(files), sum(file.size_bytes for file in files))
    checks = {file.record.name for file in files if file.record}  # checked with their data
    torn = [DamagedError(folder.uri, name, TORN) for name in stored.torn if name not in checks]
    strangers = {name for name, _ in stored.outputs} - {name for name, _ in outputs}
    checked.damaged = torn + [
        DamagedError(folder.uri, f"{OUT}/{name}", "no file of this stage's")
        for name in sorted(strangers)
    ]
    checked.damaged += [*wrong_pins(folder), *_gone(folder, stored)]
    return checked, files


def _gone(folder: Storage, stored: Scan) -> list[DamagedError]:
    """Returns a sealed stage's shards without a record: a run takes them as stored."""
    if stored.manifest is None or not folder.has(SEAL):
        return []
    known = {*stored.records, *(record.shard for record in stored.lost)}
    gone = sorted({*range(stored.manifest.shards)} - known)
    return [DamagedError(folder.uri, record_name(shard), "it is gone") for shard in gone]


def _answers(run: Storage) -> list[tuple[Checked, list[_File]]]:
    """Lists the files of stored answers, if any; their names hold their digests."""
    folder = run.child(ANSWERS)
    files = [
        _File(folder, entry.name, entry.size, digest_of(entry.name), may_go=True)
        for entry in all_files(folder)
    ]
    checked = Checked(ANSWERS, len(files), sum(file.size_bytes for file in files))
    return [(checked, files)] if files else []


def _once(run: Storage) -> list[tuple[Checked, list[_File]]]:
    """Lists the files that are made once in a run, if any."""
    folder = run.child(ONCE)
    keys = folder.folders()
    entries = {key: read_sealed(folder, f"{key}/{MADE}") for key in keys}
    files = [
        _File(folder, f"{key}/{place_of(name, file['sha256'])}", file["size_bytes"], file["sha256"])
        for key, entry in entries.items()
        for name, file in (entry or {"files": {}})["files"].items()
    ]
    checked = Checked(ONCE, len(files), sum(file.size_bytes for file in files))
    checked.damaged = [  # without a made.json, files are leftovers and not checked
        DamagedError(folder.uri, f"{key}/{MADE}", TORN)
        for key, entry in entries.items()
        if entry is None and folder.has(f"{key}/{MADE}")
    ]
    return [(checked, files)] if keys else []


def _damage(file: _File) -> DamagedError | None:
    """Checks a file against its size, digest and record; returns its damage, or None."""
    damage = partial(DamagedError, file.folder.uri, file.name)
    try:
        with file.folder.open(file.name) as opened:
            size_bytes = opened.size()
        if size_bytes != file.size_bytes:
            return damage(f"{size_bytes:,} bytes, and {file.size_bytes:,} were stored")
        sha256 = file.folder.sha256(file.name)
    except FileNotFoundError:
        return None if file.may_go else damage("it is gone")
    except OSError as error:
        if not file.folder.is_local:  # a network error tells nothing of the file
            raise
        return damage(f"it cannot be read: {error}")
    if not sha256.startswith(file.sha256):
        return damage(f"its digest is {sha256[:16]}, and {file.sha256[:16]} was stored")
    return _record_damage(file.folder, file.name, file.record) if file.record else None


def _record_damage(folder: Storage, data: str, record: Record) -> DamagedError | None:
    """Checks the stored record of a sound data file against the record that a scan returned.

    They can differ if the scan read a compaction: a failing disk changes no file's time.
    """
    text = folder.read_if_there(record.name)
    stored = None if text is None else parsed(record.name, text)
    if stored is None or stored.to_json() != record.to_json():
        return DamagedError(folder.uri, record.name, TORN)
    with folder.open(data) as file:
        rows = pq.read_metadata(file).num_rows
    due = record.computed if record.number or rows == record.rows else record.rows
    if rows != due:
        return DamagedError(folder.uri, data, f"{rows} rows, and its record says {due}")
    return None
