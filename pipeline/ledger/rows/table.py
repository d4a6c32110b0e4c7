"""The rows of a stage with columns of any stage over them, as a lazy Polars frame, or as files."""

import fnmatch
import warnings
from collections.abc import Sequence
from functools import partial

import polars as pl

from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.ledger.rows.columns import rows_stage
from clipmill.pipeline.ledger.rows.query import Dropped, Unfinished, query
from clipmill.pipeline.ledger.rows.scan import frames
from clipmill.pipeline.run_folder.state import RunState, summary


class UnfinishedWarning(UserWarning):
    """Rows are left out, as a stage has not come to them."""


def table(
    state: RunState,
    stage: str,
    columns: Sequence[str],
    where: str | None = None,
    dropped: Dropped = None,
    stacklevel: int = 2,
) -> pl.LazyFrame:
    """`uid`, then the columns under the names they are asked by: see `query`.

    Text is text, and a uid its 32 hex digits; other values are as stored. UnfinishedWarning where
    shards are left out, as a stage has not come to them: of the caller so many calls above.
    """
    from polars.io.plugins import register_io_source

    wanted = query(state, stage, columns, where, dropped)
    if wanted.unfinished:
        warnings.warn(said(wanted.unfinished), UnfinishedWarning, stacklevel)
    return register_io_source(partial(frames, wanted), schema=wanted.schema)


def said(unfinished: Sequence[Unfinished]) -> str:
    """Which stages have not come to all shards, in words."""
    parts = [
        f"'{it.stage}' has {it.shards} of {'?' if it.total is None else it.total} shards"
        for it in unfinished
    ]
    return f"{', '.join(parts)}: the rows of the others are left out"


DATA = f"{6 * '[0-9]'}-*.parquet"  # 000123-<digest>.parquet; a later pass is 000123.p1-….parquet


def glob_of(state: RunState, stage: str) -> str:
    """A path or URI with a pattern that matches one file a shard; none else lies there.

    RecipeError where a stage's files are not its rows: it is not complete, stands under a mask, or
    has later passes.
    """
    rows_stage(state.plan, stage)
    at = state.stages[stage]
    wrong = ""
    if not at.complete:
        wrong = f"it is not complete: {summary(at)}"
    elif any(shard.mask is not None for shard in at.shards.values()):
        wrong = f"rows outside of its `only: {at.planned.only}` are in them"
    elif any(len(shard.files) > 1 for shard in at.shards.values()):
        wrong = "later passes hold some of its rows again"
    else:
        files = {shard.files[0] for shard in at.shards.values()}
        there = {entry.name for entry in at.folder.entries()}
        if others := sorted({*fnmatch.filter(there, DATA)} ^ files):
            wrong = f"{others[0]} is no shard of them"  # what a killed run left
    if wrong:
        raise RecipeError(
            f"the files of '{stage}' are not its rows: {wrong}",
            str(at.folder),
            f"read them with `table`: run.table({stage!r}, …)",
        )
    scheme = "" if at.folder.is_local else f"{at.folder.uri.partition('://')[0]}://"
    return f"{scheme}{at.folder.path}/{DATA}"
