"""The first rows of data as a recipe reads them, and what is wrong with them."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pyarrow as pa

from clipmill.metadata.schema import IMAGE, REASON, TEXT, UID, Derived
from clipmill.pipeline.planning.plan import Plan
from clipmill.pipeline.stage import DatasetStage, RowFunction, RowStage, Worker

LOOKED_AT = 1000  # rows without pictures
PICTURES = 100  # rows with them, which are decoded
NO_CAPTION = "no caption"


@dataclass(frozen=True, kw_only=True)
class Preview:
    """The first rows, uid and reason among their columns, and why some of them cannot be used."""

    rows: pa.Table
    unusable: dict[str, int]  # cause to rows, each at its first

    @property
    def looked_at(self) -> int:
        return len(self.rows)


def preview(plan: Plan, has_captions: bool) -> Preview:
    """Of a starter recipe's pool, read as a run reads it; ClipmillError where it cannot be."""
    pool = plan.stages["pool"].stage
    assert isinstance(pool, DatasetStage)
    has_pictures = any(column.name == IMAGE.name for column in pool.writes)
    rows = pool.head(PICTURES if has_pictures else LOOKED_AT)
    causes = rows[REASON.name].cast(pa.string()).to_pylist()
    if has_captions:
        texts = rows[TEXT.name].to_pylist()
        causes = [
            cause or (None if text and text.strip() else NO_CAPTION)
            for cause, text in zip(causes, texts, strict=True)
        ]
    if has_pictures and len(rows):
        broken = _reasons(plan, "look", rows)
        causes = [cause or found for cause, found in zip(causes, broken, strict=True)]
    return Preview(rows=rows, unusable=dict(Counter(cause for cause in causes if cause)))


def _reasons(plan: Plan, name: str, rows: pa.Table) -> list[str | None]:
    """The reason that a row stage gives for each row."""
    stage = plan.stages[name].stage
    assert isinstance(stage, RowStage)
    batch = {UID.name: rows[UID.name]}
    for column in stage.reads:
        assert not isinstance(column, str)
        given = rows[column.source.name] if isinstance(column, Derived) else rows[column.name]
        batch[column.name] = column.derive(given) if isinstance(column, Derived) else given
    place = Worker(seed=plan.seed, stage=name, device="cpu", threads=1, scratch=Path())
    function = cast(RowFunction, stage.open(place))  # it does not stream
    made = function(pa.table(batch))
    found: list[str | None] = made[REASON.name].cast(pa.string()).to_pylist()
    return found
