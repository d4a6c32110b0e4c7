"""From a recipe to a plan: stages found, settings typed, edges checked, columns bound.

Nothing is opened that costs: a plan of fifteen stages takes a fraction of a second.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf

import pyarrow as pa

from metadata.fingerprint import fingerprint, settings_of
from metadata.schema import UID
from pipeline.bindings import bind, type_of
from pipeline.errors import RecipeError
from pipeline.planned import PlannedStage
from pipeline.recipe import Recipe, nearest
from pipeline.settings import typed_settings
from pipeline.stage import DatasetStage, RowStage, Selects, Stage


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The stages of a recipe in an order in which each stands after what it needs."""

    recipe: Recipe
    seed: int
    stages: dict[str, PlannedStage]

    def needed_by(self, name: str) -> set[str]:
        """The stages before this one, and itself."""
        found: set[str] = set()
        left = [name]
        while left:
            one = left.pop()
            if one not in found:
                found.add(one)
                left += (*self.stages[one].needs, *self.stages[one].parents)
        return found

    def read_of(self, name: str) -> frozenset[str]:
        """The columns of a stage that stages of this plan read."""
        bound = [
            where for one in self.stages.values() for b in one.bindings for where in b.values()
        ]
        return frozenset(column for stage, column in bound if stage == name)

    def schema(self, name: str, column: str) -> pa.DataType:
        """The stored type of a stage's column."""
        found = UID.dtype if column == UID.name else type_of(self.stages[name].stage, column)
        assert found is not None, f"'{name}' writes no '{column}'"
        return found


def make_plan(recipe: Recipe, until: str | None = None) -> Plan:
    """The plan of a recipe; RecipeError where anything in it cannot be."""
    settings = {name: typed_settings(recipe, name) for name in recipe.stages}
    order = _order(recipe)
    planned: dict[str, PlannedStage] = {}
    ancestors: dict[str, set[str]] = {}
    for name in order:
        planned[name] = _planned(recipe, name, settings[name], planned, ancestors)
    if any(one.stage.limits for one in planned.values()):
        _check_thresholds(planned)
    plan = Plan(recipe=recipe, seed=recipe.seed, stages=planned)
    if until is None:
        return plan
    if until not in planned:
        raise RecipeError(
            f"no stage '{until}'",
            "--until",
            f"did you mean '{nearest(until, planned)}'?",
        )
    wanted = plan.needed_by(until)
    return dataclasses.replace(
        plan, stages={name: stage for name, stage in planned.items() if name in wanted}
    )


def _edges(recipe: Recipe, name: str) -> dict[str, list[str]]:
    """The stages that a stage names, by kind of edge."""
    keys = recipe.stages[name]
    rows = keys.get("from", [])
    rows = rows if isinstance(rows, list) else [rows]
    model = keys.get("model")
    edges = {
        "from": rows,
        "data": [keys["data"]] if "data" in keys else [],
        "only": [keys["only"]] if "only" in keys else [],
        "model": [model.removeprefix("stage:")]
        if isinstance(model, str) and model.startswith("stage:")
        else [],
    }
    for edge, targets in edges.items():
        for target in targets:
            if not isinstance(target, str) or target not in recipe.stages:
                raise RecipeError(
                    found=f"no stage '{target}'",
                    where=recipe.where(name, edge),
                    do=f"did you mean '{nearest(str(target), recipe.stages)}'?"
                    f"  Stages: {', '.join(recipe.stages)}",
                )
    return edges


def _order(recipe: Recipe) -> list[str]:
    """Stage names, each after those it names; the recipe's order otherwise."""
    order: list[str] = []
    path: list[str] = []

    def visit(name: str) -> None:
        if name in order:
            return
        if name in path:
            circle = " -> ".join([*path[path.index(name) :], name])
            raise RecipeError(
                f"a cycle: {circle}",
                recipe.where(name, "from"),
                "break it at one of its edges",
            )
        path.append(name)
        for targets in _edges(recipe, name).values():
            for target in targets:
                visit(target)
        path.pop()
        order.append(name)

    for name in recipe.stages:
        visit(name)
    return order


