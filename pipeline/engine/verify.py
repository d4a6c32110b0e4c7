"""`clipmill verify`: every stored file of a run against its record, and what is damaged mended."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq

from clipmill.metadata.damage import DamagedError
from clipmill.metadata.outputs import OUT
from clipmill.metadata.record import MANIFEST, Record, parsed
from clipmill.metadata.scan import scan
from clipmill.metadata.schema import UID
from clipmill.metadata.sealed import read_sealed
from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.answers import FOLDER as ANSWERS
from clipmill.pipeline.engine.answers import all_files, digest_of, merge_files
from clipmill.pipeline.engine.once import FOLDER as ONCE
from clipmill.pipeline.engine.once import MADE, place_of
from clipmill.pipeline.engine.repair import is_asked, refusal, salvage, shard_of, take_away
from clipmill.pipeline.planning.plan import Plan
from clipmill.pipeline.planning.planned import PlannedStage
from clipmill.pipeline.run_folder import lock
from clipmill.pipeline.run_folder.pins import PINS, mend_pins, wrong_pins
from clipmill.pipeline.run_folder.rows import WHOLE
from clipmill.pipeline.run_folder.state import RunState

RunUntil = Callable[[str], object]

TORN = "not as it was stored"
READERS = 8  # files at once: waits on a disk or a network, and hashing leaves Python's lock


@dataclass
class Checked:
    """What was found in one stage's folder."""

    folder: str
    files: int
    size_bytes: int
    damaged: list[DamagedError] = field(default_factory=list)


@dataclass(frozen=True)
class _File:
    folder: Storage
    name: str
    size_bytes: int
    sha256: str  # of its bytes, or how that begins
    record: Record | None = None  # of a shard's data
    may_go: bool = False  # a run that works may merge it with others


def verify(run: Storage, on_bytes: Callable[[int, int], None]) -> list[Checked]:
    """Every stage's folder, whichever recipe made it; `on_bytes(done, total)` as files are read."""
    stages = [_files(run, f"stages/{name}") for name in run.folders("stages")]
    stages += _answers(run) + _once(run)
    total = sum(checked.size_bytes for checked, _ in stages)
    done = 0
    with ThreadPoolExecutor(READERS) as pool:
        for checked, files in stages:
            for file, found in zip(files, pool.map(_wrong, files), strict=True):
                checked.damaged += [found] if found else []
                done += file.size_bytes
                on_bytes(done, total)
    return [checked for checked, _ in stages]


def repair(plan: Plan, run: Storage, stages: list[Checked], run_until: RunUntil) -> int:
    """Has the plan's damaged files made again, but for the rows of answers: those it only lists.

    Files of stored answers keep what of them can be read.
    `run_until(stage)` runs the plan as far as that stage. Returns how many rows the next run will
    ask for again, at most.
    """
    asked = []
    with lock.held(run) as owned:
        for checked in stages:
            if checked.folder == ANSWERS and checked.damaged:
                names = {found.name for found in checked.damaged}
                folder = owned.child(ANSWERS)
                merge_files(folder, [entry for entry in all_files(folder) if entry.name in names])
            if checked.folder == ONCE:  # made again by a stage that asks
                for key in {found.name.partition("/")[0] for found in checked.damaged}:
                    owned.child(ONCE).delete_folder(key)
        for planned, checked in _of_plan(plan, stages):
            if pinned := [found for found in checked.damaged if found.name.startswith(PINS)]:
                mend_pins(owned.child(planned.folder))
                checked.damaged = [found for found in checked.damaged if found not in pinned]
            if planned.is_row and is_asked(planned.stage):
                asked.append((planned, {found.name for found in checked.damaged}))
                continue
            for found in checked.damaged:
                take_away(run.child(planned.folder), found.name)
    for root in dict.fromkeys(planned.root for planned, _ in asked if planned.root):
        run_until(root)  # whose uids the rows have
    state = RunState(plan, run)
    with lock.held(run):
        return sum(_salvage(state, planned, names) for planned, names in asked)


def heal(plan: Plan, run: Storage, found: DamagedError, healed: set[str]) -> str:
    """Takes away a damaged file and all others of its stage, for a run to make them again; the
    name of the stage.

    StageError where a run does not, or has, as the place is among those that were healed.
    """
    stages = plan.stages.values()
    planned = next((it for it in stages if run.child(it.folder).uri == found.folder), None)
    if planned is None or is_asked(planned.stage) or found.place in healed:
        raise refusal(found, planned, run)
    with lock.held(run) as owned:
        folder = owned.child(planned.folder)
        checked, files = _files(run, planned.folder)
        for damaged in [found, *checked.damaged, *filter(None, map(_wrong, files))]:
            healed.add(damaged.place)
            take_away(folder, damaged.name)
    return planned.name


def others(plan: Plan, stages: list[Checked]) -> list[str]:
    """Folders of other recipes' stages that are damaged: made again when these are run."""
    ours = {planned.folder for planned, _ in _of_plan(plan, stages)}
    ours |= {ANSWERS, ONCE}
    return [found.folder for found in stages if found.damaged and found.folder not in ours]


