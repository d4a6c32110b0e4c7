"""Binds the columns that a stage reads to the ancestors that write them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import pyarrow as pa

from clipmill.metadata.schema import (
    CAPTIONS,
    KEEP,
    ORIGINAL,
    REASON,
    REPEATS,
    UID,
    Column,
    Derived,
)
from clipmill.pipeline.errors import ClipmillError, RecipeError, did_you_mean
from clipmill.pipeline.planning.planned import Binding, PlannedStage
from clipmill.pipeline.planning.recipe import Recipe
from clipmill.pipeline.planning.settings import known_uses, stage_class
from clipmill.pipeline.stage import DatasetStage, Stage

MOST_WRITERS = 4  # named in an error


@dataclass
class Draft:
    """A recipe's stages that are planned so far, and the ancestors of each."""

    recipe: Recipe
    planned: dict[str, PlannedStage] = field(default_factory=dict)
    ancestors: dict[str, set[str]] = field(default_factory=dict)

    def line_of(self, parents: Sequence[str]) -> set[str]:
        """Returns stages with all their ancestors."""
        return set(parents).union(*(self.ancestors[parent] for parent in parents))

    def type_of(self, binding: Binding) -> pa.DataType | None:
        """Returns the type of a bound column; None if its stage does not write it."""
        return type_of(self.planned[binding[0]].stage, binding[1])


def bind(draft: Draft, name: str, stage: Stage, parents: list[str]) -> dict[str, Binding]:
    """Returns stage and column for each name that the stage reads; else raises RecipeError."""
    recipe, line = draft.recipe, _line(draft, parents)
    if name == ORIGINAL and parents and CAPTIONS in stage.writes:  # a text's source is its stage
        found = f"the texts of a stage '{name}' would pass for the pool's own"
        raise RecipeError(found, recipe.where(name), "give the stage another name")
    chosen = recipe.stages[name].get("read", {})
    if not isinstance(chosen, dict):
        do = "write {column: stage.column}"
        raise RecipeError(f"`read` is {chosen!r}", recipe.where(name, "read"), do)
    for read, source in chosen.items():
        if not isinstance(source, str):
            where, do = recipe.where(name, "read", read), f"write {{{read}: stage.column}}"
            raise RecipeError(f"'{read}' is bound to {source!r}", where, do)
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
            find = partial(_find, draft, name, stage, source, line)
            # What the recipe names itself must be there, if only before the stage that it names.
            binding = find(is_required) or find(read in chosen)
            if binding is None:
                continue
            bound[read] = binding
            have = draft.type_of(binding)
            types[read] = column.dtype if isinstance(column, Derived) else have
            if isinstance(stored, Column):
                _check_type(draft, name, read, stored, binding)
            break
    for read in chosen:
        if read not in names:
            where, do = recipe.where(name, "read", read), f"it reads: {', '.join(sorted(names))}"
            raise RecipeError(f"the stage reads no '{read}'", where, do)
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


def _check_type(draft: Draft, name: str, read: str, column: Column, binding: Binding) -> None:
    have = draft.type_of(binding)
    if not column.accepts(have):
        raise RecipeError(
            found=f"{'.'.join(binding)} is {have}, and '{column.name}' is {column.dtype}",
            where=draft.recipe.where(name, "read"),
            do=f"bind another column, read: {{{read}: stage.column}}: {column.doc}",
        )


def bind_mask(draft: Draft, name: str, select: str) -> dict[str, Binding]:
    """Binds a select's `keep`, and `repeats` if the select or an ancestor writes it.

    An export of the select would read the same columns.
    """
    recipe, reader = draft.recipe, draft.planned[select].stage
    bound = {KEEP.name: (select, KEEP.name)}
    chosen = recipe.stages[name].get("read", {})
    if not isinstance(chosen, dict) or chosen.keys() - {REPEATS.name}:
        do = "write `read: {repeats: stage.repeats}`, or leave it out"
        raise RecipeError(f"`read` is {chosen!r}", recipe.where(name, "read"), do)
    source = chosen.get(REPEATS.name, REPEATS.name)
    find = partial(_find, draft, name, reader, source, _line(draft, [select]))
    repeats = find(False) or find(bool(chosen))
    if repeats:
        _check_type(draft, name, REPEATS.name, REPEATS, repeats)
        bound[REPEATS.name] = repeats
    return bound


def _line(draft: Draft, parents: list[str]) -> set[str]:
    """Returns the parents and their ancestors over the same rows: not those before a union."""
    root = draft.planned[parents[0]].root
    return {other for other in draft.line_of(parents) if draft.planned[other].root == root}


def _find(
    draft: Draft, name: str, reader: Stage, source: str, line: set[str], is_required: bool
) -> Binding | None:
    """Returns the binding of `column` or `stage.column`; None for a missing optional column.

    A column written again by a descendant hides the earlier one. Two writers of which neither
    descends from the other are ambiguous: RecipeError.
    """
    recipe, planned, ancestors = draft.recipe, draft.planned, draft.ancestors
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
        if draft.type_of((stage, column)) is None:
            if not is_required:  # look for an optional column among that stage's ancestors too
                return _find(draft, name, reader, column, _line(draft, [stage]), is_required)
            have = [written.name for written in columns_of(planned[stage].stage)] + [REASON.name]
            raise RecipeError(
                found=f"'{stage}' writes no '{column}'",
                where=recipe.where(name),
                do=did_you_mean(column, have, f"'{stage}' writes"),
            )
        return stage, column
    writers = _writers(draft, source, line)
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
        or _beside(draft, source, line)
        or _elsewhere(source)
        or did_you_mean(source, sorted(visible), "columns here"),
    )


def _writers(draft: Draft, column: str, among: Iterable[str]) -> set[str]:
    """Returns the stages that write a column."""
    written = {name: columns_of(draft.planned[name].stage) for name in among}
    return {name for name in written if any(each.name == column for each in written[name])}


def _beside(draft: Draft, source: str, line: set[str]) -> str:
    """Returns advice if a stage over the same rows writes the column but is no ancestor."""
    roots = {draft.planned[other].root for other in line}
    others = (name for name in draft.planned.keys() - line if draft.planned[name].root in roots)
    names = ", ".join(f"'{name}'" for name in sorted(_writers(draft, source, others)))
    return f"add to `from` a stage that writes it: {names}" if names else ""


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
