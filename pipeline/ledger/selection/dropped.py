"""Finds the stage that lost rows for a reason, and the columns that decided."""

from collections.abc import Mapping
from dataclasses import dataclass

from clipmill.metadata.passes import NOT_SELECTED
from clipmill.pipeline.errors import RecipeError, did_you_mean
from clipmill.pipeline.ledger.selection.causes import named_in
from clipmill.pipeline.ledger.selection.reasons import counts_of
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
    lost = {
        name: counts_of(state, name)
        for name, stored in state.stages.items()
        if stored.planned.gives_rows and stored.complete and stage in (None, name)
    }
    for rows in lost.values():
        for code in ("", NOT_SELECTED):
            rows.pop(code, None)
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
