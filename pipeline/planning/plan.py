"""Makes a plan from a recipe: finds stages, parses settings, checks edges, binds columns.

Opens no data: a plan of fifteen stages takes a fraction of a second.
"""

import dataclasses
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from math import inf
from typing import Any

import pyarrow as pa

from clipmill.metadata.fingerprint import fingerprint, plain, settings_of
from clipmill.metadata.schema import KEEP, UID, Column
from clipmill.pipeline.dataset import Step
from clipmill.pipeline.errors import RecipeError, did_you_mean
from clipmill.pipeline.planning.bindings import Draft, bind, bind_mask, type_of
from clipmill.pipeline.planning.edges import FOLDERS, check_edges, edges_of
from clipmill.pipeline.planning.elsewhere import SCHEME, uri_in
from clipmill.pipeline.planning.planned import Binding, PlannedStage, decides
from clipmill.pipeline.planning.recipe import Recipe
from clipmill.pipeline.planning.selects import thresholds_of
from clipmill.pipeline.planning.settings import typed_settings
from clipmill.pipeline.stage import DatasetStage, Stage


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The stages of a recipe in topological order."""

    recipe: Recipe
    seed: int
    stages: dict[str, PlannedStage]

    def needs_of(self, name: str) -> set[str]:
        """Returns the stages that this one depends on, and itself."""
        needed: set[str] = set()
        left = [name]
        while left:
            stage = left.pop()
            if stage not in needed:
                needed.add(stage)
                left += (*self.stages[stage].needs, *self.stages[stage].parents)
        return needed

    def read_of(self, name: str, except_by: Set[str] = frozenset()) -> frozenset[str]:
        """Returns the columns of a stage that stages of this plan read, except by some."""
        bound = [
            binding
            for planned in self.stages.values()
            if planned.name not in except_by
            for bindings in (*planned.bindings, planned.mask)
            for binding in bindings.values()
        ]
        return frozenset(column for stage, column in bound if stage == name)

    def steps_to(self, name: str) -> tuple[Step, ...]:
        """Returns the stages that this one depends on, with their settings, for a data card."""
        before = self.needs_of(name) - {name}
        steps = []
        for planned in (planned for planned in self.stages.values() if planned.name in before):
            written = self.recipe.stages[planned.name]
            settings = {
                key: value for key, value in settings_of(planned.stage).items() if key in written
            }
            for key, value in written.items():
                if isinstance(value, str) and "://" in value:
                    settings[key] = plain(value)
            steps.append(Step(stage=planned.name, uses=planned.uses, settings=settings))
        return tuple(steps)

    def model_named(self, name: str) -> str | None:
        """Returns the model that a stage's setting `model` names: see `Inputs.model_of`."""
        planned = self.stages[name]
        if planned.model:
            trained = self.stages[planned.model]
            return f"{trained.uses}@{trained.fingerprint}"
        model = getattr(planned.stage, "model", None)
        return model if isinstance(model, str) else None

    def models_of(self, name: str | None) -> dict[str, str]:
        """Returns the model that made each column a stage reads: see `Inputs.model_of`.

        A stage that reads an export has the export's columns.
        """
        while name and self.stages[name].data:
            name = self.stages[name].data
        bindings = self.stages[name].bindings if name else ()
        reads = [read for bound in bindings for read in bound.items()]
        models = {read: self.model_named(source) for read, (source, _) in reads}
        return {read: model for read, model in models.items() if model}

    def schema(self, name: str, column: str) -> pa.DataType:
        """Returns the stored type of a stage's column."""
        dtype = UID.dtype if column == UID.name else type_of(self.stages[name].stage, column)
        assert dtype is not None, f"'{name}' writes no '{column}'"
        return dtype


