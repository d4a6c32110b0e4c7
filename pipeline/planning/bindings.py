"""Binds the columns that a stage reads to the ancestors that write them."""

from collections.abc import Mapping
from functools import partial

import pyarrow as pa

from clipmill.metadata.schema import KEEP, REASON, REPEATS, UID, Column, Derived
from clipmill.pipeline.errors import ClipmillError, RecipeError, did_you_mean
from clipmill.pipeline.planning.planned import Binding, PlannedStage
from clipmill.pipeline.planning.recipe import Recipe
from clipmill.pipeline.planning.settings import known_uses, stage_class
from clipmill.pipeline.stage import DatasetStage, Stage

MOST_WRITERS = 4  # named in an error


def bind(
    recipe: Recipe,
    name: str,
    stage: Stage,
    parents: list[str],
    planned: dict[str, PlannedStage],
    ancestors: dict[str, set[str]],
) -> dict[str, Binding]:
    """Returns stage and column for each name that the stage reads; else raises RecipeError."""
    line = _line(parents, planned, ancestors)
    chosen = recipe.stages[name].get("read", {})
    if not isinstance(chosen, dict):
        raise RecipeError(
            f"`read` is {chosen!r}", recipe.where(name, "read"), "write {column: stage.column}"
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
    # Each entry has alternatives: the first that an ancestor writes is bound.
    for several, is_required in (
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
            find = partial(_find, recipe, name, source, line, planned, ancestors)
            # What the recipe names itself must be there.
            binding = find(is_required, stage) or find(read in chosen, stage)
            if binding is None:
                continue
            bound[read] = binding
            have = type_of(planned[binding[0]].stage, binding[1])
            types[read] = column.dtype if isinstance(column, Derived) else have
            if isinstance(stored, Column):
                _check_type(recipe, name, read, stored, binding, planned)
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
        found, where, do = error.args
        raise RecipeError(found, recipe.where_said(name, where), do) from None
    return bound


def _in_turn(
    read: Column | str | tuple[Column, ...], chosen: Mapping[str, str]
) -> tuple[Column | str, ...]:
    """Returns alternatives in the order they are tried: those bound by `read` come first."""
    several = read if isinstance(read, tuple) else (read,)
    return tuple(sorted(several, key=lambda one: isinstance(one, str) or one.name not in chosen))


def _check_type(
    recipe: Recipe,
    name: str,
    read: str,
    column: Column,
    binding: Binding,
    planned: dict[str, PlannedStage],
) -> None:
    have = type_of(planned[binding[0]].stage, binding[1])
    if not column.accepts(have):
        raise RecipeError(
            found=f"{binding[0]}.{binding[1]} is {have}, and '{column.name}' is {column.dtype}",
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
    """Binds a select's `keep`, and `repeats` if the select or an ancestor writes it.

    An export of the select would read the same columns.
    """
    line = _line([select], planned, ancestors)
    bound = {KEEP.name: (select, KEEP.name)}
    reader = planned[select].stage
    chosen = recipe.stages[name].get("read", {})
    if not isinstance(chosen, dict) or chosen.keys() - {REPEATS.name}:
        do = "write `read: {repeats: stage.repeats}`, or leave it out"
        raise RecipeError(f"`read` is {chosen!r}", recipe.where(name, "read"), do)
    source = chosen.get(REPEATS.name, REPEATS.name)
    find = partial(_find, recipe, name, source, line, planned, ancestors)
    repeats = find(False, reader) or find(bool(chosen), reader)
    if repeats:
        _check_type(recipe, name, REPEATS.name, REPEATS, repeats, planned)
        bound[REPEATS.name] = repeats
    return bound


def _line(
    parents: list[str], planned: dict[str, PlannedStage], ancestors: dict[str, set[str]]
) -> set[str]:
    """Returns the parents and their ancestors over the same rows: not those before a union."""
    line = set(parents).union(*(ancestors[p] for p in parents))
    return {other for other in line if planned[other].root == planned[parents[0]].root}


def _find(
    recipe: Recipe,
    name: str,
    source: str,
    line: set[str],
    planned: dict[str, PlannedStage],
    ancestors: dict[str, set[str]],
    is_required: bool,
    reader: Stage,
) -> Binding | None:
    """Returns the binding of `column` or `stage.column`; None for a missing optional column.

    A column written again by a descendant hides the earlier one. Two writers of which neither
    descends from the other are ambiguous: RecipeError.
    """
    stage, dot, column = source.rpartition(".")
    if dot:
        if stage not in recipe.stages:
            do = reader.hint(source) or did_you_mean(stage, sorted(line), "ancestors")
            raise RecipeError(f"no stage '{stage}'", recipe.where(name), do)
        if stage not in line:
            found, do = f"'{stage}' is no ancestor of '{name}'", "add it to `from`; ancestors"
            if stage in ancestors[name]:
                found, do = f"'{stage}' has other rows: a union stands between", "name one of these"
            raise RecipeError(found, recipe.where(name), f"{do}: {', '.join(sorted(line))}")
        if type_of(planned[stage].stage, column) is None and not is_required:
            # Look for an optional column among that stage's ancestors too.
            line = _line([stage], planned, ancestors)
            return _find(recipe, name, column, line, planned, ancestors, is_required, reader)
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
    if not is_required:
        return None
    visible = {written.name for other in line for written in columns_of(planned[other].stage)}
    raise RecipeError(
        found=f"no ancestor writes column '{source}'",
        where=recipe.where(name),
        do=reader.hint(source)
        or _beside(source, line, planned)
        or _elsewhere(source)
        or did_you_mean(source, sorted(visible), "columns here"),
    )


def _beside(source: str, line: set[str], planned: dict[str, PlannedStage]) -> str:
    """Returns advice if a stage over the same rows writes the column but is no ancestor."""
    roots = {planned[other].root for other in line}
    writers = [
        f"'{other}'"
        for other in sorted(planned.keys() - line)
        if planned[other].root in roots
        and source in {written.name for written in columns_of(planned[other].stage)}
    ]
    return f"add to `from` a stage that writes it: {', '.join(writers)}" if writers else ""


def _elsewhere(source: str) -> str:
    """Returns advice if known stages write the column with any settings, and do not read it."""
    writers = []
    for uses in known_uses():
        try:
            cls = stage_class(uses, uses)
        except ClipmillError:  # a user's unfinished stage
            continue
        written, read = (
            {column.name for column in columns if isinstance(column, Column)}
            for columns in map(_of_class, (cls.writes, cls.reads))
        )
        if "rows" in cls.takes and source in written - read:
            writers.append(uses)
    names = ", ".join(writers[:MOST_WRITERS])
    return f"let a stage come before it that writes it: {names}" if names else ""


def _of_class(columns: object) -> tuple[object, ...]:
    """Returns columns that a class declares; none where its settings decide."""
    return columns if isinstance(columns, tuple) else ()


def type_of(stage: Stage, column: str) -> pa.DataType | None:
    """Returns the type of a stage's column; None if the stage does not write it."""
    if column == REASON.name:
        return REASON.dtype
    types = {written.name: written.dtype for written in columns_of(stage)}
    return types.get(column)


def columns_of(stage: Stage) -> tuple[Column, ...]:
    """Returns the columns that a stage writes, and its virtual columns."""
    return (*stage.writes, *(stage.virtual if isinstance(stage, DatasetStage) else ()))
