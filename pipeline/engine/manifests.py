"""Stores the end of a stage: its records compacted into one file, its manifest, perhaps a seal."""

from dataclasses import replace

import pyarrow as pa

from clipmill.metadata.compaction import compact
from clipmill.metadata.fingerprint import digest, settings_of
from clipmill.metadata.outputs import NOTES, Noted
from clipmill.metadata.places import is_places
from clipmill.metadata.record import MANIFEST, Manifest
from clipmill.metadata.records import table_of
from clipmill.metadata.sealed import put_sealed
from clipmill.metadata.stage_seal import SEAL, is_large, put_seal
from clipmill.pipeline.engine.context import RunContext
from clipmill.pipeline.engine.partial_results import FOLDER as KEPT
from clipmill.pipeline.run_folder.state import RunState, StageState
from clipmill.pipeline.stage import RowStage


def seal(state: RunState, name: str) -> None:
    """Stores a complete stage's manifest or compaction, and deletes what only its run needed.

    A large stage gets its seal; one whose seal is good has all of this.
    """
    stage = state.stages[name]
    if stage.seal:
        return
    if stage.planned.is_row:
        digests = stage.shards.digests().to_pylist()
        manifest = Manifest(
            shards=len(stage.shards),
            rows=stage.shards.rows,
            inputs=digest([list(pair) for pair in zip(stage.shards, digests, strict=True)]),
            fingerprint=stage.planned.fingerprint,
        )
        _put(stage, manifest, stage.columns)
    elif not stage.scan.compacted:
        compact(stage.folder, stage.columns)
    _tidy(stage)
    if (stored := stage.scan.manifest) and is_large(stored):
        counts, untold = stage.all_recorded()
        counted = {"counts": None if untold else counts, "codes": stage.codes}
        put_seal(stage.folder, stored, state.made_of(stage.planned), stage.columns, **counted)


def put_dataset_manifest(
    stage: StageState,
    context: RunContext,
    made_of: dict[str, str],
    stored: dict[str, Noted],
    seconds: float,
) -> None:
    """Stores the manifest of a dataset stage; if shards failed, only its records."""
    folder = stage.folder
    if stage.planned.is_root:
        for shard in [s for s in stage.scan.records if s >= context.shards]:
            folder.delete(SEAL)
            folder.delete(f"{shard:06d}.json")  # the pool has shrunk
    if context.failures:
        folder.delete(MANIFEST)
        compact(folder, table_of(context.records.values()))
        return
    records = [context.records[shard] for shard in sorted(context.records)]
    outputs = tuple((name, noted.size_bytes) for name, noted in stored.items())
    digested = [file for file in outputs if not is_places(file[0])]
    manifest = Manifest(
        shards=len(records),
        rows=sum(record.rows for record in records),
        **made_of,
        digest=digest([*made_of.values(), [r.sha256 for r in records], digested]),
        outputs=outputs,
        output_sha256={name: noted.sha256 for name, noted in stored.items()},
        page_checksums=context.run.page_checksums,
        seconds=round(seconds, 3),
        fingerprint=stage.planned.fingerprint,
    )
    _put(stage, manifest, table_of(records))


def _put(stage: StageState, manifest: Manifest, records: pa.Table) -> None:
    """Stores compaction and manifest, unless they are stored already."""
    stored = stage.scan.manifest
    if stored and replace(stored, seconds=manifest.seconds) == manifest and stage.scan.compacted:
        return
    compact(stage.folder, records)
    planned = stage.planned
    whole = {
        "stage": planned.name,
        "uses": planned.uses,
        "version": planned.stage.version,
        "determinism": planned.stage.determinism,
        "settings": settings_of(planned.stage),
        **vars(manifest),
    }
    put_sealed(stage.folder, MANIFEST, whole, point="manifest")
    stage.scan.manifest = manifest


def _tidy(stage: StageState) -> None:
    """Deletes a finished stage's journal or partial results, and counts that a killed run left.

    A root keeps the results of its calls, so that its sources are not scanned again.
    """
    for name in stage.scan.attempts:
        stage.folder.delete(name)
    if isinstance(stage.planned.stage, RowStage):
        if stage.planned.stage.journals and KEPT in stage.folder.folders():
            stage.folder.delete_folder(KEPT)
        return
    parent = "calls" if stage.planned.is_root else ""
    for name in stage.folder.folders(parent):
        if parent or name.startswith("calls-") or name == NOTES:
            stage.folder.delete_folder(f"{parent}/{name}".lstrip("/"))
