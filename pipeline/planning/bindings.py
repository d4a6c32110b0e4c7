"""Which column is meant: where each one that a stage reads is found among its ancestors."""

from collections.abc import Mapping

import pyarrow as pa

from clipmill.metadata.schema import KEEP, REASON, REPEATS, UID, Column, Derived
from clipmill.pipeline.errors import ClipmillError, RecipeError, did_you_mean
from clipmill.pipeline.planning.planned import Binding, PlannedStage
from clipmill.pipeline.planning.recipe import Recipe
from clipmill.pipeline.planning.settings import known_uses, stage_class
from clipmill.pipeline.stage import DatasetStage, Stage

MOST_WRITERS = 4  # that an error names


def bind(
    recipe: Recipe,
    name: str,
    stage: Stage,
    parents: list[str],
    planned: dict[str, PlannedStage],
    ancestors: dict[str, set[str]],
) -> dict[str, Binding]:
    """Where each column that the stage reads is found among its ancestors."""
    line = set(parents).union(*(ancestors[p] for p in parents))
    chosen = recipe.stages[name].get("read", {})
    if not isinstance(chosen, dict):
        raise RecipeError(
            f"`read` is {chosen!r}",
            recipe.where(name, "read"),
            "write {column: stage.column}",
        )
    for read, source in chosen.items():
        if not isinstance(source, str):
            raise RecipeError(
                f"'{read}' is bound to {source!r}",
                recipe.where(name, "read", read),
                f"write {{{read}: stage.column}}",
            )
    bound: dict[str, Binding] = {}
    types: dict[str, pa.DataType] = {UID.name: UID.dtype}
    names: set[str] = set()
    for several, wanted in (
        *(((read,), True) for read in stage.reads),
        *((_in_turn(read, chosen), False) for read in stage.optional_reads),
    ):
        reads = [column if isinstance(column, str) else column.name for column in several]
        names |= {*reads}
        if any(read in bound or read == UID.name for read in reads):
            continue
        for read, column in zip(reads, several, strict=True):
            if isinstance(column, Derived) and isinstance(stage, DatasetStage):
                raise RecipeError(
                    found=f"the column '{read}' is derived, which a dataset stage cannot read",
                    where=recipe.where(name, "uses"),
                    do=f"read '{column.source.name}' and call its `derive`",
                )
            stored = column.source if isinstance(column, Derived) else column
            source = chosen.get(read, stored if isinstance(stored, str) else stored.name)
            found = _find(recipe, name, source, line, planned, ancestors, wanted, stage)
            if found is None:
                continue
            bound[read] = found
            have = type_of(planned[found[0]].stage, found[1])
            types[read] = column.dtype if isinstance(column, Derived) else have
            if isinstance(stored, Column):
                _check_type(recipe, name, read, stored, found, planned)
            break
    for read in chosen:
        if read not in names:
            raise RecipeError(
                f"the stage reads no '{read}'",
                recipe.where(name, "read", read),
                f"it reads: {', '.join(sorted(names))}",
            )
    try:
        stage.check(types)
    except ClipmillError as error:
        found, at, do = error.args
        raise RecipeError(found, recipe.where_said(name, at), do) from None
    return bound


def _in_turn(
    read: Column | str | tuple[Column, ...], chosen: Mapping[str, str]
) -> tuple[Column | str, ...]:
    """The columns of which the first that is there is read: those that `read` binds before all."""
    several = read if isinstance(read, tuple) else (read,)
    return tuple(sorted(several, key=lambda it: isinstance(it, str) or it.name not in chosen))


def _check_type(
    recipe: Recipe,
    name: str,
    read: str,
    column: Column,
    found: Binding,
    planned: dict[str, PlannedStage],
) -> None:
    have = type_of(planned[found[0]].stage, found[1])
    if not column.accepts(have):
        raise RecipeError(
            found=f"{found[0]}.{found[1]} is {have}, and '{column.name}' is {column.dtype}",
            where=recipe.where(name, "read"),
            do=f"bind another column, read: {{{read}: stage.column}}: {column.doc}",
        )


