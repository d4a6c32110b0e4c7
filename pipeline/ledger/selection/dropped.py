"""Finds the stage that lost rows for a reason, and the columns that decided."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from clipmill.metadata.passes import NOT_SELECTED
from clipmill.pipeline.errors import RecipeError, did_you_mean
from clipmill.pipeline.ledger.selection.causes import named_in
from clipmill.pipeline.ledger.selection.reasons import ShardReasons, stages_of
from clipmill.pipeline.planning.planned import Binding
from clipmill.pipeline.run_folder.state import RunState
from clipmill.pipeline.run_folder.words import in_words


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """Rows to which a stage gives one reason; `decided` are the columns that the reason names, as
    the stage reads them, and their sources."""

    stage: str
    reason: str
    rows: int
    decided: Mapping[str, Binding]


def dropped(state: RunState, reason: str, stage: str | None = None) -> Dropped:
    """Returns the rows that a stage lost for this reason; RecipeError unless exactly one did.

    A reason may be given in plain words, as `funnel` prints it.
    """
    lost = {name: rows for name, rows in _lost(state).items() if stage in (None, name)}
    codes = {in_words(code): code for rows in lost.values() for code in rows}
    reason = codes.get(reason, reason)
    stages = [name for name, rows in lost.items() if reason in rows]
    if not stages:
        place = f"stage '{stage}'" if stage else "any stage"
        known = [code for rows in lost.values() for code, _ in rows.most_common()]
        raise RecipeError(
            f"no row was lost for '{reason}' at {place}",
            "--dropped",
            did_you_mean(reason, known, "rows were lost for"),
        )
    if len(stages) > 1:
        raise RecipeError(
            f"{len(stages)} stages lost rows for '{reason}': {', '.join(stages)}",
            "--dropped",
            f"say which: --stage {stages[-1]}",
        )
    (name,) = stages
    return Dropped(
        stage=name,
        reason=reason,
        rows=lost[name][reason],
        decided=named_in(state.plan, name, reason),
    )


def _lost(state: RunState) -> dict[str, Counter[str]]:
    """Returns the rows of each complete stage by its reasons."""
    lost: dict[str, Counter[str]] = {}
    for root in dict.fromkeys(planned.root for planned in state.plan.stages.values()):
        for shard in sorted(state.stages[root].shards) if root else ():
            reasons = ShardReasons(state, root, shard)
            for name in stages_of(state, root):
                lost.setdefault(name, Counter()).update(reasons.counts(name))
    for rows in lost.values():
        for code in ("", NOT_SELECTED):
            rows.pop(code, None)
    return lost
