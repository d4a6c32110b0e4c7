"""Collects what stages note on their inputs, and warns of training rows that are scored too."""

from collections.abc import Iterator, Mapping

import pyarrow as pa
import pyarrow.compute as pc

from clipmill.metadata.hosts import host_of
from clipmill.metadata.schema import KEEP, SHA256, SOURCE, URL, Column
from clipmill.pipeline.ledger.rows.stored import binding, json_artifacts, tables
from clipmill.pipeline.planning.planned import PlannedStage
from clipmill.pipeline.planning.selects import thresholds_of
from clipmill.pipeline.run_folder.state import RunState

MOST_ROWS = 500_000  # largest pool that is searched: a second
OWN = r"^(localhost|127\..*|10\..*|192\.168\..*|\[::1\])$"  # hosts of local copies
HIGH = "expect these to score above nearly all others as good, and to be kept first"
HIGHER = "expect these to score above others as good (AUC .64 to .93, the more the fewer they are)"
TWICE = (
    "expect these to be kept first, 99 of 100 where 90 of other good rows are, and faulty ones 60"
    " where 30 are"
)


def notes(state: RunState) -> dict[str, tuple[str, ...]]:
    """Returns the sentences, by stage."""
    sentences = {}
    for name, stage in state.stages.items():
        artifacts = json_artifacts(stage, "notes")  # of a model, what it learnt from
        own = [note for artifact in artifacts for note in artifact.get("notes", ())]
        lines = [*own, *(_one_host(state, name) if artifacts else ())]
        if lines := [*lines, *_seen(state, name), *_one_maker(state, name)]:
            sentences[name] = tuple(lines)
    return sentences


def _lessons(state: RunState, trainer: PlannedStage) -> Iterator[tuple[str, str, bool]]:
    """Yields each pool that a model learnt from: root, a stage over it, whether a select chose."""
    # A trainer without a root of its own reads its parents one after another.
    names = [trainer.name] if trainer.root else trainer.parents
    for name, bound in zip(names, trainer.bindings, strict=False):
        yield state.plan.stages[name].root, name, KEEP.name in bound


def _one_host(state: RunState, name: str) -> Iterator[str]:
    """Yields a sentence if the training rows that the model does not score link to one host."""
    lessons = list(_lessons(state, state.plan.stages[name]))
    scored = {planned.root for planned in state.plan.stages.values() if planned.model == name}
    training = {root: stage for root, stage, _ in lessons if root not in scored}
    hosts: set[str | None] = set()
    for stage in training.values():
        urls = _column(state, stage, URL)
        hosts |= {None} if urls is None else {*pc.unique(host_of(urls)).to_pylist()}
    if len(hosts) != 1 or None in hosts:
        return
    [host] = hosts
    if pc.match_substring_regex(host, OWN).as_py():
        return
    if all(root in training for root, *_ in lessons):
        yield (
            f"all rows it learnt from are of one host, {host}: where that is one maker's style,"
            " expect other pictures to be scored less well (AUC .60 to .68, its own .69 to .80)"
        )
    else:
        yield (
            f"all rows of {', '.join(training)} are of one host, {host}: where that is one maker's"
            " style, expect other pictures to be scored as if the pool alone had taught (AUC .89"
            " with these rows and without)"
        )


def _seen(state: RunState, name: str) -> Iterator[str]:
    """Yields sentences if a stage scores rows that its model learnt from."""
    planned = state.plan.stages[name]
    trainer = state.plan.stages[planned.model] if planned.model else None
    if trainer is None or not planned.root or not state.stages[name].complete:
        return
    has_folds = getattr(trainer.stage, "folds", 1) > 1  # then no row is scored by what it taught
    lessons = list(_lessons(state, trainer))
    own = any(root == planned.root for root, *_ in lessons)
    for root, stage, chosen in lessons:
        if root == planned.root:
            if chosen and not has_folds:
                expect = HIGH if len(lessons) == 1 else HIGHER
                cuts = ", ".join(f"'{select}'" for select in _ranking(state.plan.stages, name))
                mixed = (
                    f"; {cuts} ranks them among others: `folds` scores all alike" if cuts else ""
                )
                yield f"'{trainer.name}' learnt from some of these rows: {expect}{mixed}"
            continue
        learnt, scored = (_column(state, over, SHA256) for over in (stage, name))
        if learnt is not None and scored is not None:
            again = pc.sum(pc.is_in(scored, value_set=pc.drop_null(learnt))).as_py()
            if again:
                taught = f"'{trainer.name}' learnt from{' twice' if own else ''}"
                yield (
                    f"{again:,} of its rows have pictures that {taught}: {TWICE if own else HIGH};"
                    f" take them out of '{planned.root}' or of '{root}'"
                )


def _one_maker(state: RunState, name: str) -> Iterator[str]:
    """Yields a sentence if good rows, by which a mixture learnt its weights, are of one source or
    host, and others are not."""
    learn = getattr(state.plan.stages[name].stage, "learn", None)
    if learn is None or not state.stages[name].complete:
        return
    good = _column(state, name, Column(learn.good, pa.bool_(), "", ""))
    for kind, column in (("source", SOURCE), ("host", URL)):
        values = _column(state, name, column)
        if good is None or values is None:
            continue
        values = values if column == SOURCE else host_of(values)
        [maker, *more] = pc.unique(values.filter(good.fill_null(False))).to_pylist()
        if more or maker is None or len(pc.unique(values)) == 1:
            continue
        yield (
            f"all good rows are of one {kind}, {maker}, and others are not: expect weights to tell"
            " its style too; mix columns that mean quality, or name good rows of several"
        )
        return


def _ranking(stages: Mapping[str, PlannedStage], name: str) -> Iterator[str]:
    """Yields the selects that keep a number or share of rows, ranked by a column of the stage or by
    one that is computed from such a column."""
    made = {name}
    for other, planned in stages.items():  # parents first
        read = {column: stage for bound in planned.bindings for column, (stage, _) in bound.items()}
        if planned.is_select:
            cuts = [cut.column for cut in thresholds_of(planned) if cut.is_size]
            if any(read.get(column) in made for column in cuts):
                yield other
        elif made & {stage for column, stage in read.items() if column != KEEP.name}:
            made.add(other)


def _column(state: RunState, name: str, column: Column) -> pa.ChunkedArray | None:
    """Returns a column over a stage's pool; None if it has none or several, or is large."""
    root, bound = state.plan.stages[name].root, binding(state, name, column.name)
    if bound is None or not root:
        return None
    if not all(state.stages[stage].complete for stage in (root, bound[0])):
        return None
    if state.stages[root].shards.rows > MOST_ROWS:
        return None
    parts = (table[column.name] for table in tables(state, root, {column.name: bound}))
    return pa.chunked_array([chunk for part in parts for chunk in part.chunks], column.dtype)
