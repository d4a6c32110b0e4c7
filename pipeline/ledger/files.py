"""The files of a stage by a glob, where they are its rows as they stand."""

import fnmatch

from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.ledger.columns import rows_stage
from clipmill.pipeline.run_folder.state import RunState, summary

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