def bind_mask(
    recipe: Recipe,
    name: str,
    select: str,
    planned: dict[str, PlannedStage],
    ancestors: dict[str, set[str]],
) -> dict[str, Binding]:
    """Where a select's verdict is found, and how often a row counts where it or an ancestor says.

    These are the columns that an export of the select would read.
    """
    line = {select} | ancestors[select]
    bound = {KEEP.name: (select, KEEP.name)}
    reader = planned[select].stage
    repeats = _find(recipe, name, REPEATS.name, line, planned, ancestors, False, reader)
    if repeats:
        _check_type(recipe, name, REPEATS.name, REPEATS, repeats, planned)
        bound[REPEATS.name] = repeats
    return bound


def _find(
    recipe: Recipe,
    name: str,
    source: str,
    line: set[str],
    planned: dict[str, PlannedStage],
    ancestors: dict[str, set[str]],
    wanted: bool,
    reader: Stage,
) -> Binding | None:
    """Stage and column of `column` or `stage.column`; None where an optional one is absent.

    A column written again further down the line hides the earlier one; two that do not stand in
    line are ambiguous.
    """
    stage, dot, column = source.rpartition(".")
    if dot:
        if stage not in recipe.stages:
            do = reader.hint(source) or did_you_mean(stage, sorted(line), "ancestors")
            raise RecipeError(f"no stage '{stage}'", recipe.where(name), do)
        if stage not in line:
            raise RecipeError(
                found=f"'{stage}' is no ancestor of '{name}'",
                where=recipe.where(name),
                do=f"add it to `from`; ancestors: {', '.join(sorted(line))}",
            )
        if type_of(planned[stage].stage, column) is None and not wanted:
            # One that is read where it is there: as that stage would read it.
            line = {stage} | ancestors[stage]
            return _find(recipe, name, column, line, planned, ancestors, wanted, reader)
        if type_of(planned[stage].stage, column) is None:
            have = [written.name for written in columns_of(planned[stage].stage)] + [REASON.name]
            raise RecipeError(
                found=f"'{stage}' writes no '{column}'",
                where=recipe.where(name),
                do=did_you_mean(column, have, f"'{stage}' writes"),
            )
        return stage, column
    writers = {
        other
        for other in line
        if source in {written.name for written in columns_of(planned[other].stage)}
    }
    writers -= {other for other in writers if any(other in ancestors[w] for w in writers)}
    if len(writers) == 1:
        return writers.pop(), source
    if writers:
        first, second, *_ = sorted(writers)
        raise RecipeError(
            found=f"column '{source}' comes from two ancestors: '{first}' and '{second}'",
            where=recipe.where(name),
            do=reader.hint(source, (first, second))
            or f"write {first}.{source} or {second}.{source},"
            f" or bind it: read: {{{source}: {first}.{source}}}",
        )
    if not wanted:
        return None
    visible = {written.name for other in line for written in columns_of(planned[other].stage)}
    raise RecipeError(
        found=f"no ancestor writes column '{source}'",
        where=recipe.where(name),
        do=reader.hint(source)
        or _beside(source, line, planned, ancestors)
        or _elsewhere(source)
        or did_you_mean(source, sorted(visible), "columns here"),
    )


def _beside(
    source: str,
    line: set[str],
    planned: dict[str, PlannedStage],
    ancestors: dict[str, set[str]],
) -> str:
    """What to do where a stage of the same pool writes the column, and is only not named."""
    writers = [
        f"'{other}'"
        for other in sorted(planned.keys() - line)
        if ancestors[other] & line
        and source in {written.name for written in columns_of(planned[other].stage)}
    ]
    return f"add to `from` a stage that writes it: {', '.join(writers)}" if writers else ""


def _elsewhere(source: str) -> str:
    """What to do where there are stages that write the column, whatever their settings."""
    writers = []
    for uses in known_uses():
        try:
            cls = stage_class(uses, uses)
        except ClipmillError:  # a user's own that is not finished
            continue
        columns: tuple[Column, ...] = cls.writes if isinstance(cls.writes, tuple) else ()
        if "rows" in cls.takes and source in {column.name for column in columns}:
            writers.append(uses)
    few = ", ".join(writers[:MOST_WRITERS])
    return f"let a stage come before it that writes it: {few}" if few else ""


def type_of(stage: Stage, column: str) -> pa.DataType | None:
    """The type of a stage's column; None where it has no such column."""
    if column == REASON.name:
        return REASON.dtype
    found = {written.name: written.dtype for written in columns_of(stage)}
    return found.get(column)


def columns_of(stage: Stage) -> tuple[Column, ...]:
    """What a stage writes, and what it reads from its source when asked."""
    return (*stage.writes, *(stage.virtual if isinstance(stage, DatasetStage) else ()))