def _of_plan(plan: Plan, stages: list[Checked]) -> Iterator[tuple[PlannedStage, Checked]]:
    by_folder = {planned.folder: planned for planned in plan.stages.values()}
    for checked in stages:
        if checked.damaged and checked.folder in by_folder:
            yield by_folder[checked.folder], checked


def _salvage(state: RunState, planned: PlannedStage, damaged: set[str]) -> int:
    root, folder = state.stored[planned.root], state.stored[planned.name].folder
    found = scan(folder)
    asked = 0
    for shard in sorted({shard_of(name) for name in damaged - {MANIFEST}}):
        lost = [record for record in found.lost if record.shard == shard]
        records = sorted([*found.records.get(shard, []), *lost], key=lambda record: record.number)
        tables = root.read(state.stages[planned.root].shards[shard], [UID.name], WHOLE)
        uid = pa.concat_tables(tables)[UID.name].combine_chunks()
        asked += salvage(planned, folder, records, damaged, uid)
    return asked


def _files(run: Storage, name: str) -> tuple[Checked, list[_File]]:
    folder = run.child(name)
    found = scan(folder)
    kept = [record for records in found.records.values() for record in records]
    files = [
        _File(folder, record.data, record.size_bytes, record.sha256, record)
        for record in (*kept, *found.lost)
        if record.data is not None
    ]
    outputs = found.manifest.outputs if found.manifest else ()
    digests = found.manifest.output_sha256 if found.manifest else {}
    files += [_File(folder, f"{OUT}/{name}", size, digests.get(name, "")) for name, size in outputs]
    checked = Checked(name, len(files), sum(file.size_bytes for file in files))
    looked = {file.record.name for file in files if file.record}
    torn = [DamagedError(folder.uri, name, TORN) for name in found.torn if name not in looked]
    strangers = {name for name, _ in found.outputs} - {name for name, _ in outputs}
    checked.damaged = torn + [
        DamagedError(folder.uri, f"{OUT}/{name}", "no file of this stage's")
        for name in sorted(strangers)
    ]
    checked.damaged += wrong_pins(folder)
    return checked, files


def _answers(run: Storage) -> list[tuple[Checked, list[_File]]]:
    """The files of stored answers, if there are any: their names have their digests."""
    folder = run.child(ANSWERS)
    files = [
        _File(folder, entry.name, entry.size, digest_of(entry.name), may_go=True)
        for entry in all_files(folder)
    ]
    checked = Checked(ANSWERS, len(files), sum(file.size_bytes for file in files))
    return [(checked, files)] if files else []


def _once(run: Storage) -> list[tuple[Checked, list[_File]]]:
    """The files that are made once in a run, if there are any."""
    folder = run.child(ONCE)
    keys = folder.folders()
    made = {key: read_sealed(folder, f"{key}/{MADE}") for key in keys}
    files = [
        _File(folder, f"{key}/{place_of(name, held['sha256'])}", held["size_bytes"], held["sha256"])
        for key, it in made.items()
        for name, held in (it or {"files": {}})["files"].items()
    ]
    checked = Checked(ONCE, len(files), sum(file.size_bytes for file in files))
    checked.damaged = [  # without it files are nobody's
        DamagedError(folder.uri, f"{key}/{MADE}", TORN)
        for key, it in made.items()
        if it is None and folder.has(f"{key}/{MADE}")
    ]
    return [(checked, files)] if keys else []


def _wrong(file: _File) -> DamagedError | None:
    """What is wrong with a file; None where it is as it was stored."""
    wrong = partial(DamagedError, file.folder.uri, file.name)
    try:
        with file.folder.open(file.name) as opened:
            size_bytes = opened.size()
        if size_bytes != file.size_bytes:
            return wrong(f"{size_bytes:,} bytes, and {file.size_bytes:,} were stored")
        sha256 = file.folder.sha256(file.name)
    except FileNotFoundError:
        return None if file.may_go else wrong("it is gone")
    except OSError as error:
        if not file.folder.is_local:  # a network that fails says nothing of the file
            raise
        return wrong(f"it cannot be read: {error}")
    if not sha256.startswith(file.sha256):
        return wrong(f"its digest is {sha256[:16]}, and {file.sha256[:16]} was stored")
    return _wrong_record(file.folder, file.name, file.record) if file.record else None


def _wrong_record(folder: Storage, data: str, record: Record) -> DamagedError | None:
    """What is wrong with the record of a sound data file, as a scan believes it.

    Its object may be another where a compaction was believed: a disk that fails changes no time.
    """
    text = folder.read_if_there(record.name)
    stored = None if text is None else parsed(record.name, text)
    if stored is None or stored.to_json() != record.to_json():
        return DamagedError(folder.uri, record.name, TORN)
    with folder.open(data) as file:
        rows = pq.read_metadata(file).num_rows
    said = record.computed if record.number or rows == record.rows else record.rows
    if rows != said:
        return DamagedError(folder.uri, data, f"{rows} rows, and its record says {said}")
    return None