def make_plan(recipe: Recipe, until: str | None = None) -> Plan:
    """Plans a recipe, up to stage `until` if given; raises RecipeError on any mistake in it."""
    settings = {name: typed_settings(recipe, name) for name in recipe.stages}
    order = _order(recipe, settings)
    draft = Draft(recipe)
    planned = draft.planned
    for name in order:
        planned[name] = _planned(draft, name, settings[name])
    if any(stage.stage.bounds for stage in planned.values()):
        thresholds = ((stage, each) for stage in planned.values() for each in thresholds_of(stage))
        for stage, threshold in thresholds:
            if not threshold.is_size:
                check_threshold(planned, stage, threshold.column, threshold.value)
    _check_clusters(planned)
    plan = Plan(recipe=recipe, seed=recipe.seed, stages=planned)
    if until is None:
        return plan
    if until not in planned:
        raise RecipeError(
            f"no stage '{until}'", "--until", did_you_mean(until, planned, "the recipe has")
        )
    needed = plan.needs_of(until)
    return dataclasses.replace(
        plan, stages={name: stage for name, stage in planned.items() if name in needed}
    )


def _order(recipe: Recipe, settings: Mapping[str, Stage]) -> list[str]:
    """Returns stage names in topological order, ties in the recipe's order."""
    order: list[str] = []
    path: list[str] = []

    def visit(name: str) -> None:
        if name in order:
            return
        if name in path:
            cycle = " -> ".join([*path[path.index(name) :], name])
            raise RecipeError(
                f"a cycle: {cycle}", recipe.where(name, "from"), "break it at one of its edges"
            )
        path.append(name)
        for targets in edges_of(recipe, name, settings[name]).values():
            for target in targets:
                visit(target)
        path.pop()
        order.append(name)

    for name in recipe.stages:
        visit(name)
    return order


def _planned(draft: Draft, name: str, stage: Stage) -> PlannedStage:
    """Plans one stage after its parents; adds its ancestors to the draft."""
    recipe, planned = draft.recipe, draft.planned
    edges = edges_of(recipe, name, stage)
    check_edges(draft, name, stage, edges)
    parents = edges["from"]
    draft.ancestors[name] = draft.line_of(parents)
    roots = dict.fromkeys(planned[p].root for p in parents)
    is_root = stage.takes == () or (isinstance(stage, DatasetStage) and stage.joins_roots)
    reads_roots = isinstance(stage, DatasetStage) and stage.reads_roots and len(roots) > 1
    if len(roots) > 1 and not (is_root or reads_roots):
        raise RecipeError(
            found=f"rows of two roots meet: {', '.join(roots)}",
            where=recipe.where(name, "from"),
            do="join them with ingest.union first, and go on from there",
        )
    apart = (is_root or reads_roots) and parents
    groups = [[p] for p in parents] if apart else [parents]
    bindings = tuple(bind(draft, name, stage, group) for group in groups if group)
    if name not in recipe.remembered:
        _check_earlier_select(draft, name, stage, bindings, edges)
    if not parents and not edges["rows"] and "read" in recipe.stages[name]:
        do = "leave it out: `read` binds columns of stages in `from`"
        raise RecipeError(f"`read`, and '{name}' has no `from`", recipe.where(name, "read"), do)
    mask: dict[str, Binding] = {}
    if edges["rows"]:
        mask = bind_mask(draft, name, edges["rows"][0])
    root = "" if reads_roots else next(iter(roots), "")
    if is_root:
        root = name
    marks: dict[str, Any] = {
        "bindings": [_sources(planned, bound) for bound in bindings],
        "root": planned[root].fingerprint if root and not is_root else None,
        "data": [planned[p].fingerprint for p in edges["data"]],
    }
    elsewhere = uri_in(recipe.stages[name])
    if elsewhere is not None:
        marks["data"] = [SCHEME + str(plain(elsewhere))]
    if mask:
        marks["rows"] = _sources(planned, mask)
    settings = settings_of(stage) | dict(stage.digests)
    settings |= {edge: planned[edges[edge][0]].fingerprint for edge in FOLDERS if edges[edge]}
    uses = recipe.stages[name]["uses"]
    return PlannedStage(
        name=name,
        uses=uses,
        stage=stage,
        parents=tuple(parents),
        elsewhere=elsewhere,
        **{edge: next(iter(edges[edge]), None) for edge in ("data", "only", *FOLDERS)},
        root=root,
        bindings=bindings,
        mask=mask,
        fingerprint=recipe.folders[name].rpartition("-")[2]
        if name in recipe.remembered
        else fingerprint(uses, stage.version, settings, marks),
        where=recipe.where(name),
    )


