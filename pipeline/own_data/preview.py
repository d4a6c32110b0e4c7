"""Reads the first rows of data as a recipe would, and counts the unusable ones."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pyarrow as pa

from clipmill.metadata.schema import IMAGE, REASON, TEXT, UID, Derived
from clipmill.pipeline.planning.plan import Plan
from clipmill.pipeline.stage import DatasetStage, RowFunction, RowStage, Worker

LOOKED_AT = 1000  # rows without pictures
PICTURES = 100  # rows with pictures, which are decoded
NO_CAPTION = "no caption"


@dataclass(frozen=True, kw_only=True)
class Preview:
    """The first rows, with uid and reason, and why some cannot be used."""

    rows: pa.Table
    unusable: dict[str, int]  # first cause to rows

    @property
    def looked_at(self) -> int:
        return len(self.rows)


def preview(plan: Plan, has_captions: bool) -> Preview:
    """Reads the first rows of a starter recipe's pool as a run does; ClipmillError if it cannot."""
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
        causes = [cause or reason for cause, reason in zip(causes, broken, strict=True)]
    return Preview(rows=rows, unusable=dict(Counter(cause for cause in causes if cause)))


def _reasons(plan: Plan, name: str, rows: pa.Table) -> list[str | None]:
    """Returns the reason that a row stage gives for each row."""
    stage = plan.stages[name].stage
    assert isinstance(stage, RowStage)
    batch = {UID.name: rows[UID.name]}
    for column in stage.reads:
        assert not isinstance(column, str)
        values = rows[column.source.name] if isinstance(column, Derived) else rows[column.name]
        batch[column.name] = column.derive(values) if isinstance(column, Derived) else values
    place = Worker(seed=plan.seed, stage=name, device="cpu", threads=1, scratch=Path())
    function = cast(RowFunction, stage.open(place))  # it does not stream
    answer = function(pa.table(batch))
    reasons: list[str | None] = answer[REASON.name].cast(pa.string()).to_pylist()
    return reasons
