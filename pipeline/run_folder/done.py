"""Whether a shard of a stage is done: decided from what is stored of it, in one place."""

from collections.abc import Mapping, Sequence
from typing import Literal, TypeVar

from clipmill.metadata.record import Failure, Record
from clipmill.pipeline.planning.planned import PlannedStage

D = TypeVar("D")  # one digest, or one of each shard
Standing = Literal["good", "failed", "missing"]


def standing(
    records: Sequence[Record],
    failure: Failure | None,
    parents: Mapping[str, str],
    mask: str | None = None,
) -> Standing:
    """`good`: its passes are made of these parents, and one covers the rows of today's mask.

    `failed`: not good, and the attempt that failed had the same parents. `missing`: all else.
    """
    passes = current(records, parents)
    if any(record.mask in (None, mask) for record in passes):
        return "good"
    return "failed" if failure is not None and failure.parents == parents else "missing"


def current(records: Sequence[Record], parents: Mapping[str, str]) -> list[Record]:
    """The passes of a shard where all are made of these parents; none where one is not."""
    return list(records) if all(record.parents == parents for record in records) else []


def parents_of(
    planned: PlannedStage, digests: Mapping[str, D], models: Mapping[str, str]
) -> dict[str, D | str]:
    """The digests of each source, and of the files of each folder, that a shard is made of.

    A stage may read rows and files of one other: then the files stand under `stage:NAME`.
    """
    parents: dict[str, D | str] = {source: digests[source] for source in planned.sources}
    for folder in filter(None, (planned.model, planned.centroids)):
        name = f"stage:{folder}" if folder in parents else folder
        parents[name] = models[folder]
    return parents
