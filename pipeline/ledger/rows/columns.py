"""Resolves a column name over all stages with the same rows, by the rule of plans."""

from collections.abc import Callable, Iterable
from operator import attrgetter

from clipmill.metadata.schema import POSITION, REASON, SHARD, UID
from clipmill.pipeline.errors import RecipeError, did_you_mean
from clipmill.pipeline.planning.bindings import columns_of, type_of
from clipmill.pipeline.planning.plan import Plan
from clipmill.pipeline.planning.planned import Binding, PlannedStage

PLACE = (SHARD.name, POSITION.name)  # a row's place in its root: stored in no file
Edges = Callable[[PlannedStage], Iterable[str]]
OWN = (UID.name, REASON.name, *PLACE)  # every stage with rows has them


def rows_stage(plan: Plan, stage: str) -> str:
    """Returns the root of a stage's rows; RecipeError if the stage is unknown or has no rows."""
    with_rows = [name for name, planned in plan.stages.items() if planned.gives_rows]
    where = f"the recipe {plan.recipe.path}"
    if stage not in plan.stages:
        do = did_you_mean(stage, with_rows, "stages with rows")
        raise RecipeError(f"no stage '{stage}'", where, do)
    if stage not in with_rows:
        do = f"name a stage that has some: {', '.join(with_rows)}"
        raise RecipeError(f"the stage '{stage}' has no rows", where, do)
    return plan.stages[stage].root


def column_at(plan: Plan, stage: str, column: str) -> Binding:
    """Returns the stage and column that `column` or `stage.column` means over a stage's rows.

    A bare name resolves as in a stage after this one, then among the other stages over the same
    rows. RecipeError if there is none, or more than one.
    """
    root = rows_stage(plan, stage)
    if column in OWN:
        return (stage if column == REASON.name else root), column
    same = [n for n, planned in plan.stages.items() if planned.root == root and planned.gives_rows]
    source, dot, last = column.rpartition(".")
    where = f"columns of the rows of '{stage}'"
    if dot:
        if source not in plan.stages:
            do = did_you_mean(source, same, "stages with these rows")
            raise RecipeError(f"no stage '{source}', in '{column}'", where, do)
        if source not in same:
            do = f"stages with these rows: {', '.join(same)}"
            raise RecipeError(f"the rows of '{source}' are not those of '{stage}'", where, do)
        if last != UID.name and type_of(plan.stages[source].stage, last) is None:
            do = did_you_mean(last, [*_written(plan, source), REASON.name], f"'{source}' writes")
            raise RecipeError(f"'{source}' writes no '{last}'", where, do)
        return (root if last == UID.name else source), last
    line = line_of(plan, stage)
    writers = [name for name in same if column in _written(plan, name)]
    near = [name for name in writers if name in line]  # a later one hides its ancestors
    near = [n for n in near if not any(n in line_of(plan, other) for other in near if other != n)]
    if len(near or writers) == 1:
        return (near or writers)[0], column
    if writers:
        sources = near or writers
        raise RecipeError(
            f"column '{column}' comes from {' and '.join(map(repr, sources))}",
            where,
            f"write {' or '.join(f'{name}.{column}' for name in sources)}",
        )
    known = dict.fromkeys(name for other in same for name in _written(plan, other))
    do = did_you_mean(column, [*known, *OWN], "columns of these rows")
    raise RecipeError(f"no stage writes column '{column}'", where, do)


def _written(plan: Plan, stage: str) -> list[str]:
    return [column.name for column in columns_of(plan.stages[stage].stage)]


def line_of(plan: Plan, stage: str, by: Edges = attrgetter("parents")) -> set[str]:
    """Returns the stage and all that come before it, along the edges that `by` gives of each."""
    line = {stage}
    for planned in reversed(plan.stages.values()):
        if planned.name in line:
            line.update(by(planned))
    return line
