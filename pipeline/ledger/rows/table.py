"""Gives the rows of a stage, with columns of any stage over them, as a lazy frame or as files."""

import fnmatch
import glob
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
    """Warns that rows are left out because a stage has not finished their shards."""


def table(
    state: RunState,
    stage: str,
    columns: Sequence[str],
    where: str | None = None,
    dropped: Dropped = None,
    stacklevel: int = 2,
) -> pl.LazyFrame:
    """Returns a lazy frame: `uid`, then the columns under the names as given: see `query`.

    Text is text, and a uid its 32 hex digits; other values are as stored. Warns with
    UnfinishedWarning, at the caller `stacklevel` calls above, if shards are left out.
    """
    from polars.io.plugins import register_io_source

    rows = query(state, stage, columns, where, dropped)
    if rows.unfinished:
        warnings.warn(unfinished_note(rows.unfinished), UnfinishedWarning, stacklevel)
    return register_io_source(partial(frames, rows), schema=rows.schema)


def unfinished_note(unfinished: Sequence[Unfinished]) -> str:
    """Returns a sentence on the stages that have not finished all shards."""
    parts = [
        f"'{part.stage}' has {part.shards} of {'?' if part.total is None else part.total} shards"
        for part in unfinished
    ]
    return f"{', '.join(parts)}: the rows of the others are left out"


DATA = f"{6 * '[0-9]'}-*.parquet"  # 000123-<digest>.parquet; a later pass is 000123.p1-….parquet


def glob_of(state: RunState, stage: str) -> str:
    """Returns a path or URI pattern that matches one file per shard and nothing else there.

    RecipeError if a stage's files are not its rows: it is not complete, runs under a mask, or
    has later passes.
    """
    rows_stage(state.plan, stage)
    stage_state = state.stages[stage]
    wrong = ""
    if not stage_state.complete:
        wrong = f"it is not complete: {summary(stage_state)}"
    elif any(shard.mask is not None for shard in stage_state.shards.values()):
        wrong = f"rows outside of its `only: {stage_state.planned.only}` are in them"
    elif any(len(shard.files) > 1 for shard in stage_state.shards.values()):
        wrong = "later passes hold some of its rows again"
    else:
        files = {shard.files[0] for shard in stage_state.shards.values()}
        names = {entry.name for entry in stage_state.folder.entries()}
        if others := sorted({*fnmatch.filter(names, DATA)} ^ files):
            wrong = f"{others[0]} is no shard of them"  # left by a killed run
    if wrong:
        raise RecipeError(
            f"the files of '{stage}' are not its rows: {wrong}",
            str(stage_state.folder),
            f"read them with `table`: run.table({stage!r}, …)",
        )
    folder = stage_state.folder
    scheme = "" if folder.is_local else f"{folder.uri.partition('://')[0]}://"
    return f"{scheme}{glob.escape(folder.path)}/{DATA}"
