"""Which column of a run is meant: the plan's rule, over all stages that have these rows."""

from clipmill.metadata.schema import POSITION, REASON, SHARD, UID
from clipmill.pipeline.errors import RecipeError, did_you_mean
from clipmill.pipeline.planning.bindings import columns_of, type_of
from clipmill.pipeline.planning.plan import Plan
from clipmill.pipeline.planning.planned import Binding

PLACE = (SHARD.name, POSITION.name)  # of a row in its root: no file holds them
OWN = (UID.name, REASON.name, *PLACE)  # every stage with rows has them


def rows_stage(plan: Plan, stage: str) -> str:
    """The root of a stage's rows; RecipeError where there is no such stage, or it has none."""
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
    """Where the column `column`, or `stage.column`, is found for the rows of a stage.

    A bare name is first sought as a stage would that came after this one, then among the other
    stages over the same rows. RecipeError where there is none, or more than one.
    """
    root = rows_stage(plan, stage)
    if column in OWN:
        return (stage if column == REASON.name else root), column
    same = [n for n, one in plan.stages.items() if one.root == root and one.gives_rows]
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
    line = _line(plan, stage)
    writers = [name for name in same if column in _written(plan, name)]
    near = [name for name in writers if name in line]  # of these a later one hides an earlier
    near = [n for n in near if not any(n in _line(plan, other) for other in near if other != n)]
    if len(near or writers) == 1:
        return (near or writers)[0], column
    if writers:
        found = near or writers
        raise RecipeError(
            f"column '{column}' comes from {' and '.join(map(repr, found))}",
            where,
            f"write {' or '.join(f'{name}.{column}' for name in found)}",
        )
    known = dict.fromkeys(name for one in same for name in _written(plan, one))
    do = did_you_mean(column, [*known, *OWN], "columns of these rows")
    raise RecipeError(f"no stage writes column '{column}'", where, do)


def _written(plan: Plan, stage: str) -> list[str]:
    return [column.name for column in columns_of(plan.stages[stage].stage)]


def _line(plan: Plan, stage: str) -> set[str]:
    """The stage and its ancestors."""
    found = {stage}
    left = [stage]
    for name in left:
        left += [parent for parent in plan.stages[name].parents if parent not in found]
        found.update(left)
    return found