def _sources(
    planned: Mapping[str, PlannedStage], bound: Mapping[str, Binding]
) -> dict[str, list[str]]:
    """Returns the fingerprint of the stage, and the name, of each column that is read."""
    return {read: [planned[s].fingerprint, c] for read, (s, c) in bound.items()}


def _check_earlier_select(
    draft: Draft,
    name: str,
    stage: Stage,
    bindings: Sequence[Mapping[str, Binding]],
    edges: Mapping[str, Sequence[str]],
) -> None:
    """Raises RecipeError if a select after another ignores `keep`, so dropped rows would return."""
    recipe, planned = draft.recipe, draft.planned
    reads_keep = any(column == KEEP.name for bound in bindings for _, column in bound.values())
    ancestors = draft.ancestors[name]
    earlier = [other for other in planned if other in ancestors and planned[other].is_select]
    if not decides(stage) or not earlier or reads_keep or edges["only"]:
        return
    if planned[earlier[-1]].root not in {planned[parent].root for parent in edges["from"]}:
        raise RecipeError(
            found=f"a union before '{name}' takes along what '{earlier[-1]}' dropped",
            where=recipe.where(name, "from"),
            do=f"let '{earlier[-1]}' come after the union",
        )
    raise RecipeError(
        found=f"'{name}' reads no `keep`, so rows that '{earlier[-1]}' dropped would be kept again",
        where=recipe.where(name, "uses"),
        do="write `optional_reads = (KEEP,)` into its class, import KEEP from"
        " clipmill.metadata.schema, and keep no row whose `keep` is false",
    )


def _check_clusters(planned: Mapping[str, PlannedStage]) -> None:
    """Raises RecipeError if a stage reads one stage's clusters and another's centroids."""
    for stage in planned.values():
        if not stage.centroids or not stage.bindings:
            continue
        columns = [column for column in stage.stage.reads if isinstance(column, Column)]
        clusters = {column.name for column in columns if column.names == "cluster"}
        for read, (source, _) in stage.bindings[0].items():
            if read in clusters and source != stage.centroids:
                found = f"'{read}' is of '{source}', and the centroids are of '{stage.centroids}'"
                do = f'write centroids: "stage:{source}", or read {stage.centroids}.{read}'
                raise RecipeError(found, f"{stage.where}, key `centroids`", do)


def check_retry(plan: Plan, reasons: Sequence[str]) -> None:
    """Raises RecipeError for a reason of `--retry` that no stage of the plan retries."""
    stages = [planned.stage for planned in plan.stages.values()]
    known = sorted({"crashed"}.union(*(stage.transient for stage in stages)))
    for reason in reasons:
        if reason in known:
            continue
        if any(reason in stage.reasons for stage in stages):
            found = f"'{reason}' is a reason that does not pass: no row is tried again for it"
            raise RecipeError(found, "--retry", f"reasons that pass, here: {', '.join(known)}")
        found = f"'{reason}' is no reason that can be retried here"
        raise RecipeError(found, "--retry", did_you_mean(reason, known, "reasons that pass, here"))


def check_threshold(
    stages: Mapping[str, PlannedStage], planned: PlannedStage, column: str, number: float
) -> None:
    """Raises RecipeError if a threshold lies outside the values that its column's stage stores."""
    source, name = planned.bindings[0].get(column, ("", ""))
    low, high = stages[source].stage.bounds.get(name, (-inf, inf)) if source else (-inf, inf)
    if not low <= number <= high:
        raise RecipeError(
            found=f"{column} is compared with {number:g}, and '{source}' stores values from"
            f" {low:g} to {high:g}",
            where=f"{planned.where}, key `where`",
            do=f"stay in that range, or let '{source}' look further: {stages[source].where}",
        )