def _planned(
    recipe: Recipe,
    name: str,
    stage: Stage,
    planned: dict[str, PlannedStage],
    ancestors: dict[str, set[str]],
) -> PlannedStage:
    edges = _edges(recipe, name)
    _check_edges(recipe, name, stage, edges, planned)
    parents = edges["from"]
    ancestors[name] = set().union(*({p} | ancestors[p] for p in parents)) if parents else set()
    roots = dict.fromkeys(planned[p].root for p in parents)
    is_root = stage.takes == () or (isinstance(stage, DatasetStage) and stage.joins_roots)
    if len(roots) > 1 and not is_root:
        raise RecipeError(
            found=f"rows of two roots meet: {', '.join(map(str, roots))}",
            where=recipe.where(name, "from"),
            do="join them with ingest.union first, and go on from there",
        )
    groups = [[p] for p in parents] if is_root and parents else [parents]
    bindings = tuple(
        bind(recipe, name, stage, group, planned, ancestors) for group in groups if group
    )
    root = name if is_root else next(iter(roots), None)
    marks = {
        "bindings": [
            {read: [planned[s].fingerprint, c] for read, (s, c) in bound.items()}
            for bound in bindings
        ],
        "root": planned[root].fingerprint if root and root != name else None,
        "data": [planned[p].fingerprint for p in edges["data"]],
    }
    settings = settings_of(stage)
    if edges["model"]:
        settings["model"] = planned[edges["model"][0]].fingerprint
    uses = recipe.stages[name]["uses"]
    return PlannedStage(
        name=name,
        uses=uses,
        stage=stage,
        parents=tuple(parents),
        data=next(iter(edges["data"]), None),
        model=next(iter(edges["model"]), None),
        only=next(iter(edges["only"]), None),
        root=root,
        bindings=bindings,
        fingerprint=fingerprint(uses, stage.version, settings, marks),
        where=recipe.where(name),
    )


def _check_thresholds(planned: Mapping[str, PlannedStage]) -> None:
    for one in planned.values():
        if isinstance(one.stage, Selects):
            for threshold in one.stage.thresholds():
                if not threshold.is_size:
                    check_threshold(planned, one, threshold.column, threshold.value)


def check_threshold(
    stages: Mapping[str, PlannedStage], planned: PlannedStage, column: str, number: float
) -> None:
    """RecipeError where a select compares a column with what its stage cannot tell of."""
    source, name = planned.bindings[0].get(column, ("", ""))
    low, high = stages[source].stage.limits.get(name, (-inf, inf)) if source else (-inf, inf)
    if not low <= number <= high:
        raise RecipeError(
            found=f"{column} is compared with {number:g}, and '{source}' stores values from"
            f" {low:g} to {high:g}",
            where=f"{planned.where}, key `where`",
            do=f"stay in that range, or let '{source}' look further: {stages[source].where}",
        )


def _check_edges(
    recipe: Recipe,
    name: str,
    stage: Stage,
    edges: dict[str, list[str]],
    planned: dict[str, PlannedStage],
) -> None:
    uses = recipe.stages[name]["uses"]
    kinds = {"from": "rows", "data": "data", "model": "model", "only": "rows"}
    for edge, kind in kinds.items():
        for target in edges[edge]:
            gives = planned[target].stage.gives
            if kind not in gives:
                fits = {"rows": "from", "data": "data", "model": 'model: "stage:…"'}
                raise RecipeError(
                    found=f"'{target}' gives {' and '.join(gives)}, and `{edge}` takes {kind}",
                    where=recipe.where(name, edge),
                    do=f"name a stage that gives {kind}, or use `{fits[gives[0]]}`",
                )
        if edge != "only" and edges[edge] and kind not in stage.takes:
            raise RecipeError(
                found=f"{uses} takes no `{edge}`",
                where=recipe.where(name, edge),
                do=f"it takes: {', '.join(stage.takes) or 'nothing; it is a root'}",
            )
    if "rows" in stage.takes and not edges["from"]:
        raise RecipeError(f"{uses} needs rows", recipe.where(name), "write `from: <stage>`")
    if "data" in stage.takes and not edges["data"]:
        raise RecipeError(
            f"{uses} needs a dataset",
            recipe.where(name),
            "write `data: <export stage>`",
        )
    for target in edges["only"]:
        if not planned[target].is_select:
            raise RecipeError(
                f"'{target}' writes no `keep`",
                recipe.where(name, "only"),
                "name a select stage",
            )
        if not isinstance(stage, RowStage):
            raise RecipeError(
                f"{uses} sees the whole pool at once and takes no `only`",
                recipe.where(name, "only"),
                "put `only` on the row stages before it",
            )
