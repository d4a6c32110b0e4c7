"""Decides, from its stored records alone, whether a shard of a stage is done."""

from collections.abc import Mapping, Sequence
from typing import Literal, TypeVar

from clipmill.metadata.record import Failure, Record
from clipmill.pipeline.planning.planned import PlannedStage

D = TypeVar("D")  # a digest, or a column of digests by shard
Standing = Literal["good", "failed", "missing"]


def standing(
    records: Sequence[Record],
    failure: Failure | None,
    parents: Mapping[str, str],
    mask: str | None = None,
) -> Standing:
    """Returns a shard's standing.

    `good`: its passes are made from these parents, and one covers the current mask.
    `failed`: not good, and the failed attempt had the same parents. `missing`: all else.
    """
    passes = current(records, parents)
    if any(record.mask in (None, mask) for record in passes):
        return "good"
    return "failed" if failure is not None and failure.parents == parents else "missing"


def current(records: Sequence[Record], parents: Mapping[str, str]) -> list[Record]:
    """Returns the passes of a shard if all are made from these parents; else none."""
    return list(records) if all(record.parents == parents for record in records) else []


def parents_of(
    planned: PlannedStage, digests: Mapping[str, D], models: Mapping[str, str]
) -> dict[str, D | str]:
    """Returns the digests of a shard's inputs: of each source, and of model and centroid files.

    If a stage reads both rows and files of another, the files' key is `stage:NAME`.
    """
    parents: dict[str, D | str] = {source: digests[source] for source in planned.sources}
    for folder in filter(None, (planned.model, planned.centroids)):
        name = f"stage:{folder}" if folder in parents else folder
        parents[name] = models[folder]
    return parents
